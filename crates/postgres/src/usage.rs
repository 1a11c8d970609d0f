//! Resource usage records of clients.

use std::ops::Range;

use fleethold_proto::fleetspeak::server::ClientResourceUsageRecord;
use fleethold_store::record::UsageRecord;
use fleethold_store::{ClientId, Result};
use tokio_postgres::Row;

use crate::Shared;
use crate::clients::unknown;
use crate::contacts::{first_id, ordered_id};
use crate::error::Worked;
use crate::query::{BOOL, BYTES, INT, LONG, Query, REAL, Values};
use crate::rows::{self, unreadable};
use crate::transactions::Tx;

impl Shared {
    pub(crate) async fn insert_usage(
        &self,
        operation: &'static str,
        id: ClientId,
        record: &UsageRecord,
    ) -> Result<()> {
        let record_id = ordered_id(record.server_nanos, &self.random);
        self.write(operation, |tx| async move {
            if !insert(&tx, id, &record_id, record).await? {
                return Err(unknown(operation, id).into());
            }
            Ok(())
        })
        .await
    }

    /// Returns the records of a client received within `range`, by that time.
    pub(crate) async fn fetch_usage(
        &self,
        operation: &'static str,
        client: ClientId,
        range: &Range<i64>,
    ) -> Result<Vec<ClientResourceUsageRecord>> {
        // A record's id begins with its time.
        let (start, end) = (first_id(range.start), first_id(range.end));
        let values: Values<'_> = &[&client.as_ref(), &start.as_slice(), &end.as_slice()];
        let rows = self.read_many(operation, &FETCH, values).await?;
        rows.iter()
            .map(|row| Ok(record(operation, row, 0)?.into_wire()))
            .collect()
    }
}

/// Inserts a record; returns whether the client exists.
pub(crate) async fn insert(
    tx: &Tx,
    id: ClientId,
    record_id: &[u8],
    record: &UsageRecord,
) -> Worked<bool> {
    let values: Values<'_> = &[
        &id.as_ref(),
        &record_id,
        &record.server_nanos,
        &record.client_nanos,
        &record.process_start_nanos,
        &record.scope.as_bytes(),
        &record.pid,
        &record.process_terminated,
        &record.mean_user_cpu_rate,
        &record.max_user_cpu_rate,
        &record.mean_system_cpu_rate,
        &record.max_system_cpu_rate,
        &record.mean_resident_memory_mib,
        &record.max_resident_memory_mib,
        &record.mean_num_fds,
        &record.max_num_fds,
    ];
    Ok(!tx.rows(&INSERT, values).await?.is_empty())
}

/// Reads a record from column `at` on.
pub(crate) fn record(operation: &'static str, row: &Row, at: usize) -> Result<UsageRecord> {
    Ok(UsageRecord {
        server_nanos: row.get(at),
        client_nanos: row.get(at + 1),
        process_start_nanos: row.get(at + 2),
        scope: rows::text(row, at + 3).map_err(unreadable(operation))?,
        pid: row.get(at + 4),
        process_terminated: row.get(at + 5),
        mean_user_cpu_rate: row.get(at + 6),
        max_user_cpu_rate: row.get(at + 7),
        mean_system_cpu_rate: row.get(at + 8),
        max_system_cpu_rate: row.get(at + 9),
        mean_resident_memory_mib: row.get(at + 10),
        max_resident_memory_mib: row.get(at + 11),
        mean_num_fds: row.get(at + 12),
        max_num_fds: row.get(at + 13),
    })
}

const INSERT: Query = Query {
    sql: "\
-- record_resource_usage_data
WITH client AS (
    SELECT client_id FROM clients WHERE client_id = $1
), record AS (
    INSERT INTO usage_records (
        client_id, record_id, server_nanos, client_nanos, process_start_nanos, scope, pid,
        process_terminated, mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate,
        max_system_cpu_rate, mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds,
        max_num_fds
    )
    SELECT client_id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16 FROM client
    ON CONFLICT DO NOTHING
)
SELECT 1 FROM client",
    types: &[
        BYTES, BYTES, LONG, LONG, LONG, BYTES, LONG, BOOL, REAL, REAL, REAL, REAL, INT, INT, INT,
        INT,
    ],
};

const FETCH: Query = Query {
    sql: "\
-- fetch_resource_usage_records
SELECT
    server_nanos, client_nanos, process_start_nanos, scope, pid, process_terminated,
    mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
FROM usage_records
WHERE client_id = $1 AND record_id >= $2 AND record_id < $3
ORDER BY record_id",
    types: &[BYTES, BYTES, BYTES],
};
