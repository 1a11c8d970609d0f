//! Random histories on the store in memory, beside itself: what differs here
//! is wrong in the model test.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_store::{ManualClock, MemoryStore, Random};

struct Memory;

#[async_trait]
impl Harness for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn unavailable(&self) -> Option<String> {
        None
    }

    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
        let store = Arc::new(MemoryStore::new(Arc::<ManualClock>::clone(&clock), random));
        Bed::new(store, clock)
    }
}

fn main() -> ExitCode {
    fleethold_conformance::run_model(Memory)
}
