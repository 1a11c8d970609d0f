//! What is lost when connections break, servers end and commits go unanswered: nothing.
#![expect(
    clippy::print_stdout,
    reason = "the measured figures are worth reading"
)]

mod bed;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bed::load::{
    Progress, broadcast, client, contact, found, id, load, message, recovery, success,
};
use bed::{Database, connect, options, run};
use fleethold_mysql::{MysqlOptions, MysqlStore};
use fleethold_proto::fleetspeak::Label;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_store::clock::timestamp_from_epoch_nanos;
use fleethold_store::{
    BroadcastId, BroadcastStore, ClientData, ClientStore, Clock, ContactData, ErrorKind, FileStore,
    ManualClock, MessageStore, Outcome, Random, Store,
};
use fleethold_testdb::{Cut, Proxy, mariadb};
use futures::future::BoxFuture;
use mysql_async::prelude::Queryable;

struct Broken {
    store: MysqlStore,
    clock: Arc<ManualClock>,
    proxy: Proxy,
    _database: Database,
}

async fn through_proxy(server: &str, options: MysqlOptions) -> Broken {
    let database = Database::make_on(server).await;
    let port = server.rsplit_once(':').expect("a port").1;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().expect("a port")));
    let proxy = Proxy::start(target).await.unwrap();
    let source = format!(
        "fleethold:fleethold@tcp(127.0.0.1:{})/{}",
        proxy.port(),
        database.name
    );
    let clock = Arc::new(ManualClock::at(100_000));
    let store = MysqlStore::open(
        &source.parse().unwrap(),
        options,
        Arc::<ManualClock>::clone(&clock),
        Arc::new(Random::seeded(1)),
    )
    .await
    .unwrap();
    Broken {
        store,
        clock,
        proxy,
        _database: database,
    }
}

/// A call and what shows that it happened exactly once. Each number has its own
/// client, with one message and one broadcast with one allocation.
type Call = for<'a> fn(&'a Broken, u64) -> BoxFuture<'a, Result<(), fleethold_store::Error>>;

async fn prepare(bed: &Broken, number: u64) {
    let store = &bed.store;
    store
        .add_client(client(number), &ClientData::default())
        .await
        .unwrap();
    store
        .store_messages(&[message(number, client(number))], None)
        .await
        .unwrap();
    store
        .create_broadcast(&broadcast(number), 10)
        .await
        .unwrap();
}

