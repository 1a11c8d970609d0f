//! Copies of what stock servers have stored, and the one server that removes
//! what is old.

mod bed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bed::{Database, options, run};
use fleethold_mysql::MysqlStore;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_store::clock::timestamp;
use fleethold_store::maintenance::{
    ClientRow, Cursor, Lease, Maintenance, MessageRow, Old, Retention, RetentionTask, Row, Table,
    compare, copy,
};
use fleethold_store::{
    ClientData, ClientId, ClientStore, Clock, ErrorKind, ManualClock, MemoryStore, Random, Store,
};

const DAY: Duration = Duration::from_secs(86_400);

async fn open(database: &Database, clock: &Arc<ManualClock>) -> MysqlStore {
    let random = Arc::new(Random::from_os());
    database.open(options(), clock, &random).await
}

async fn all(store: &dyn Maintenance, table: Table, limit: usize) -> Vec<Row> {
    let (mut rows, mut place): (_, Option<Cursor>) = (Vec::new(), None);
    loop {
        let page = store
            .export_rows(table, place.as_ref(), limit)
            .await
            .unwrap();
        assert!(page.rows.len() <= limit);
        rows.extend(page.rows);
        place = page.next;
        if place.is_none() {
            return rows;
        }
    }
}

/// Rows as stock servers write them: NULL where they have nothing to say, and
/// no queue.
const STOCK: &[&str] = &[
    "INSERT INTO clients VALUES (x'0000000000000001', NULL, 0, 7, NULL, NULL, NULL, NULL), \
     (x'0000000000000002', 'key', 1, 8, '10.0.0.1:5', 'host:1', 9, 10)",
    "INSERT INTO client_labels VALUES (x'0000000000000002', 'client', 'linux')",
    "INSERT INTO client_contacts (client_id, time, sent_nonce, received_nonce, address) \
     VALUES (x'0000000000000001', 5, x'0100000000000000', x'0200000000000000', NULL)",
    "INSERT INTO client_resource_usage_records VALUES \
     (x'0000000000000001', 'scope', 1, 2, 3, 4, 0, 1e39, 1.5, 0, 0, 1, 2, NULL, NULL)",
    "INSERT INTO messages VALUES \
     (REPEAT('a', 32), NULL, 'GRR', NULL, x'0000000000000001', 'GRR', '', 1, 2, NULL, NULL, \
      NULL, NULL, NULL, NULL), \
     (REPEAT('b', 32), x'0000000000000001', 'GRR', 'source', NULL, 'GRR', 'type', 1, 2, 3, 4, \
      '', 1, 'why', NULL), \
     (REPEAT('c', 32), x'0000000000000001', 'GRR', 'source', NULL, 'GRR', NULL, 1, 2, 3, 4, \
      NULL, NULL, NULL, NULL)",
    "INSERT INTO pending_messages \
     (for_server, message_id, retry_count, scheduled_time, data_type_url, data_value) VALUES \
     (0, REPEAT('a', 32), 3, 1000, 'url', 'value'), (1, REPEAT('c', 32), 1, 2000, 'left', 'over')",
    "INSERT INTO client_contact_messages VALUES (1, REPEAT('b', 32))",
    "INSERT INTO broadcasts VALUES \
     (x'0000000000000009', 'GRR', NULL, 'type', NULL, NULL, NULL, NULL, 1, 2, 3)",
    "INSERT INTO broadcast_allocations VALUES \
     (x'0000000000000009', x'0000000000000001', 1, 2, 99, 98)",
    "INSERT INTO broadcast_sent VALUES (x'0000000000000009', x'0000000000000001')",
    "INSERT INTO files VALUES ('service', 'name', 6, NULL), ('', '', 7, 'content')",
];

#[tokio::test]
async fn what_a_stock_server_has_stored_is_copied_as_this_store_reads_it() {
    let clock = Arc::new(ManualClock::at(100_000));
    let database = Database::make().await;
    let stock = open(&database, &clock).await;
    let mut connection = database.connect().await;
    for sql in STOCK {
        run(&mut connection, sql).await;
    }
    let rows = all(&stock, Table::Clients, 10).await;
    let Row::Client(ClientRow {
        public_key,
        last_contact_address,
        ..
    }) = &rows[0]
    else {
        panic!("{rows:?}");
    };
    assert_eq!((public_key.len(), last_contact_address.len()), (0, 0));
    let messages = all(&stock, Table::Messages, 2).await;
    let found: Vec<_> = messages
        .iter()
        .map(|row| match row {
            Row::Message(MessageRow {
                record,
                due_micros,
                claims,
            }) => (*due_micros, *claims, record.data.is_some()),
            other => panic!("{other:?}"),
        })
        .collect();
    let done = (None, 0, false);
    assert_eq!(found, [(Some(1000), 3, true), done, done]);

    let own_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let between = MemoryStore::new(own_clock, Arc::new(Random::seeded(1)));
    let copied = copy(&stock, "stock", &between, |_| {}).await.unwrap();
    assert_eq!(copied.rows, 2 + 3 + 1 + 1 + 1 + 1 + 1 + 2);
    let target = Database::make().await;
    let other = open(&target, &clock).await;
    copy(&between, "between", &other, |_| {}).await.unwrap();
    for table in Table::ALL {
        let compared = compare(&stock, &other, table).await.unwrap();
        assert!(compared.is_equal(), "{compared:?}");
        assert!(compared.rows > 0, "{table}");
    }
    assert_eq!(other.check().await.unwrap(), []);
    let mut connection = target.connect().await;
    // Needed for the copy only.
    run(
        &mut connection,
        "ALTER TABLE client_contacts ADD INDEX fleethold_copy (time)",
    )
    .await;
    stock.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test]
