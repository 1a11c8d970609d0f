//! A history of commits whose every prefix is known, and the judge of what is
//! left of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fleethold_faultfs::FaultFs;
use rusqlite::{Connection, OpenFlags, Result, params};
use tempfile::TempDir;

/// Commits after the one that creates the tables.
pub(crate) const STEPS: u32 = 30;

/// The step after which the database is closed and opened again, so that the
/// log is deleted and created anew.
const CLOSED_AFTER: u32 = 20;

/// How much SQLite syncs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Synchronous {
    Off,
    Normal,
    Full,
}

/// A directory with a database on a disk of its own.
pub(crate) struct Bed {
    directory: TempDir,
    pub(crate) disk: FaultFs,
}

impl Bed {
    pub(crate) fn new(disk: FaultFs) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("live")).unwrap();
        Self { directory, disk }
    }

    /// Where the database is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("live/fleet.db")
    }

    /// Opens the database on the disk under test.
    ///
    /// The log is written back every few commits, so that this happens often.
    pub(crate) fn open(&self, synchronous: Synchronous) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = Connection::open_with_flags_and_vfs(self.path(), flags, self.disk.name())?;
        connection.execute_batch(&format!(
            "PRAGMA synchronous = {synchronous:?};
            PRAGMA journal_mode = WAL;
            PRAGMA wal_autocheckpoint = 12;
            PRAGMA journal_size_limit = 20000;"
        ))?;
        Ok(connection)
    }

    /// Performs the whole history, or as much of it as the disk allows, and
    /// returns the number of acknowledged commits.
    pub(crate) fn run(&self, synchronous: Synchronous) -> (u32, Result<()>) {
        let mut commits = 0;
        let outcome = self.try_run(synchronous, &mut commits);
        (commits, outcome)
    }

    fn try_run(&self, synchronous: Synchronous, commits: &mut u32) -> Result<()> {
        let mut connection = self.open(synchronous)?;
        create_tables(&mut connection)?;
        *commits += 1;
        for step in 1..=STEPS {
            perform(&mut connection, step)?;
            *commits += 1;
            if step == CLOSED_AFTER {
                drop(connection);
                connection = self.open(synchronous)?;
            }
        }
        Ok(())
    }

    /// The same directory on another disk.
    pub(crate) fn with_disk(self, disk: FaultFs) -> Self {
        Self { disk, ..self }
    }

    /// Drops the handle of the disk and keeps its files.
    pub(crate) fn give_up_disk(self) -> TempDir {
        self.directory
    }

    /// The commits that a database shows after the power was cut.
    pub(crate) fn commits_after_power_cut(&self, seed: u64) -> Result<u32> {
        let directory = self.directory.path().join(format!("cut-{seed}"));
        self.disk.power_cut(seed, &directory).unwrap();
        let found = commits_in(&directory.join("fleet.db"));
        std::fs::remove_dir_all(directory).unwrap();
        found
    }
}

/// Creates the tables in one commit, the first one.
pub(crate) fn create_tables(connection: &mut Connection) -> Result<()> {
    connection.execute_batch(
        "BEGIN;
        CREATE TABLE entries (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
        CREATE TABLE progress (step INTEGER NOT NULL);
        INSERT INTO progress VALUES (0);
        COMMIT;",
    )
}

/// Performs a step in one commit: adds three entries, changes one and deletes
/// one.
pub(crate) fn perform(connection: &mut Connection, step: u32) -> Result<()> {
    let transaction = connection.transaction()?;
    for id in 10 * step..10 * step + 3 {
        transaction.execute(
            "INSERT INTO entries VALUES (?, ?)",
            params![id, body(id, step)],
        )?;
    }
    let earlier = 10 * (step / 2);
    transaction.execute(
        "UPDATE entries SET body = ? WHERE id = ?",
        params![body(earlier, step), earlier],
    )?;
    transaction.execute("DELETE FROM entries WHERE id = ?", [earlier + 1])?;
    transaction.execute("UPDATE progress SET step = ?", [step])?;
    transaction.commit()
}

/// The state that the steps up to `last` lead to.
fn entries_after(last: u32) -> BTreeMap<u32, Vec<u8>> {
    let mut entries = BTreeMap::new();
    for step in 1..=last {
        for id in 10 * step..10 * step + 3 {
            entries.insert(id, body(id, step));
        }
        let earlier = 10 * (step / 2);
        if let Some(entry) = entries.get_mut(&earlier) {
            *entry = body(earlier, step);
        }
        entries.remove(&(earlier + 1));
    }
    entries
}

/// Up to three pages, different for every entry and step.
fn body(id: u32, step: u32) -> Vec<u8> {
    let length = (id * 977 + step * 331) % 9000;
    // Repeated copies are made much faster than single bytes without
    // optimization; 33 is no divisor of a sector.
    let pattern: [u8; 33] = std::array::from_fn(|at| (at as u32 * 7 + id + step) as u8);
    let mut body = pattern.repeat(length as usize / pattern.len() + 1);
    body.truncate(length as usize);
    body
}

/// Opens a database without any faults and returns how many commits it shows.
pub(crate) fn commits_in(path: &Path) -> Result<u32> {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA synchronous = OFF")?;
    commits(&connection)
}

/// The number of commits in a database that is intact and shows the state
/// after exactly so many; panics if it shows anything else.
///
/// A database that SQLite itself finds to be corrupt is an error.
pub(crate) fn commits(connection: &Connection) -> Result<u32> {
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(corrupt(verdict));
    }
    let tables: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(0);
    }
    let step = connection.query_row("SELECT step FROM progress", [], |row| row.get(0))?;
    let entries: BTreeMap<u32, Vec<u8>> = connection
        .prepare("SELECT id, body FROM entries")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    if entries != entries_after(step) {
        return Err(corrupt(format!("not the state after step {step}")));
    }
    Ok(step + 1)
}

fn corrupt(problem: String) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(problem))
}