const CALLS: &[(&str, Call)] = &[
    ("store_messages", |bed, number| {
        Box::pin(async move {
            let messages: Vec<_> = (0..3)
                .map(|part| message(number + 1_000_000 * (part + 1), client(number)))
                .collect();
            bed.store.store_messages(&messages, None).await?;
            let pending = bed
                .store
                .get_pending_message_count(&[client(number)])
                .await?;
            assert_eq!(pending, 4, "all three, once");
            Ok(())
        })
    }),
    ("store_contact", |bed, number| {
        Box::pin(async move {
            let new = message(number + 1_000_000, client(number));
            bed.store.store_contact(&contact(number), &[new]).await?;
            let contacts = bed.store.list_client_contacts(client(number)).await?;
            assert_eq!(contacts.len(), 1, "one contact, once");
            Ok(())
        })
    }),
    ("enrol", |bed, number| {
        Box::pin(async move {
            let new = number + 1_000_000;
            let data = ClientData::default();
            bed.store.enrol(&data, &contact(new)).await?;
            let contacts = bed.store.list_client_contacts(client(new)).await?;
            assert_eq!(contacts.len(), 1, "one contact, once");
            let second = ContactData {
                nonce_sent: 0,
                ..contact(new)
            };
            let again = bed.store.enrol(&data, &second).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::AlreadyExists);
            Ok(())
        })
    }),
    ("link_messages_to_contact", |bed, number| {
        Box::pin(async move {
            let contact = bed.store.record_client_contact(&contact(number)).await?;
            let ids = [id(number)];
            bed.store.link_messages_to_contact(&contact, &ids).await
        })
    }),
    ("claim", |bed, number| {
        Box::pin(async move {
            let claimed = bed
                .store
                .client_messages_for_processing(client(number), 10, None)
                .await?;
            assert!(claimed.len() <= 1, "handed out at most once");
            let again = bed
                .store
                .client_messages_for_processing(client(number), 10, None)
                .await?;
            assert!(again.is_empty(), "a claim whose answer was lost lasts, too");
            Ok(())
        })
    }),
    ("set_message_results", |bed, number| {
        Box::pin(async move {
            bed.store
                .set_message_results(&[(id(number), success())])
                .await?;
            assert_eq!(
                bed.store.get_message_result(id(number)).await?,
                Some(success())
            );
            assert_eq!(
                bed.store
                    .get_pending_message_count(&[client(number)])
                    .await?,
                0
            );
            Ok(())
        })
    }),
    ("delete_pending_messages", |bed, number| {
        Box::pin(async move {
            bed.store.delete_pending_messages(&[client(number)]).await?;
            assert_eq!(
                bed.store
                    .get_pending_message_count(&[client(number)])
                    .await?,
                0
            );
            Ok(())
        })
    }),
    ("add_client", |bed, number| {
        Box::pin(async move {
            let data = ClientData {
                key: b"key".to_vec().into(),
                labels: vec![Label {
                    service_name: "client".into(),
                    label: "linux".into(),
                }],
                blacklisted: false,
            };
            let new = client(number + 1_000_000);
            bed.store.add_client(new, &data).await?;
            assert_eq!(bed.store.get_client_data(new).await?, data);
            Ok(())
        })
    }),
    ("record_resource_usage_data", |bed, number| {
        Box::pin(async move {
            let time = Some(timestamp_from_epoch_nanos(1));
            let usage = ResourceUsageData {
                scope: "scope".into(),
                process_start_time: time,
                data_timestamp: time,
                ..ResourceUsageData::default()
            };
            bed.store
                .record_resource_usage_data(client(number), &usage)
                .await?;
            let end = timestamp_from_epoch_nanos(i64::MAX);
            let start = timestamp_from_epoch_nanos(0);
            let found = bed
                .store
                .fetch_resource_usage_records(client(number), &start, &end);
            assert_eq!(found.await?.len(), 1, "one record, once");
            Ok(())
        })
    }),
    ("create_broadcast", |bed, number| {
        Box::pin(async move {
            bed.store
                .create_broadcast(&broadcast(number + 1_000_000), 5)
                .await?;
            Ok(())
        })
    }),
    (
        "create_allocation and save_broadcast_message",
        |bed, number| {
            Box::pin(async move {
                let to = BroadcastId::new(number.to_be_bytes());
                let expiry = bed.clock.now() + Duration::from_secs(60);
                let allocation = bed.store.create_allocation(to, 0.5, expiry).await?;
                let allocation = allocation.expect("half of ten");
                assert_eq!(allocation.limit, 5);
                let new = message(number + 1_000_000, client(number));
                let save =
                    bed.store
                        .save_broadcast_message(&new, to, client(number), Some(allocation.id));
                save.await?;
                let rest = bed.store.create_allocation(to, 1.0, expiry).await?;
                assert_eq!(rest.map(|rest| rest.limit), Some(5), "reserved once");
                bed.store.disable_broadcasts(&[to]).await?;
                bed.store.set_broadcast_limit(to, 10).await?;
                let active = bed.store.list_active_broadcasts().await?;
                let found = active
                    .iter()
                    .find(|info| info.broadcast.broadcast_id[..] == to.as_bytes()[..]);
                assert_eq!(found.map(|info| info.sent), Some(1), "counted once");
                Ok(())
            })
        },
    ),
    ("cleanup_allocation", |bed, number| {
        Box::pin(async move {
            let to = BroadcastId::new(number.to_be_bytes());
            let expiry = bed.clock.now() + Duration::from_secs(60);
            let allocation = bed
                .store
                .create_allocation(to, 0.5, expiry)
                .await?
                .expect("five");
            bed.store
                .cleanup_allocation(to, Some(allocation.id), 3)
                .await?;
            let rest = bed.store.create_allocation(to, 1.0, expiry).await?;
            assert_eq!(rest.map(|rest| rest.limit), Some(7), "counted once");
            Ok(())
        })
    }),
    ("store_file", |bed, number| {
        Box::pin(async move {
            let name = format!("file {number}");
            bed.store
                .store_file("service", &name, &mut &b"content"[..])
                .await?;
            let found = bed.store.read_file("service", &name).await?;
            assert_eq!(&found.content[..], b"content");
            Ok(())
        })
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_counts_once_whichever_round_trip_is_cut() {
    let server = bed::server().expect("a database server");
    let bed = through_proxy(server, options()).await;
    let mut number = 1;
    let mut cuts = 0;
    for (name, call) in CALLS {
        for cut in [Cut::BeforeRequest, Cut::AfterAnswer] {
            for round_trip in 1.. {
                number += 1;
                prepare(&bed, number).await;
                bed.proxy.cut_at(round_trip, cut);
                let outcome = call(&bed, number).await;
                let finished_before = bed.proxy.take_back();
                outcome.unwrap_or_else(|error| {
                    panic!("{name}, {cut:?} at round trip {round_trip}: {error:?}")
                });
                if finished_before {
                    break;
                }
                cuts += 1;
                assert!(round_trip < 100, "{name} does not end");
            }
        }
    }
    println!("{cuts} cuts");
    assert!(cuts > 50, "{cuts} cuts");
    bed.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn count_that_cannot_be_repeated_says_that_its_outcome_is_unknown() {
    let server = bed::server().expect("a database server");
    let bed = through_proxy(server, options()).await;
    bed.store
        .create_broadcast(&broadcast(1), 100)
        .await
        .unwrap();
    let id = BroadcastId::new(1_u64.to_be_bytes());
    bed.proxy.cut_on(&b"COMMIT"[..], Cut::AfterAnswer);
    let error = bed.store.cleanup_allocation(id, None, 3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(error.outcome(), Outcome::Unknown);
    // What the commit was sent with is answered first, so the connection may
    // have ended before the commit ran; it has run or never will when nothing does.
    let mut other = bed._database.connect().await;
    let running = "SELECT id FROM information_schema.processlist \
        WHERE db = DATABASE() AND command <> 'Sleep' AND id <> CONNECTION_ID()";
    for look in 1.. {
        let running: Vec<u64> = other.query(running).await.unwrap();
        if running.is_empty() {
            break;
        }
        assert!(look < 10_000, "the commit still runs");
    }
    let active = bed.store.list_active_broadcasts().await.unwrap();
    let sent = active[0].sent;
    assert!(sent == 0 || sent == 3, "it happened once or not: {sent}");
    let _ = other.disconnect().await;
    bed.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_connections_or_the_server_end() {
    let mut server = mariadb::private(&[]).expect("a database server");
    let url = mariadb::url(server.port());
    let bed = through_proxy(&url, options()).await;
    let progress = Arc::new(Progress::default());
    let loading = tokio::spawn(load(
        vec![bed.store.clone()],
        Arc::clone(&progress),
        Duration::ZERO,
    ));
    progress.goes_on().await;

    for _ in 0..3 {
        bed.proxy.cut_all();
        progress.goes_on().await;
    }
    let mut admin = connect(&format!("{url}/")).await;
    let killed: Vec<u64> = Queryable::query(
        &mut admin,
        "SELECT id FROM information_schema.processlist WHERE db LIKE 'fleethold_test%'",
    )
    .await
    .unwrap();
    assert!(!killed.is_empty());
    for connection in killed {
        // One that has just ended cannot be killed.
        let kill = format!("KILL CONNECTION {connection}");
        let _ = Queryable::query_drop(&mut admin, kill).await;
    }
    drop(admin);
    progress.goes_on().await;
    let mut recoveries = Vec::new();
    for (number, is_kill) in [(1, false), (2, true), (3, true)] {
        tokio::task::block_in_place(|| {
            if is_kill {
                server.kill()
            } else {
                server.stop()
            }
        })
        .unwrap();
        // The calls of the load meet no server while it starts.
        tokio::task::block_in_place(|| server.start()).unwrap();
        recoveries.push(recovery(&bed.store, 90_000_000 + number).await);
        progress.goes_on().await;
    }
    progress.stop.store(true, Ordering::SeqCst);
    let mut oracle = loading.await.unwrap();
    let findings = oracle.judge(found(&bed.store).await);
    println!("recovered after {recoveries:?}; {findings:?}");
    findings.unwrap_or_else(|violations| panic!("{violations:?}"));
    for recovery in recoveries {
        assert!(recovery < Duration::from_secs(10), "{recovery:?}");
    }
    bed.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_wait_for_their_turn_when_all_connections_are_in_use() {
    let server = bed::server().expect("a database server");
    let few = MysqlOptions {
        connections: 1.try_into().expect("not zero"),
        ..options()
    };
    let bed = through_proxy(server, few).await;
    let data = ClientData::default();
    bed.store.add_client(client(1), &data).await.unwrap();
    let calls = (0..100).map(|number| {
        let store = bed.store.clone();
        tokio::spawn(async move {
            let label = Label {
                service_name: "service".into(),
                label: format!("label {number}"),
            };
            store.add_client_label(client(1), &label).await
        })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap().expect("it has waited");
    }
    let data = bed.store.get_client_data(client(1)).await.unwrap();
    assert_eq!(data.labels.len(), 100);
    let waits = bed
        .store
        .stats()
        .await
        .unwrap()
        .writes
        .expect("they are counted");
    assert_eq!(waits.waiting, 0);
    assert!(waits.count >= 100, "{waits:?}");
    bed.store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_stores_on_one_database_hand_out_nothing_twice() {
    let server = bed::server().expect("a database server");
    let bed = through_proxy(server, options()).await;
    let mut stores = vec![bed.store.clone()];
    for _ in 0..7 {
        let random = Arc::new(Random::from_os());
        stores.push(bed._database.open(options(), &bed.clock, &random).await);
    }
    let messages: Vec<_> = (0..400)
        .map(|number| message(number, client(number % 4)))
        .collect();
    bed.store.store_messages(&messages, None).await.unwrap();
    let calls = stores.iter().flat_map(|store| {
        (0..4).map(move |number| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut claimed = Vec::new();
                for round in 0..10 {
                    let of = client((number + round) % 4);
                    claimed.extend(
                        store
                            .client_messages_for_processing(of, 7, None)
                            .await
                            .unwrap(),
                    );
                }
                claimed
            })
        })
    });
    let mut claimed: Vec<_> = futures::future::join_all(calls)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .map(|message| message.message_id)
        .collect();
    claimed.sort();
    let all = claimed.len();
    claimed.dedup();
    assert_eq!(claimed.len(), all, "each goes to one caller");
    assert_eq!(all, 400, "all are handed out");
    let expiry = bed.clock.now() + Duration::from_secs(60);
    bed.store
        .create_broadcast(&broadcast(1), 100)
        .await
        .unwrap();
    let id = BroadcastId::new(1_u64.to_be_bytes());
    let allocations = stores.iter().map(|store| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut sum = 0;
            while let Some(allocation) = store.create_allocation(id, 0.2, expiry).await.unwrap() {
                sum += allocation.limit;
            }
            sum
        })
    });
    let sums = futures::future::join_all(allocations).await;
    let sum: u64 = sums.into_iter().map(Result::unwrap).sum();
    assert_eq!(sum, 100, "the limit is kept and fully used");
    for store in stores {
        store.close().await.unwrap();
    }
    let mut connection = connect(&bed._database.url()).await;
    run(&mut connection, "DO 1").await;
}
