//! How to put a store of your own through the suite, shown with one that is broken.
//!
//! `cargo run -p fleethold-conformance --example own_store` prints the report,
//! in which the cases fail that notice; all arguments of a test program work,
//! `-- f_01` for instance. In your own crate this file is
//! `tests/conformance.rs`, and its target has `harness = false`.

mod broken;

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_store::{ManualClock, Random};

use broken::Forgetful;

struct OwnStore;

#[async_trait]
impl Harness for OwnStore {
    fn name(&self) -> &'static str {
        "own"
    }

    fn capabilities(&self) -> Capabilities {
        // All that a store on disk should say is that it reopens.
        Capabilities::default()
    }

    fn unavailable(&self) -> Option<String> {
        // A missing server or environment variable would be named here.
        None
    }

    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
        let store = Forgetful::new(Arc::<ManualClock>::clone(&clock), random);
        Bed::new(Arc::new(store), clock)
    }
}

fn main() -> ExitCode {
    fleethold_conformance::run(OwnStore)
}
