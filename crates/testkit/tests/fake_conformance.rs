//! The conformance suite on the fake runtime.

use std::path::PathBuf;
use std::sync::Arc;

use skep_names::{BotId, ImageReference};
use skep_runtime::Runtime;
use skep_testkit::conformance::Subject;
use skep_testkit::fake_runtime::{FAKE_IMAGE, FakeRuntime};

struct Fake {
    runtime: FakeRuntime,
}

impl Fake {
    async fn start() -> Self {
        Self {
            runtime: FakeRuntime::new().unwrap(),
        }
    }
}

impl Subject for Fake {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.runtime.clone())
    }

    fn image(&self) -> ImageReference {
        FAKE_IMAGE.parse().unwrap()
    }

    fn layer_on_disk(&self, bot: &BotId) -> PathBuf {
        self.runtime.layer_path(bot)
    }

    fn lose_container(&self, bot: &BotId) {
        self.runtime.forget_container(bot);
    }

    fn traces(&self) -> Vec<String> {
        let bots = self.runtime.layer_path(&BotId::random());
        let bots = bots.ancestors().nth(3).unwrap().to_owned();
        let names = std::fs::read_dir(bots).unwrap();
        let mut names: Vec<String> = names
            .map(|name| name.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn cdi_directory(&self) -> PathBuf {
        self.runtime.cdi_directory()
    }

    fn isolates(&self) -> bool {
        false
    }
}

skep_testkit::conformance_suite!(Fake::start().await);
