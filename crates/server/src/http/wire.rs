//! From the inner types to those of the wire, and back. Names on the wire are the API's alone.

use chrono::{DateTime, NaiveDate, Utc};
use skep_api as api;
use skep_core as core;
use skep_store as store;

use crate::http::error::ApiError;

/// What a user has who never signed in: the zero time of the reference system.
fn never() -> DateTime<Utc> {
    NaiveDate::from_ymd_opt(1, 1, 1)
        .and_then(|day| day.and_hms_opt(0, 0, 0))
        .map_or(DateTime::UNIX_EPOCH, |time| time.and_utc())
}

/// A user.
pub fn user(row: store::UserRow) -> api::User {
    api::User {
        id: row.id,
        username: row.username,
        email: row.email,
        role: role(row.role),
        display_name: row.display_name,
        avatar_url: row.avatar_url,
        timezone: row.timezone,
        is_active: row.is_active,
        created_at: row.created_at,
        updated_at: row.updated_at,
        last_login_at: row.last_login_at.unwrap_or_else(never),
    }
}

/// A role.
pub fn role(role: store::UserRole) -> api::Role {
    match role {
        store::UserRole::Admin => api::Role::Admin,
        store::UserRole::Member => api::Role::Member,
    }
}

/// A scope.
pub fn scope(scope: store::Scope) -> api::Scope {
    match scope {
        store::Scope::Read => api::Scope::Read,
        store::Scope::Operate => api::Scope::Operate,
        store::Scope::Manage => api::Scope::Manage,
    }
}

/// A scope that was asked for.
pub fn scope_asked(scope: api::Scope) -> store::Scope {
    match scope {
        api::Scope::Read => store::Scope::Read,
        api::Scope::Operate => store::Scope::Operate,
        api::Scope::Manage => store::Scope::Manage,
    }
}

/// A key, without its secret.
pub fn api_key(row: store::ApiKeyRow) -> api::ApiKey {
    api::ApiKey {
        id: row.id,
        name: row.name,
        scope: scope(row.scope),
        bots: row.bots,
        expires_at: row.expires_at,
        created_at: row.created_at,
        last_used_at: row.last_used_at,
    }
}

/// A member.
pub fn member(row: store::MemberRow) -> api::Member {
    api::Member {
        user_id: row.user_id,
        role: match row.role {
            store::MemberRole::Viewer => api::MemberRole::Viewer,
            store::MemberRole::Operator => api::MemberRole::Operator,
            store::MemberRole::Manager => api::MemberRole::Manager,
        },
        created_at: row.created_at,
    }
}

/// A member's role that was asked for.
pub fn member_role_asked(role: api::MemberRole) -> store::MemberRole {
    match role {
        api::MemberRole::Viewer => store::MemberRole::Viewer,
        api::MemberRole::Operator => store::MemberRole::Operator,
        api::MemberRole::Manager => store::MemberRole::Manager,
    }
}

/// What a workspace uses.
pub fn metrics(backend: &str, metrics: core::WorkspaceMetrics) -> api::MetricsResponse {
    let live = metrics.live.as_ref();
    let usage = live.map(|live| live.usage).unwrap_or_default();
    api::MetricsResponse {
        supported: true,
        backend: backend.to_owned(),
        unsupported_reason: None,
        status: api::MetricsStatus {
            exists: metrics.exists,
            task_running: live.is_some(),
        },
        metrics: api::Metrics {
            cpu: live.and_then(cpu),
            memory: usage.memory_bytes.map(|used| memory(used, usage.memory_limit_bytes)),
            storage: metrics.storage.map(|storage| api::StorageMetrics {
                path: "/".to_owned(),
                used_bytes: storage.bytes,
                sampled_at: storage.sampled_at,
            }),
            pids: usage.pids,
            network: usage.network.map(|network| api::NetworkMetrics {
                rx_bytes: network.received,
                tx_bytes: network.sent,
            }),
            io: usage.io.map(|io| api::IoMetrics {
                read_bytes: io.read,
                write_bytes: io.written,
            }),
        },
        sampled_at: live.map(|live| live.sampled_at),
    }
}

