//! What the program can reach while it works, as the kernel tells it, and that no work goes on that nobody waits for.
//! The program is the one that is shipped, spoken to as the server does. As root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, PidfdFlags};
use skep_layer_protocol::{
    Applied, Apply, ApplyMode, ArchiveFormat, DataPlace, FailureKind, Job, LIFELINE, Limits, Mount, Pack, Packed,
    Report, Task, Trust,
};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Numbers of Linux's capabilities, as bits.
const DAC_READ_SEARCH: u64 = 1 << 2;
const CHOWN_DAC_FOWNER_FSETID_SETFCAP: u64 = 0b1_1111 | (1 << 31);

const PACK: Task = Task::Pack(Pack {
    format: ArchiveFormat::Tar,
    trust: Trust::Ours,
});
const APPLY: Task = Task::Apply(Apply {
    mode: ApplyMode::Merge,
    trust: Trust::Ours,
});

/// Written once, before any test starts a process: one that inherits it open for writing keeps it from being run.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layer-program");
    skep_bridge_binary::unpack_layer_program(&directory).expect("the program")
});

/// A host with the program, the directories that it needs, a layer, and a file that is none of the layer's.
struct Host {
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Self {
            program: PROGRAM.clone(),
            directory,
        };
        for made in ["scratch", "spool", "layer/data", "outside"] {
            fs::create_dir_all(host.path(made)).expect("a directory");
        }
        fs::write(host.path("outside/canary"), "nobody's business").expect("a canary");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn job(&self, task: Task) -> Job {
        Job {
            scratch: self.path("scratch"),
            spool: self.path("spool"),
            mount: Mount::Bind {
                path: self.path("layer"),
            },
            data: DataPlace::Below,
            task,
            limits: Limits {
                memory_bytes: 1 << 30,
                open_files: 300,
                seconds: LIMIT.as_secs(),
            },
        }
    }

