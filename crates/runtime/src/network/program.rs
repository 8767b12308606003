//! Runs a short program with an end to its time and to its output.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::error::NetworkError;
use crate::system_calls;

/// What the children get as `PATH`: the server's own may lack the `sbin` directories.
pub(super) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// More than any answer that makes sense; what is beyond is not read.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;

/// What is run, with which input, and how long it may take.
pub(super) struct Program<'a> {
    pub(super) path: PathBuf,
    pub(super) arguments: &'a [&'a str],
    pub(super) environment: &'a [(&'a str, String)],
    pub(super) input: &'a [u8],
    pub(super) limit: Duration,
}

/// A program that ended by itself.
pub(super) struct Finished {
    pub(super) succeeded: bool,
    pub(super) output: Vec<u8>,
    pub(super) errors: String,
}

impl Program<'_> {
    /// Runs it with nothing of our environment but what is named. It is killed when time is up, or when
    /// the call is dropped.
    pub(super) async fn run(self) -> Result<Finished, NetworkError> {
        let limit = self.limit;
        let program = self.path.clone();
        match tokio::time::timeout(limit, self.run_without_limit()).await {
            Ok(finished) => finished.map_err(|source| NetworkError::NotRun { program, source }),
            Err(_) => Err(NetworkError::TimedOut { program, limit }),
        }
    }

    async fn run_without_limit(self) -> std::io::Result<Finished> {
        let mut command = Command::new(&self.path);
        command
            .args(self.arguments)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // One that went on after a crash would make or remove what the next server has removed or made.
        system_calls::end_with_us(&mut command);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let stdin = child.stdin.take();
        let input = async {
            let Some(mut stdin) = stdin else { return Ok(()) };
            match stdin.write_all(self.input).await {
                // It may answer without reading all; its exit status says how that went.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ((), output, errors) = tokio::try_join!(input, read_bounded(stdout), read_bounded(stderr))?;
        Ok(Finished {
            succeeded: child.wait().await?.success(),
            output,
            errors: String::from_utf8_lossy(&errors).trim().to_owned(),
        })
    }
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
