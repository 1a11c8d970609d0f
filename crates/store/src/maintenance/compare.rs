//! Comparing two stores row by row, whatever order each has.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::digest::{SHA256, digest};
use fleethold_proto::fleetspeak::Label;
use fleethold_proto::{Any, Timestamp};

use super::{ContactKey, MOST_EXAMPLES, Maintenance, Row, Table};
use crate::error::Result;

/// How many rows are read at a time.
const PAGE: usize = 1_000;
/// Rows are sorted into so many heaps by their digests.
const HEAPS: usize = 256;
/// In so many of the heaps that differ the rows are looked at, so that stores
/// that differ all over fit into the memory, too.
const MOST_SUSPECTS: usize = 16;

/// What two stores have in common in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The table.
    pub table: Table,
    /// Rows in the first store.
    pub rows: u64,
    /// Rows in the second store.
    pub other_rows: u64,
    /// Rows that are in one store only, or differ: all if there are few, else some.
    pub differences: Vec<String>,
}

impl Comparison {
    /// Returns whether both stores have the same rows.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Compares every row of a table.
///
/// Reads both stores once, and again where they differ. The memory for equal
/// stores does not depend on their size; for others it is some percent of it.
///
/// # Errors
/// Those of reading.
pub async fn compare(
    one: &dyn Maintenance,
    other: &dyn Maintenance,
    table: Table,
) -> Result<Comparison> {
    let (heaps, other_heaps) = (Heaps::of(one, table).await?, Heaps::of(other, table).await?);
    let suspects: HashSet<_> = (0..HEAPS)
        .filter(|at| heaps.0[*at] != other_heaps.0[*at])
        .take(MOST_SUSPECTS)
        .collect();
    let mut differences = Vec::new();
    if !suspects.is_empty() {
        let mut only = HashMap::new();
        for (store, step) in [(one, 1_i64), (other, -1)] {
            each(store, table, |row, digest| {
                if suspects.contains(&heap(&digest)) {
                    let entry = only.entry(digest).or_insert_with(|| (0, row.to_string()));
                    entry.0 += step;
                    if entry.0 == 0 {
                        only.remove(&digest);
                    }
                }
            })
            .await?;
        }
        differences = only
            .into_values()
            .map(|(count, row)| match count {
                1.. => format!("{row}: only in the first store, or different there"),
                _ => format!("{row}: only in the second store, or different there"),
            })
            .collect();
        differences.sort();
        differences.truncate(2 * MOST_EXAMPLES);
    }
    Ok(Comparison {
        table,
        rows: heaps.rows(),
        other_rows: other_heaps.rows(),
        differences,
    })
}

/// For each heap, how many rows it has and the sum of their digests.
struct Heaps(Vec<(u64, [u64; 4])>);

impl Heaps {
    async fn of(store: &dyn Maintenance, table: Table) -> Result<Self> {
        let mut heaps = vec![(0, [0_u64; 4]); HEAPS];
        each(store, table, |_, digest| {
            let (rows, sum) = &mut heaps[heap(&digest)];
            *rows += 1;
            for (word, bytes) in sum.iter_mut().zip(digest.chunks_exact(8)) {
                let bytes = bytes.try_into().expect("a chunk of eight");
                *word = word.wrapping_add(u64::from_le_bytes(bytes));
            }
        })
        .await?;
        Ok(Self(heaps))
    }

