//! The conformance suite on a real containerd. `SKEP_TEST_OCI_RUNTIME` chooses crun or runc.

use std::path::PathBuf;
use std::sync::Arc;

use skep_names::{BotId, ImageReference};
use skep_runtime::Runtime;
use skep_testkit::conformance::Subject;
use skep_testkit::containerd_rig::{ContainerdRig, as_runtime};

struct Containerd {
    rig: ContainerdRig,
}

impl Containerd {
    async fn start() -> Self {
        Self {
            rig: ContainerdRig::start().await,
        }
    }
}

impl Subject for Containerd {
    fn runtime(&self) -> Arc<dyn Runtime> {
        as_runtime(&self.rig)
    }

    fn image(&self) -> ImageReference {
        self.rig.image()
    }

    fn layer_on_disk(&self, bot: &BotId) -> PathBuf {
        self.rig.layer_on_disk(bot)
    }

    fn traces(&self) -> Vec<String> {
        self.rig.traces()
    }

    fn isolates(&self) -> bool {
        true
    }
}

skep_testkit::conformance_suite!(Containerd::start().await);
