//! What a database shows of the writes of a [`history`](crate::history).
#![allow(dead_code, reason = "each test target uses its part")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ManualClock, MessageId, MessageStore, REMOVED_BY_ADMIN, Random, Store};
use rusqlite::{Connection, Row};

use crate::history::{
    FIRST_FILLER, Kind, NOW_SECONDS, base_client, broadcast_id, content, file_name, label,
    message_id, message_number, nonce, own_client, write,
};

/// Opens a store on a database, with the clock of all histories.
pub(crate) fn open(path: &Path, options: SqliteOptions) -> SqliteStore {
    let random = Arc::new(Random::seeded(1));
    try_open(path, options, random).unwrap_or_else(|error| panic!("cannot open: {error:?}"))
}

pub(crate) fn try_open(
    path: &Path,
    options: SqliteOptions,
    random: Arc<Random>,
) -> Result<SqliteStore, fleethold_sqlite::OpenError> {
    let clock = Arc::new(ManualClock::at(NOW_SECONDS));
    SqliteStore::open(path, options, clock, random)
}

/// Opens the store, which repairs what a crash has left, and lists all that is
/// found of `sequences`: numbers of writes and parts.
///
/// Panics if SQLite finds the database damaged, or if the store does not find
/// its own messages.
pub(crate) async fn find(
    path: &Path,
    sequences: impl Iterator<Item = u64> + Clone,
) -> Vec<(u64, u32)> {
    let options = SqliteOptions {
        readers: 1.try_into().expect("not zero"),
        ..SqliteOptions::default()
    };
    let store = open(path, options);
    let tables = Tables::read(path);
    // Of those that only make the database large, some are enough.
    let numbers = tables.messages.keys();
    let numbers = numbers.filter(|number| **number / 8 < FIRST_FILLER || **number % 400 == 0);
    for numbers in numbers.collect::<Vec<_>>().chunks(1_000) {
        let ids: Vec<MessageId> = numbers
            .iter()
            .map(|number| message_id(**number / 8, **number % 8))
            .collect();
        let found = store.get_messages(&ids, true).await.expect("known ids");
        assert_eq!(found.len(), ids.len(), "every message is found by its id");
    }
    store.close().await.expect("the store can be closed");
    sequences
        .flat_map(|sequence| tables.parts_of(sequence))
        .collect()
}

/// The tables by the keys of the history.
struct Tables {
    /// By number; a number may have several rows if something is wrong.
    messages: HashMap<u64, Vec<MessageRow>>,
    contacts: HashMap<u64, usize>,
    labels: HashMap<(Vec<u8>, String), usize>,
    clients: HashMap<Vec<u8>, bool>,
    broadcasts: HashMap<Vec<u8>, BroadcastRow>,
    sent: HashMap<(Vec<u8>, Vec<u8>), usize>,
    files: HashMap<String, Vec<u8>>,
    usage: HashMap<i64, usize>,
}

#[derive(Clone)]
struct MessageRow {
    is_done: bool,
    failure: Option<String>,
    due_micros: Option<i64>,
    is_linked: bool,
}

struct BroadcastRow {
    sent: i64,
    allocated: i64,
    limit: i64,
}

