//! Measures what fleethold can carry.
//!
//! * [`embedded`]: the embedded store beside the floors of its disk. Its
//!   program is `store-bench`.
//! * [`compare`]: the stock server and this one on each store, in turn. Its
//!   command is `fleethold bench compare`.
//! * [`load`]: simulated agents by the thousand, against any server that speaks
//!   the protocol. Its command is `fleethold bench`.

pub mod compare;
pub mod embedded;
pub mod load;

mod figures;
mod machine;
mod plot;
