//! From message ids to messages.
//!
//! Ids are random. A tree with a random key costs one page of log per message,
//! and at 100 messages per transaction that is nearly all a store writes:
//! 30,000 messages/s with it against 91,000 without (300,000 pending messages,
//! two cores, 2026-11-22). So the ids of the latest messages are kept in memory
//! and go to the table `message_ids` in bulk, ordered by key, where neighbours
//! share a page:
//!
//! * New ids are in the *active* set. When that is large and committed, it is
//!   *frozen*, and a new one begins.
//! * Each transaction that adds messages also writes a slice of the frozen set
//!   to the table. After the last slice the set is dropped, and
//!   `message_ids_complete` says up to which message the table is complete.
//! * A crash loses the sets; opening the store reads them again from the
//!   messages above that mark, of which there are at most about two sets.
//!
//! What is found here is a candidate: the id in the message's row decides. So
//! equal hashes, entries of a transaction that is rolled back later, and
//! entries written twice are harmless. What must never happen is that a
//! committed message is in neither place; hence entries are added before the
//! commit and leave memory after the commit that completes the table.

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fleethold_store::MessageId;
use rusqlite::{Connection, OptionalExtension, params};

/// How many ids are collected before they go to the table. The pages that a
/// set of them shares grow with it, as do the time to open (some 0.1 s) and
/// the memory (some 3 MB).
const SET: usize = 65_536;

/// The least number of entries in a slice, so that a set ends some time.
const SLICE: usize = 256;

/// A hash of an id and the number of the message.
type Entry = (i64, i64);

/// The ids of the latest messages, shared by the writer and all readers.
#[derive(Debug)]
pub(crate) struct RecentIds {
    set: usize,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    active: BTreeSet<Entry>,
    /// In order.
    frozen: Vec<Entry>,
    /// How many of the frozen entries are in the table and committed.
    written: usize,
    /// How many will be after the running transaction.
    writing: usize,
    /// Entries that the running transaction has added to the active set.
    uncommitted: Vec<Entry>,
}

