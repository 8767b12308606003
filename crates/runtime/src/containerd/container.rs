//! Containers as containerd keeps them: made, found and told in our own words.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use containerd_client::services::v1::container::Runtime as RuntimeRecord;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, ListContainersRequest,
};
use prost_types::{Any, Timestamp};
use serde_json::Value;
use skep_names::{
    BotId, LABEL_BOT, LABEL_CDI_DEVICES, LABEL_DATA_ROOT, LABEL_WORKSPACE, LABEL_WORKSPACE_VALUE, LEGACY_PREFIX,
    container_id_for, derive_bot_id, is_legacy,
};
use tonic::Code;

use super::client::{collect, failed, optional};
use super::devices::device_names;
use super::layer::Layer;
use super::legacy::legacy_data;
use super::records::Running;
use super::{ContainerdRuntime, devices};
use crate::host::Resolver;
use crate::images::UnpackedImage;
use crate::isolation::APPARMOR_PROFILE;
use crate::spec::{self, GivenDevices, SpecInput};
use crate::{CreateOutcome, Instance, InstanceSpec, LayerOutcome, Limits, Result, RuntimeError, TaskState, failpoint};

/// What containerd's own client writes, so that `ctr` reads our specifications.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Digest of the image a container was made from.
const LABEL_IMAGE_DIGEST: &str = "skep.image_digest";

/// A container that is about to be started, with what was made for that.
#[derive(Clone, Copy)]
pub(super) struct Starting<'a> {
    pub(super) running: &'a Running,
    pub(super) resolver: &'a Resolver,
    pub(super) devices: Option<&'a GivenDevices>,
}

impl ContainerdRuntime {
    /// Makes layer and container, or keeps what there is of them.
    pub(super) async fn create_container(&self, spec: &InstanceSpec) -> Result<CreateOutcome> {
        let _turn = self.turns.take(&spec.bot).await;
        if let Some(container) = self.find_container(&spec.bot).await? {
            return Ok(CreateOutcome {
                instance: self.with_task(spec.bot.clone(), container).await?,
                layer: LayerOutcome::Kept,
            });
        }
        let snapshotter = spec.snapshotter.as_deref().unwrap_or(&self.config.snapshotter);
        let (kept, asked) = tokio::join!(
            self.layer_of(&spec.bot, snapshotter),
            self.images.unpack(&spec.image, snapshotter)
        );
        let (layer, image) = match (kept?, asked) {
            (Some(layer), asked) => {
                let image = self.image_below(&layer, asked).await?;
                (layer, image)
            }
            (None, Err(error)) => return Err(error),
            (None, Ok(Some(image))) => {
                let made = self
                    .make_layer(&spec.bot, snapshotter, spec.image.as_str(), &image.chain_id)
                    .await?;
                (made, Some(image))
            }
            (None, Ok(None)) => {
                return Err(RuntimeError::ImageNotFound {
                    reference: spec.image.to_string(),
                });
            }
        };
        let made = async {
            failpoint::LAYER_MADE.passed()?;
            let made = self.store_container(spec, &layer, image.as_ref()).await?;
            failpoint::CONTAINER_STORED.passed()?;
            Ok::<_, RuntimeError>(made)
        }
        .await;
        if made.is_err() && layer.outcome == LayerOutcome::Made {
            // Nobody has written into it yet.
            self.remove_layers(&spec.bot, snapshotter, None).await?;
        }
        Ok(CreateOutcome {
            instance: self.instance(spec.bot.clone(), &made?, TaskState::None).await,
            layer: layer.outcome,
        })
    }

    /// The image a kept layer stands on; the asked one where that is not known. Data counts for more than an
    /// image's environment: a layer whose image is gone, or cannot be used any more, is used without it.
    async fn image_below(&self, layer: &Layer, asked: Result<Option<UnpackedImage>>) -> Result<Option<UnpackedImage>> {
        let image = match layer.image.as_ref().and_then(|name| name.parse().ok()) {
            Some(name) => self.images.unpacked(&name, &layer.snapshotter).await,
            None => asked,
        };
        match image {
            Ok(Some(image)) => Ok(Some(image)),
            Err(away @ RuntimeError::Unavailable { .. }) => Err(away),
            without => {
                let error = without.err();
                tracing::warn!(
                    layer = layer.key,
                    image = layer.image,
                    ?error,
                    "the image below a kept layer cannot be used; its environment is not set"
                );
                Ok(None)
            }
        }
    }

