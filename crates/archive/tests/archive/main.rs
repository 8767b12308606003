//! The archive crate from outside: trees that are hard to carry, archives that mean harm, files that do not hold still,
//! and GNU tar on the other side.

mod changing;
mod gnu_tar;
mod hostile;
mod round_trip;
mod tree;
mod zip;
