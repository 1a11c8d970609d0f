//! Resource usage records of clients.

use std::ops::Range;

use fleethold_proto::fleetspeak::server::ClientResourceUsageRecord;
use fleethold_store::ClientId;
use fleethold_store::record::UsageRecord;
use rusqlite::{Connection, Row, params};

use crate::error::Worked;
use crate::writer::Tx;

/// Appends a record of a client that exists.
pub(crate) fn insert(tx: &Tx<'_>, client: ClientId, record: &UsageRecord) -> Worked<()> {
    tx.prepare_cached(INSERT)?.execute(params![
        client.as_bytes(),
        record.server_nanos,
        record.client_nanos,
        record.process_start_nanos,
        record.scope,
        record.pid,
        record.process_terminated,
        record.mean_user_cpu_rate,
        record.max_user_cpu_rate,
        record.mean_system_cpu_rate,
        record.max_system_cpu_rate,
        record.mean_resident_memory_mib,
        record.max_resident_memory_mib,
        record.mean_num_fds,
        record.max_num_fds,
    ])?;
    Ok(())
}

const INSERT: &str = "\
-- record_resource_usage_data
INSERT INTO usage_records (
    client_id, server_nanos, client_nanos, process_start_nanos, scope, pid, process_terminated,
    mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";

/// Returns the records of a client received within `range`, by that time.
pub(crate) fn fetch(
    connection: &Connection,
    client: ClientId,
    range: &Range<i64>,
) -> Worked<Vec<ClientResourceUsageRecord>> {
    let records = connection
        .prepare_cached(FETCH)?
        .query_map(params![client.as_bytes(), range.start, range.end], |row| {
            record(row, 0).map(UsageRecord::into_wire)
        })?
        .collect::<Result<_, _>>()?;
    Ok(records)
}

/// Reads a record from column `at` on.
pub(crate) fn record(row: &Row<'_>, at: usize) -> rusqlite::Result<UsageRecord> {
    Ok(UsageRecord {
        server_nanos: row.get(at)?,
        client_nanos: row.get(at + 1)?,
        process_start_nanos: row.get(at + 2)?,
        scope: row.get(at + 3)?,
        pid: row.get(at + 4)?,
        process_terminated: row.get(at + 5)?,
        mean_user_cpu_rate: row.get(at + 6)?,
        max_user_cpu_rate: row.get(at + 7)?,
        mean_system_cpu_rate: row.get(at + 8)?,
        max_system_cpu_rate: row.get(at + 9)?,
        mean_resident_memory_mib: row.get(at + 10)?,
        max_resident_memory_mib: row.get(at + 11)?,
        mean_num_fds: row.get(at + 12)?,
        max_num_fds: row.get(at + 13)?,
    })
}

const FETCH: &str = "\
-- fetch_resource_usage_records
SELECT
    server_nanos, client_nanos, process_start_nanos, scope, pid, process_terminated,
    mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
FROM usage_records
WHERE client_id = ?1 AND server_nanos >= ?2 AND server_nanos < ?3
ORDER BY server_nanos, record";
