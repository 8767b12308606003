//! The conformance suite on real containerds, old and new, each with the programs that make containers.

use std::path::PathBuf;
use std::sync::Arc;

use skep_names::{BotId, ImageReference, container_id_for};
use skep_runtime::Runtime;
use skep_testkit::ContainerdRelease;
use skep_testkit::conformance::Subject;
use skep_testkit::containerd_rig::{ContainerdRig, OciRuntime, RigOptions, as_runtime};

struct Containerd {
    rig: ContainerdRig,
}

impl Containerd {
    async fn start(release: ContainerdRelease, oci_runtime: OciRuntime) -> Self {
        let options = RigOptions {
            release,
            oci_runtime,
            ..Default::default()
        };
        Self {
            rig: ContainerdRig::start_with(options).await,
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

    fn lose_container(&self, bot: &BotId) {
        self.rig
            .ctr(&["containers", "rm", "--keep-snapshot", &container_id_for(bot)]);
    }

    fn traces(&self) -> Vec<String> {
        self.rig.traces()
    }

    fn cdi_directory(&self) -> PathBuf {
        self.rig.cdi_directory()
    }

    fn isolates(&self) -> bool {
        true
    }
}

/// One module of all cases for each pair.
macro_rules! matrix {
    ($($module:ident: $release:ident, $oci_runtime:ident;)+) => {
        $(mod $module {
            use super::*;
            skep_testkit::conformance_suite!(
                Containerd::start(ContainerdRelease::$release, OciRuntime::$oci_runtime).await
            );
        })+
    };
}

matrix! {
    on_1_6_with_crun: Installed, Crun;
    on_1_6_with_runc: Installed, Runc;
    on_1_7_with_crun: V1_7, Crun;
    on_2_with_crun: V2, Crun;
    on_2_with_runc: V2, Runc;
}