impl RecentIds {
    /// Reads the ids that the table does not have yet.
    pub(crate) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        Self::load_with_set(connection, SET)
    }

    fn load_with_set(connection: &Connection, set: usize) -> rusqlite::Result<Self> {
        let mut active = BTreeSet::new();
        let mut statement = connection.prepare(LOAD)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            // A damaged id cannot be asked for; it must not keep the store closed.
            if let Ok(id) = MessageId::try_from(row.get_ref(1)?.as_bytes()?) {
                active.insert((hash(id), row.get(0)?));
            }
        }
        Ok(Self {
            set,
            state: RwLock::new(State {
                active,
                ..State::default()
            }),
        })
    }

    /// Calls `found` with the messages in memory that may have this id.
    ///
    /// Whoever then looks into the table must not have begun its transaction
    /// before, or it may miss an entry that has just moved.
    fn candidates(&self, hash: i64) -> Vec<i64> {
        let state = self.read();
        let frozen = state.frozen.partition_point(|entry| entry.0 < hash);
        state
            .active
            .range((hash, i64::MIN)..=(hash, i64::MAX))
            .chain(
                state.frozen[frozen..]
                    .iter()
                    .take_while(|entry| entry.0 == hash),
            )
            .map(|entry| entry.1)
            .collect()
    }

    /// Returns what memory knows of an id, for [`Wanted::find`].
    pub(crate) fn want(&self, id: MessageId) -> Wanted {
        let hash = hash(id);
        Wanted {
            id,
            hash,
            candidates: self.candidates(hash),
        }
    }

    /// Adds a message of the running transaction.
    pub(crate) fn add(&self, hash: i64, message: i64) {
        let mut state = self.write();
        state.active.insert((hash, message));
        state.uncommitted.push((hash, message));
    }

    /// Returns how many messages the running transaction has added.
    pub(crate) fn added(&self) -> usize {
        self.read().uncommitted.len()
    }

    /// Forgets all but the first `added` messages of the running transaction.
    pub(crate) fn roll_back_to(&self, added: usize) {
        let mut state = self.write();
        let state = &mut *state;
        for entry in state.uncommitted.drain(added..) {
            state.active.remove(&entry);
        }
        if added == 0 {
            state.writing = state.written;
        }
    }

    /// Writes a slice of the frozen entries, twice as many as were added.
    pub(crate) fn write_slice(&self, connection: &Connection) -> rusqlite::Result<()> {
        let state = self.read();
        if state.uncommitted.is_empty() || state.frozen.is_empty() {
            return Ok(());
        }
        let slice = SLICE.max(2 * state.uncommitted.len());
        let end = state.frozen.len().min(state.written + slice);
        let mut statement = connection.prepare_cached(WRITE_ENTRY)?;
        for (hash, message) in &state.frozen[state.written..end] {
            statement.execute(params![hash, message])?;
        }
        if end == state.frozen.len() {
            let last = state.frozen.iter().map(|entry| entry.1).max();
            connection.prepare_cached(COMPLETE)?.execute([last])?;
        }
        drop(state);
        self.write().writing = end;
        Ok(())
    }

    /// Takes note that the running transaction is committed.
    pub(crate) fn committed(&self) {
        let mut state = self.write();
        state.uncommitted.clear();
        state.written = state.writing;
        if state.written == state.frozen.len() {
            state.frozen = Vec::new();
            if state.active.len() >= self.set {
                state.frozen = std::mem::take(&mut state.active).into_iter().collect();
            }
            (state.written, state.writing) = (0, 0);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// Relies on numbers never being used again: whoever deletes messages must leave
// the newest one, or give the table AUTOINCREMENT.
const LOAD: &str = "\
-- load
SELECT message, message_id FROM messages
WHERE message > (SELECT max(up_to) FROM message_ids_complete)";

const WRITE_ENTRY: &str = "\
-- write_slice
INSERT OR IGNORE INTO message_ids (hash, message) VALUES (?1, ?2)";

const COMPLETE: &str = "\
-- write_slice (end)
UPDATE message_ids_complete SET up_to = ?1";

/// An id to look for, and where memory says it may be.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: MessageId,
    pub(crate) hash: i64,
    candidates: Vec<i64>,
}

impl Wanted {
    /// Returns the message with this id if memory knows it.
    pub(crate) fn find_recent(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        for message in &self.candidates {
            let found = connection
                .prepare_cached(FIND_RECENT)?
                .query_row(params![message, self.id.as_bytes()], |row| row.get(0))
                .optional()?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Returns the message with this id.
    pub(crate) fn find(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        match self.find_recent(connection)? {
            Some(message) => Ok(Some(message)),
            None => connection
                .prepare_cached(FIND)?
                .query_row(params![self.hash, self.id.as_bytes()], |row| row.get(0))
                .optional(),
        }
    }
}

const FIND_RECENT: &str = "\
-- find_recent
SELECT message FROM messages WHERE message = ?1 AND message_id = ?2";

const FIND: &str = "\
-- find
SELECT messages.message FROM message_ids CROSS JOIN messages USING (message)
WHERE message_ids.hash = ?1 AND messages.message_id = ?2";

/// Returns 48 bits that differ for different ids, also for ids that people
/// count up or fill with one byte. Stored, so it never changes.
///
/// Six bytes are the shortest of SQLite's integers that keep chance collisions
/// rare: one in 10⁶ look-ups among 10⁸ messages.
pub(crate) fn hash(id: MessageId) -> i64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let hash = id.as_bytes().chunks_exact(8).fold(0_u64, |hash, word| {
        let word = u64::from_be_bytes(word.try_into().expect("a chunk of eight"));
        (hash ^ word).wrapping_mul(FACTOR)
    });
    (hash >> 16).cast_signed()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    fn id(number: u64) -> MessageId {
        let mut bytes = [0; 32];
        bytes[24..].copy_from_slice(&number.to_be_bytes());
        MessageId::new(bytes)
    }

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        crate::migrate::migrate(&connection, Path::new("memory")).unwrap();
        connection
    }

    /// Does what the writer does with one job that stores messages.
    fn store(connection: &Connection, ids: &RecentIds, new: &[MessageId], commit: bool) {
        connection.execute_batch("BEGIN").unwrap();
        for id in new {
            connection
                .execute(
                    "INSERT INTO messages (message_id, source_service, source_message_id,
                     destination_service, message_type, creation_seconds, creation_nanos)
                     VALUES (?1, '', x'', '', '', 1, 0)",
                    [id.as_bytes()],
                )
                .unwrap();
            ids.add(hash(*id), connection.last_insert_rowid());
        }
        ids.write_slice(connection).unwrap();
        if commit {
            connection.execute_batch("COMMIT").unwrap();
            ids.committed();
        } else {
            ids.roll_back_to(0);
            connection.execute_batch("ROLLBACK").unwrap();
        }
    }

    #[test]
    fn every_committed_message_is_found_and_no_other() {
        let connection = database();
        let mut ids = RecentIds::load_with_set(&connection, 700).unwrap();
        for call in 0..60 {
            let new: Vec<_> = (0..50).map(|at| id(call * 50 + at)).collect();
            let refused: Vec<_> = (0..50).map(|at| id(1_000_000 + call * 50 + at)).collect();
            store(&connection, &ids, &refused, false);
            store(&connection, &ids, &new, true);
            if call % 7 == 0 {
                ids = RecentIds::load_with_set(&connection, 700).unwrap();
            }
            for number in 0..(call + 1) * 50 {
                let found = ids.want(id(number)).find(&connection).unwrap();
                assert_eq!(found, Some(i64::try_from(number).unwrap() + 1));
            }
            assert_eq!(ids.want(refused[0]).find(&connection).unwrap(), None);
        }
        let count = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0));
        let in_table = count("SELECT count(*) FROM message_ids").unwrap();
        let complete = count("SELECT up_to FROM message_ids_complete").unwrap();
        assert!(
            in_table >= complete && complete > 1_000,
            "{in_table}, {complete}"
        );
    }

    #[test]
    fn equal_hashes_are_told_apart() {
        let connection = database();
        let ids = RecentIds::load_with_set(&connection, 1).unwrap();
        let (one, other) = (id(1), id(2));
        store(&connection, &ids, &[one, other], true);
        for hash in [hash(one), hash(other)] {
            for message in [1, 2] {
                connection
                    .execute(WRITE_ENTRY, params![hash, message])
                    .unwrap();
            }
        }
        for (id, message) in [(one, 1), (other, 2)] {
            let wanted = Wanted {
                id,
                hash: hash(id),
                candidates: vec![2, 1, 99],
            };
            assert_eq!(wanted.find(&connection).unwrap(), Some(message));
            let wanted = Wanted {
                candidates: Vec::new(),
                ..wanted
            };
            assert_eq!(wanted.find(&connection).unwrap(), Some(message));
        }
    }

    #[test]
    fn hashes_are_part_of_the_file_format() {
        assert_eq!(hash(MessageId::new([0; 32])), 0);
        assert_eq!(hash(id(1)), 0x9e37_79b9_7f4a);
        assert_eq!(hash(MessageId::new([7; 32])), 258_252_183_456_930);
    }

    #[test]
    fn ids_that_people_choose_have_different_hashes() {
        let counted = (0..100_000).map(id);
        let reversed = (0..100_000).map(|number: u64| {
            let mut bytes = *id(number).as_bytes();
            bytes.reverse();
            MessageId::new(bytes)
        });
        let filled = (1..=255).map(|byte| MessageId::new([byte; 32]));
        let text = (0..10_000).map(|number| {
            let text = format!("message number {number:017}");
            MessageId::try_from(text.as_bytes()).unwrap()
        });
        for ids in [
            counted.collect::<Vec<_>>(),
            reversed.collect(),
            filled.collect(),
            text.collect(),
        ] {
            let hashes: HashSet<_> = ids.iter().map(|id| hash(*id)).collect();
            assert!(hashes.len() + 1 >= ids.len(), "{:?}", ids[1]);
        }
    }
}
