//! Trees of files as tar archives: written ([`pack`]), checked ([`check`]) and unpacked ([`apply`], which ZIP archives
//! can be, too).
//!
//! The one place that knows the format. It works below a directory's descriptor, never by a path, and follows no link
//! (but for [`Links::ExistingFollowed`], inside a workspace, with the tenant's own rights). Memory does not grow with
//! the number of entries or their size: what is kept per entry spills to files without a name in a directory that the
//! caller names. No network, no async, no policy beyond what an archive may hold.
//!
//! Used in four places: by the bridge, inside a workspace; by the worker that reads and writes layers from outside;
//! by the server, which checks what a client sent before anything is stopped for it; by the command line, which reads
//! ([`Reader`]) what a workspace sent and puts it in place with rules of its own.

mod apply;
mod attributes;
#[cfg(feature = "compression")]
mod check;
#[cfg(feature = "compression")]
mod compression;
mod directories;
mod entry;
mod error;
mod estimate;
mod hard_links;
mod header;
#[cfg(feature = "compression")]
mod history;
mod late;
mod left_out;
mod pack;
mod pax;
mod reader;
mod remove;
mod sort;
mod sparse;
mod table;
mod way;
mod writer;
#[cfg(feature = "compression")]
mod zip;
#[cfg(feature = "compression")]
mod zip_end;

#[cfg(feature = "compression")]
pub use apply::apply_zip;
pub use apply::{Applied, ApplyOptions, Links, Mode, Owners, apply};
pub use attributes::Attributes;
#[cfg(feature = "compression")]
pub use check::{Checked, Limits, check, check_while};
#[cfg(feature = "compression")]
pub use compression::{Compressed, Format, Source};
pub use entry::{Entries, Entry, Kind, Trust};
pub use error::{ArchiveError, Reason, Refusal};
pub use estimate::estimate;
pub use left_out::LeftOut;
pub use pack::{Changing, PackOptions, PackReport, Packer, RootEntry, Special, pack};
pub use reader::Reader;