fn cpu(live: &core::LiveMetrics) -> Option<api::CpuMetrics> {
    Some(api::CpuMetrics {
        usage_percent: live.processor_percent?,
        usage_nanoseconds: live.usage.cpu_nanoseconds?,
        user_nanoseconds: live.usage.cpu_user_nanoseconds?,
        kernel_nanoseconds: live.usage.cpu_kernel_nanoseconds?,
    })
}

fn memory(used: u64, limit: Option<u64>) -> api::MemoryMetrics {
    api::MemoryMetrics {
        usage_bytes: used,
        limit_bytes: limit.unwrap_or(0),
        usage_percent: limit.map(|limit| used as f64 / limit as f64 * 100.0),
    }
}

/// A bot.
pub fn bot(bot: core::Bot) -> api::Bot {
    let row = bot.row;
    api::Bot {
        id: row.id.to_string(),
        owner_user_id: row.owner_user_id,
        display_name: row.display_name,
        avatar_url: row.avatar_url,
        timezone: row.timezone,
        is_active: row.is_active,
        status: match row.status {
            core::BotStatus::Creating => api::BotStatus::Creating,
            core::BotStatus::Ready => api::BotStatus::Ready,
            core::BotStatus::Deleting => api::BotStatus::Deleting,
        },
        check_state: match bot.check_state {
            core::CheckState::Ok => api::CheckState::Ok,
            core::CheckState::Issue => api::CheckState::Issue,
        },
        check_issue_count: bot.check_issue_count,
        metadata: Some(serde_json::Value::Object(row.metadata)),
        created_at: row.created_at,
        updated_at: row.updated_at,
        container: None,
        container_error: None,
    }
}

/// The state of a workspace.
pub fn workspace_status(status: core::WorkspaceStatus) -> api::WorkspaceStatus {
    match status {
        core::WorkspaceStatus::Created => api::WorkspaceStatus::Created,
        core::WorkspaceStatus::Running => api::WorkspaceStatus::Running,
        core::WorkspaceStatus::Stopped => api::WorkspaceStatus::Stopped,
        core::WorkspaceStatus::Error => api::WorkspaceStatus::Error,
        core::WorkspaceStatus::Missing => api::WorkspaceStatus::Missing,
        core::WorkspaceStatus::Unknown => api::WorkspaceStatus::Unknown,
    }
}

/// What was asked for last.
pub fn desired(desired: core::Desired) -> api::Desired {
    match desired {
        core::Desired::Running => api::Desired::Running,
        core::Desired::Stopped => api::Desired::Stopped,
    }
}

/// Limits.
pub fn limits(limits: core::LimitsColumn) -> api::Limits {
    api::Limits {
        cpu_millicores: limits.cpu_millicores,
        memory_bytes: limits.memory_bytes,
        pids: limits.pids,
        storage_bytes: limits.storage_bytes,
    }
}

/// Limits as wanted and in force.
pub fn limits_report(report: core::LimitsReport) -> api::LimitsResponse {
    api::LimitsResponse {
        wanted: limits(report.wanted),
        applied: report.applied.map(limits),
    }
}

/// A workspace.
pub fn container_info(info: core::WorkspaceInfo) -> api::ContainerInfo {
    api::ContainerInfo {
        container_id: info.container_id,
        image: info.image,
        status: workspace_status(info.status),
        namespace: info.namespace,
        container_path: info.container_path,
        cdi_devices: info.cdi_devices,
        task_running: info.task_running,
        has_preserved_data: info.has_preserved_data,
        legacy: info.legacy,
        created_at: info.created_at,
        updated_at: info.updated_at,
        recoverable: info.recoverable,
        image_digest: info.image_digest,
        snapshotter: Some(info.snapshotter).filter(|name| !name.is_empty()),
        limits: limits_report(info.limits),
        storage_over_limit: info.storage_over_limit,
        isolation: info.isolation.map(|isolation| api::Isolation {
            user_namespace: isolation.user_namespace,
            seccomp: isolation.seccomp,
            apparmor: isolation.apparmor,
            no_new_privileges: isolation.no_new_privileges,
            capabilities: isolation.capabilities,
            network: isolation.network,
            storage_quota: isolation.storage_quota,
        }),
        ip: info.ip.map(|address| address.to_string()),
        uptime_seconds: info.uptime_seconds,
        desired: desired(info.desired),
        reason: info.reason,
    }
}

