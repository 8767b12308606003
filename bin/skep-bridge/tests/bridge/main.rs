//! The bridge as it is shipped, tried over the wire: each sentence of its contract.

mod calls;
mod followed_execs;
mod layers;
mod log;
mod many_execs;
mod odd_files;
mod our_execs;
mod our_files;
mod reference_exec;
mod reference_files;
mod standing_still;
mod start_and_end;
mod stored_execs;
mod tcp;
mod workspace;
