//! The bridge as it is shipped, tried over the wire: each sentence of its contract.

mod calls;
mod reference_exec;
mod workspace;