    /// The program with that job; input and output are pipes. Its server holds a file open that it did not mean to
    /// hand on.
    fn start(&self, job: &Job) -> Running {
        let fifo = tempfile::Builder::new().make_in(&self.directory, |path| {
            Ok(rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0)?)
        });
        // It goes with its directory.
        let fifo = fifo.expect("a FIFO").into_temp_path().keep().expect("a path");
        let lifeline = File::options().read(true).write(true).open(&fifo);
        let lifeline = lifeline.expect("the server's end of the lifeline");
        let text = serde_json::to_string(job).expect("JSON");
        let child = Command::new("/bin/sh")
            .args(["-c", &format!(r#"exec "$1" "$2" {LIFELINE}<"$0" 9<"$3""#)])
            .args([fifo.as_os_str(), self.program.as_os_str(), text.as_ref()])
            .arg(self.path("outside/canary"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        Running { child, lifeline }
    }

    /// All that the job puts out, and its report.
    fn done(&self, job: &Job, input: &[u8]) -> (Vec<u8>, Report) {
        let mut running = self.start(job);
        let mut archive = running.child.stdin.take().expect("a pipe");
        // One that has seen enough closes its input.
        drop(archive.write_all(input));
        drop(archive);
        let output = running.child.wait_with_output().expect("it ends");
        let report = report(&output);
        (output.stdout, report)
    }

    fn assert_untouched(&self) {
        let outside: Vec<_> = fs::read_dir(self.path("outside")).expect("a list").collect();
        assert_eq!(outside.len(), 1, "{outside:?}");
        let canary = fs::read_to_string(self.path("outside/canary"));
        assert_eq!(canary.expect("the canary"), "nobody's business");
    }

    /// Nothing is mounted here, and nothing lies in the directories that are lent.
    fn assert_nothing_is_seen(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let here = self.directory.path().to_str().expect("UTF-8");
        assert!(!mounts.contains(here), "the host sees what is mounted: {mounts}");
        for lent in ["scratch", "spool"] {
            let left = fs::read_dir(self.path(lent)).expect("a list").count();
            assert_eq!(left, 0, "{lent} is not empty");
        }
    }
}

struct Running {
    child: Child,
    lifeline: File,
}

impl Running {
    /// The process that does the work, once it holds no capability but these and has opened `/data`.
    fn worker(&self, kept: u64) -> Worker {
        let watcher = self.child.id();
        let children = format!("/proc/{watcher}/task/{watcher}/children");
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < deadline, "no worker gave up what it does not need");
            std::thread::sleep(Duration::from_millis(5));
            let number = fs::read_to_string(&children).unwrap_or_default();
            let Some(number) = number.split_whitespace().next() else {
                continue;
            };
            let worker = Worker {
                directory: Path::new("/proc").join(number),
            };
            let is_enclosed = worker.capabilities("CapEff:") == Some(kept);
            if is_enclosed && worker.open_files().iter().any(|file| file == "/layer/data") {
                return worker;
            }
        }
    }

    fn output(self) -> Output {
        self.child.wait_with_output().expect("it ends")
    }
}

/// The process that does the work.
struct Worker {
    directory: PathBuf,
}

impl Worker {
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap_or_default()
    }

    fn link(&self, name: &str) -> PathBuf {
        fs::read_link(self.directory.join(name)).expect("it is there")
    }

    /// The first word after a name.
    fn status(&self, name: &str) -> Option<String> {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next().map(str::to_owned)
    }

    fn capabilities(&self, set: &str) -> Option<u64> {
        u64::from_str_radix(&self.status(set)?, 16).ok()
    }

    /// What its descriptors name; one that is closed meanwhile is not there.
    fn open_files(&self) -> Vec<String> {
        let Ok(descriptors) = fs::read_dir(self.directory.join("fd")) else {
            return Vec::new();
        };
        let links = descriptors.flatten().map(|entry| fs::read_link(entry.path()));
        links.flatten().map(|link| link.display().to_string()).collect()
    }

    /// Type and flags of every mount it has, by place.
    fn mounts(&self) -> BTreeMap<String, (String, BTreeSet<String>)> {
        let mounts = self.read("mountinfo");
        let mounts = mounts.lines().map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let separator = fields.iter().position(|field| *field == "-").expect("a separator");
            let flags = fields[5].split(',').map(str::to_owned).collect();
            (fields[4].to_owned(), (fields[separator + 1].to_owned(), flags))
        });
        mounts.collect()
    }

    fn handle(&self) -> OwnedFd {
        let number = self.directory.file_name().and_then(|name| name.to_str());
        let number = number.and_then(|number| number.parse().ok());
        let pid = Pid::from_raw(number.expect("a number")).expect("not 0");
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("it is there")
    }

    /// All that is true of every worker; `access` is `ro` or `rw`.
    fn assert_enclosed(&self, kept: u64, access: &str) {
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(self.capabilities(set), Some(kept), "{set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(self.capabilities(set), Some(0), "{set}");
        }
        assert_eq!(self.status("NoNewPrivs:").as_deref(), Some("1"));
        for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
            let ours = fs::read_link(format!("/proc/self/ns/{namespace}")).expect("it is there");
            assert_ne!(self.link(&format!("ns/{namespace}")), ours, "the host's {namespace}");
        }
        let interfaces = self.read("net/dev");
        let interfaces: Vec<&str> = interfaces.lines().skip(2).map(str::trim_start).collect();
        assert!(
            matches!(interfaces[..], [only] if only.starts_with("lo:")),
            "{interfaces:?}"
        );

        let mounts = self.mounts();
        let places: Vec<&str> = mounts.keys().map(String::as_str).collect();
        assert_eq!(places, ["/", "/layer", "/spool"]);
        // None lies over or under another.
        assert_eq!(self.read("mountinfo").lines().count(), places.len());
        for (place, (_, flags)) in &mounts {
            for flag in ["nosuid", "nodev", "noexec"] {
                assert!(flags.contains(flag), "{place} without {flag}: {flags:?}");
            }
            assert!(place == "/" || flags.contains("nosymfollow"), "{place}: {flags:?}");
        }
        assert!(mounts["/layer"].1.contains(access), "{mounts:?}");
        let root = fs::read_dir(self.directory.join("root")).expect("its root");
        let mut names: Vec<_> = root.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["layer", "spool"]);
        assert_eq!(self.link("cwd"), Path::new("/"));
        for file in self.open_files() {
            let is_ours = ["/layer", "/spool", "pipe:["]
                .iter()
                .any(|place| file.starts_with(place));
            assert!(is_ours, "it holds {file} open");
        }
    }
}

/// The last line of what it says; its exit code says the same.
fn report(output: &Output) -> Report {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.is_empty());
    let report = last.and_then(|line| serde_json::from_str(line).ok());
    let report = report.unwrap_or_else(|| panic!("no report: {said:?}"));
    let has_failed = matches!(report, Report::Failed { .. });
    assert_eq!(output.status.code(), Some(i32::from(has_failed)), "{said}");
    report
}

fn failure(report: Report) -> (FailureKind, String) {
    match report {
        Report::Failed { failure, message } => (failure, message),
        other => panic!("{other:?}"),
    }
}

/// Whether the process has ended within the limit.
fn has_ended(process: &OwnedFd) -> bool {
    let limit = Timespec {
        tv_sec: LIMIT.as_secs().try_into().expect("it fits"),
        tv_nsec: 0,
    };
    let mut watched = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    poll(&mut watched, Some(&limit)).expect("it is watched") == 1
}

fn contains(archive: &[u8], text: &str) -> bool {
    archive.windows(text.len()).any(|window| window == text.as_bytes())
}

