//! A complete store in memory: for tests, and as the model of what every store does.
//!
//! One lock guards plain maps. Every call parses its input first, then checks
//! what is stored, then changes it; so a refused call has changed nothing.

mod broadcasts;
mod clients;
mod files;
mod maintenance;
mod messages;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use crate::Store;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::maintenance::{Lease, Progress};
use crate::processor::ProcessorSlot;
use crate::random::Random;
use crate::stats::StoreStats;

/// A store that keeps everything in memory and loses it when it is dropped.
///
/// It keeps the whole contract except durability. Nothing is ever removed, so
/// it is no store for a server that runs for long.
///
/// ```
/// use std::sync::Arc;
///
/// use fleethold_store::{ClientId, ClientStore, ManualClock, MemoryStore, Random};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let store = MemoryStore::new(Arc::new(ManualClock::at(42)), Arc::new(Random::seeded(1)));
/// let error = store.get_client_data(ClientId::new([1; 8])).await.unwrap_err();
/// assert!(error.is_not_found());
/// # }
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    // The processor's loop holds only this part, and weakly.
    shared: Arc<Shared>,
    processor: ProcessorSlot,
}

impl MemoryStore {
    /// Makes an empty store that reads the time from `clock` and draws
    /// allocation ids from `random`.
    pub fn new(clock: Arc<dyn Clock>, random: Arc<Random>) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock,
                random,
                state: Mutex::default(),
            }),
            processor: ProcessorSlot::default(),
        }
    }

    /// Returns another store on the same data, as two servers have them on one database. Closing either closes both.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            processor: ProcessorSlot::default(),
        }
    }

    /// Streams pages that are read one by one, each after the key of the last item.
    fn pages<'a, K, T>(
        &'a self,
        operation: &'static str,
        page: impl Fn(&State, Option<K>) -> Vec<(K, T)> + Send + 'a,
    ) -> BoxStream<'a, Result<T>>
    where
        K: Copy + Send + 'a,
        T: Send + 'a,
    {
        stream::try_unfold(None, move |after| {
            let read = self
                .shared
                .with(operation, |state| Ok(page(state, after)))
                .map(|page| {
                    let (last, _) = page.last()?;
                    let next = Some(*last);
                    let items = stream::iter(page.into_iter().map(|(_, item)| Ok(item)));
                    Some((items, next))
                });
            async { read }
        })
        .try_flatten()
        .boxed()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn close(&self) -> Result<()> {
        self.processor.stop().await;
        self.shared.lock().closed = true;
        Ok(())
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    async fn stats(&self) -> Result<StoreStats> {
        let now = self.shared.clock.now();
        self.shared
            .with("stats", |state| Ok(state.messages.stats(now)))
    }
}

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    random: Arc<Random>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    messages: messages::Messages,
    clients: clients::Clients,
    broadcasts: broadcasts::Broadcasts,
    files: files::Files,
    /// The copy that came into this store.
    imported: Option<Progress>,
    /// With the time each ends.
    leases: BTreeMap<String, (Lease, SystemTime)>,
}

impl Shared {
    /// Runs one operation alone, unless the store is closed.
    fn with<T>(
        &self,
        operation: &'static str,
        run: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::closed(operation));
        }
        run(&mut state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no operation panics")
    }
}
