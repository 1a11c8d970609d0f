//! Copies of one database, on disks of their own, and all they contain.

use std::fs;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fleethold_faultfs::FaultFs;
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{
    AllocationId, BroadcastStore, ClientData, ClientId, ClientStore, ContactId, ManualClock,
    MessageId, MessageStore, Random, Store,
};
use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

use crate::history::{KINDS, Kind, NOW_SECONDS, Sequence, broadcast_id, prepare};

/// Two sequences of each kind: a whole one, and the first step of another.
pub(crate) const WHOLE: std::ops::Range<u64> = 0..KINDS.len() as u64;
pub(crate) const BEGUN: std::ops::Range<u64> = WHOLE.end..2 * WHOLE.end;

/// The number of the sequence of this kind in [`BEGUN`].
pub(crate) fn begun(kind: Kind) -> u64 {
    BEGUN.start
        + KINDS
            .iter()
            .position(|other| *other == kind)
            .expect("a kind") as u64
}

/// The number of the sequence of this kind in [`WHOLE`].
pub(crate) fn whole(kind: Kind) -> u64 {
    begun(kind) - BEGUN.start
}

/// When the calls are made: messages for the server are due.
pub(crate) const CALL_SECONDS: u64 = NOW_SECONDS + 200;

/// A database that is copied for every attempt.
pub(crate) struct Template {
    directory: TempDir,
    /// Of the begun broadcast.
    pub(crate) allocation: AllocationId,
    pub(crate) contact: ContactId,
    messages: Vec<MessageId>,
}

impl Template {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet.db");
        let store = open(&path, NOW_SECONDS, None);
        prepare(&store).await.unwrap();
        for number in WHOLE.chain(BEGUN) {
            let mut sequence = Sequence::new(number);
            let steps = Kind::of(number).parts().len();
            for step in 0..if WHOLE.contains(&number) { steps } else { 1 } {
                let performed = sequence.perform(&store, step).await;
                assert_eq!(performed.is_ok(), Kind::of(number) != Kind::Refused);
            }
        }
        let expiry = std::time::UNIX_EPOCH + std::time::Duration::from_secs(CALL_SECONDS + 1_000);
        let allocation = store
            .create_allocation(broadcast_id(begun(Kind::Broadcast)), 0.5, expiry)
            .await
            .unwrap()
            .expect("something is left");
        let client = crate::history::base_client(BEGUN.start);
        let contact = crate::calls::contact(client);
        let contact = store.record_client_contact(&contact).await.unwrap();
        store.close().await.unwrap();
        let connection = Connection::open(&path).unwrap();
        let messages = connection
            .prepare("SELECT message_id FROM messages")
            .unwrap()
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .unwrap()
            .map(|id| MessageId::try_from(&id.unwrap()[..]).unwrap())
            .collect();
        Self {
            directory,
            allocation: allocation.id,
            contact,
            messages,
        }
    }

    /// Panics if a message of the template is not found by its id.
    pub(crate) async fn is_in(&self, store: &SqliteStore) {
        let found = store.get_messages(&self.messages, true).await;
        assert_eq!(found.unwrap().len(), self.messages.len());
    }
}

fn open(path: &Path, seconds: u64, disk: Option<&FaultFs>) -> SqliteStore {
    let options = SqliteOptions {
        readers: NonZeroU16::MIN,
        vfs: disk.map(|disk| disk.name().to_owned()),
        ..SqliteOptions::default()
    };
    let clock = Arc::new(ManualClock::at(seconds));
    // Another seed for another time: ids of allocations are drawn once.
    SqliteStore::open(path, options, clock, Arc::new(Random::seeded(seconds))).unwrap()
}

/// A store on a copy of the template.
pub(crate) struct Bed {
    directory: TempDir,
    pub(crate) disk: FaultFs,
    pub(crate) store: SqliteStore,
}

impl Bed {
    pub(crate) fn open(template: &Template) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet.db");
        fs::copy(template.directory.path().join("fleet.db"), &path).unwrap();
        let disk = FaultFs::register();
        let store = open(&path, CALL_SECONDS, Some(&disk));
        Self {
            directory,
            disk,
            store,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("fleet.db")
    }

    pub(crate) async fn reopen(self) -> Self {
        self.store.close().await.unwrap();
        let disk = FaultFs::register();
        let store = open(&self.path(), CALL_SECONDS, Some(&disk));
        Self {
            disk,
            store,
            ..self
        }
    }

    /// All rows of all tables but those of the ids, which follow from the
    /// messages. Ids of allocations are random and left out.
    pub(crate) fn dump(&self) -> Vec<String> {
        dump(&self.path())
    }

    /// The same of a copy of database and log, as after a crash.
    pub(crate) fn dump_of_copy(&self) -> Vec<String> {
        let copy = tempfile::tempdir().unwrap();
        self.copy_to(copy.path());
        dump(&copy.path().join("fleet.db"))
    }

    pub(crate) fn copy_to(&self, directory: &Path) {
        for name in ["fleet.db", "fleet.db-wal"] {
            fs::copy(self.directory.path().join(name), directory.join(name)).unwrap();
        }
    }

    pub(crate) async fn store_is_whole(&self, template: &Template) {
        template.is_in(&self.store).await;
    }

    pub(crate) async fn next_call_works(&self, place: &str) {
        let id = ClientId::new([0xee; 8]);
        let added = self.store.add_client(id, &ClientData::default()).await;
        added.unwrap_or_else(|error| panic!("{place}, next: {error:?}"));
        let found = self.store.get_client_data(id).await;
        found.unwrap_or_else(|error| panic!("{place}, next: {error:?}"));
    }
}

fn dump(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let verdict: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
    let mut tables = connection.prepare(TABLES).unwrap();
    let tables: Vec<String> = tables
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let mut statement = connection
            .prepare(&format!("SELECT * FROM {table}"))
            .unwrap();
        let columns: Vec<String> = statement.column_names().map(Into::into).collect();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let mut text = table.clone();
            for (at, column) in columns.iter().enumerate() {
                if column != "allocation_id" {
                    text += &format!(" {:?}", row.get::<_, Value>(at).unwrap());
                }
            }
            rows.push(text);
        }
    }
    rows.sort_unstable();
    rows
}

const TABLES: &str = "\
SELECT name FROM sqlite_schema
WHERE type = 'table' AND name NOT LIKE 'message_ids%' AND name NOT LIKE 'sqlite%'
ORDER BY name";
