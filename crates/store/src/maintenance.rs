//! Moving, checking and measuring all that a store keeps: for operators, beside
//! what a server needs.
//!
//! [`copy`] takes every row of one store to another, whatever their layouts,
//! and goes on where it was interrupted; [`compare`] finds rows that differ.

mod compare;
mod copy;
mod retention;

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::Label;

pub use self::compare::{Comparison, compare};
pub use self::copy::{CopyError, copy};
pub use self::retention::{Retention, RetentionTask};

use crate::Store;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::ids::{AllocationId, BroadcastId, ClientId, MessageId};
use crate::record::{BroadcastRecord, MessageRecord, UsageRecord};

/// What operators do with a store that no server is needed for.
///
/// Exports expect that nobody writes in the meantime; what is written is copied
/// or not.
#[async_trait]
pub trait Maintenance: Store {
    /// Returns the rows of a table after a place in it, in the store's own
    /// order: at most `limit`, fewer when their payloads reach
    /// [`MAX_CLAIM_BYTES`](crate::limits::MAX_CLAIM_BYTES), and at least one if
    /// there is one.
    ///
    /// # Errors
    /// `InvalidArgument` for a place of another store or table.
    async fn export_rows(&self, table: Table, after: Option<&Cursor>, limit: usize)
    -> Result<Page>;

    /// Adds rows as they are, and remembers how far the copy has come: `before`
    /// becomes `after`. Rows that refer to others come after them; see
    /// [`Table::ALL`]. Links of unknown messages or contacts are left out.
    ///
    /// # Errors
    /// `Transient` if the copy has not come as far as `before`, or further:
    /// somebody else copies at the same time; `AlreadyExists` for a row whose key
    /// is taken. Nothing is changed then.
    async fn import_rows(
        &self,
        rows: &[Row],
        before: Option<&Progress>,
        after: &Progress,
    ) -> Result<()>;

    /// Returns how far a copy into this store has come; `None` if there was none.
    async fn imported(&self) -> Result<Option<Progress>>;

    /// Looks for rows that refer to missing ones or contradict each other;
    /// changes nothing. Reads everything, which takes its time.
    async fn check(&self) -> Result<Vec<Finding>>;

    /// Counts what is stored. Reads everything, which takes its time.
    async fn sizes(&self) -> Result<Sizes>;

    /// Takes a lease, or keeps it, until `duration` from now; `None` while
    /// somebody else has it.
    ///
    /// Of all processes on one database, one has the lease; whoever writes for
    /// it says so with the lease, and is refused once somebody else has it.
    ///
    /// # Errors
    /// `NotSupported` by a store without leases, which need not have this method.
    async fn hold_lease(
        &self,
        _name: &str,
        _holder: u64,
        _duration: Duration,
    ) -> Result<Option<Lease>> {
        Err(unsupported("hold_lease"))
    }

    /// Looks at the next rows after a place, at most `limit`, and removes those
    /// that are older than `before`; see [`Old`].
    ///
    /// # Errors
    /// `Transient` if the lease is somebody else's; `InvalidArgument` for a
    /// place of another store; `NotSupported` by a store that keeps everything,
    /// which need not have this method. Nothing is removed then.
    async fn remove_old(
        &self,
        _what: Old,
        _before: SystemTime,
        _after: Option<&Cursor>,
        _limit: usize,
        _lease: &Lease,
    ) -> Result<Removed> {
        Err(unsupported("remove_old"))
    }
}

fn unsupported(operation: &'static str) -> Error {
    let detail = "this store removes nothing by itself";
    Error::new(ErrorKind::NotSupported, operation, detail)
}

/// The tables every store has, whatever it calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Clients with their labels.
    Clients,
    /// Messages, pending or not.
    Messages,
    /// Contacts.
    Contacts,
    /// Which message belongs to which contact.
    Links,
    /// Resource usage records.
    Usage,
    /// Broadcasts with their labels and allocations.
    Broadcasts,
    /// Which client got which broadcast.
    Sent,
    /// Files.
    Files,
}

