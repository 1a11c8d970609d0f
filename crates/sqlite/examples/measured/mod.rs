//! What both programs measure: stores and bare tables in a new directory each.
#![allow(dead_code, reason = "each program uses its part")]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{
    ClientData, ClientId, ClientStore, ContactData, ContactId, MessageId, Random, SystemClock,
};
use rusqlite::Connection;
use tempfile::TempDir;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) const CLIENT: ClientId = ClientId::new([1; 8]);

/// Makes the directory below the working directory, because /tmp may be in memory.
pub(crate) fn directory() -> Result<TempDir> {
    Ok(tempfile::tempdir_in(".")?)
}

/// A store with one client and a contact of it.
pub(crate) async fn store(random: &Arc<Random>) -> Result<(TempDir, SqliteStore, ContactId)> {
    let directory = directory()?;
    let clock = Arc::new(SystemClock::new(Arc::clone(random)));
    let options = SqliteOptions::default();
    let store = SqliteStore::open(path(&directory), options, clock, Arc::clone(random))?;
    store.add_client(CLIENT, &ClientData::default()).await?;
    let contact = ContactData {
        client_id: CLIENT,
        nonce_sent: 1,
        nonce_received: 2,
        addr: "192.0.2.1:1".into(),
        client_clock: None,
        streaming_to: None,
        labels: Vec::new(),
    };
    let contact = store.record_client_contact(&contact).await?;
    Ok((directory, store, contact))
}

pub(crate) fn path(directory: &TempDir) -> PathBuf {
    directory.path().join("fleet.db")
}

/// The message of the requirements: random 32-byte id and 16-byte source id,
/// 12-byte services, 16-byte type, 44-byte type URL, 100 bytes of payload.
pub(crate) fn message(random: &Random, from: Option<ClientId>, to: Option<ClientId>) -> Message {
    let address = |client: Option<ClientId>, service: &str| Address {
        client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
        service_name: service.into(),
    };
    let mut source_message_id = vec![0; 16];
    random.fill(&mut source_message_id);
    Message {
        message_id: MessageId::random(random).to_bytes(),
        source: Some(address(from, "service-0001")),
        source_message_id: source_message_id.into(),
        destination: Some(address(to, "service-0002")),
        message_type: "message-type-016".into(),
        creation_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_789,
        }),
        data: Some(Any {
            type_url: "type.googleapis.com/example.package.AMessage".into(),
            value: vec![9; 100].into(),
        }),
        ..Message::default()
    }
}

pub(crate) fn processed(random: &Random) -> Message {
    let mut message = message(random, Some(CLIENT), None);
    message.result = Some(MessageResult {
        processed_time: Some(Timestamp {
            seconds: 1_700_000_001,
            nanos: 123_456_789,
        }),
        ..MessageResult::default()
    });
    message
}

/// A bare table with the durability of the store, and how to insert into it.
pub(crate) fn floor(schema: &str) -> Result<(TempDir, Connection)> {
    let directory = directory()?;
    let connection = Connection::open(path(&directory))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -65536;",
    )?;
    connection.execute_batch(schema)?;
    Ok((directory, connection))
}

pub(crate) const SEQUENTIAL: &str = "CREATE TABLE floor (k INTEGER PRIMARY KEY, id, value)";
pub(crate) const RANDOM: &str = "CREATE TABLE floor (id PRIMARY KEY, value) WITHOUT ROWID";
pub(crate) const INSERT: &str = "INSERT INTO floor (id, value) VALUES (?1, ?2)";
