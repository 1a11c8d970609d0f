//! Which calls fail, and how.

use std::ffi::c_int;
use std::fmt;

use rusqlite::ffi;

/// A kind of call that SQLite makes to its file system.
///
/// Only calls that can fail in a way that SQLite heeds are listed: releasing a
/// lock and closing a file always work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Opens or creates a file.
    Open,
    /// Deletes a file.
    Delete,
    /// Asks whether a file exists.
    Access,
    /// Reads from a file.
    Read,
    /// Writes to a file.
    Write,
    /// Shortens a file.
    Truncate,
    /// Syncs a file.
    Sync,
    /// Asks how long a file is.
    FileSize,
    /// Takes a lock on the database file.
    Lock,
    /// Asks whether somebody intends to write to the database file.
    CheckLock,
    /// Maps or extends the index of the write-ahead log.
    ShmMap,
    /// Takes a lock on the index of the write-ahead log.
    ShmLock,
}

impl Kind {
    /// All kinds, in the order in which they are declared.
    pub const ALL: [Self; 12] = [
        Self::Open,
        Self::Delete,
        Self::Access,
        Self::Read,
        Self::Write,
        Self::Truncate,
        Self::Sync,
        Self::FileSize,
        Self::Lock,
        Self::CheckLock,
        Self::ShmMap,
        Self::ShmLock,
    ];

    /// How SQLite's own file system reports that a call of this kind failed.
    pub(crate) fn io_error(self) -> c_int {
        match self {
            Self::Open => ffi::SQLITE_CANTOPEN,
            Self::Delete => ffi::SQLITE_IOERR_DELETE,
            Self::Access => ffi::SQLITE_IOERR_ACCESS,
            Self::Read => ffi::SQLITE_IOERR_READ,
            Self::Write => ffi::SQLITE_IOERR_WRITE,
            Self::Truncate => ffi::SQLITE_IOERR_TRUNCATE,
            Self::Sync => ffi::SQLITE_IOERR_FSYNC,
            Self::FileSize => ffi::SQLITE_IOERR_FSTAT,
            Self::Lock => ffi::SQLITE_IOERR_LOCK,
            Self::CheckLock => ffi::SQLITE_IOERR_CHECKRESERVEDLOCK,
            Self::ShmMap => ffi::SQLITE_IOERR_SHMMAP,
            Self::ShmLock => ffi::SQLITE_IOERR_SHMLOCK,
        }
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Somebody else holds the lock: `SQLITE_BUSY`.
    Busy,
    /// The disk is full: `SQLITE_FULL`, or `SQLITE_IOERR_SHMSIZE` where the
    /// index of the log cannot grow.
    Full,
    /// The device reports an error: the `SQLITE_IOERR_…` of the kind of call,
    /// `SQLITE_CANTOPEN` for an open.
    IoError,
    /// The statement is interrupted: `SQLITE_INTERRUPT`.
    Interrupt,
    /// The file system has become read-only: `SQLITE_READONLY`.
    ReadOnly,
    /// The power goes off instead of the call, as by
    /// [`FaultFs::crash`](crate::FaultFs::crash).
    PowerLoss,
}

impl Fault {
    /// The kinds of calls that fail in this way in real life; a plan that names
    /// no kinds counts these.
    pub fn usual_kinds(self) -> &'static [Kind] {
        match self {
            Self::Busy => &[Kind::Lock, Kind::ShmLock],
            Self::Full => &[Kind::Write, Kind::ShmMap],
            Self::Interrupt => &[Kind::Read, Kind::Write],
            Self::ReadOnly => &[Kind::Delete, Kind::Write, Kind::Truncate],
            Self::IoError | Self::PowerLoss => &Kind::ALL,
        }
    }

    fn code(self, kind: Kind) -> c_int {
        match (self, kind) {
            (Self::Busy, _) => ffi::SQLITE_BUSY,
            (Self::Full, Kind::ShmMap) => ffi::SQLITE_IOERR_SHMSIZE,
            (Self::Full, _) => ffi::SQLITE_FULL,
            (Self::Interrupt, _) => ffi::SQLITE_INTERRUPT,
            (Self::ReadOnly, _) => ffi::SQLITE_READONLY,
            (Self::IoError | Self::PowerLoss, kind) => kind.io_error(),
        }
    }
}

/// Which call fails, how, and for how long.
///
/// ```
/// use fleethold_faultfs::{Fault, FaultPlan, Kind};
///
/// // The disk is full from the third write on, until the plan is cleared.
/// let full = FaultPlan::new(Fault::Full).at(3).lasting();
/// // The first sync works, but its caller is told that it failed.
/// let lied_to = FaultPlan::new(Fault::IoError).on(&[Kind::Sync]).after_the_call();
/// ```
#[derive(Clone, Debug)]
pub struct FaultPlan {
    fault: Fault,
    kinds: Vec<Kind>,
    at: u64,
    lasting: bool,
    after_the_call: bool,
}

impl FaultPlan {
    /// Lets the next call of the fault's [usual kinds](Fault::usual_kinds) fail,
    /// once.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            kinds: fault.usual_kinds().to_vec(),
            at: 1,
            lasting: false,
            after_the_call: false,
        }
    }

    /// Counts calls of these kinds instead.
    #[must_use]
    pub fn on(mut self, kinds: &[Kind]) -> Self {
        self.kinds = kinds.to_vec();
        self
    }

    /// Lets the `k`-th of the counted calls fail; the first after the plan was
    /// set is number 1.
    #[must_use]
    pub fn at(mut self, k: u64) -> Self {
        self.at = k;
        self
    }

    /// Lets all later calls of these kinds fail as well, until the plan is
    /// cleared or replaced.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// Carries the call out and reports the failure nevertheless.
    ///
    /// This holds for [`Kind::Delete`], [`Kind::Write`], [`Kind::Truncate`] and
    /// [`Kind::Sync`]; a lock, a mapping or an open file that its owner does
    /// not know of cannot exist, so other calls fail without being made.
    #[must_use]
    pub fn after_the_call(mut self) -> Self {
        self.after_the_call = true;
        self
    }
}

