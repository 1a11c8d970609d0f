//! The suite for the store in memory.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_store::{ManualClock, MemoryStore, Random, Store};

struct Memory;

#[async_trait]
impl Harness for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            shares: true,
            maintains: true,
            forgets: true,
            ..Capabilities::default()
        }
    }

    fn unavailable(&self) -> Option<String> {
        None
    }

    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
        let store = Arc::new(MemoryStore::new(Arc::<ManualClock>::clone(&clock), random));
        let first = Arc::clone(&store);
        Bed::new(Arc::<MemoryStore>::clone(&store), clock)
            .with_maintenance(store)
            .with_second(move || {
                let second = Arc::new(first.share()) as Arc<dyn Store>;
                async { second }
            })
    }
}

fn main() -> ExitCode {
    fleethold_conformance::run(Memory)
}
