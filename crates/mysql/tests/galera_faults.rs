//! A cluster whose nodes die and are cut off under load, and what its nodes do
//! and do not promise each other.
#![expect(
    clippy::print_stdout,
    reason = "the measured figures are worth reading"
)]

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bed::cluster::{all_joined, joined, status};
use bed::load::{
    Progress, broadcast, claims, client, contact, found, id, load, message, recovery, success,
};
use bed::{Database, connect, options, run};
use fleethold_mysql::{MysqlOptions, MysqlStore};
use fleethold_store::{
    BroadcastId, BroadcastStore, ClientData, ClientStore, Clock, ErrorKind, FileStore, ManualClock,
    MessageStore, Random, Store,
};
use fleethold_testdb::galera;
use mysql_async::Value;
use mysql_async::prelude::Queryable;

/// Opens a store whose ways to the database are these nodes, in this order.
async fn open(database: &Database, clock: &Arc<ManualClock>, nodes: &[&String]) -> MysqlStore {
    let hosts = nodes.iter().map(|node| {
        let host = node.rsplit_once('@');
        host.expect("a user").1
    });
    let hosts: Vec<_> = hosts.collect();
    let url = format!(
        "mysql://fleethold:fleethold@{}/{}",
        hosts.join(","),
        database.name
    );
    MysqlStore::open(
        &url.parse().expect("a URL"),
        options(),
        Arc::<ManualClock>::clone(clock),
        Arc::new(Random::from_os()),
    )
    .await
    .expect("the database can be opened")
}

async fn set_provider(node: &str, option: &str) {
    let mut connection = connect(&format!("{node}/")).await;
    let set = format!("SET GLOBAL wsrep_provider_options = '{option}'");
    run(&mut connection, &set).await;
}