    /// What its stored environment has beside its image's and everybody's. Of an image that is gone nothing is known:
    /// then its variables count as given, with the values that the container has.
    pub(super) async fn environment_given_to(&self, bot: &BotId) -> Result<BTreeMap<String, String>> {
        let container = self.find_container(bot).await?;
        let Some(container) = container.filter(|found| !is_legacy(&found.id)) else {
            return Ok(BTreeMap::new());
        };
        let image = match container.image.parse() {
            Ok(name) => match self.images.unpacked(&name, &container.snapshotter).await {
                Err(away @ RuntimeError::Unavailable { .. }) => return Err(away),
                // One that cannot be read any more is as good as gone.
                unpacked => unpacked.ok().flatten(),
            },
            Err(_) => None,
        };
        let image_environment = image.as_ref().map_or(&[][..], |image| image.config.environment());
        let everybodys = spec::environment(
            &spec::image_environment(image_environment),
            &self.config.base_environment,
            &BTreeMap::new(),
        );
        let mut stored = stored_environment(&container);
        stored.retain(|entry| !everybodys.contains(entry));
        let split = |entry: &String| {
            entry
                .split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        Ok(stored.iter().filter_map(split).collect())
    }

    async fn store_container(
        &self,
        spec: &InstanceSpec,
        layer: &Layer,
        image: Option<&UnpackedImage>,
    ) -> Result<Container> {
        let image_environment = image.map_or(&[][..], |image| image.config.environment());
        let environment = spec::environment(
            &spec::image_environment(image_environment),
            &self.config.base_environment,
            &spec.env,
        );
        let container = Container {
            id: container_id_for(&spec.bot),
            labels: self.labels(spec, image.map(|image| image.digest.as_str())),
            extensions: match spec.cdi_devices.is_empty() {
                true => HashMap::new(),
                false => [devices::environment_extension(&environment)].into(),
            },
            image: layer.image.clone().unwrap_or_else(|| spec.image.to_string()),
            runtime: Some(RuntimeRecord {
                name: self.config.runtime.clone(),
                options: None,
            }),
            // Namespaces and limits are written at each start; until then nothing but the environment counts.
            spec: Some(self.specification(&spec.bot, &environment, &Limits::default(), None)?),
            snapshotter: layer.snapshotter.clone(),
            snapshot_key: layer.key.clone(),
            ..Default::default()
        };
        let request = self.client.request(CreateContainerRequest {
            container: Some(container.clone()),
        });
        match self.client.containers().create(request).await {
            Ok(answer) => Ok(answer.into_inner().container.unwrap_or(container)),
            Err(status) if status.code() == Code::AlreadyExists => Err(RuntimeError::AlreadyExists {
                what: format!("a container {} of another owner", container.id),
            }),
            Err(status) => Err(failed(format!("making the container {}", container.id), status)),
        }
    }

    fn labels(&self, spec: &InstanceSpec, image_digest: Option<&str>) -> HashMap<String, String> {
        let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
        labels.extend([
            (LABEL_BOT.to_owned(), spec.bot.to_string()),
            (LABEL_WORKSPACE.to_owned(), LABEL_WORKSPACE_VALUE.to_owned()),
            (LABEL_DATA_ROOT.to_owned(), self.config.data_root_id.clone()),
        ]);
        if !spec.cdi_devices.is_empty() {
            labels.insert(LABEL_CDI_DEVICES.to_owned(), spec.cdi_devices.join(","));
        }
        labels.extend(image_digest.map(|digest| (LABEL_IMAGE_DIGEST.to_owned(), digest.to_owned())));
        labels
    }

    /// The specification to store; `starting` as it is about to be started.
    pub(super) fn specification(
        &self,
        bot: &BotId,
        environment: &[String],
        limits: &Limits,
        starting: Option<&Starting<'_>>,
    ) -> Result<Any> {
        Ok(as_any(&self.specification_value(bot, environment, limits, starting)?))
    }

    pub(super) fn specification_value(
        &self,
        bot: &BotId,
        environment: &[String],
        limits: &Limits,
        starting: Option<&Starting<'_>>,
    ) -> Result<Value> {
        let user_namespace = self.paths.user_namespace(bot);
        let running = starting.map(|starting| starting.running);
        let ids = running.and_then(|running| running.ids);
        let last_choice = self.resolving.chosen();
        let resolver = starting.map_or(&last_choice, |starting| starting.resolver);
        Ok(spec::specification(&SpecInput {
            host_name: &host_name(bot),
            environment,
            limits: *limits,
            limit_support: (!self.config.isolation.without_limits).then_some(self.limit_support),
            cgroup: &self.cgroup_of(&container_id_for(bot)),
            user_namespace: ids.map(|ids| (ids.base(), user_namespace.as_path())),
            network_namespace: &self.paths.network_namespace(bot),
            resolv_conf: &resolver.file,
            runtime_dir: &self.config.runtime_dir,
            socket_directory: &self.paths.socket_directory(bot),
            open_files_hard: self.open_files_hard()?,
            seccomp: !self.config.isolation.without_seccomp,
            apparmor_profile: running
                .is_some_and(|running| running.apparmor)
                .then_some(APPARMOR_PROFILE),
            devices: starting.and_then(|starting| starting.devices),
        }))
    }

    /// The container of a bot: by our name, else the most recently updated one that is labelled with the bot or
    /// has its legacy name. Another data root's is nobody's here.
    pub(super) async fn find_container(&self, bot: &BotId) -> Result<Option<Container>> {
        match self.container_by_name(bot).await? {
            Some(container) => Ok(Some(container)),
            None => self.container_by_label(bot).await,
        }
    }

    /// The same without waiting for events, for whoever reads them.
    pub(super) async fn find_container_among_all(&self, bot: &BotId) -> Result<Option<Container>> {
        match self.container_by_name(bot).await? {
            Some(container) => Ok(Some(container)),
            None => self.container_by_label_of_all(bot).await,
        }
    }

    async fn container_by_name(&self, bot: &BotId) -> Result<Option<Container>> {
        let container = self.container(&container_id_for(bot)).await?;
        Ok(container.filter(|container| self.is_of(bot, container)))
    }

    pub(super) async fn container_by_label_of_all(&self, bot: &BotId) -> Result<Option<Container>> {
        let filters = vec![
            format!("labels.\"{LABEL_BOT}\"==\"{bot}\""),
            format!("id==\"{LEGACY_PREFIX}{bot}\""),
        ];
        let mut found = self.containers(filters).await?;
        found.retain(|container| self.is_of(bot, container));
        found.sort_by_key(last_change);
        Ok(found.pop())
    }

    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>> {
        let request = self.client.request(GetContainerRequest { id: id.to_owned() });
        let answer = self.client.containers().get(request).await;
        Ok(optional(answer, || format!("container {id}"))?.and_then(|answer| answer.container))
    }

    pub(super) fn is_of(&self, bot: &BotId, container: &Container) -> bool {
        self.is_ours(&container.labels) && bot_of(container).as_ref() == Some(bot)
    }

    pub(super) async fn containers(&self, filters: Vec<String>) -> Result<Vec<Container>> {
        let operation = "listing containers";
        let request = self.client.request(ListContainersRequest { filters });
        let stream = self.client.containers().list_stream(request).await;
        let stream = stream.map_err(|status| failed(operation, status))?.into_inner();
        let parts = collect(stream, operation).await?;
        Ok(parts.into_iter().filter_map(|part| part.container).collect())
    }

    pub(super) async fn delete_container(&self, id: &str) -> Result<()> {
        let request = self.client.request(DeleteContainerRequest { id: id.to_owned() });
        match self.client.containers().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed(format!("removing the container {id}"), status)),
        }
    }

    /// An instance with its task as it is now.
    pub(super) async fn with_task(&self, bot: BotId, container: Container) -> Result<Instance> {
        let task = self.task_state(&container.id).await?;
        Ok(self.instance(bot, &container, task).await)
    }

    pub(super) async fn instance(&self, bot: BotId, container: &Container, task: TaskState) -> Instance {
        let running = self
            .records
            .get(&bot)
            .filter(|running| task == TaskState::Running && running.container_id == container.id);
        let isolation = match (&running, task) {
            (Some(running), _) => Some(running.isolation()),
            (None, TaskState::Running) => None,
            (None, TaskState::Dead | TaskState::None) => self.isolation_of_next_start().await,
        };
        Instance {
            bot,
            container_id: container.id.clone(),
            image: container.image.clone(),
            image_digest: container.labels.get(LABEL_IMAGE_DIGEST).cloned(),
            snapshotter: container.snapshotter.clone(),
            namespace: self.config.namespace.clone(),
            cdi_devices: device_names(container),
            task,
            created_at: time(container.created_at),
            updated_at: time(container.updated_at),
            started_at: running.as_ref().map(|running| running.started_at),
            isolation,
            legacy_data: legacy_data(container),
        }
    }
}

