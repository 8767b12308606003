//! `skep serve`: the server alone.

use skep_server::auth::FirstAdmin;

use super::sign_in::{self, Reader};
use super::{backend, configuration, running};
use crate::arguments::ConfigurationFile;
use crate::failure::Result;

pub(crate) async fn run(file: ConfigurationFile) -> Result<()> {
    let (_, config) = configuration::read(&file)?;
    configuration::start_logging(&config.log)?;
    running::raise_open_files()?;
    let data_root = running::claim(&config, "skep serve")?;
    let which = backend::which(&config, data_root.path(), &data_root.id().to_string(), false);
    // Kept until the end: it reaps a containerd that ends before us.
    let _daemon = backend::start_daemon(&which).await?;
    let running = running::start(config, data_root, &which).await?;
    let first = running.server.first_admin();
    if let FirstAdmin::Generated(_) = first {
        let mut out = std::io::stderr();
        sign_in::tell(first, Reader::of(&out), &mut out);
    }
    tracing::info!(address = %running.server.address(), containerd = %which.socket().display(), "serving");
    running.until_told().await
}