/// How often each kind of call was made.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls([u64; Kind::ALL.len()]);

impl Calls {
    /// Calls of one kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// Calls of several kinds together.
    pub fn of_all(&self, kinds: &[Kind]) -> u64 {
        kinds.iter().map(|kind| self.of(*kind)).sum()
    }

    /// Calls of all kinds together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The calls made since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|kind| self.0[kind] - earlier.0[kind]))
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_map()
            .entries(Kind::ALL.iter().map(|kind| (kind, self.of(*kind))))
            .finish()
    }
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// Not made; the code is reported.
    Fail(c_int),
    /// Made; the code is reported all the same.
    FailAfterwards(c_int),
}

/// Counts calls and decides which fail.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) calls: Calls,
    /// Syncs that took place.
    pub(crate) syncs: u64,
    /// Calls that failed by plan.
    pub(crate) hits: u64,
    pub(crate) power_is_off: bool,
    pub(crate) stop_at_sync: Option<u64>,
    plan: Option<FaultPlan>,
    /// Calls that the plan has counted.
    seen: u64,
}

impl Faults {
    pub(crate) fn set_plan(&mut self, plan: Option<FaultPlan>) {
        self.plan = plan;
        self.seen = 0;
    }

    /// Whether the plan is to report locks as taken.
    pub(crate) fn plays_busy(&self) -> bool {
        self.plan
            .as_ref()
            .is_some_and(|plan| plan.fault == Fault::Busy)
    }

    pub(crate) fn judge(&mut self, kind: Kind) -> Verdict {
        if self.power_is_off {
            return Verdict::Fail(kind.io_error());
        }
        self.calls.0[kind as usize] += 1;
        if kind == Kind::Sync && self.stop_at_sync.is_some_and(|last| self.syncs + 1 >= last) {
            self.power_is_off = true;
            return Verdict::Fail(kind.io_error());
        }
        let Some(plan) = self.plan.as_ref().filter(|plan| plan.kinds.contains(&kind)) else {
            return Verdict::Pass;
        };
        self.seen += 1;
        if self.seen != plan.at && !(plan.lasting && self.seen > plan.at) {
            return Verdict::Pass;
        }
        self.hits += 1;
        let code = plan.fault.code(kind);
        if plan.fault == Fault::PowerLoss {
            self.power_is_off = true;
            return Verdict::Fail(code);
        }
        let can_lie = matches!(
            kind,
            Kind::Delete | Kind::Write | Kind::Truncate | Kind::Sync
        );
        if plan.after_the_call && can_lie {
            Verdict::FailAfterwards(code)
        } else {
            Verdict::Fail(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(plan: FaultPlan, kinds: &[Kind]) -> Vec<Verdict> {
        let mut faults = Faults::default();
        faults.set_plan(Some(plan));
        kinds.iter().map(|kind| faults.judge(*kind)).collect()
    }

    #[test]
    fn kinds_are_counted_in_the_order_of_their_list() {
        for (position, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, position);
        }
    }

    #[test]
    fn only_the_kth_call_of_the_kinds_fails() {
        let plan = FaultPlan::new(Fault::IoError).on(&[Kind::Write]).at(2);
        assert_eq!(
            verdicts(plan, &[Kind::Write, Kind::Sync, Kind::Write, Kind::Write]),
            [
                Verdict::Pass,
                Verdict::Pass,
                Verdict::Fail(ffi::SQLITE_IOERR_WRITE),
                Verdict::Pass
            ]
        );
    }

    #[test]
    fn lasting_fault_ends_when_it_is_cleared() {
        let mut faults = Faults::default();
        faults.set_plan(Some(FaultPlan::new(Fault::Full).at(2).lasting()));
        assert_eq!(faults.judge(Kind::Write), Verdict::Pass);
        for _ in 0..3 {
            assert_eq!(faults.judge(Kind::Write), Verdict::Fail(ffi::SQLITE_FULL));
            assert_eq!(faults.judge(Kind::Read), Verdict::Pass);
        }
        faults.set_plan(None);
        assert_eq!(faults.judge(Kind::Write), Verdict::Pass);
        assert_eq!(faults.hits, 3);
    }

    #[test]
    fn only_changes_can_take_place_and_be_reported_as_failed() {
        let plan = FaultPlan::new(Fault::IoError).lasting().after_the_call();
        assert_eq!(
            verdicts(plan, &[Kind::Sync, Kind::Lock]),
            [
                Verdict::FailAfterwards(ffi::SQLITE_IOERR_FSYNC),
                Verdict::Fail(ffi::SQLITE_IOERR_LOCK)
            ]
        );
    }

    #[test]
    fn nothing_works_after_the_power_went_off() {
        let mut faults = Faults {
            stop_at_sync: Some(2),
            ..Faults::default()
        };
        assert_eq!(faults.judge(Kind::Sync), Verdict::Pass);
        faults.syncs += 1;
        assert_eq!(faults.judge(Kind::Write), Verdict::Pass);
        for kind in [Kind::Sync, Kind::Write, Kind::Open] {
            assert_eq!(faults.judge(kind), Verdict::Fail(kind.io_error()));
        }
        assert_eq!(faults.calls.total(), 3);
    }
}
