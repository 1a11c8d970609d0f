//! What a backend hands the suite: how a store comes alive, what it can do
//! beyond the contract, and the way behind its back that some cases need.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_store::{Maintenance, ManualClock, MessageId, Random, Store};
use futures::future::BoxFuture;

/// How the suite obtains a fresh, empty store of one kind.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Names the kind; it starts the name of every case.
    fn name(&self) -> &'static str;

    /// Says what the store can do beyond the contract.
    fn capabilities(&self) -> Capabilities;

    /// Returns why the cases cannot run here, for instance a missing database server.
    fn unavailable(&self) -> Option<String>;

    /// Returns how many times as long as others a case may take, for stores whose
    /// every commit crosses a network.
    fn patience(&self) -> u32 {
        1
    }

    /// Opens a new, empty store that uses `clock` and `random`; a failure panics.
    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed;
}

/// What a store can do beyond the contract, and what its harness can do to it;
/// cases ask, they never guess. Each needs its way in [`Bed`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities {
    /// A closed store can be opened again with all its data; see [`Bed::with_reopen`].
    pub reopens: bool,
    /// Two stores can use one database at the same time; see [`Bed::with_second`].
    pub shares: bool,
    /// The harness can damage what is stored; see [`Bed::with_damage`].
    pub damages: bool,
    /// The harness can make contact ids large; see [`Bed::with_contact_preset`].
    pub presets_contacts: bool,
    /// The harness can make calls conflict; see [`Bed::with_conflict`].
    pub conflicts: bool,
    /// The harness can count the store's work; see [`Bed::with_work`].
    pub counts_work: bool,
    /// The store can be copied, checked and measured; see [`Bed::with_maintenance`].
    pub maintains: bool,
    /// The store has leases and removes what is old, besides.
    pub forgets: bool,
}

/// A store of its own for one case.
pub struct Bed {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<ManualClock>,
    reopen: Option<Open>,
    second: Option<Open>,
    damage: Option<Box<dyn Fn(MessageId) + Send + Sync>>,
    contact_preset: Option<Box<dyn Fn(i64) + Send + Sync>>,
    conflict: Option<Box<dyn Fn() -> Box<dyn Any + Send> + Send + Sync>>,
    work: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
    maintenance: Option<Arc<dyn Maintenance>>,
    aged_leases: Option<Box<dyn Fn(Duration) + Send + Sync>>,
    /// All stores of this bed, which are closed after the case.
    pub(crate) opened: Arc<Mutex<Vec<Arc<dyn Store>>>>,
    pub(crate) guard: Option<Box<dyn Any + Send + Sync>>,
}

type Open = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Store>> + Send + Sync>;

impl Bed {
    /// Makes a bed of an empty store and the clock it was opened with.
    pub fn new(store: Arc<dyn Store>, clock: Arc<ManualClock>) -> Self {
        Self {
            opened: Arc::new(Mutex::new(vec![Arc::clone(&store)])),
            store,
            clock,
            reopen: None,
            second: None,
            damage: None,
            contact_preset: None,
            conflict: None,
            work: None,
            maintenance: None,
            aged_leases: None,
            guard: None,
        }
    }

    /// Adds what removes every trace of the store when it is dropped, after the
    /// case and after the store has been closed.
    #[must_use]
    pub fn with_guard(mut self, guard: impl Any + Send + Sync) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }

    /// Adds the way to open the store again, with the same data, clock and
    /// randomness, after it has been closed.
    #[must_use]
    pub fn with_reopen<F>(mut self, reopen: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Store>> + Send + 'static,
    {
        self.reopen = Some(Box::new(move || Box::pin(reopen())));
        self
    }

    /// Adds the way to open another store on the same database, with the same
    /// clock and randomness, while the first one is open.
    #[must_use]
    pub fn with_second<F>(mut self, second: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Store>> + Send + 'static,
    {
        self.second = Some(Box::new(move || Box::pin(second())));
        self
    }

    /// Adds what makes the stored annotations and validation info of a message
    /// undecodable, behind the store's back. May block.
    #[must_use]
    pub fn with_damage(mut self, damage: impl Fn(MessageId) + Send + Sync + 'static) -> Self {
        self.damage = Some(Box::new(damage));
        self
    }

    /// Adds what makes the next contact's number larger than the one given,
    /// behind the store's back; there is a client. May block.
    #[must_use]
    pub fn with_contact_preset(mut self, preset: impl Fn(i64) + Send + Sync + 'static) -> Self {
        self.contact_preset = Some(Box::new(preset));
        self
    }

    /// Adds what makes calls that write conflict as long as its result lives:
    /// they wait, or fail with [`Transient`](fleethold_store::ErrorKind::Transient).
    /// May block.
    #[must_use]
    pub fn with_conflict<G: Any + Send>(
        mut self,
        conflict: impl Fn() -> G + Send + Sync + 'static,
    ) -> Self {
        self.conflict = Some(Box::new(move || Box::new(conflict())));
        self
    }

    /// Adds a counter of the store's work, whose differences depend on the data
    /// alone: rows read, steps of statements, but never time.
    #[must_use]
    pub fn with_work(mut self, work: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.work = Some(Box::new(work));
        self
    }

    /// Adds the store again, as operators use it.
    #[must_use]
    pub fn with_maintenance(mut self, store: Arc<dyn Maintenance>) -> Self {
        self.maintenance = Some(store);
        self
    }

    /// Adds what brings the end of all leases nearer, behind the store's back: for
    /// stores whose leases go by the clock of their database. May block.
    #[must_use]
    pub fn with_aged_leases(mut self, age: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        self.aged_leases = Some(Box::new(age));
        self
    }

    /// Closes the store and opens it again.
    pub(crate) async fn reopen(&mut self) {
        self.store.close().await.expect("the store can be closed");
        let reopen = self.reopen.as_ref();
        self.store = reopen.expect("a store that reopens has a way to")().await;
        self.note(&self.store);
    }

    /// Opens another store on the same database.
    pub(crate) async fn second(&self) -> Arc<dyn Store> {
        let second = self.second.as_ref();
        let store = second.expect("a store that shares its database has a way to")().await;
        self.note(&store);
        store
    }

    fn note(&self, store: &Arc<dyn Store>) {
        self.opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(store));
    }

    /// Damages a stored message.
    pub(crate) fn damage(&self, id: MessageId) {
        self.damage.as_ref().expect("a way to damage rows")(id);
    }

    /// Makes the next contact's number larger than this.
    pub(crate) fn preset_contacts(&self, number: i64) {
        let preset = self.contact_preset.as_ref();
        preset.expect("a way to make contact ids large")(number);
    }

    /// Makes calls that write conflict until the result is dropped.
    pub(crate) fn conflict(&self) -> Box<dyn Any + Send> {
        self.conflict.as_ref().expect("a way to make conflicts")()
    }

    /// Lets time pass, for leases, too.
    pub(crate) fn pass(&self, time: Duration) {
        self.clock.advance(time);
        if let Some(age) = &self.aged_leases {
            age(time);
        }
    }

    /// Returns the store as operators use it.
    pub(crate) fn maintenance(&self) -> &dyn Maintenance {
        let store = self.maintenance.as_deref();
        store.expect("a store that can be maintained")
    }

    /// Returns the store's work so far.
    pub(crate) fn work(&self) -> u64 {
        self.work.as_ref().expect("a way to count work")()
    }
}