impl Tables {
    fn read(path: &Path) -> Self {
        let connection = Connection::open(path).expect("the database");
        let verdict: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .expect("a verdict");
        assert_eq!(verdict, "ok", "the database is intact");
        let torn: i64 = connection
            .query_row(TORN, [], |row| row.get(0))
            .expect("a count");
        assert_eq!(torn, 0, "payloads and due times belong to pending messages");
        let mut messages = HashMap::<_, Vec<_>>::new();
        all(&connection, MESSAGES, |row| {
            let id: Vec<u8> = row.get(0)?;
            let number = u64::from_be_bytes(id[24..].try_into().expect("eight bytes"));
            messages.entry(number).or_default().push(MessageRow {
                is_done: row.get(1)?,
                failure: row.get(2)?,
                due_micros: row.get(3)?,
                is_linked: row.get(4)?,
            });
            Ok(())
        });
        let mut tables = Self {
            messages,
            contacts: HashMap::new(),
            labels: HashMap::new(),
            clients: HashMap::new(),
            broadcasts: HashMap::new(),
            sent: HashMap::new(),
            files: HashMap::new(),
            usage: HashMap::new(),
        };
        all(&connection, "SELECT nonce_sent FROM contacts", |row| {
            let nonce = row.get::<_, i64>(0)?.cast_unsigned();
            *tables.contacts.entry(nonce).or_default() += 1;
            Ok(())
        });
        all(
            &connection,
            "SELECT client_id, label FROM client_labels",
            |row| {
                let key = (row.get(0)?, row.get(1)?);
                *tables.labels.entry(key).or_default() += 1;
                Ok(())
            },
        );
        all(
            &connection,
            "SELECT client_id, blacklisted FROM clients",
            |row| {
                tables.clients.insert(row.get(0)?, row.get(1)?);
                Ok(())
            },
        );
        all(
            &connection,
            "SELECT broadcast_id, sent, allocated, message_limit FROM broadcasts",
            |row| {
                let found = BroadcastRow {
                    sent: row.get(1)?,
                    allocated: row.get(2)?,
                    limit: row.get(3)?,
                };
                tables.broadcasts.insert(row.get(0)?, found);
                Ok(())
            },
        );
        all(
            &connection,
            "SELECT client_id, broadcast_id FROM broadcasts_sent",
            |row| {
                let key = (row.get(0)?, row.get(1)?);
                *tables.sent.entry(key).or_default() += 1;
                Ok(())
            },
        );
        all(&connection, "SELECT name, content FROM files", |row| {
            tables.files.insert(row.get(0)?, row.get(1)?);
            Ok(())
        });
        all(&connection, "SELECT pid FROM usage_records", |row| {
            *tables.usage.entry(row.get(0)?).or_default() += 1;
            Ok(())
        });
        tables
    }

    fn parts_of(&self, sequence: u64) -> Vec<(u64, u32)> {
        let mut found = Found {
            sequence,
            parts: Vec::new(),
        };
        let own = own_client(sequence).as_bytes().to_vec();
        let base = base_client(sequence).as_bytes().to_vec();
        match Kind::of(sequence) {
            Kind::Contact => {
                let contacts = self.contacts.get(&nonce(sequence));
                found.add(0, 0, contacts.copied().unwrap_or_default());
                for part in 0..3 {
                    let rows = self.rows(sequence, part);
                    found.add(0, part as u32 + 1, rows.len());
                }
            }
            Kind::Refused => {
                found.add(0, 0, self.rows(sequence, 0).len());
                found.add(0, 1, self.rows(sequence, 1).len());
            }
            Kind::Processed => {
                let rows = self.rows(sequence, 0);
                found.add(0, 0, rows.iter().filter(|row| row.is_done).count());
            }
            Kind::ToClient | Kind::Results | Kind::Claim | Kind::DeletePending => {
                self.add_pair(sequence, &mut found);
            }
            Kind::Label => {
                let labels = self.labels.get(&(base, label(sequence).label));
                found.add(0, 0, labels.copied().unwrap_or_default());
            }
            Kind::Usage => {
                let records = self.usage.get(&sequence.cast_signed());
                found.add(0, 0, records.copied().unwrap_or_default());
            }
            Kind::Client => {
                let client = self.clients.get(&own);
                found.add(0, 0, client.is_some().into());
                for part in [1, 2] {
                    let label = (own.clone(), label(part).label);
                    let labels = self.labels.get(&label).copied().unwrap_or_default();
                    found.add(0, part as u32, labels);
                }
                found.add(1, 0, client.is_some_and(|blacklisted| *blacklisted).into());
            }
            Kind::GoneLabel => {
                let is_there = self.clients.contains_key(&own);
                let has_label = self.labels.contains_key(&(own, label(1).label));
                found.add(0, 0, is_there.into());
                found.add(1, 0, (is_there && !has_label).into());
            }
            Kind::File => found.add(0, 0, self.has_file(sequence, 0).into()),
            Kind::GoneFile => {
                let [first, second] = [0, 1].map(|step| self.has_file(sequence, step));
                found.add(0, 0, (first || second).into());
                found.add(1, 0, second.into());
                found.add(2, 0, (second && !first).into());
            }
            Kind::Link => {
                let contacts = self.contacts.get(&nonce(sequence));
                let rows = self.rows(sequence, 0);
                found.add(0, 0, contacts.copied().unwrap_or_default());
                found.add(1, 0, rows.len());
                found.add(2, 0, rows.iter().filter(|row| row.is_linked).count());
            }
            Kind::Broadcast => self.add_broadcast(sequence, base, &mut found),
            Kind::EndedBroadcast => {
                let row = self.broadcasts.get(&broadcast_id(sequence).as_bytes()[..]);
                let limit = row.map(|row| row.limit);
                found.add(0, 0, row.is_some().into());
                found.add(1, 0, matches!(limit, Some(20 | 0)).into());
                found.add(2, 0, (limit == Some(0)).into());
            }
        }
        found.parts
    }

