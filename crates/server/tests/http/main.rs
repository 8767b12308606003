//! The server over real HTTP: its conventions, who may do what, and that nothing a caller sends is
//! our failure. One binary, so that it is linked once.

mod access;
mod auth;
mod backups;
mod bots;
mod conventions;
mod document;
mod examples;
mod gpus;
mod held;
mod operations;
mod sentences;
mod tickets;
mod users;
mod workspace;
