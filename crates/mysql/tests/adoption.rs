//! What stock servers have stored, without our column, is handed out by us, too.

mod bed;

use std::sync::Arc;

use bed::{Database, options, run};
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_store::{ClientId, ManualClock, MessageId, MessageStore, Random, Store};
use mysql_async::prelude::Queryable;

const STOCK: &str = "UPDATE pending_messages SET fleethold_queue = NULL";
const IN_NO_QUEUE: &str = "SELECT COUNT(*) FROM pending_messages WHERE fleethold_queue IS NULL";

fn message(number: u32, client: Option<ClientId>) -> Message {
    Message {
        message_id: MessageId::for_source(None, "test", &number.to_be_bytes()).to_bytes(),
        source: Some(Address::default()),
        destination: Some(Address {
            client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
            service_name: "service".into(),
        }),
        creation_time: Some(Timestamp {
            seconds: 1,
            nanos: 0,
        }),
        ..Message::default()
    }
}

#[tokio::test]
async fn messages_of_stock_servers_are_handed_out_however_many_wait_for_others() {
    const OTHERS: u32 = 3_000;
    let (client, other) = (ClientId::new([1; 8]), ClientId::new([2; 8]));
    let database = Database::make().await;
    let clock = Arc::new(ManualClock::at(100_000));
    let random = Arc::new(Random::seeded(1));
    let store = database.open(options(), &clock, &random).await;
    let others: Vec<_> = (0..OTHERS).map(|n| message(n, Some(other))).collect();
    store.store_messages(&others, None).await.unwrap();
    // Due last, so it is adopted last.
    clock.advance(std::time::Duration::from_secs(1));
    let own = message(OTHERS, Some(client));
    let for_server = message(OTHERS + 1, None);
    store
        .store_messages(&[own.clone(), for_server.clone()], None)
        .await
        .unwrap();
    let mut connection = database.connect().await;
    run(&mut connection, STOCK).await;

    let count = store.get_pending_message_count(&[client, other]).await;
    assert_eq!(count.unwrap(), u64::from(OTHERS) + 1);
    let claimed = store.client_messages_for_processing(client, 100, None);
    let claimed = claimed.await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].message_id, own.message_id);
    let again = store.client_messages_for_processing(client, 100, None);
    assert!(again.await.unwrap().is_empty(), "it is leased");
    let left: Option<u64> = connection.query_first(IN_NO_QUEUE).await.unwrap();
    assert_eq!(left, Some(0), "nobody has to look again");

    // What waits for services, adopted by whoever looks for that.
    run(&mut connection, STOCK).await;
    clock.advance(std::time::Duration::from_secs(600));
    let claimed = store.server_messages_for_processing(10).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].message_id, for_server.message_id);
    let again = store.server_messages_for_processing(10).await.unwrap();
    assert!(again.is_empty(), "it is leased");
    // The lease of the client's message outlives that nobody is in a queue.
    let early = store.client_messages_for_processing(client, 100, None);
    assert!(early.await.unwrap().is_empty());
    let all = store.client_messages_for_processing(other, u64::MAX, None);
    assert_eq!(all.await.unwrap().len(), others.len());
    store.close().await.unwrap();
}
