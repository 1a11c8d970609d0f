//! Leases: what only one of all servers does.
//!
//! Time is that of the database here, so the servers' clocks may differ. Whoever
//! writes under a lease changes its row in the same transaction: so nobody takes
//! the lease meanwhile, on engines without locks neither.

use std::time::Duration;

use fleethold_store::Result;
use fleethold_store::maintenance::Lease;

use crate::Shared;
use crate::error::Worked;
use crate::query::{LONG, Query, TEXT, Values};
use crate::transactions::Tx;

/// Takes or keeps a lease.
pub(super) async fn hold(
    shared: &Shared,
    name: &str,
    holder: u64,
    duration: Duration,
) -> Result<Option<Lease>> {
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2);
    let signed = holder.cast_signed();
    let rows = shared
        .write("hold_lease", |tx| async move {
            let values: Values<'_> = &[&name, &signed, &micros];
            tx.last(&HOLD, values).await
        })
        .await?;
    Ok(rows.first().map(|row| Lease {
        name: name.to_owned(),
        holder,
        fence: row.get::<_, i64>(0).cast_unsigned(),
    }))
}

const HOLD: Query = Query {
    sql: "\
-- hold_lease
INSERT INTO leases AS held (name, holder, fence, until_micros, steps)
VALUES ($1, $2, 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $3, 0)
ON CONFLICT (name) DO UPDATE
SET fence = held.fence + CASE WHEN held.holder = excluded.holder THEN 0 ELSE 1 END,
    holder = excluded.holder, until_micros = excluded.until_micros
WHERE held.holder = excluded.holder
OR held.until_micros <= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
RETURNING fence",
    types: &[TEXT, LONG, LONG],
};

/// Returns whether a lease is still what it was, and keeps it so until the
/// transaction ends.
pub(super) async fn keep(tx: &Tx, lease: &Lease) -> Worked<bool> {
    let values: Values<'_> = &[
        &lease.name,
        &lease.holder.cast_signed(),
        &lease.fence.cast_signed(),
    ];
    Ok(!tx.rows(&KEEP, values).await?.is_empty())
}

const KEEP: Query = Query {
    sql: "\
-- remove_old (lease)
UPDATE leases SET steps = steps + 1 WHERE name = $1 AND holder = $2 AND fence = $3
RETURNING 1",
    types: &[TEXT, LONG, LONG],
};
