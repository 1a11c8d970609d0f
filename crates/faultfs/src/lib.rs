//! A file system for SQLite whose calls fail on demand and whose power can be
//! cut, for tests of stores.
//!
//! [`FaultFs::register`] puts a layer, in SQLite's words a VFS, over the
//! default file system of the platform. Connections that are opened with its
//! name work as usual, on real files, until a test asks for trouble:
//!
//! * [`set_plan`](FaultFs::set_plan) lets the k-th call of some kinds fail,
//!   once or until [`clear`](FaultFs::clear);
//! * [`crash`](FaultFs::crash), [`stop_at_sync`](FaultFs::stop_at_sync) and a
//!   plan with [`Fault::PowerLoss`] switch the disk off for good;
//! * [`power_cut`](FaultFs::power_cut) writes into another directory what a
//!   disk may show when the power comes back.
//!
//! Never link it into a program: every instance leaks a little, every byte of
//! every file that is opened is kept in memory, and nothing is ever synced.
//!
//! ```
//! use fleethold_faultfs::FaultFs;
//! use rusqlite::{Connection, OpenFlags};
//!
//! let directory = tempfile::tempdir()?;
//! let [before, after] = ["before", "after"].map(|name| directory.path().join(name));
//! std::fs::create_dir(&before)?;
//!
//! let disk = FaultFs::register();
//! let path = before.join("fleet.db");
//! let connection =
//!     Connection::open_with_flags_and_vfs(path, OpenFlags::default(), disk.name())?;
//! connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
//! connection.execute_batch("CREATE TABLE a (b); INSERT INTO a VALUES (1);")?;
//! disk.crash();
//! assert!(connection.execute("INSERT INTO a VALUES (2)", []).is_err());
//!
//! disk.power_cut(7, &after)?;
//! let connection = Connection::open(after.join("fleet.db"))?;
//! let rows: i64 = connection.query_row("SELECT count(*) FROM a", [], |row| row.get(0))?;
//! assert_eq!(rows, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What survives a power cut
//!
//! * Contents of a file up to its last sync survive. Of what was written and
//!   truncated since, a seeded part does: nothing, everything, all up to a torn
//!   write, or each sector of 512 bytes on its own, so that a later write may
//!   survive without an earlier one. The bytes of one sector keep the order in
//!   which they were written.
//! * On a [`Device::Bare`], a sector that was being written may hold anything.
//! * A created file has its name, and a deleted one has lost it, once the
//!   directory is synced. SQLite does that at the first sync of a new journal
//!   or log and at some deletions. Before, each name may be in any state since
//!   the last sync of the directory, independently of other names.
//! * Files that exist when they are first opened count as synced, and so do the
//!   journal and the log beside an existing database.
//!
//! # Limits
//!
//! * A failed sync leaves the writes before it unsynced, and the next sync
//!   that works makes up for it. Some systems lose such writes for ever.
//! * Temporary files and the index of the log (`-shm`) are not kept: SQLite
//!   does not look at them after a restart.
//! * Memory-mapped reading is switched off, because writes would pass by.
//! * It works on Unix only.
//! * Files are known by their path. All files of one instance that have the
//!   same name must lie in the same directory.
//! * `sqlite3_config` must be called before the first instance is registered.
//!
//! # Why there is `unsafe` here
//!
//! A VFS is a set of C callbacks. This crate therefore allows what the
//! workspace forbids, in the modules `vfs` and `io` only.

#![deny(unsafe_code)]

mod disk;
mod faults;
mod file;
#[expect(unsafe_code, reason = "callbacks for SQLite")]
mod io;
mod random;
#[expect(unsafe_code, reason = "callbacks for SQLite")]
mod vfs;

use std::ffi::OsString;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{collections::HashMap, fs};

pub use crate::faults::{Calls, Fault, FaultPlan, Kind};

use crate::disk::Disk;
use crate::faults::Faults;
use crate::vfs::Registration;

/// What the disk promises to SQLite beyond syncing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// Nothing: a power cut may damage the whole of every sector that was being
    /// written. SQLite fills the log up to the end of a sector at each commit.
    #[default]
    Bare,
    /// Writing never damages neighbouring bytes. This is what SQLite assumes
    /// of every disk unless told otherwise, so it writes as in production.
    PowersafeOverwrite,
}

