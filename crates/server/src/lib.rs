//! The HTTP server: it parses, authorises, calls core and converts. It decides nothing else.
//!
//! `http/` has one file per noun of the API; `http/error.rs` is the only place where a failure gets
//! its status; `http/access.rs` is the only way to a bot.

pub mod announcement;
pub mod app;
pub mod audit;
pub mod auth;
pub mod backend;
pub mod config;
pub mod http;
mod listening;
pub mod logging;
pub mod serve;
pub mod server;
mod taken;
