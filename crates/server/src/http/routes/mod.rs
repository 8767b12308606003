//! The routes, one file per noun.

pub mod audit;
pub mod auth;
pub mod backups;
pub mod bots;
pub mod container;
pub mod data;
pub mod exec;
pub mod files;
pub mod gpus;
pub mod health;
pub mod images;
pub mod keys;
pub mod later;
pub mod logs;
pub mod members;
pub mod metrics;
pub mod operations;
pub mod ports;
pub mod snapshots;
pub mod terminal;
pub mod users;
