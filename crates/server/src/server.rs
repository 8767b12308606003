//! A running server: the store opened, the rules started, the listener served, and all of it ended in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skep_core::bridge::BridgePool;
use skep_core::{ImagePullPolicy, Settings, Skep};
use skep_names::ImageReference;
use skep_runtime::{Limits, Runtime};
use skep_store::{DataRoot, Store, StoreError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{App, Parts};
use crate::audit::AuditTrail;
use crate::auth::{
    ADMIN_KEY_FILE, Auth, BootstrapError, FirstAdmin, ensure_admin_key, ensure_first_admin, keep_secret_file,
    random_secret,
};
use crate::config::{Config, PullPolicy};
use crate::http::idempotency::Claimed;
use crate::http::room::Rooms;
use crate::{http, listening};

/// The store's setting with the image that was built on this host because no registry answered.
pub const DEFAULT_IMAGE_SETTING: &str = "workspace.default_image";
/// What connections that do not end by themselves get after everything else has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(3);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database could not be opened or migrated.
    #[error("opening the database {}", path.display())]
    Store {
        path: PathBuf,
        #[source]
        source: StoreError,
    },
    /// The first user or the admin key could not be made.
    #[error("preparing the first sign-in")]
    Bootstrap(#[from] BootstrapError),
    /// The rules could not take up their work.
    #[error("taking up the work")]
    Core(#[from] skep_core::Error),
    /// A file of the data root could not be read or written.
    #[error("keeping {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("listening on {address} (server.addr)")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    /// A defect: the API's description has no JSON form.
    #[error("describing the API")]
    Document(#[from] serde_json::Error),
}

/// What a server is started from.
pub struct StartParts {
    /// What is in force.
    pub config: Config,
    /// Owned by this process until the server has ended.
    pub data_root: DataRoot,
    /// What makes workspaces.
    pub runtime: Arc<dyn Runtime>,
    /// Where it is asked.
    pub listener: TcpListener,
}

/// A server that answers. Dropping it lets everything go at once; [`RunningServer::shut_down`] ends it in order.
pub struct RunningServer {
    app: App,
    address: SocketAddr,
    first_admin: FirstAdmin,
    admin_key: PathBuf,
    data_root: DataRoot,
    stop_accepting: CancellationToken,
    end_audit: CancellationToken,
    listening: JoinHandle<()>,
}

impl RunningServer {
    /// Opens the store, makes the first sign-in, takes up the work and answers.
    pub async fn start(parts: StartParts) -> Result<Self, StartError> {
        let StartParts {
            config,
            data_root,
            runtime,
            listener,
        } = parts;
        let database = data_root.default_database();
        let store = Store::open(&database)
            .await
            .map_err(|source| StartError::Store { path: database, source })?;
        store
            .release_idempotent_of_before()
            .await
            .map_err(skep_core::Error::from)?;
        let auth = Auth::new(&token_secret(&config, &data_root)?, config.auth.jwt_expires_in);
        let first_admin = ensure_first_admin(&store, &auth.passwords, &config, data_root.path()).await?;
        let admin_key = data_root.path().join(ADMIN_KEY_FILE);
        match ensure_admin_key(&store, &admin_key).await {
            // No reason for workspaces to stay down.
            Err(error @ BootstrapError::NoAdmin) => tracing::warn!("{error}"),
            ended => ended?,
        }
        let core = Skep::start(skep_core::Parts {
            store: store.clone(),
            bridges: Arc::new(BridgePool::new(runtime.clone())),
            runtime,
            settings: core_settings(&config, &data_root, &store).await?,
        })
        .await?;
        let (stop_accepting, end_audit) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let app = App::new(Parts {
            audit: AuditTrail::start(store.clone(), &tasks, end_audit.clone()),
            config: Arc::new(config),
            store,
            core,
            auth,
            tasks,
            rooms: Rooms::default(),
            claimed: Claimed::default(),
        });
        let address = listener.local_addr().map_err(|source| StartError::Listen {
            address: app.config().server.addr.to_string(),
            source,
        })?;
        let routes = http::router(app.clone())?;
        let serving = listening::serve(listener, routes, listening::LIMITS, stop_accepting.clone());
        Ok(Self {
            listening: tokio::spawn(serving),
            app,
            address,
            first_admin,
            admin_key,
            data_root,
            stop_accepting,
            end_audit,
        })
    }

    /// Where it answers; with port 0 in the configuration, the port it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the first start made.
    pub fn first_admin(&self) -> &FirstAdmin {
        &self.first_admin
    }

    /// The file with the key of the command line on this host.
    pub fn admin_key(&self) -> &Path {
        &self.admin_key
    }

    /// The data root it owns.
    pub fn data_root(&self) -> &DataRoot {
        &self.data_root
    }

    /// The rules, for what asks them in the same process.
    pub fn core(&self) -> &Skep {
        self.app.core()
    }

    /// Remembers an image that was built here as the default one of this data root; it counts from the next start.
    ///
    /// # Errors
    /// When the store is away.
    pub async fn keep_default_image(&self, image: &ImageReference) -> Result<(), StoreError> {
        self.app
            .store()
            .put_setting(DEFAULT_IMAGE_SETTING, image.as_str())
            .await
    }

    /// Stops accepting, lets operations come to a safe step for at most `limit`, and returns when
    /// everything of it has ended. Workspaces stay running, and the data root stays owned until this is dropped. To be
    /// called once.
    pub async fn shut_down(&mut self, limit: Duration) {
        self.stop_accepting.cancel();
        self.app.core().shut_down(limit).await;
        match tokio::time::timeout(LAST_ANSWERS, &mut self.listening).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the listener's task failed"),
            Err(_) => tracing::info!("connections that did not end by themselves were closed"),
        }
        self.end_audit.cancel();
        self.app.tasks().close();
        if tokio::time::timeout(LAST_ANSWERS, self.app.tasks().wait())
            .await
            .is_err()
        {
            tracing::warn!("work that outlived its requests was let go");
        }
        // A request that was let go may hold a connection for ever; SQLite loses nothing by it.
        if tokio::time::timeout(LAST_ANSWERS, self.app.store().close())
            .await
            .is_err()
        {
            tracing::warn!("the database was left while something still read from it");
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.stop_accepting.cancel();
        self.end_audit.cancel();
        self.listening.abort();
    }
}

/// The configured secret, else one that is made once and kept.
fn token_secret(config: &Config, data_root: &DataRoot) -> Result<Vec<u8>, StartError> {
    if let Some(secret) = &config.auth.jwt_secret {
        return Ok(secret.clone().into_bytes());
    }
    let path = data_root.path().join("jwt.secret");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().as_bytes().to_vec()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StartError::File { path, source: error }),
        Ok(_) | Err(_) => {
            let secret = random_secret();
            keep_secret_file(&path, &secret).map_err(|source| StartError::File { path, source })?;
            Ok(secret.into_bytes())
        }
    }
}

/// The image that was built here and takes the place of a default image that nobody chose, asked of the store while
/// a server may be running on it. `None`: there is none, or a person chose the default image.
///
/// # Errors
/// When this process may not read the store.
pub async fn built_default_image(config: &Config) -> Result<Option<String>, StoreError> {
    if !config.workspace.default_image_is_ours {
        return Ok(None);
    }
    let database = skep_store::default_database_of(&config.workspace.data_root);
    Store::setting_in(&database, DEFAULT_IMAGE_SETTING).await
}

/// What the rules need of the configuration. An image that was built here takes the place of a default
/// image that nobody chose.
async fn core_settings(config: &Config, data_root: &DataRoot, store: &Store) -> Result<Settings, StartError> {
    let zone = skep_runtime::host::time_zone(Path::new("/"), config.timezone.as_deref()).map_err(|source| {
        StartError::File {
            path: PathBuf::from("/etc/timezone"),
            source,
        }
    })?;
    let built = match config.workspace.default_image_is_ours {
        true => store
            .setting(DEFAULT_IMAGE_SETTING)
            .await
            .map_err(skep_core::Error::from)?,
        false => None,
    };
    let default_image = match built {
        Some(image) => image.parse().map_err(|error| {
            StartError::Core(skep_core::Error::internal(
                "reading the default image that was built here",
                error,
            ))
        })?,
        None => config.workspace.default_image.clone(),
    };
    Ok(Settings {
        workspace_env: zone.map(|zone| ("TZ".to_owned(), zone)).into_iter().collect(),
        image_pull_policy: match config.workspace.image_pull_policy {
            PullPolicy::IfNotPresent => ImagePullPolicy::IfNotPresent,
            PullPolicy::Always => ImagePullPolicy::Always,
            PullPolicy::Never => ImagePullPolicy::Never,
        },
        images_allow: config.images_allow.clone(),
        gpu_allow: config.gpu_allow.clone(),
        stop_grace: config.workspace.stop_grace,
        reconcile_interval: config.workspace.reconcile_interval,
        keep_backups: config.snapshots.keep_backups,
        freeze_max: config.import.freeze_max,
        import: skep_core::ImportLimits {
            max_bytes: config.import.max_bytes,
            max_entries: config.import.max_entries,
            max_ratio: config.import.max_ratio,
        },
        default_limits: Limits {
            cpu_millicores: config.limits.cpu_millicores,
            memory_bytes: config.limits.memory_bytes,
            pids: config.limits.pids,
            storage_bytes: config.limits.storage_bytes,
        },
        reserve_bytes: config.limits.reserve_bytes,
        versions: skep_core::VersionLimits {
            max: config.snapshots.max,
            keep_automatic: config.snapshots.keep_automatic,
            keep_rollback: config.snapshots.keep_rollback,
            merge_over: config.snapshots.merge_over,
        },
        ..Settings::new(data_root.path().to_owned(), default_image)
    })
}
