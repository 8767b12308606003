//! What workspaces take over from the host: its resolvers and its time zone.

mod resolver;
mod time_zone;

pub(crate) use resolver::{Resolver, choose_resolver};
pub use time_zone::time_zone;
