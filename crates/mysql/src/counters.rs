//! How far broadcasts have come: their counters and allocations.
//!
//! Whoever changes counters locks the broadcast's row first and then those of
//! allocations, and changes counters by differences in one statement: in a
//! cluster, whose locks hold on one node only, two such changes meet at the
//! commit, and one of them is repeated.

use fleethold_proto::Timestamp;
use fleethold_store::clock::epoch_nanos;
use fleethold_store::{
    AllocationId, BROADCAST_DISABLED, BROADCAST_UNLIMITED, BroadcastId, Error, ErrorKind,
};
use mysql_async::Row;

use crate::error::Worked;
use crate::rows::{take, take_id};
use crate::sql::{Batch, List, MOST_ROWS, Value};
use crate::transaction::Tx;

/// The counters of a broadcast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    pub(crate) sent: u64,
    pub(crate) allocated: u64,
    pub(crate) limit: u64,
    expiration: Option<Timestamp>,
}

/// An allocation as it is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocation {
    pub(crate) broadcast: BroadcastId,
    pub(crate) id: AllocationId,
    pub(crate) sent: u64,
    pub(crate) limit: u64,
    pub(crate) expiration: Timestamp,
}

impl Counters {
    fn of(row: &mut Row) -> Worked<Self> {
        let seconds: Option<i64> = take(row, 3)?;
        let nanos: Option<i32> = take(row, 4)?;
        Ok(Self {
            // Columns that a stock server never leaves empty.
            sent: take::<Option<u64>>(row, 0)?.unwrap_or_default(),
            allocated: take::<Option<u64>>(row, 1)?.unwrap_or_default(),
            limit: take::<Option<u64>>(row, 2)?.unwrap_or_default(),
            expiration: seconds.map(|seconds| Timestamp {
                seconds,
                nanos: nanos.unwrap_or_default(),
            }),
        })
    }

    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expiration
            .is_some_and(|end| (end.seconds, end.nanos) <= (now.seconds, now.nanos))
    }

    /// Reads the reply to [`LOCK_COUNTERS`] or [`SHARE_COUNTERS`].
    pub(crate) fn found(rows: Vec<Row>) -> Worked<Option<Self>> {
        let mut rows = rows.into_iter();
        rows.next().map(|mut row| Self::of(&mut row)).transpose()
    }
}

impl Allocation {
    fn of(row: &mut Row) -> Worked<Self> {
        Ok(Self {
            broadcast: take_id(row, 0)?,
            id: take_id(row, 1)?,
            sent: take::<Option<u64>>(row, 2)?.unwrap_or_default(),
            limit: take::<Option<u64>>(row, 3)?.unwrap_or_default(),
            expiration: Timestamp {
                seconds: take::<Option<i64>>(row, 4)?.unwrap_or_default(),
                nanos: take::<Option<i32>>(row, 5)?.unwrap_or_default(),
            },
        })
    }

    /// Reads the reply to one of the statements that lock allocations.
    pub(crate) fn all(rows: Vec<Row>) -> Worked<Vec<Self>> {
        rows.into_iter().map(|mut row| Self::of(&mut row)).collect()
    }

    pub(crate) fn check(&self, operation: &'static str, now: Timestamp) -> Result<(), Error> {
        let id = self.id;
        if self.sent >= self.limit {
            let detail = format!("allocation {id} has sent its {} messages", self.limit);
            return Err(Error::new(ErrorKind::AllocationFull, operation, detail));
        }
        if (now.seconds, now.nanos) > (self.expiration.seconds, self.expiration.nanos) {
            let detail = format!("allocation {id} has expired");
            return Err(Error::new(ErrorKind::AllocationExpired, operation, detail));
        }
        Ok(())
    }
}

pub(crate) fn unknown(operation: &'static str, id: BroadcastId) -> Error {
    Error::not_found(operation, format!("broadcast {id} does not exist"))
}

/// Returns a time as upstream stores it in two columns.
pub(crate) fn parts(time: std::time::SystemTime) -> (i64, i64) {
    let nanos = epoch_nanos(time);
    (
        nanos.div_euclid(1_000_000_000),
        nanos.rem_euclid(1_000_000_000),
    )
}

/// Adds the statements that end allocations: what they sent is counted, what
/// they reserved is returned.
pub(crate) fn end(batch: &mut Batch, broadcast: BroadcastId, ended: &[Allocation]) {
    if ended.is_empty() {
        return;
    }
    for slice in ended.chunks(MOST_ROWS) {
        let ids = List::ids(slice.iter().map(|allocation| &allocation.id));
        batch.add(
            DELETE_ALLOCATIONS,
            &[Value::Bytes(broadcast.as_bytes()), Value::List(&ids)],
        );
    }
    let sum = |part: fn(&Allocation) -> u64| {
        ended
            .iter()
            .map(part)
            .fold(0, |sum: u64, part| sum.saturating_add(part))
    };
    let sent = sum(|allocation| allocation.sent);
    let reserved = sum(|allocation| match allocation.limit {
        BROADCAST_UNLIMITED => 0,
        limit => limit,
    });
    count(batch, broadcast, sent, reserved);
}

