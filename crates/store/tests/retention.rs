//! One of two processes removes what is old.

use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_store::clock::timestamp;
use fleethold_store::maintenance::{Retention, RetentionTask, Table};
use fleethold_store::{
    ClientData, ClientId, ClientStore, Clock, Maintenance, ManualClock, MemoryStore, Random,
};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn one_of_two_tasks_removes_what_is_old_and_the_other_takes_over() {
    let clock = Arc::new(ManualClock::at(100_000));
    let own_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let store = MemoryStore::new(Arc::clone(&own_clock), Arc::new(Random::seeded(1)));
    let other = store.share();
    let id = ClientId::new([1; 8]);
    store.add_client(id, &ClientData::default()).await.unwrap();
    let report = ResourceUsageData {
        process_start_time: Some(timestamp(clock.now())),
        data_timestamp: Some(timestamp(clock.now())),
        ..ResourceUsageData::default()
    };
    for _ in 0..3 {
        store.record_resource_usage_data(id, &report).await.unwrap();
    }
    clock.advance(10 * DAY);
    store.record_resource_usage_data(id, &report).await.unwrap();
    clock.advance(10 * DAY);

    let random = Random::seeded(2);
    let task = |store: &Arc<dyn Maintenance>, retention| {
        RetentionTask::new(
            Arc::clone(store),
            retention,
            Arc::clone(&own_clock),
            &random,
        )
    };
    let store: Arc<dyn Maintenance> = Arc::new(store);
    let other: Arc<dyn Maintenance> = Arc::new(other);
    let first = task(&store, Retention::default());
    let second = task(&other, Retention::default());
    assert_eq!(first.round().await.unwrap(), 3, "older than 14 days");
    clock.advance(10 * DAY);
    // The lease of the first is over: whoever comes first has it.
    assert_eq!(second.round().await.unwrap(), 1);
    assert_eq!(first.round().await.unwrap(), 0, "the second has the lease");
    let sizes = store.sizes().await.unwrap();
    assert!(sizes.rows.contains(&(Table::Usage, 0)), "{sizes:?}");
    let idle = task(&store, Retention::NONE);
    assert_eq!(idle.round().await.unwrap(), 0);
}