/// An archive with this file in it.
fn archive_of(name: &str, content: &str) -> Vec<u8> {
    let host = Host::new();
    let file = host.path("layer/data").join(name);
    fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
    fs::write(&file, content).expect("a file");
    let (archive, report) = host.done(&host.job(PACK), b"");
    assert!(matches!(report, Report::Packed(_)), "{report:?}");
    archive
}

#[test]
fn who_writes_has_the_layer_and_nothing_else_of_the_host() {
    let host = Host::new();
    let archive = archive_of("deep/file", "content");
    let mut running = host.start(&host.job(APPLY));
    // It waits for an archive.
    let worker = running.worker(CHOWN_DAC_FOWNER_FSETID_SETFCAP);
    worker.assert_enclosed(CHOWN_DAC_FOWNER_FSETID_SETFCAP, "rw");
    host.assert_nothing_is_seen();
    let limits = worker.read("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or_else(|| panic!("no {name}")).split_whitespace();
        words.take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max address space"), ["1073741824"; 2]);
    assert_eq!(limit("Max open files"), ["300"; 2]);
    assert_eq!(limit("Max core file size"), ["0"; 2]);

    let mut input = running.child.stdin.take().expect("a pipe");
    input.write_all(&archive).expect("written");
    drop(input);
    match report(&running.output()) {
        Report::Applied(Applied { entries: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
    let written = fs::read_to_string(host.path("layer/data/deep/file"));
    assert_eq!(written.expect("the file"), "content");
    host.assert_nothing_is_seen();
    host.assert_untouched();
}

#[test]
fn who_reads_can_write_nothing() {
    let host = Host::new();
    fs::write(host.path("layer/data/file"), vec![b'x'; 4 << 20]).expect("a file");
    fs::set_permissions(host.path("layer/data/file"), fs::Permissions::from_mode(0o000)).expect("it is ours");
    let mut running = host.start(&host.job(PACK));
    // It waits for somebody who takes the archive.
    let worker = running.worker(DAC_READ_SEARCH);
    worker.assert_enclosed(DAC_READ_SEARCH, "ro");
    assert!(worker.mounts()["/layer"].1.contains("noatime"), "{:?}", worker.mounts());
    host.assert_nothing_is_seen();
    let mut archive = Vec::new();
    let mut output = running.child.stdout.take().expect("a pipe");
    output.read_to_end(&mut archive).expect("an archive");
    assert!(archive.len() > 4 << 20, "{} bytes", archive.len());
    match report(&running.output()) {
        Report::Packed(Packed {
            entries: 1, skipped: 0, ..
        }) => {}
        other => panic!("{other:?}"),
    }
    host.assert_nothing_is_seen();
}

#[test]
fn layers_above_each_other_are_read_as_one_and_only_the_uppermost_is_written() {
    let host = Host::new();
    let (lower, upper) = (host.path("snapshots/1/fs/data"), host.path("snapshots/2/fs/data"));
    for made in [&lower, &upper, &host.path("snapshots/2/work")] {
        fs::create_dir_all(made).expect("a directory");
    }
    fs::write(lower.join("below"), "from below").expect("a file");
    fs::write(upper.join("above"), vec![b'x'; 4 << 20]).expect("a file");
    let job = |task| Job {
        mount: Mount::Overlay {
            directory: host.path("snapshots"),
            lower: vec!["1/fs".into()],
            upper: "2/fs".into(),
            work: "2/work".into(),
            options: Vec::new(),
        },
        ..host.job(task)
    };
    let mut running = host.start(&job(PACK));
    let worker = running.worker(DAC_READ_SEARCH);
    worker.assert_enclosed(DAC_READ_SEARCH, "ro");
    assert_eq!(worker.mounts()["/layer"].0, "overlay");
    let mut archive = Vec::new();
    let mut output = running.child.stdout.take().expect("a pipe");
    output.read_to_end(&mut archive).expect("an archive");
    assert!(contains(&archive, "from below"));
    let packed = report(&running.output());
    assert!(
        matches!(packed, Report::Packed(Packed { entries: 2, .. })),
        "{packed:?}"
    );

    let mut running = host.start(&job(APPLY));
    let worker = running.worker(CHOWN_DAC_FOWNER_FSETID_SETFCAP);
    worker.assert_enclosed(CHOWN_DAC_FOWNER_FSETID_SETFCAP, "rw");
    let mut input = running.child.stdin.take().expect("a pipe");
    input.write_all(&archive_of("below", "written")).expect("written");
    drop(input);
    let applied = report(&running.output());
    assert!(matches!(applied, Report::Applied(_)), "{applied:?}");
    let below = fs::read_to_string(lower.join("below")).expect("the file");
    assert_eq!(below, "from below", "a layer that others may have was written");
    assert_eq!(fs::read_to_string(upper.join("below")).expect("the file"), "written");
}

#[test]
fn no_link_or_device_of_the_layer_leads_out_of_it() {
    let host = Host::new();
    let (outside, data) = (host.path("outside"), host.path("layer/data"));
    let up = Path::new("../../../../../../../../").join(outside.strip_prefix("/").expect("absolute"));
    let file = archive_of("file", "content");
    for target in [
        Path::new("/"),
        Path::new("/proc/self/root"),
        Path::new("../outside"),
        &outside,
        &up,
    ] {
        drop(fs::remove_dir(&data));
        drop(fs::remove_file(&data));
        symlink(target, &data).expect("a link");
        for task in [PACK, Task::Estimate, APPLY] {
            let (archive, report) = host.done(&host.job(task), &file);
            let (kind, message) = failure(report);
            assert_eq!(kind, FailureKind::NotADirectory, "{target:?}: {message}");
            assert!(!contains(&archive, "nobody's business"));
            host.assert_untouched();
        }
    }
    for trust in [Trust::Ours, Trust::Strangers] {
        what_is_in_data_leads_nowhere(trust);
    }
}

fn what_is_in_data_leads_nowhere(trust: Trust) {
    let host = Host::new();
    let data = host.path("layer/data");
    let outside = host.path("outside");
    symlink(&outside, data.join("absolute")).expect("a link");
    symlink("../../outside", data.join("relative")).expect("a link");
    symlink(outside.join("canary"), data.join("file")).expect("a link");
    // Who opened this one would read for ever.
    let zero = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(CWD, data.join("zero"), FileType::CharacterDevice, Mode::RWXU, zero).expect("a device");
    let pack = Task::Pack(Pack {
        format: ArchiveFormat::Tar,
        trust,
    });
    let (archive, packed) = host.done(&host.job(pack), b"");
    let Report::Packed(packed) = packed else {
        panic!("{packed:?}");
    };
    assert_eq!(
        (packed.entries, packed.skipped),
        (3, 1),
        "links are data, devices are left out"
    );
    assert!(!contains(&archive, "nobody's business"), "a link was followed");
    let apply = Task::Apply(Apply {
        mode: ApplyMode::Merge,
        trust,
    });
    for into in ["absolute/canary", "relative/canary", "absolute/new", "file"] {
        // Whether it is refused or takes the link's place: nothing goes through it.
        host.done(&host.job(apply.clone()), &archive_of(into, "overwritten"));
        host.assert_untouched();
    }
}

#[test]
fn work_that_takes_too_long_is_ended() {
    let host = Host::new();
    let mut job = host.job(APPLY);
    job.limits.seconds = 2;
    let mut running = host.start(&job);
    let input = running.child.stdin.take();
    let worker = running.worker(CHOWN_DAC_FOWNER_FSETID_SETFCAP).handle();
    let told = failure(report(&running.output()));
    assert_eq!(told, (FailureKind::Limit, "not done within 2 s".to_owned()));
    assert!(has_ended(&worker));
    drop(input);
    host.assert_nothing_is_seen();
}

#[test]
fn no_work_outlives_the_server_that_asked_for_it() {
    let host = Host::new();
    let mut running = host.start(&host.job(APPLY));
    let input = running.child.stdin.take();
    let worker = running.worker(CHOWN_DAC_FOWNER_FSETID_SETFCAP).handle();
    drop(running.lifeline);
    let output = running.child.wait_with_output().expect("it ends");
    assert_eq!(failure(report(&output)).1, "the server is gone");
    assert!(has_ended(&worker));
    drop(input);

    // The process that watches it is killed: nobody is left to end it.
    let mut running = host.start(&host.job(APPLY));
    let input = running.child.stdin.take();
    let worker = running.worker(CHOWN_DAC_FOWNER_FSETID_SETFCAP).handle();
    running.child.kill().expect("it can be killed");
    assert!(has_ended(&worker));
    running.child.wait().expect("it ends");
    drop(input);
    host.assert_nothing_is_seen();
}

#[test]
fn who_starts_it_wrongly_is_told() {
    let host = Host::new();
    let run = |arguments: &[&str]| {
        // Whatever this process was started with.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!(r#"exec "$0" "$@" {LIFELINE}<&-"#)]);
        command
            .arg(&host.program)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null());
        let output = command.output();
        failure(report(&output.expect("it ends")))
    };
    for arguments in [&[] as &[&str], &["{}", "{}"]] {
        assert_eq!(run(arguments).1, "the one argument is a job as JSON");
    }
    assert!(run(&["{}"]).1.starts_with("reading the job: "));
    let job = serde_json::to_string(&host.job(APPLY)).expect("JSON");
    let (_, message) = run(&[&job]);
    assert!(message.starts_with("taking the server's lifeline: "), "{message}");
}