async fn usage_records_are_exported_once_each_though_they_have_no_key() {
    let clock = Arc::new(ManualClock::at(100_000));
    let database = Database::make().await;
    let store = open(&database, &clock).await;
    for client in 1..=3_u8 {
        let id = ClientId::new([client; 8]);
        store.add_client(id, &ClientData::default()).await.unwrap();
        for number in 0..10 {
            let report = ResourceUsageData {
                process_start_time: Some(timestamp(clock.now())),
                data_timestamp: Some(timestamp(clock.now())),
                // Some of them are the same in all columns.
                pid: number / 3,
                ..ResourceUsageData::default()
            };
            store.record_resource_usage_data(id, &report).await.unwrap();
        }
    }
    let count = |rows: &[Row]| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for row in rows {
            let Row::Usage(client, record) = row else {
                panic!("{row:?}");
            };
            *counts
                .entry(format!("{client} {}", record.pid))
                .or_default() += 1;
        }
        counts
    };
    let whole = count(&all(&store, Table::Usage, 1_000).await);
    assert_eq!(whole.values().sum::<usize>(), 30);
    assert_eq!(whole.len(), 12);
    assert_eq!(count(&all(&store, Table::Usage, 7).await), whole);
    // Each page from another store, which has read nothing ahead.
    let (mut rows, mut place): (Vec<Row>, Option<Cursor>) = (Vec::new(), None);
    loop {
        let other = open(&database, &clock).await;
        let page = other
            .export_rows(Table::Usage, place.as_ref(), 7)
            .await
            .unwrap();
        other.close().await.unwrap();
        rows.extend(page.rows);
        place = page.next;
        if place.is_none() {
            break;
        }
    }
    assert_eq!(count(&rows), whole);
    store.close().await.unwrap();
}

/// Takes a lease as soon as its holder is late.
async fn take(store: &MysqlStore, holder: u64, duration: Duration) -> Lease {
    for _ in 0..600 {
        if let Some(lease) = store
            .hold_lease("retention", holder, duration)
            .await
            .unwrap()
        {
            return lease;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the lease never ends");
}

#[tokio::test]
async fn of_two_servers_one_removes_what_is_old_until_it_is_gone() {
    let clock = Arc::new(ManualClock::at(100_000));
    let database = Database::make().await;
    let (one, other) = (open(&database, &clock).await, open(&database, &clock).await);
    let id = ClientId::new([1; 8]);
    one.add_client(id, &ClientData::default()).await.unwrap();
    let report = ResourceUsageData {
        process_start_time: Some(timestamp(clock.now())),
        data_timestamp: Some(timestamp(clock.now())),
        ..ResourceUsageData::default()
    };
    for _ in 0..3 {
        one.record_resource_usage_data(id, &report).await.unwrap();
    }
    clock.advance(30 * DAY);
    // The clocks of servers mean nothing to leases.
    let held = take(&one, 1, Duration::from_secs(2)).await;
    let own_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let task = RetentionTask::new(
        Arc::new(other.clone()),
        Retention::default(),
        own_clock,
        &Random::from_os(),
    );
    assert_eq!(
        task.round().await.unwrap(),
        0,
        "the other one has the lease"
    );
    let sizes = one.sizes().await.unwrap();
    assert!(sizes.rows.contains(&(Table::Usage, 3)), "{sizes:?}");
    // The first one dies: it keeps its lease no longer.
    let taken = take(&other, 2, 10 * DAY).await;
    assert_eq!(taken.fence, held.fence + 1);
    let late = one
        .remove_old(Old::Usage, clock.now(), None, 10, &held)
        .await
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Transient);
    assert!(late.to_string().contains("belongs to another"), "{late}");
    assert_eq!(one.hold_lease("retention", 1, DAY).await.unwrap(), None);
    let removed = other
        .remove_old(Old::Usage, clock.now(), None, 10, &taken)
        .await
        .unwrap();
    assert_eq!((removed.rows, removed.next), (3, None));
    one.close().await.unwrap();
    other.close().await.unwrap();
}
