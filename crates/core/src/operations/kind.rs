//! The kinds of operations.

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What an operation does to a workspace.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum OperationKind { $($(#[$doc])* $variant,)* }

        impl OperationKind {
            /// Every kind there is.
            pub const ALL: &'static [OperationKind] = &[$(OperationKind::$variant,)*];

            /// The word on the wire and in the journal.
            pub fn as_str(self) -> &'static str {
                match self { $(OperationKind::$variant => $text,)* }
            }

            /// The kind of that word.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(OperationKind::$variant),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Makes the workspace, or starts the one there is.
    Create = "create",
    /// Ensures that it runs.
    Start = "start",
    /// Ends its processes; it stays stopped.
    Stop = "stop",
    /// Stop and start.
    Restart = "restart",
    /// Removes the workspace, not the bot.
    Delete = "delete",
    /// Puts preserved data back into it.
    Restore = "restore",
    /// Puts a client's archive into its data.
    Import = "import",
    /// Keeps its present state as a version.
    Snapshot = "snapshot",
    /// Forgets a version.
    SnapshotDelete = "snapshot_delete",
    /// Goes back to a version.
    Rollback = "rollback",
    /// Changes its limits.
    Limits = "limits",
    /// Brings what there is back to what is wanted, unasked.
    Recover = "recover",
    /// Removes the bot and all it has.
    DeleteBot = "delete_bot",
}

impl OperationKind {
    /// It ends in there being no workspace.
    pub fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::DeleteBot)
    }

    /// Processes of the workspace may be away while it runs.
    pub fn takes_the_task_down(self) -> bool {
        !matches!(self, Self::Limits | Self::SnapshotDelete)
    }
}