impl Table {
    /// All tables; what a row refers to is in an earlier one.
    pub const ALL: [Self; 8] = [
        Self::Clients,
        Self::Messages,
        Self::Contacts,
        Self::Links,
        Self::Usage,
        Self::Broadcasts,
        Self::Sent,
        Self::Files,
    ];

    /// Returns the name, which is stored and never changes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Messages => "messages",
            Self::Contacts => "contacts",
            Self::Links => "links",
            Self::Usage => "usage",
            Self::Broadcasts => "broadcasts",
            Self::Sent => "sent",
            Self::Files => "files",
        }
    }

    /// Returns the table with a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A place in a table, which only the store that made it understands.
pub type Cursor = Bytes;

/// Some rows of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The rows.
    pub rows: Vec<Row>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// A row of any table.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// Of [`Table::Clients`].
    Client(ClientRow),
    /// Of [`Table::Messages`].
    Message(MessageRow),
    /// Of [`Table::Contacts`].
    Contact(ContactRow),
    /// Of [`Table::Links`].
    Link(LinkRow),
    /// Of [`Table::Usage`].
    Usage(ClientId, UsageRecord),
    /// Of [`Table::Broadcasts`].
    Broadcast(BroadcastRow),
    /// Of [`Table::Sent`].
    Sent(SentRow),
    /// Of [`Table::Files`].
    File(FileRow),
}

/// A client.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientRow {
    /// The key.
    pub id: ClientId,
    /// The public key.
    pub public_key: Bytes,
    /// Whether the client must make itself a new key.
    pub blacklisted: bool,
    /// By (service name, label), each once.
    pub labels: Vec<Label>,
    /// In ns since the epoch.
    pub last_contact_nanos: i64,
    /// May be empty.
    pub last_contact_address: String,
    /// `None` unless the last contact was a stream.
    pub last_contact_streaming_to: Option<String>,
    /// `None` if the client told no valid time.
    pub last_clock: Option<Timestamp>,
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageRow {
    /// The message.
    pub record: MessageRecord,
    /// When it is handed out next, in µs since the epoch; `None` once it has a result.
    pub due_micros: Option<i64>,
    /// How often it was handed out; 0 once it has a result.
    pub claims: u32,
}

/// A contact. Its nonces name it, because every store has ids of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ContactRow {
    /// Who made contact, when, and how.
    pub key: ContactKey,
    /// May be empty.
    pub address: String,
}

/// What tells a contact from all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContactKey {
    /// Who made contact.
    pub client_id: ClientId,
    /// When, in ns since the epoch.
    pub time_nanos: i64,
    /// Sent by the server.
    pub nonce_sent: u64,
    /// Sent by the client.
    pub nonce_received: u64,
}

/// A message that belongs to a contact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkRow {
    /// The contact.
    pub contact: ContactKey,
    /// The message.
    pub message: MessageId,
}

/// A broadcast.
#[derive(Clone, Debug, PartialEq)]
pub struct BroadcastRow {
    /// The broadcast.
    pub record: BroadcastRecord,
    /// Messages sent under finished allocations.
    pub sent: u64,
    /// The sum of the limits of live allocations.
    pub allocated: u64,
    /// By id.
    pub allocations: Vec<AllocationRow>,
}

/// An allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationRow {
    /// The key within the broadcast.
    pub id: AllocationId,
    /// Messages sent.
    pub sent: u64,
    /// At most this many.
    pub limit: u64,
    /// In ns since the epoch.
    pub expiry_nanos: i64,
}

/// A client that got a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentRow {
    /// The client.
    pub client: ClientId,
    /// The broadcast.
    pub broadcast: BroadcastId,
    /// The message that carries it, if that is known.
    pub message: Option<MessageId>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRow {
    /// The service it belongs to.
    pub service: String,
    /// Its name.
    pub name: String,
    /// In ns since the epoch.
    pub modified_nanos: i64,
    /// What agents download.
    pub content: Bytes,
}

impl Row {
    /// Returns the table of the row.
    pub fn table(&self) -> Table {
        match self {
            Self::Client(_) => Table::Clients,
            Self::Message(_) => Table::Messages,
            Self::Contact(_) => Table::Contacts,
            Self::Link(_) => Table::Links,
            Self::Usage(..) => Table::Usage,
            Self::Broadcast(_) => Table::Broadcasts,
            Self::Sent(_) => Table::Sent,
            Self::File(_) => Table::Files,
        }
    }

