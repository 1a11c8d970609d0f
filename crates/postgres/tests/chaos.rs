//! The database stops, is killed, ends connections or has none left: what was
//! acknowledged stays, and the store works again by itself.

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bed::{CLIENT, Database, id, ids_of, to_client};
use fleethold_postgres::PostgresStore;
use fleethold_store::{ClientData, ClientStore, ErrorKind, MessageStore, Store};
use fleethold_testdb::{Server, postgres};
use tokio::time::{sleep, timeout};

/// Recovery after the database is back.
const SOON: Duration = Duration::from_secs(10);

/// Writers that store one message after the other; the acknowledged numbers.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<Vec<u64>>>,
}

impl Load {
    fn start(store: &PostgresStore) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let writers = (0..4).map(|writer| {
            let (store, stop, count) = (store.clone(), Arc::clone(&stop), Arc::clone(&count));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 1_000_000 * writer.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    match store.store_messages(&[to_client(number)], None).await {
                        Ok(()) => {
                            acknowledged.push(number);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}"),
                    }
                }
                acknowledged
            })
        });
        let writers = writers.collect();
        Self {
            stop,
            acknowledged: count,
            writers,
        }
    }

    /// Waits until another call has succeeded.
    async fn goes_on(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        let more = async {
            while self.acknowledged.load(Ordering::Relaxed) == before {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(SOON, more).await.expect("the load goes on");
    }

    async fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for writer in self.writers {
            all.extend(writer.await.unwrap());
        }
        all
    }
}

async fn assert_all_there(store: &PostgresStore, acknowledged: &[u64]) {
    let ids: Vec<_> = acknowledged.iter().map(|number| id(*number)).collect();
    let found = store.get_messages(&ids, true).await.unwrap();
    assert_eq!(ids_of(&found), ids, "no acknowledged message is lost");
}

/// Waits until a call succeeds again.
async fn works_again(store: &PostgresStore, number: u64) {
    let again = async {
        while store
            .store_messages(&[to_client(number)], None)
            .await
            .is_err()
        {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, again)
        .await
        .expect("the store works again by itself");
}

/// Breaks a server of its own under load.
async fn survives(name: &str, breaks: impl Fn(&mut Server) + Send + 'static) {
    let server = tokio::task::spawn_blocking(|| postgres::private(&[]))
        .await
        .unwrap();
    let server = server.expect("PostgreSQL is there");
    let database = Database::on(&postgres::url(server.port())).await;
    let mut options = database.options();
    options.call_limit = Duration::from_secs(2);
    let store = bed::open(options).await;
    store
        .add_client(CLIENT, &ClientData::default())
        .await
        .unwrap();
    let load = Load::start(&store);
    works_again(&store, 90_000_000).await;
    let server = tokio::task::spawn_blocking(move || {
        let mut server = server;
        breaks(&mut server);
        server
    });
    let server = server.await.unwrap();
    works_again(&store, 90_000_001).await;
    let acknowledged = load.end().await;
    assert!(!acknowledged.is_empty(), "{name}");
    assert_all_there(&store, &acknowledged).await;
    store.close().await.unwrap();
    drop(database);
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_database_loses_nothing() {
    survives("restart", |server| {
        server.stop().unwrap();
        server.start().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_database_loses_nothing() {
    survives("kill", |server| {
        for _ in 0..2 {
            server.kill().unwrap();
            server.start().unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_connections_lose_nothing() {
    let database = Database::new().await;
    let store = database.open().await;
    store
        .add_client(CLIENT, &ClientData::default())
        .await
        .unwrap();
    let load = Load::start(&store);
    let admin = database.connect().await;
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let mut ended = 0;
    for _ in 0..20 {
        ended += admin.query(sql, &[]).await.unwrap().len();
        load.goes_on().await;
    }
    assert!(ended > 0);
    works_again(&store, 90_000_000).await;
    let acknowledged = load.end().await;
    assert!(!acknowledged.is_empty());
    assert_all_there(&store, &acknowledged).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_connections_refuses_and_recovers() {
    let database = Database::new().await;
    let mut options = database.options();
    options.pool_size = 2.try_into().unwrap();
    options.wait_limit = Duration::from_millis(100);
    let store = bed::open(options).await;
    store
        .add_client(CLIENT, &ClientData::default())
        .await
        .unwrap();
    let holder = database.connect().await;
    holder
        .batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let calls: Vec<_> = (0..10)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.store_messages(&[to_client(number)], None).await })
        })
        .collect();
    // Reads need a connection, too.
    let refused = async {
        loop {
            match store.get_client_data(CLIENT).await {
                Err(error) => break error,
                Ok(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let error = timeout(SOON, refused).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("connections"), "{error}");
    holder.batch_execute("COMMIT").await.unwrap();
    let mut acknowledged = Vec::new();
    for (number, call) in (0..).zip(calls) {
        match call.await.unwrap() {
            Ok(()) => acknowledged.push(number),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Transient),
        }
    }
    assert!(!acknowledged.is_empty(), "who had a connection has waited");
    works_again(&store, 90_000_000).await;
    assert_all_there(&store, &acknowledged).await;
    store.close().await.unwrap();
}