/// To order containers of one bot by.
pub(super) fn last_change(container: &Container) -> Option<(i64, i32)> {
    container.updated_at.map(|at| (at.seconds, at.nanos))
}

/// The label wins over the id; what is not a bot's id is no bot.
pub(super) fn bot_of(container: &Container) -> Option<BotId> {
    let label = container.labels.get(LABEL_BOT).map(String::as_str);
    derive_bot_id(&container.id, label)?.parse().ok()
}

/// Of process 1, without what its devices add: as it stands in a stored specification, or beside one that has that.
pub(super) fn stored_environment(container: &Container) -> Vec<String> {
    if let Some(environment) = devices::extension_environment(container) {
        return environment;
    }
    let stored = container.spec.as_ref();
    let value = stored.and_then(|spec| serde_json::from_slice::<Value>(&spec.value).ok());
    let entries = value.as_ref().and_then(|spec| spec["process"]["env"].as_array());
    let entries = entries.map_or(&[][..], Vec::as_slice);
    entries.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Host names have at most 63 characters; the first part of an id is enough to tell workspaces apart.
fn host_name(bot: &BotId) -> String {
    let first = bot.as_str().split('-').next().unwrap_or_default();
    format!("workspace-{first}")
}

pub(super) fn as_any(value: &Value) -> Any {
    Any {
        type_url: SPEC_TYPE.to_owned(),
        value: value.to_string().into_bytes(),
    }
}

fn time(stamp: Option<Timestamp>) -> DateTime<Utc> {
    let stamp = stamp.unwrap_or_default();
    DateTime::from_timestamp(stamp.seconds, u32::try_from(stamp.nanos).unwrap_or(0)).unwrap_or_default()
}