/// How long after the rest of the cluster a store may need to work again.
const RECOVERY: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_handed_out_twice_when_a_node_dies_and_another_is_cut_off() {
    let mut cluster = tokio::task::block_in_place(|| galera::start(3)).expect("a cluster");
    let nodes = cluster.urls();
    let [first, second, third] = &nodes[..] else {
        panic!("three nodes");
    };
    all_joined(&nodes).await;
    let database = Database::make_on(third).await;
    // Nothing is due a second time before the test ends.
    let clock = Arc::new(ManualClock::at(100_000));
    let one = open(&database, &clock, &[first, third, second]).await;
    let other = open(&database, &clock, &[second, third, first]).await;
    // This one knows one node only, as behind a DSN of the stock server.
    let faithful = open(&database, &clock, &[second]).await;
    let stores = vec![one.clone(), other.clone(), faithful.clone()];
    let progress = Arc::new(Progress::default());
    let loading = tokio::spawn(load(
        stores.clone(),
        Arc::clone(&progress),
        // Three nodes have to keep up on one machine.
        Duration::from_millis(20),
    ));
    let claiming = tokio::spawn(claims(stores, Arc::clone(&progress)));
    progress.goes_on().await;

    tokio::task::block_in_place(|| cluster.nodes[0].kill()).unwrap();
    let after_kill = tokio::join!(
        joined(third, "2"),
        recovery(&one, 90_000_001),
        recovery(&other, 90_000_002),
    );
    println!("a node was killed; cluster, its store, another store: {after_kill:?}");
    progress.goes_on().await;
    tokio::task::block_in_place(|| cluster.nodes[0].start()).unwrap();
    joined(first, "3").await;
    progress.goes_on().await;

    set_provider(second, "gmcast.isolate=1").await;
    let after_cut = tokio::join!(
        joined(third, "2"),
        recovery(&one, 90_000_003),
        recovery(&other, 90_000_004),
    );
    println!("a node was cut off; cluster, another store, its store: {after_cut:?}");
    let new = [message(90_000_005, client(1_000))];
    let refused = faithful.store_messages(&new, None).await;
    let error = refused.expect_err("its only node has lost the others");
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    println!("the store that knows only this node: {error}");
    progress.goes_on().await;
    set_provider(second, "gmcast.isolate=0").await;
    let after_heal = tokio::join!(joined(second, "3"), recovery(&faithful, 90_000_006));
    println!("it is back; cluster, the store that knows only it: {after_heal:?}");
    progress.goes_on().await;

    progress.stop.store(true, Ordering::SeqCst);
    let mut oracle = loading.await.unwrap();
    let handed_out = claiming.await.unwrap();
    println!("acknowledged, refused, unknown: {:?}", oracle.counts());
    for store in [&one, &other, &faithful] {
        let findings = oracle.judge(found(store).await);
        let findings = findings.unwrap_or_else(|violations| panic!("{violations:?}"));
        println!(
            "{} writes are there; of the unknown ones {} happened",
            findings.present.len(),
            findings.happened
        );
    }
    let distinct: BTreeSet<_> = handed_out.iter().collect();
    println!("{} messages were handed out", handed_out.len());
    assert!(handed_out.len() > 100, "claims went on");
    assert_eq!(distinct.len(), handed_out.len(), "none twice");
    for (name, cluster, stores) in [
        ("kill", after_kill.0, vec![after_kill.1, after_kill.2]),
        ("cut", after_cut.0, vec![after_cut.1, after_cut.2]),
        ("heal", after_heal.0, vec![after_heal.1]),
    ] {
        for store in stores {
            assert!(store < cluster + RECOVERY, "{name}: {store:?}, {cluster:?}");
        }
    }
    for store in [one, other, faithful] {
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_decide_what_locks_of_one_node_cannot() {
    let cluster = tokio::task::block_in_place(|| galera::start_fast(3)).expect("a cluster");
    let nodes = cluster.urls();
    all_joined(&nodes).await;
    let database = Database::make_on(&nodes[0]).await;
    let clock = Arc::new(ManualClock::at(100_000));
    let mut stores = Vec::new();
    for node in &nodes {
        stores.push(open(&database, &clock, &[node]).await);
    }
    row_is_locked_on_one_node_only(&database, &nodes, &stores).await;
    what_is_acknowledged_at_one_node_counts_at_another(&stores).await;
    claims_at_three_nodes_share_the_messages(&nodes, &stores).await;
    limit_of_a_broadcast_is_exact_on_three_nodes(&stores, &clock).await;
    node_that_takes_no_statements_is_left_or_waited_for(&database, &nodes, &stores, &clock).await;
    for store in stores {
        store.close().await.unwrap();
    }
}

async fn row_is_locked_on_one_node_only(
    database: &Database,
    nodes: &[String],
    stores: &[MysqlStore],
) {
    const LOCK: &str = "SELECT message_id FROM pending_messages FOR UPDATE SKIP LOCKED";
    const CHANGE: &str = "UPDATE pending_messages SET retry_count = retry_count + 1";
    let new = message(1, client(1));
    stores[0].store_messages(&[new], None).await.unwrap();
    let mut claims = Vec::new();
    for node in &nodes[..2] {
        let mut connection = connect(&format!("{node}/{}", database.name)).await;
        run(&mut connection, "SET SESSION wsrep_sync_wait = 1").await;
        run(&mut connection, "START TRANSACTION").await;
        let locked: Vec<Value> = connection.query(LOCK).await.unwrap();
        assert_eq!(locked.len(), 1, "nobody has locked it on this node");
        claims.push(connection);
    }
    run(&mut claims[0], CHANGE).await;
    run(&mut claims[0], "COMMIT").await;
    let mut lost = claims[1].query_drop(CHANGE).await;
    if lost.is_ok() {
        lost = claims[1].query_drop("COMMIT").await;
    }
    let code = match lost {
        Err(mysql_async::Error::Server(error)) => error.code,
        other => panic!("both have claimed it: {other:?}"),
    };
    assert_eq!(code, 1213, "certification is a deadlock");
    for connection in claims {
        connection.disconnect().await.unwrap();
    }
    stores[0]
        .set_message_results(&[(id(1), success())])
        .await
        .unwrap();
}

async fn what_is_acknowledged_at_one_node_counts_at_another(stores: &[MysqlStore]) {
    let [one, other, third] = stores else {
        panic!("three stores");
    };
    for number in 10_000..10_050 {
        one.add_client(client(number), &ClientData::default())
            .await
            .unwrap();
        let new = [message(number, client(number))];
        other.store_contact(&contact(number), &new).await.unwrap();
        third
            .set_message_results(&[(id(number), success())])
            .await
            .unwrap();
        let result = one.get_message_result(id(number)).await.unwrap();
        assert_eq!(result, Some(success()), "{number}");
        let pending = other.get_pending_message_count(&[client(number)]).await;
        assert_eq!(pending.unwrap(), 0, "{number}");
        let name = format!("file {number}");
        one.store_file("service", &name, &mut &b"content"[..])
            .await
            .unwrap();
        other.delete_file("service", &name).await.unwrap();
        let error = third.read_file("service", &name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{number}");
        one.blacklist_client(client(number)).await.unwrap();
        let data = third.get_client_data(client(number)).await.unwrap();
        assert!(data.blacklisted, "{number}");
    }
}

async fn claims_at_three_nodes_share_the_messages(nodes: &[String], stores: &[MysqlStore]) {
    const MESSAGES: u64 = 1_500;
    let failures = async || {
        let mut sum = 0;
        for node in nodes {
            let mut connection = connect(&format!("{node}/")).await;
            for name in ["wsrep_local_cert_failures", "wsrep_local_bf_aborts"] {
                let count = status(&mut connection, name).await.unwrap();
                sum += count.parse::<u64>().unwrap();
            }
        }
        sum
    };
    let messages: Vec<_> = (20_000..20_000 + MESSAGES)
        .map(|number| message(number, client(2)))
        .collect();
    stores[0].store_messages(&messages, None).await.unwrap();
    let before = failures().await;
    let claimers = stores.iter().map(|store| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut claimed = Vec::new();
            loop {
                match store
                    .client_messages_for_processing(client(2), 10, None)
                    .await
                {
                    Ok(messages) if messages.is_empty() => return claimed,
                    Ok(messages) => claimed.extend(messages.into_iter().map(|m| m.message_id)),
                    // All its attempts lost; nothing is claimed then.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}"),
                }
            }
        })
    });
    let claimed = futures::future::join_all(claimers).await;
    let claimed: Vec<_> = claimed.into_iter().map(Result::unwrap).collect();
    let shares: Vec<_> = claimed.iter().map(Vec::len).collect();
    let distinct: BTreeSet<_> = claimed.iter().flatten().collect();
    let lost = failures().await - before;
    println!("claims of 10 at three nodes took {shares:?} messages; {lost} attempts lost");
    assert_eq!(shares.iter().sum::<usize>(), distinct.len(), "none twice");
    assert_eq!(distinct.len() as u64, MESSAGES, "all of them");
    assert!(lost > 0, "locks alone did not do it");
}