    /// Returns about how many bytes the payload of the row has.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Message(row) => row.record.data.as_ref().map_or(0, |data| data.value.len()),
            Self::Broadcast(row) => row.record.data.as_ref().map_or(0, |data| data.value.len()),
            Self::File(row) => row.content.len(),
            _ => 0,
        }
    }
}

/// Names the row, for messages to operators.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(row) => write!(f, "client {}", row.id),
            Self::Message(row) => write!(f, "message {}", row.record.id),
            Self::Contact(row) => write!(f, "{}", row.key),
            Self::Link(row) => write!(f, "message {} in {}", row.message, row.contact),
            Self::Usage(client, record) => {
                write!(f, "usage of client {client} at {} ns", record.server_nanos)
            }
            Self::Broadcast(row) => write!(f, "broadcast {}", row.record.id),
            Self::Sent(row) => write!(f, "broadcast {} to client {}", row.broadcast, row.client),
            Self::File(row) => write!(f, "file {:?} of service {:?}", row.name, row.service),
        }
    }
}

impl fmt::Display for ContactKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "contact of client {} at {} ns",
            self.client_id, self.time_nanos
        )
    }
}

/// How far a copy has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Names the store that is copied.
    pub source: String,
    /// The table that is being copied; `None` after the last.
    pub table: Option<Table>,
    /// The place in that table; `None` at its beginning.
    pub cursor: Option<Cursor>,
    /// Rows copied so far, of all tables.
    pub rows: u64,
}

/// Something wrong with stored rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, as a sentence without period.
    pub problem: &'static str,
    /// How many rows.
    pub rows: u64,
    /// Some of their keys.
    pub examples: Vec<String>,
}

impl Progress {
    /// Refuses to go on from `before` if the copy is elsewhere, for backends.
    ///
    /// # Errors
    /// `Transient`.
    pub fn check(
        operation: &'static str,
        stored: Option<&Self>,
        before: Option<&Self>,
    ) -> Result<()> {
        if stored == before {
            return Ok(());
        }
        let detail = "somebody else copies into this store at the same time";
        Err(Error::new(ErrorKind::Transient, operation, detail).with_outcome(Outcome::NotApplied))
    }
}

/// The right to do what only one process should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What for.
    pub name: String,
    /// Whose; a random number.
    pub holder: u64,
    /// Grows whenever the lease goes to somebody else.
    pub fence: u64,
}

impl Lease {
    /// Makes the error of a write under a lease that is lost, for backends.
    pub fn lost(&self, operation: &'static str) -> Error {
        let detail = format!("the lease {} belongs to another process now", self.name);
        Error::new(ErrorKind::Transient, operation, detail).with_outcome(Outcome::NotApplied)
    }
}

/// What grows with time, and what of it can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Old {
    /// Contacts, by their time, with their links. The newest of the store stays.
    Contacts,
    /// Resource usage records, by the time they came.
    Usage,
    /// Messages with a result, by the time of the result. The newest of the
    /// store stays.
    Messages,
    /// Messages that wait for clients, by their creation: they are not removed,
    /// but fail, with the reason [`EXPIRED`].
    Pending,
}

impl Old {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Contacts, Self::Usage, Self::Messages, Self::Pending];
}

/// The reason in the result of a message that waited too long for its client.
pub const EXPIRED: &str = "Expired: the client did not fetch it in time.";

/// What became of old rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many were removed, or failed.
    pub rows: u64,
    /// Where to go on; `None` when no old row is left behind this place.
    pub next: Option<Cursor>,
}

/// How many rows of a kind of problem are named.
pub const MOST_EXAMPLES: usize = 5;

/// How much is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of each table, in the order of [`Table::ALL`].
    pub rows: Vec<(Table, u64)>,
    /// Messages that wait for clients.
    pub pending_for_clients: u64,
    /// Messages that wait for services.
    pub pending_for_server: u64,
    /// What the database takes on disk, if the store can tell.
    pub bytes: Option<u64>,
}
