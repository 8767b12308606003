//! On whose behalf something is done. That the caller may use the bot at all was checked before.

use skep_store::IdempotencyKey;

/// What a request does when an operation of the bot is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Patience {
    /// Waits its turn.
    #[default]
    Queue,
    /// Is refused with `operation_in_progress` (`Prefer: wait=0`).
    Refuse,
    /// Is refused likewise, a removal too, which else comes before all others: nobody asked for it just now.
    GiveWay,
}

/// The caller of a rule, as far as a rule depends on him.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requester {
    /// His user id; `None` for the server itself.
    pub user_id: Option<String>,
    /// Role `admin`.
    pub is_admin: bool,
    /// Scope `manage` on the bot: owner, admin or manager, with a credential of that scope.
    pub may_manage: bool,
    /// Id of the request, for the log and the error event.
    pub request_id: Option<String>,
    /// What to do when an operation is under way.
    pub patience: Patience,
    /// Bound to what the request begins, in the very step that journals it.
    pub idempotency: Option<IdempotencyKey>,
}

impl Requester {
    /// The server itself: reconcile, work carried on after a start.
    pub fn server() -> Self {
        Self {
            is_admin: true,
            may_manage: true,
            ..Self::default()
        }
    }
}
