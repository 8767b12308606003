//! Words in the metadata of an error, for what a gRPC code alone does not tell.

/// The metadata key that holds one of the words below.
pub const METADATA_KEY: &str = "skep-reason";

/// The process could not be started at all; the message says why.
pub const EXEC_NOT_STARTED: &str = "exec_not_started";
/// The process is over: it takes no input, signal or size.
pub const EXEC_EXITED: &str = "exec_exited";
/// A directory where a file was needed.
pub const IS_A_DIRECTORY: &str = "is_a_directory";
/// Something else where a directory was needed.
pub const NOT_A_DIRECTORY: &str = "not_a_directory";
/// A device, pipe or socket where a file was needed.
pub const NOT_A_REGULAR_FILE: &str = "not_a_regular_file";
/// The directory has entries, and recursive was not asked.
pub const NOT_EMPTY: &str = "not_empty";
/// The file is not the one that `if_match` names.
pub const CHANGED: &str = "changed";
/// A name or path is longer than the file system takes.
pub const NAME_TOO_LONG: &str = "name_too_long";
/// As many of its kind are under way as may be; it may be tried again.
pub const TOO_MANY: &str = "too_many";
/// No space, no quota or no inode left.
pub const NO_SPACE: &str = "no_space";
/// Nothing listens on the port.
pub const CONNECTION_REFUSED: &str = "connection_refused";
/// The workspace's side of a forwarded connection broke it off.
pub const CONNECTION_RESET: &str = "connection_reset";
