//! Routes. One file per noun; every handler gets its caller and its bot from an extractor.

pub mod access;
pub mod context;
pub mod error;
pub mod extract;