async fn limit_of_a_broadcast_is_exact_on_three_nodes(
    stores: &[MysqlStore],
    clock: &Arc<ManualClock>,
) {
    stores[0]
        .create_broadcast(&broadcast(1), 100)
        .await
        .unwrap();
    let to = BroadcastId::new(1_u64.to_be_bytes());
    let expiry = clock.now() + Duration::from_secs(60);
    let servers = stores.iter().zip(0..).map(|(store, server)| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut sent = 0;
            while let Some(share) = store.create_allocation(to, 0.1, expiry).await.unwrap() {
                for number in sent..sent + share.limit {
                    let number = 30_000 + 1_000 * server + number;
                    let to_client = client(number);
                    store
                        .add_client(to_client, &ClientData::default())
                        .await
                        .unwrap();
                    let new = message(number, to_client);
                    store
                        .save_broadcast_message(&new, to, to_client, Some(share.id))
                        .await
                        .unwrap();
                }
                sent += share.limit;
                store
                    .cleanup_allocation(to, Some(share.id), share.limit)
                    .await
                    .unwrap();
            }
            sent
        })
    });
    let sent = futures::future::join_all(servers).await;
    let sent: Vec<u64> = sent.into_iter().map(Result::unwrap).collect();
    println!("of a broadcast to 100 clients, three nodes have sent {sent:?}");
    assert_eq!(sent.iter().sum::<u64>(), 100, "{sent:?}");
    let progress = stores[1].broadcast_progress(to).await.unwrap();
    assert_eq!(progress.sent, 100);
}

async fn node_that_takes_no_statements_is_left_or_waited_for(
    database: &Database,
    nodes: &[String],
    stores: &[MysqlStore],
    clock: &Arc<ManualClock>,
) {
    let movable = open(database, clock, &[&nodes[0], &nodes[1]]).await;
    let new = message(40_000, client(3));
    movable.store_messages(&[new], None).await.unwrap();
    let mut admin = connect(&format!("{}/", nodes[0])).await;
    // As long as this is set, every statement but SET and SHOW is answered with 1047.
    run(&mut admin, "SET GLOBAL wsrep_reject_queries = ALL").await;
    let new = message(40_001, client(3));
    movable
        .store_messages(&[new], None)
        .await
        .expect("there is another node");
    let new = message(40_002, client(3));
    let error = stores[0].store_messages(&[new], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    assert!(error.to_string().contains("takes no statements"), "{error}");
    let source = database.source_on(&nodes[0]);
    let refused = MysqlStore::open(
        &source,
        MysqlOptions::default(),
        Arc::<ManualClock>::clone(clock),
        Arc::new(Random::from_os()),
    );
    let error = refused.await.expect_err("nothing can be read there");
    assert!(error.is_temporary(), "{error:?}");
    assert!(error.to_string().contains("name another node"), "{error}");
    run(&mut admin, "SET GLOBAL wsrep_reject_queries = NONE").await;
    recovery(&stores[0], 40_003).await;
    movable.close().await.unwrap();
}
