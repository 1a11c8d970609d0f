//! SQLite on a file system that fails: counted, on demand, and for good.

mod faults;
mod pass_through;
mod power;
mod workload;