    fn add_pair(&self, sequence: u64, found: &mut Found) {
        let now_micros = (NOW_SECONDS * 1_000_000).cast_signed();
        for part in [0, 1] {
            let rows = self.rows(sequence, part);
            found.add(0, part as u32, rows.len());
            let changed = rows.iter().filter(|row| match Kind::of(sequence) {
                Kind::Results => row.is_done && row.failure.is_none(),
                Kind::Claim => row.due_micros.is_some_and(|due| due > now_micros),
                Kind::DeletePending => row.failure.as_deref() == Some(REMOVED_BY_ADMIN),
                _ => false,
            });
            found.add(1, part as u32, changed.count());
        }
    }

    fn add_broadcast(&self, sequence: u64, base: Vec<u8>, found: &mut Found) {
        let id = broadcast_id(sequence).as_bytes().to_vec();
        let Some(row) = self.broadcasts.get(&id) else {
            return;
        };
        let sent = self.sent.get(&(base, id)).copied().unwrap_or_default();
        let is_ended = row.sent == 1;
        found.add(0, 0, 1);
        found.add(1, 0, (row.allocated == 5 || is_ended).into());
        found.add(2, 0, sent);
        found.add(2, 1, self.rows(sequence, 0).len());
        found.add(3, 0, is_ended.into());
        let is_returned = row.allocated == 0 && sent > 0;
        found.add(3, 1, is_returned.into());
    }

    fn rows(&self, sequence: u64, part: u64) -> &[MessageRow] {
        self.messages
            .get(&message_number(sequence, part))
            .map_or(&[], Vec::as_slice)
    }

    fn has_file(&self, sequence: u64, step: usize) -> bool {
        let Some(found) = self.files.get(&file_name(sequence, step)) else {
            return false;
        };
        assert!(
            *found == content(sequence),
            "file {sequence}-{step} is torn"
        );
        true
    }
}

struct Found {
    sequence: u64,
    parts: Vec<(u64, u32)>,
}

impl Found {
    fn add(&mut self, step: usize, part: u32, times: usize) {
        let write = write(self.sequence, step);
        self.parts.extend(std::iter::repeat_n((write, part), times));
    }
}

fn all(connection: &Connection, sql: &str, mut row: impl FnMut(&Row<'_>) -> rusqlite::Result<()>) {
    let mut read = || -> rusqlite::Result<()> {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(found) = rows.next()? {
            row(found)?;
        }
        Ok(())
    };
    read().unwrap_or_else(|error| panic!("{sql}: {error}"));
}

const MESSAGES: &str = "\
SELECT message_id, processed_seconds IS NOT NULL, failure, due_micros, contact IS NOT NULL
    OR EXISTS (SELECT 1 FROM contact_messages WHERE contact_messages.message = messages.message)
FROM messages";

const TORN: &str = "\
SELECT count(*) FROM messages LEFT JOIN payloads USING (message)
WHERE (processed_seconds IS NULL) <> (due_micros IS NOT NULL)
    OR (processed_seconds IS NULL) <> (payloads.message IS NOT NULL)";
