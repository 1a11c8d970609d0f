//! Leases: what only one of all servers does.
//!
//! Time is that of the database, so the servers' clocks may differ. Whoever
//! writes under a lease changes its row in the same transaction: so nobody takes
//! the lease meanwhile, and in a cluster one of the two is repeated.

use std::time::Duration;

use fleethold_store::maintenance::Lease;

use crate::error::Worked;
use crate::rows::take;
use crate::sql::{Batch, Value};
use crate::transaction::Tx;

/// Takes or keeps a lease.
pub(super) async fn hold(
    tx: &mut Tx,
    name: &str,
    holder: u64,
    duration: Duration,
) -> Worked<Option<Lease>> {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let values = [
        Value::Text(name),
        Value::Unsigned(holder),
        Value::Unsigned(micros),
    ];
    let mut batch = Batch::of(HOLD, &values);
    batch.add(READ, &[Value::Text(name)]);
    let replies = tx.commit(batch).await?;
    let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
    let Some(mut row) = rows.next() else {
        return Ok(None);
    };
    let (found, fence): (u64, u64) = (take(&mut row, 0)?, take(&mut row, 1)?);
    Ok((found == holder).then(|| Lease {
        name: name.to_owned(),
        holder,
        fence,
    }))
}

// Assignments see those before them: the end is set last, by whoever holds it then.
const HOLD: &str = "\
-- hold_lease
INSERT INTO fleethold_leases (name, holder, fence, until_micros, steps)
VALUES (?, ?, 1, CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED) + ?, 0)
ON DUPLICATE KEY UPDATE
    fence = fence + (
        holder <> VALUES(holder)
        AND until_micros <= CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)
    ),
    holder = IF(
        until_micros <= CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED), VALUES(holder), holder
    ),
    until_micros = IF(holder = VALUES(holder), VALUES(until_micros), until_micros)";

const READ: &str = "\
-- hold_lease (read)
SELECT holder, fence FROM fleethold_leases WHERE name = ?";

/// Returns whether a lease is still what it was, and keeps it so until the
/// transaction ends.
pub(super) async fn keep(tx: &mut Tx, lease: &Lease) -> Worked<bool> {
    let values = [
        Value::Text(&lease.name),
        Value::Unsigned(lease.holder),
        Value::Unsigned(lease.fence),
    ];
    let replies = tx.run(Batch::of(KEEP, &values)).await?;
    Ok(replies.iter().any(|reply| reply.affected > 0))
}

const KEEP: &str = "\
-- remove_old (lease)
UPDATE fleethold_leases SET steps = steps + 1 WHERE name = ? AND holder = ? AND fence = ?";