/// What a create made or found.
pub fn container(done: core::CompletedWorkspace) -> api::Container {
    api::Container {
        container_id: done.container_id,
        image: done.image,
        snapshotter: done.snapshotter,
        cdi_devices: done.cdi_devices,
        started: done.started,
        data_restored: done.data_restored,
        has_preserved_data: done.has_preserved_data,
        warnings: done.warnings,
    }
}

/// A version that was kept.
pub fn snapshot(taken: core::TakenSnapshot) -> api::Snapshot {
    api::Snapshot {
        snapshot_name: core::shown_name(&taken.display_name, taken.version),
        container_id: taken.container_id,
        runtime_snapshot_name: taken.runtime_snapshot_name,
        display_name: taken.display_name,
        snapshotter: taken.snapshotter,
        version: taken.version,
        source: taken.source,
    }
}

/// The layers of a workspace.
pub fn snapshot_list(list: core::SnapshotList) -> api::SnapshotList {
    api::SnapshotList {
        snapshotter: list.snapshotter,
        snapshots: list.snapshots.into_iter().map(snapshot_item).collect(),
    }
}

fn snapshot_item(item: core::SnapshotItem) -> api::SnapshotItem {
    api::SnapshotItem {
        snapshotter: item.snapshotter,
        name: item.name,
        display_name: item.display_name,
        runtime_snapshot_name: item.runtime_snapshot_name,
        parent: item.parent,
        kind: match item.kind {
            skep_runtime::LayerKind::Active => api::SnapshotKind::Active,
            skep_runtime::LayerKind::Committed => api::SnapshotKind::Committed,
        },
        created_at: item.created_at,
        updated_at: item.updated_at,
        labels: item.labels,
        source: item.source,
        managed: item.managed,
        version: item.version,
    }
}

/// Backups as they are listed; whose a bot was stays with us.
pub fn backups(backups: Vec<core::Backup>) -> api::BackupList {
    let shown = |backup: core::Backup| api::Backup {
        name: backup.name,
        bot_id: backup.bot_id.to_string(),
        size_bytes: backup.size_bytes,
        entries: backup.entries,
        sha256: backup.sha256,
        created_at: backup.created_at,
        verified: backup.verified,
    };
    api::BackupList {
        items: backups.into_iter().map(shown).collect(),
    }
}

/// What of an archive is in `/data` now.
pub fn imported(imported: core::Imported) -> api::ImportedResponse {
    api::ImportedResponse {
        imported: true,
        entries: imported.entries,
        bytes: imported.bytes,
        skipped: imported.skipped,
        remapped: imported.remapped,
        cleared: imported.cleared,
    }
}

/// What becomes of what is there.
pub fn restore_mode(mode: api::RestoreMode) -> core::RestoreMode {
    match mode {
        api::RestoreMode::Merge => core::RestoreMode::Merge,
        api::RestoreMode::Replace => core::RestoreMode::Replace,
    }
}

/// A code.
pub fn code(code: core::Code) -> api::ErrorCode {
    // Both lists are of one contract; a test below holds them together.
    code.as_str().parse().unwrap_or(api::ErrorCode::Internal)
}

/// One event of an operation; `request_id` is that of the request that listens, for an error that has none.
pub fn stream_event(body: core::EventBody, request_id: &str) -> api::StreamEvent {
    match body {
        core::EventBody::Pulling { image } => api::StreamEvent::Pulling { image },
        core::EventBody::PullProgress { layers } => api::StreamEvent::PullProgress {
            layers: layers.into_iter().map(layer).collect(),
        },
        core::EventBody::Creating => api::StreamEvent::Creating,
        core::EventBody::Restoring => api::StreamEvent::Restoring,
        core::EventBody::Step { step } => api::StreamEvent::Step { step },
        core::EventBody::Progress { done, total } => api::StreamEvent::Progress { done, total },
        core::EventBody::Complete { outcome } => api::StreamEvent::Complete {
            container: match outcome {
                core::Outcome::Workspace(done) => Some(container(done)),
                _ => None,
            },
        },
        core::EventBody::Error {
            code,
            message,
            request_id: asked_by,
        } => api::StreamEvent::Error {
            message,
            code: code.parse().unwrap_or(api::ErrorCode::Internal),
            request_id: asked_by.unwrap_or_else(|| request_id.to_owned()),
        },
    }
}

