//! The one of several servers that removes what is old.

mod bed;

use std::sync::Arc;
use std::time::Duration;

use bed::Database;
use fleethold_postgres::PostgresStore;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_store::clock::timestamp;
use fleethold_store::maintenance::{Lease, Maintenance, Old, Retention, RetentionTask, Table};
use fleethold_store::{
    ClientData, ClientId, ClientStore, Clock, ContactData, ErrorKind, ManualClock, Random, Store,
};

const DAY: Duration = Duration::from_secs(86_400);

async fn open(database: &Database, clock: &Arc<ManualClock>) -> PostgresStore {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    let random = Arc::new(Random::from_os());
    let store = PostgresStore::open(database.options(), clock, random).await;
    store.expect("the database can be opened")
}

async fn count(store: &PostgresStore, table: Table) -> u64 {
    let sizes = store.sizes().await.unwrap();
    let found = sizes.rows.iter().find(|(other, _)| *other == table);
    found.expect("a size of every table").1
}

/// Takes a lease as soon as its holder is late.
async fn take(store: &PostgresStore, holder: u64, duration: Duration) -> Lease {
    for _ in 0..600 {
        let held = store.hold_lease("retention", holder, duration).await;
        if let Some(lease) = held.unwrap() {
            return lease;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the lease never ends");
}

#[tokio::test]
async fn of_two_servers_one_removes_what_is_old_until_it_is_gone() {
    let clock = Arc::new(ManualClock::at(100_000));
    let database = Database::new().await;
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
    assert_eq!(count(&one, Table::Usage).await, 3);
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

#[tokio::test]
async fn old_contacts_of_many_clients_go_step_by_step_and_young_ones_stay() {
    let clock = Arc::new(ManualClock::at(100_000));
    let database = Database::new().await;
    let store = open(&database, &clock).await;
    for number in 1..=7_u8 {
        let id = ClientId::new([number; 8]);
        store.add_client(id, &ClientData::default()).await.unwrap();
        for old in 0..=u64::from(number % 4) {
            let contact = ContactData {
                client_id: id,
                nonce_sent: old,
                nonce_received: 0,
                addr: String::new(),
                client_clock: None,
                streaming_to: None,
                labels: Vec::new(),
            };
            store.record_client_contact(&contact).await.unwrap();
        }
        clock.advance(30 * DAY);
    }
    let all = count(&store, Table::Contacts).await;
    assert_eq!(all, 7 + 1 + 2 + 3 + 1 + 2 + 3);
    // The contacts of the last two clients are young.
    let before = clock.now() - 75 * DAY;
    let lease = take(&store, 1, DAY).await;
    let (mut place, mut removed, mut steps) = (None, 0, 0);
    loop {
        let step = store
            .remove_old(Old::Contacts, before, place.as_ref(), 3, &lease)
            .await
            .unwrap();
        assert!(step.rows <= 3, "{step:?}");
        removed += step.rows;
        steps += 1;
        assert!(steps < 20, "it ends");
        place = step.next;
        if place.is_none() {
            break;
        }
    }
    let young: u64 = [6 % 4, 7 % 4].iter().map(|more| more + 1).sum();
    assert_eq!(
        (removed, count(&store, Table::Contacts).await),
        (all - young, young)
    );
    store.close().await.unwrap();
}
