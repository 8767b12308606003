//! The rules of Skep: what a workspace is, what may be done with it, and how files and processes in it are reached.
//!
//! No HTTP and no SQL text here.

pub mod bridge;
pub mod exec;
pub mod files;
pub mod terminal;