fn layer(layer: core::Layer) -> api::LayerProgress {
    api::LayerProgress {
        reference: layer.digest,
        offset: layer.offset,
        total: layer.total,
        phase: match layer.phase.as_str() {
            "downloading" => api::LayerPhase::Downloading,
            "verifying" => api::LayerPhase::Verifying,
            "extracting" => api::LayerPhase::Extracting,
            "done" => api::LayerPhase::Done,
            _ => api::LayerPhase::Waiting,
        },
    }
}

/// An operation. One of a kind this version does not know is a defect of ours.
pub fn operation(operation: core::Operation) -> Result<api::Operation, ApiError> {
    let kind = serde_json::from_value(serde_json::Value::String(operation.kind)).map_err(ApiError::internal)?;
    Ok(api::Operation {
        id: operation.id,
        bot_id: operation.bot_id.to_string(),
        kind,
        state: match operation.state {
            core::OperationState::Queued => api::OperationState::Queued,
            core::OperationState::Running => api::OperationState::Running,
            core::OperationState::Succeeded => api::OperationState::Succeeded,
            core::OperationState::Failed => api::OperationState::Failed,
            core::OperationState::Cancelled => api::OperationState::Cancelled,
        },
        step: operation.step,
        started_at: operation.started_at,
        finished_at: operation.finished_at,
        error: operation.error.map(|(error, message)| api::OperationError {
            code: code(error),
            message,
        }),
        progress: operation.progress.map(|(done, total)| api::Progress { done, total }),
    })
}

/// A check of a bot.
pub fn bot_check(item: core::CheckItem) -> api::BotCheck {
    api::BotCheck {
        id: item.check_type.as_str().to_owned(),
        kind: item.check_type.as_str().to_owned(),
        title_key: item.check_type.title_key().to_owned(),
        subtitle: None,
        status: match item.status {
            core::CheckStatus::Ok => api::CheckStatus::Ok,
            core::CheckStatus::Warn => api::CheckStatus::Warn,
            core::CheckStatus::Error => api::CheckStatus::Error,
            core::CheckStatus::Unknown => api::CheckStatus::Unknown,
        },
        summary: item.summary,
        detail: item.detail,
        metadata: None,
    }
}

/// A stored image.
pub fn image(record: skep_runtime::ImageRecord) -> api::Image {
    api::Image {
        name: record.name.to_string(),
        digest: record.digest,
        size_bytes: record.size_bytes,
        created_at: record.created_at,
        in_use: record.in_use,
    }
}

/// A device of this host.
pub fn gpu_device(offered: core::OfferedDevice) -> api::GpuDevice {
    api::GpuDevice {
        name: offered.device.name,
        vendor: offered.device.vendor,
        class: offered.device.class,
        allowed: offered.allowed,
    }
}

/// Code and sentence of an error that is told within an answer.
pub fn operation_error(error: &core::Error) -> api::OperationError {
    api::OperationError {
        code: code(error.code()),
        message: error.to_string(),
    }
}

impl From<core::Error> for ApiError {
    fn from(error: core::Error) -> Self {
        let answer = ApiError::new(code(error.code()), error.to_string());
        let answer = match &error {
            core::Error::OperationInProgress(id) => answer.about_operation(id.clone()),
            _ => answer,
        };
        answer.caused_by(error.with_causes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_rules_is_one_of_the_api() {
        for one in core::Code::ALL {
            assert_eq!(code(*one).as_str(), one.as_str());
        }
    }

    #[test]
    fn a_user_who_never_signed_in_has_the_zero_time() {
        let text = serde_json::to_value(never()).unwrap();
        assert_eq!(text, "0001-01-01T00:00:00Z");
    }
}
