//! Resource usage records of clients.

use std::ops::Range;

use fleethold_proto::fleetspeak::server::ClientResourceUsageRecord;
use fleethold_store::record::UsageRecord;
use fleethold_store::{ClientId, Result};

use crate::Shared;
use crate::clients::unknown;
use crate::contacts::ordered_id;
use crate::query::{BOOL, BYTES, INT, LONG, Query, REAL, Values};
use crate::rows::{self, unreadable};

impl Shared {
    pub(crate) async fn insert_usage(
        &self,
        operation: &'static str,
        id: ClientId,
        record: &UsageRecord,
    ) -> Result<()> {
        let record_id = ordered_id(record.server_nanos, &self.random);
        self.write(operation, |tx| async move {
            let values: Values<'_> = &[
                &id.as_ref(),
                &record_id.as_slice(),
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
            if tx.last(&INSERT, values).await?.is_empty() {
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
            .map(|row| {
                let record = UsageRecord {
                    server_nanos: row.get(0),
                    client_nanos: row.get(1),
                    process_start_nanos: row.get(2),
                    scope: rows::text(row, 3).map_err(unreadable(operation))?,
                    pid: row.get(4),
                    process_terminated: row.get(5),
                    mean_user_cpu_rate: row.get(6),
                    max_user_cpu_rate: row.get(7),
                    mean_system_cpu_rate: row.get(8),
                    max_system_cpu_rate: row.get(9),
                    mean_resident_memory_mib: row.get(10),
                    max_resident_memory_mib: row.get(11),
                    mean_num_fds: row.get(12),
                    max_num_fds: row.get(13),
                };
                Ok(record.into_wire())
            })
            .collect()
    }
}

/// Returns what sorts before all ids of this time.
fn first_id(time_nanos: i64) -> [u8; 8] {
    (time_nanos.cast_unsigned() ^ (1 << 63)).to_be_bytes()
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