/// A file system of its own for connections that are opened with its name.
///
/// All clones are handles of the same instance. The name is unknown to SQLite
/// after the last of them was dropped; connections that are still open then
/// keep working, or failing, as they did, but no contents are kept for
/// [`power_cut`](Self::power_cut) any more.
#[derive(Clone, Debug)]
pub struct FaultFs {
    registration: Arc<Registration>,
}

impl FaultFs {
    /// Registers a new instance, on a disk that promises nothing.
    pub fn register() -> Self {
        Self::register_as(Device::Bare)
    }

    /// Registers a new instance on a disk of the given kind.
    ///
    /// # Panics
    ///
    /// If SQLite has no file system of its own or no memory.
    pub fn register_as(device: Device) -> Self {
        Self {
            registration: Arc::new(Registration::new(device)),
        }
    }

    /// The name to open connections with.
    pub fn name(&self) -> &str {
        self.registration.name()
    }

    /// The calls made so far, failed ones included, until the disk was switched
    /// off.
    pub fn calls(&self) -> Calls {
        self.state().faults.calls
    }

    /// The syncs that took place so far.
    pub fn syncs(&self) -> u64 {
        self.state().faults.syncs
    }

    /// The calls that failed by plan so far. A loop over all k ends when the
    /// plan was not reached any more.
    pub fn hits(&self) -> u64 {
        self.state().faults.hits
    }

    /// Lets calls fail according to `plan`, instead of any earlier one.
    ///
    /// As long as the plan is about [`Fault::Busy`], SQLite does not sleep while
    /// it waits for locks, so that its timeout passes at once.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.state().faults.set_plan(Some(plan));
    }

    /// Ends the plan. It does not bring a disk back that was switched off.
    pub fn clear(&self) {
        self.state().faults.set_plan(None);
    }

    /// Switches the disk off in place of sync number `n`, counted like
    /// [`syncs`](Self::syncs) from registration on: `n - 1` syncs take place.
    ///
    /// With `n` up to one more than a probe run has counted, every state
    /// between two syncs is met.
    pub fn stop_at_sync(&self, n: u64) {
        self.state().faults.stop_at_sync = Some(n);
    }

    /// Switches the disk off: every later call fails.
    ///
    /// The real files stay as they are, like after the death of a process.
    pub fn crash(&self) {
        self.state().faults.power_is_off = true;
    }

    /// Whether the disk was switched off.
    pub fn is_crashed(&self) -> bool {
        self.state().faults.power_is_off
    }

    /// Writes the files as a disk may show them if the power is cut now into
    /// `directory`, which is created if need be.
    ///
    /// It depends on the calls before and on `seed` only, and changes nothing;
    /// call it with many seeds. Calls made by other threads meanwhile belong to
    /// the time after, unless the disk was switched off.
    ///
    /// # Errors
    ///
    /// If `directory` is not empty or cannot be written to, or if two of the
    /// files have the same name.
    pub fn power_cut(&self, seed: u64, directory: &Path) -> Result<(), Error> {
        fs::create_dir_all(directory)?;
        if fs::read_dir(directory)?.next().is_some() {
            let problem = format!("`{}` is not empty", directory.display());
            return Err(Error::new(ErrorKind::DirectoryNotEmpty, problem));
        }
        let files = self.files_after_power_cut(seed)?;
        for (name, contents) in files {
            fs::write(directory.join(name), contents)?;
        }
        Ok(())
    }

    fn files_after_power_cut(&self, seed: u64) -> Result<HashMap<OsString, Vec<u8>>, Error> {
        let damage = self.registration.shared().device == Device::Bare;
        let state = self.state();
        let mut files = HashMap::new();
        for (path, contents) in state.disk.after_power_cut(seed, damage) {
            let name = path.file_name().unwrap_or_default().to_owned();
            if files.insert(name, contents).is_some() {
                let problem = format!("there are two files with the name of `{}`", path.display());
                return Err(Error::new(ErrorKind::InvalidInput, problem));
            }
        }
        Ok(files)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.registration.shared().state()
    }
}

/// What the handles and the callbacks of one instance have in common.
#[derive(Debug)]
struct Shared {
    device: Device,
    state: Mutex<State>,
}

impl Shared {
    fn new(device: Device) -> Self {
        Self {
            device,
            state: Mutex::default(),
        }
    }

    /// Callbacks that change a file hold this until the change is recorded, so
    /// that a power cut sees all files at one moment.
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in here is a bug, reported as an I/O error by the callback;
        // the next one may as well go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    disk: Disk,
    /// No handle is left to cut the power.
    retired: bool,
}
