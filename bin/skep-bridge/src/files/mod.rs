//! The workspace's files, by blocking calls: the services run these on worker threads and carry the results.

mod archive;
mod attributes;
mod change;
mod copy;
mod descent;
mod info;
mod read;
mod rename;
mod search;
mod text;
mod walk;
mod watch;
mod write;

pub(crate) use archive::{Export, Sink, extract, pack, unpack};
pub(crate) use change::{change_mode, make_directory, remove};
pub(crate) use copy::copy;
pub(crate) use info::{entry_of, stat};
pub(crate) use read::{ReadPlan, open_regular};
pub(crate) use rename::{rename, rename_in_place};
pub(crate) use search::Search;
pub(crate) use text::read_lines;
pub(crate) use walk::{Walk, Walking, walk};
pub(crate) use watch::Watched;
pub(crate) use write::{Commit, NewFile, Target};