/// Adds the statement that counts sent messages and returns a reservation; the
/// counts stay within what upstream's columns and readers hold.
pub(crate) fn count(batch: &mut Batch, broadcast: BroadcastId, sent: u64, returned: u64) {
    let sent = sent.min(BROADCAST_UNLIMITED);
    batch.add(
        COUNT,
        &[
            Value::Unsigned(BROADCAST_UNLIMITED - sent),
            Value::Unsigned(BROADCAST_UNLIMITED),
            Value::Unsigned(sent),
            Value::Unsigned(returned),
            Value::Unsigned(returned),
            Value::Bytes(broadcast.as_bytes()),
        ],
    );
}

/// Ends all allocations of broadcasts and lets nobody send them any more.
pub(crate) async fn disable(tx: &mut Tx, ids: &[BroadcastId]) -> Worked<Batch> {
    let mut disabling = Batch::default();
    for slice in ids.chunks(MOST_ROWS) {
        let ids = List::ids(slice);
        let mut batch = Batch::of(LOCK_BROADCASTS, &[Value::List(&ids)]);
        batch.add(LOCK_ALLOCATIONS_OF, &[Value::List(&ids)]);
        let mut replies = tx.run(batch).await?;
        let ended = Allocation::all(replies.pop().map_or(Vec::new(), |reply| reply.rows))?;
        for id in slice {
            let of_broadcast: Vec<_> = ended
                .iter()
                .filter(|allocation| allocation.broadcast == *id)
                .copied()
                .collect();
            end(&mut disabling, *id, &of_broadcast);
        }
        disabling.add(
            SET_LIMITS,
            &[Value::Unsigned(BROADCAST_DISABLED), Value::List(&ids)],
        );
    }
    Ok(disabling)
}

pub(crate) const LOCK_COUNTERS: &str = "\
-- lock_counters
SELECT sent, allocated, message_limit, expiration_time_seconds, expiration_time_nanos
FROM broadcasts WHERE broadcast_id = ? FOR UPDATE";

/// Nobody changes the counters until the transaction ends, but others may read them so, too.
pub(crate) const SHARE_COUNTERS: &str = "\
-- share_counters
SELECT sent, allocated, message_limit, expiration_time_seconds, expiration_time_nanos
FROM broadcasts WHERE broadcast_id = ? LOCK IN SHARE MODE";

const LOCK_BROADCASTS: &str = "\
-- disable_broadcasts (lock)
SELECT broadcast_id FROM broadcasts WHERE broadcast_id IN (?) ORDER BY broadcast_id FOR UPDATE";

const LOCK_ALLOCATIONS_OF: &str = "\
-- disable_broadcasts (lock allocations)
SELECT
    broadcast_id, allocation_id, sent, message_limit,
    expiration_time_seconds, expiration_time_nanos
FROM broadcast_allocations WHERE broadcast_id IN (?)
ORDER BY broadcast_id, allocation_id FOR UPDATE";

pub(crate) const LOCK_ALLOCATION: &str = "\
-- lock_allocation
SELECT
    broadcast_id, allocation_id, sent, message_limit,
    expiration_time_seconds, expiration_time_nanos
FROM broadcast_allocations WHERE broadcast_id = ? AND allocation_id = ? FOR UPDATE";

pub(crate) const LOCK_ABANDONED: &str = "\
-- create_allocation (lock abandoned)
SELECT
    broadcast_id, allocation_id, sent, message_limit,
    expiration_time_seconds, expiration_time_nanos
FROM broadcast_allocations
WHERE broadcast_id = ?
AND (
    expiration_time_seconds < ?
    OR (expiration_time_seconds = ? AND expiration_time_nanos < ?)
)
ORDER BY allocation_id FOR UPDATE";

const DELETE_ALLOCATIONS: &str = "\
-- end_allocations
DELETE FROM broadcast_allocations WHERE broadcast_id = ? AND allocation_id IN (?)";

const COUNT: &str = "\
-- count
UPDATE broadcasts
SET
    sent = IF(sent > ?, ?, sent + ?),
    allocated = IF(allocated > ?, allocated - ?, 0)
WHERE broadcast_id = ?";

pub(crate) const SET_LIMITS: &str = "\
-- set_limits
UPDATE broadcasts SET message_limit = ? WHERE broadcast_id IN (?)";

/// Reserves a part of what is left, if it is left.
pub(crate) const RESERVE: &str = "\
-- create_allocation (reserve)
UPDATE broadcasts SET allocated = allocated + ?
WHERE broadcast_id = ? AND allocated + sent + ? <= message_limit";

pub(crate) const INSERT_ALLOCATION: &str = "\
-- create_allocation
INSERT INTO broadcast_allocations (
    broadcast_id, allocation_id, sent, message_limit,
    expiration_time_seconds, expiration_time_nanos
)
VALUES (?, ?, 0, ?, ?, ?)";

/// Counts a message if the allocation has room for it.
pub(crate) const COUNT_IN_ALLOCATION: &str = "\
-- save_broadcast_message (count)
UPDATE broadcast_allocations SET sent = sent + 1
WHERE broadcast_id = ? AND allocation_id = ? AND sent < message_limit";
