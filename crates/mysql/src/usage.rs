//! Resource usage records of clients.

use std::ops::Range;

use fleethold_proto::fleetspeak::server::ClientResourceUsageRecord;
use fleethold_store::ClientId;
use fleethold_store::record::UsageRecord;
use mysql_async::Row;

use crate::error::Worked;
use crate::rows::take;
use crate::sql::{Batch, Value};
use crate::transaction::Tx;

/// Appends a record, unless an earlier attempt may have done so and it is there.
pub(crate) async fn insert(tx: &mut Tx, client: ClientId, record: &UsageRecord) -> Worked<()> {
    let values = row(&client, record);
    if tx.replayed() {
        let same = Batch::of(FIND, &[&values[..1], &values[2..6]].concat());
        if tx
            .run(same)
            .await?
            .iter()
            .any(|reply| !reply.rows.is_empty())
        {
            return Ok(());
        }
    }
    tx.commit(Batch::of(INSERT, &values)).await?;
    Ok(())
}

/// The places of [`row`].
pub(crate) const ROW: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// Returns the values of a record's columns, in their order.
pub(crate) fn row<'a>(client: &'a ClientId, record: &'a UsageRecord) -> [Value<'a>; 15] {
    [
        Value::Bytes(client.as_bytes()),
        Value::Text(&record.scope),
        Value::Int(record.pid),
        Value::Int(record.process_start_nanos),
        Value::Int(record.client_nanos),
        Value::Int(record.server_nanos),
        Value::Int(record.process_terminated.into()),
        Value::Double(record.mean_user_cpu_rate.into()),
        Value::Double(record.max_user_cpu_rate.into()),
        Value::Double(record.mean_system_cpu_rate.into()),
        Value::Double(record.max_system_cpu_rate.into()),
        Value::Int(record.mean_resident_memory_mib.into()),
        Value::Int(record.max_resident_memory_mib.into()),
        Value::Int(record.mean_num_fds.into()),
        Value::Int(record.max_num_fds.into()),
    ]
}

const FIND: &str = "\
-- record_resource_usage_data (replayed)
SELECT 1 FROM client_resource_usage_records
WHERE client_id = ? AND pid = ? AND process_start_time = ? AND client_timestamp = ?
AND server_timestamp = ? LIMIT 1";

const INSERT: &str = "\
-- record_resource_usage_data
INSERT INTO client_resource_usage_records (
    client_id, scope, pid, process_start_time, client_timestamp, server_timestamp,
    process_terminated, mean_user_cpu_rate, max_user_cpu_rate,
    mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// Returns the records of a client received within `range`, by that time.
pub(crate) async fn fetch(
    tx: &mut Tx,
    client: ClientId,
    range: &Range<i64>,
) -> Worked<Vec<ClientResourceUsageRecord>> {
    let values = [
        Value::Bytes(client.as_bytes()),
        Value::Int(range.start),
        Value::Int(range.end),
    ];
    let mut records = Vec::new();
    for mut row in tx
        .only(Batch::of(FETCH, &values))
        .await?
        .into_iter()
        .flat_map(|reply| reply.rows)
    {
        records.push(record(&mut row)?.into_wire());
    }
    Ok(records)
}

/// Takes the columns that [`FETCH`] names first.
pub(crate) fn record(row: &mut Row) -> Worked<UsageRecord> {
    Ok(UsageRecord {
        scope: take(row, 0)?,
        pid: take(row, 1)?,
        process_start_nanos: take(row, 2)?,
        client_nanos: take(row, 3)?,
        server_nanos: take(row, 4)?,
        process_terminated: take(row, 5)?,
        mean_user_cpu_rate: rate(take(row, 6)?),
        max_user_cpu_rate: rate(take(row, 7)?),
        mean_system_cpu_rate: rate(take(row, 8)?),
        max_system_cpu_rate: rate(take(row, 9)?),
        mean_resident_memory_mib: take(row, 10)?,
        max_resident_memory_mib: take(row, 11)?,
        // Rows from before October 2020 have none.
        mean_num_fds: take::<Option<i32>>(row, 12)?.unwrap_or_default(),
        max_num_fds: take::<Option<i32>>(row, 13)?.unwrap_or_default(),
    })
}

/// A stock server stores rates that no float holds, and then cannot read them.
#[expect(clippy::cast_possible_truncation, reason = "clamped")]
fn rate(rate: f64) -> f32 {
    rate.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
}

const FETCH: &str = "\
-- fetch_resource_usage_records
SELECT
    scope, pid, process_start_time, client_timestamp, server_timestamp, process_terminated,
    mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
FROM client_resource_usage_records
WHERE client_id = ? AND server_timestamp >= ? AND server_timestamp < ?
ORDER BY server_timestamp";