    fn rows(&self) -> u64 {
        self.0.iter().map(|(rows, _)| rows).sum()
    }
}

fn heap(digest: &[u8; 32]) -> usize {
    usize::from(digest[0])
}

async fn each(
    store: &dyn Maintenance,
    table: Table,
    mut row: impl FnMut(&Row, [u8; 32]),
) -> Result<()> {
    let mut cursor = None;
    loop {
        let page = store.export_rows(table, cursor.as_ref(), PAGE).await?;
        for found in &page.rows {
            let digest = digest(&SHA256, &encoded(found));
            row(found, digest.as_ref().try_into().expect("32 bytes"));
        }
        if page.next.is_none() {
            return Ok(());
        }
        cursor = page.next;
    }
}

/// Returns bytes that are equal for equal rows only.
fn encoded(row: &Row) -> Vec<u8> {
    let mut out = Encoder(Vec::new());
    match row {
        Row::Client(row) => {
            out.bytes(row.id.as_bytes());
            out.bytes(&row.public_key);
            out.number(i64::from(row.blacklisted));
            out.labels(&row.labels);
            out.number(row.last_contact_nanos);
            out.bytes(row.last_contact_address.as_bytes());
            out.option(row.last_contact_streaming_to.as_ref(), |out, to| {
                out.bytes(to.as_bytes());
            });
            out.time(row.last_clock.as_ref());
        }
        Row::Message(row) => {
            let record = &row.record;
            out.bytes(record.id.as_bytes());
            for (client, service) in [
                (record.source_client, &record.source_service),
                (record.destination_client, &record.destination_service),
            ] {
                out.option(client.as_ref(), |out, client| out.bytes(client.as_bytes()));
                out.bytes(service.as_bytes());
            }
            out.bytes(&record.source_message_id);
            out.bytes(record.message_type.as_bytes());
            out.time(Some(&record.creation_time));
            out.data(record.data.as_ref());
            for part in [&record.validation_info, &record.annotations] {
                out.option(part.as_ref(), |out, part| out.bytes(part));
            }
            out.option(record.result.as_ref(), |out, result| {
                out.time(Some(&result.processed_time));
                out.option(result.failure.as_ref(), |out, reason| {
                    out.bytes(reason.as_bytes());
                });
            });
            out.option(row.due_micros.as_ref(), |out, due| out.number(*due));
            out.number(i64::from(row.claims));
        }
        Row::Contact(row) => {
            out.contact(&row.key);
            out.bytes(row.address.as_bytes());
        }
        Row::Link(row) => {
            out.contact(&row.contact);
            out.bytes(row.message.as_bytes());
        }
        Row::Usage(client, record) => {
            out.bytes(client.as_bytes());
            out.bytes(record.scope.as_bytes());
            for number in [
                record.pid,
                record.process_start_nanos,
                record.client_nanos,
                record.server_nanos,
                i64::from(record.process_terminated),
                i64::from(record.mean_user_cpu_rate.to_bits()),
                i64::from(record.max_user_cpu_rate.to_bits()),
                i64::from(record.mean_system_cpu_rate.to_bits()),
                i64::from(record.max_system_cpu_rate.to_bits()),
                i64::from(record.mean_resident_memory_mib),
                i64::from(record.max_resident_memory_mib),
                i64::from(record.mean_num_fds),
                i64::from(record.max_num_fds),
            ] {
                out.number(number);
            }
        }
        Row::Broadcast(row) => {
            let record = &row.record;
            out.bytes(record.id.as_bytes());
            out.bytes(record.source_service.as_bytes());
            out.option(record.destination_service.as_ref(), |out, service| {
                out.bytes(service.as_bytes());
            });
            out.bytes(record.message_type.as_bytes());
            out.time(record.expiration_time.as_ref());
            out.data(record.data.as_ref());
            out.labels(&record.required_labels);
            out.bytes(record.group_name.as_bytes());
            for number in [record.limit, row.sent, row.allocated] {
                out.number(number.cast_signed());
            }
            for allocation in &row.allocations {
                out.bytes(allocation.id.as_bytes());
                out.number(allocation.sent.cast_signed());
                out.number(allocation.limit.cast_signed());
                out.number(allocation.expiry_nanos);
            }
        }
        Row::Sent(row) => {
            out.bytes(row.client.as_bytes());
            out.bytes(row.broadcast.as_bytes());
            out.option(row.message.as_ref(), |out, id| out.bytes(id.as_bytes()));
        }
        Row::File(row) => {
            out.bytes(row.service.as_bytes());
            out.bytes(row.name.as_bytes());
            out.number(row.modified_nanos);
            out.bytes(&row.content);
        }
    }
    out.0
}

/// Writes values so that no two sequences of them give the same bytes.
struct Encoder(Vec<u8>);

impl Encoder {
    fn number(&mut self, number: i64) {
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend((bytes.len() as u64).to_le_bytes());
        self.0.extend(bytes);
    }

    fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn time(&mut self, time: Option<&Timestamp>) {
        self.option(time, |out, time| {
            out.number(time.seconds);
            out.number(i64::from(time.nanos));
        });
    }

    fn data(&mut self, data: Option<&Any>) {
        self.option(data, |out, data| {
            out.bytes(data.type_url.as_bytes());
            out.bytes(&data.value);
        });
    }

    fn labels(&mut self, labels: &[Label]) {
        self.number(labels.len() as i64);
        for label in labels {
            self.bytes(label.service_name.as_bytes());
            self.bytes(label.label.as_bytes());
        }
    }

    fn contact(&mut self, key: &ContactKey) {
        self.bytes(key.client_id.as_bytes());
        self.number(key.time_nanos);
        self.number(key.nonce_sent.cast_signed());
        self.number(key.nonce_received.cast_signed());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{ClientData, ClientId, ClientStore, ManualClock, MemoryStore, Random};

    async fn store_with(clients: impl Iterator<Item = u64>) -> MemoryStore {
        let store = MemoryStore::new(Arc::new(ManualClock::at(1)), Arc::new(Random::seeded(1)));
        for number in clients {
            let id = ClientId::new(number.to_be_bytes());
            store.add_client(id, &ClientData::default()).await.unwrap();
        }
        store
    }

    #[tokio::test]
    async fn stores_that_differ_all_over_are_told_apart_by_some_rows() {
        let one = store_with(0..2_000).await;
        let other = store_with(2_000..4_000).await;
        let compared = compare(&one, &other, Table::Clients).await.unwrap();
        assert!(!compared.is_equal());
        assert_eq!((compared.rows, compared.other_rows), (2_000, 2_000));
        assert_eq!(compared.differences.len(), 2 * MOST_EXAMPLES);
        let twin = store_with(0..2_000).await;
        let same = compare(&one, &twin, Table::Clients).await.unwrap();
        assert!(same.is_equal());
    }

    #[tokio::test]
    async fn one_row_more_is_found_among_many() {
        let one = store_with(0..2_000).await;
        let other = store_with(0..2_001).await;
        let compared = compare(&one, &other, Table::Clients).await.unwrap();
        let expected = "client 00000000000007d0: only in the second store, or different there";
        assert_eq!(compared.differences, [expected]);
    }
}
