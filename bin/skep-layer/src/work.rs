//! What the worker does, once it is enclosed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use skep_archive::{
    ApplyOptions, ArchiveError, Attributes, Changing, Compressed, Format, Links, Mode, Owners, PackOptions, PackReport,
    RootEntry, Source, Special,
};
use skep_layer_protocol::{
    Applied, Apply, ApplyMode, ArchiveFormat, DataPlace, FailureKind, Job, Pack, Packed, Report, Task, Trust,
};

use crate::failure::{Failure, Result, Tried};
use crate::{data, enclosure};

/// Whoever asked for an archive waits for it.
const ESTIMATE_WITHIN: Duration = Duration::from_millis(500);

/// Does the job and says how it went.
pub(crate) fn work(job: &Job) -> Result<Report> {
    let root = enclosure::enter(job)?;
    enclosure::give_up_privileges(&job.task)?;
    match &job.task {
        Task::Pack(pack) => Ok(Report::Packed(packed(&root, job.data, *pack)?)),
        Task::Estimate => Ok(Report::Estimated {
            bytes: estimated(&root, job.data)?,
        }),
        Task::Apply(apply) => Ok(Report::Applied(applied(&root, job.data, *apply)?)),
    }
}

/// Of a tree that takes long to walk, a part of it.
fn estimated(root: &OwnedFd, place: DataPlace) -> Result<u64> {
    match data::open(root, place)? {
        Some(directory) => {
            skep_archive::estimate(directory.as_fd(), Instant::now() + ESTIMATE_WITHIN).tried("looking through /data")
        }
        None => Ok(0),
    }
}

fn packed(root: &OwnedFd, place: DataPlace, pack: Pack) -> Result<Packed> {
    let directory = data::open(root, place)?;
    let format = match pack.format {
        ArchiveFormat::Tar => Format::Tar,
        ArchiveFormat::TarGz => Format::Gzip,
        ArchiveFormat::TarZst => Format::Zstd,
    };
    let output = io::BufWriter::with_capacity(256 * 1024, own(io::stdout()).tried("taking the output")?);
    let mut output = Compressed::new(output, format).tried("beginning the archive")?;
    let report = write_archive(directory.as_ref(), pack.trust, &mut output)?;
    let mut output = output.finish().tried("ending the archive")?;
    output.flush().tried("ending the archive")?;
    Ok(Packed {
        entries: report.entries,
        bytes: report.bytes,
        skipped: report.skipped,
        changed: report.changed,
    })
}

/// Nothing at the place of `/data` is an archive without entries.
fn write_archive(directory: Option<&File>, trust: Trust, output: &mut dyn Write) -> Result<PackReport> {
    let options = PackOptions {
        attributes: match trust {
            Trust::Ours => Attributes::Tenant,
            Trust::Strangers => Attributes::User,
        },
        changing: Changing::Counted,
        root: match trust {
            Trust::Ours => RootEntry::Always,
            Trust::Strangers => RootEntry::UnlessEmpty,
        },
        special: match trust {
            Trust::Ours => Special::All,
            Trust::Strangers => Special::LeftOut,
        },
        spill: Path::new(enclosure::SPOOL),
    };
    match directory {
        Some(directory) => skep_archive::pack(directory.as_fd(), &options, output),
        None => skep_archive::Packer::new(options, output).finish(),
    }
    .map_err(|error| refused_or_failed(&error))
}

fn applied(root: &OwnedFd, place: DataPlace, apply: Apply) -> Result<Applied> {
    let directory = data::open_or_make(root, place)?;
    let mut input = Source::open(own(io::stdin()).tried("taking the archive")?).tried("reading the archive")?;
    let options = ApplyOptions {
        mode: match apply.mode {
            ApplyMode::Merge => Mode::Merge,
            ApplyMode::Replace => Mode::Replace,
        },
        trust: match apply.trust {
            Trust::Ours => skep_archive::Trust::Ours,
            Trust::Strangers => skep_archive::Trust::Stranger,
        },
        owners: Owners::Kept,
        links: Links::Refused,
        spill: Path::new(enclosure::SPOOL),
    };
    let report = skep_archive::apply(directory.as_fd(), &mut input, &options);
    let report = report.map_err(|error| refused_or_failed(&error))?;
    data::flush(root)?;
    Ok(Applied {
        entries: report.entries,
        bytes: report.bytes,
        skipped: report.skipped,
        remapped: report.remapped,
    })
}

fn refused_or_failed(error: &ArchiveError) -> Failure {
    match error {
        ArchiveError::Refused(refusal) => Failure::new(FailureKind::Refused, refusal.to_string()),
        ArchiveError::Io { source, .. } => Failure::io(&error.to_string(), source),
        ArchiveError::Changed { .. } => Failure::new(FailureKind::Other, error.to_string()),
    }
}

/// The descriptor itself: what the language puts before it holds lines back.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}
