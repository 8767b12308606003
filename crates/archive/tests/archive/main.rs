//! The archive crate from outside: trees that are hard to carry, archives that mean harm, files that do not hold still,
//! GNU tar on the other side, and bytes that a fuzzer made up.

mod any_bytes;
mod changing;
mod corpus;
mod gnu_tar;
mod hostile;
mod round_trip;
mod tree;
mod zip;
