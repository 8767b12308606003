//! Starting `skep-layer`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use skep_layer_protocol::{DataPlace, Job, Limits, Mount, Task};

use super::worker::{Held, Worker};
use crate::{Result, RuntimeError, system_calls};

/// Address space of one worker: buffers of a few megabytes, and the windows of compressed archives.
const MEMORY_BYTES: u64 = 1 << 30;
/// It walks a tree with a few descriptors, whatever its depth.
const OPEN_FILES: u64 = 1024;
/// Backups and exports may take hours; something that never ends is ended.
const LONGEST_SECONDS: u64 = 12 * 3600;

/// The program and the directories that it needs.
#[derive(Debug, Clone)]
pub struct LayerProgram {
    /// The executable.
    pub program: PathBuf,
    /// An empty directory below `/run`: workers mount on it in their own namespaces.
    pub scratch: PathBuf,
    /// A directory on a disk, for what does not fit into memory; its files have no names.
    pub spool: PathBuf,
}

/// What a backend says of a layer.
#[derive(Debug)]
pub struct MountedData {
    pub mount: Mount,
    pub data: DataPlace,
    /// Kept until the worker has ended: what keeps everybody else from the layer.
    pub held: Held,
}

impl LayerProgram {
    /// Starts a worker.
    ///
    /// # Errors
    /// When a directory cannot be made or the program cannot be run.
    pub fn start(&self, mounted: MountedData, task: Task) -> Result<Worker> {
        let failed = |error: io::Error| RuntimeError::other("starting the program that reads and writes layers", error);
        self.make_directories().map_err(failed)?;
        let job = Job {
            scratch: self.scratch.clone(),
            spool: self.spool.clone(),
            mount: mounted.mount,
            data: mounted.data,
            task,
            limits: Limits {
                memory_bytes: MEMORY_BYTES,
                open_files: OPEN_FILES,
                seconds: LONGEST_SECONDS,
            },
        };
        let job_text = serde_json::to_string(&job).map_err(|error| failed(error.into()))?;
        let (end, lifeline) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let child = self.spawn(&job_text, &job.task, end).map_err(failed)?;
        Ok(Worker::new(child, lifeline, mounted.held))
    }

    fn make_directories(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        for directory in [&self.scratch, &self.spool] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        Ok(())
    }

    fn spawn(&self, job: &str, task: &Task, lifeline: OwnedFd) -> io::Result<tokio::process::Child> {
        let (input, output) = match task {
            Task::Pack(_) => (Stdio::null(), Stdio::piped()),
            Task::Estimate => (Stdio::null(), Stdio::null()),
            Task::Apply(_) => (Stdio::piped(), Stdio::null()),
        };
        let mut command = std::process::Command::new(&self.program);
        command
            .arg(job)
            .env_clear()
            .current_dir("/")
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped());
        system_calls::give_descriptor(&mut command, lifeline, skep_layer_protocol::LIFELINE);
        tokio::process::Command::from(command).kill_on_drop(true).spawn()
    }
}
