//! What calls cost: round trips, rows read, rows locked; and which SQL they use.
#![expect(
    clippy::print_stdout,
    reason = "the measured figures are worth reading"
)]

mod bed;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bed::{Database, options, rows_read, run};
use fleethold_mysql::MysqlStore;
use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::{
    ClientData, ClientId, ClientStore, ContactData, ManualClock, MessageId, MessageStore, Random,
    ServiceLimits, Store,
};
use fleethold_testdb::Proxy;
use mysql_async::prelude::Queryable;

const CLIENT: ClientId = ClientId::new([1; 8]);

struct Counted {
    store: MysqlStore,
    proxy: Proxy,
    database: Database,
}

async fn counted() -> Counted {
    let database = Database::make().await;
    let port = database.url();
    let port = port
        .rsplit_once(':')
        .and_then(|(_, rest)| rest.split_once('/'));
    let port = port.expect("a port").0.parse().expect("a port");
    let proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
        .unwrap();
    let source = format!(
        "fleethold:fleethold@tcp(127.0.0.1:{})/{}",
        proxy.port(),
        database.name
    );
    let clock = Arc::new(ManualClock::at(100_000));
    let random = Arc::new(Random::seeded(1));
    let store = MysqlStore::open(&source.parse().unwrap(), options(), clock, random)
        .await
        .unwrap();
    store
        .add_client(CLIENT, &ClientData::default())
        .await
        .unwrap();
    Counted {
        store,
        proxy,
        database,
    }
}

fn id(number: u64) -> MessageId {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[24..].copy_from_slice(&number.to_be_bytes());
    MessageId::new(id)
}

fn to_client(number: u64, client: ClientId) -> Message {
    Message {
        message_id: id(number).to_bytes(),
        source: Some(Address {
            client_id: Vec::new().into(),
            service_name: "server-side".into(),
        }),
        destination: Some(Address {
            client_id: client.to_bytes(),
            service_name: "service".into(),
        }),
        message_type: "type".into(),
        creation_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        data: Some(Any {
            type_url: "type.googleapis.com/example".into(),
            value: vec![9; 100].into(),
        }),
        ..Message::default()
    }
}

fn success() -> MessageResult {
    MessageResult {
        processed_time: Some(Timestamp {
            seconds: 1_700_000_001,
            nanos: 5,
        }),
        ..MessageResult::default()
    }
}

fn contact() -> ContactData {
    ContactData {
        client_id: CLIENT,
        nonce_sent: 1,
        nonce_received: 2,
        addr: "192.0.2.1:1234".into(),
        client_clock: None,
        streaming_to: None,
        labels: Vec::new(),
    }
}

#[tokio::test]
async fn calls_cost_few_round_trips() {
    let Counted {
        store,
        proxy,
        database: _database,
    } = counted().await;
    let tokens = ServiceLimits::from([("service".to_owned(), 100), ("system".to_owned(), 100)]);
    let mut before = proxy.round_trips();
    let mut spent = || {
        let now = proxy.round_trips();
        now - std::mem::replace(&mut before, now)
    };
    store.store_contact(&contact(), &[]).await.unwrap();
    let claimed = store
        .client_messages_for_processing(CLIENT, 100, Some(&tokens))
        .await;
    assert!(claimed.unwrap().is_empty());
    let idle = spent();

    let processed: Vec<_> = (0..100)
        .map(|number| {
            let mut message = to_client(number, CLIENT);
            message.source = message.destination.replace(Address::default());
            message.result = Some(success());
            message
        })
        .collect();
    store.store_contact(&contact(), &processed).await.unwrap();
    store
        .client_messages_for_processing(CLIENT, 100, Some(&tokens))
        .await
        .unwrap();
    let delivering = spent();

    let sent: Vec<_> = (1_000..1_100)
        .map(|number| to_client(number, CLIENT))
        .collect();
    store.store_messages(&sent, None).await.unwrap();
    let storing = spent();
    let contact_id = store.store_contact(&contact(), &[]).await.unwrap();
    let claimed = store
        .client_messages_for_processing(CLIENT, 100, Some(&tokens))
        .await
        .unwrap();
    assert_eq!(claimed.len(), 100);
    let ids: Vec<_> = (1_000..1_100).map(id).collect();
    store
        .link_messages_to_contact(&contact_id, &ids)
        .await
        .unwrap();
    let fetching = spent();

    assert_eq!(store.get_messages(&ids, false).await.unwrap().len(), 100);
    let results: Vec<_> = ids.iter().map(|id| (*id, success())).collect();
    store.set_message_results(&results).await.unwrap();
    store
        .store_contact(&contact(), &processed[..1])
        .await
        .unwrap();
    let acknowledging = spent();
    println!(
        "round trips: idle poll {idle}, delivering 100 {delivering}, storing 100 {storing}, \
         fetching 100 {fetching}, acknowledging 100 {acknowledging}"
    );
    assert!(idle <= 3, "{idle}");
    assert!(delivering <= 8, "{delivering}");
    assert!(acknowledging <= 6, "{acknowledging}");
    assert!(fetching <= 6 && storing <= 2, "{fetching}, {storing}");
    store.close().await.unwrap();
}

/// What a claim of ten reads with so many messages waiting, half of them due.
async fn rows_of_a_claim(many: u64) -> (u64, u64) {
    let Counted {
        store,
        database,
        proxy: _proxy,
    } = counted().await;
    let mut connection = database.connect().await;
    // In one statement: only the shape of the data matters here.
    run(
        &mut connection,
        &format!(
            "INSERT INTO messages (message_id, source_service_name, destination_client_id, \
             destination_service_name, message_type, creation_time_seconds, creation_time_nanos) \
             SELECT UNHEX(SHA2(seq, 256)), 's', x'0101010101010101', 'service', 't', 1, 0 \
             FROM seq_1_to_{many}"
        ),
    )
    .await;
    run(
        &mut connection,
        &format!(
            "INSERT INTO pending_messages (for_server, message_id, retry_count, scheduled_time, \
             fleethold_queue) SELECT 0, UNHEX(SHA2(seq, 256)), 0, IF(seq % 2, seq, 4e15), \
             CONCAT(x'0101010101010101', LEFT(UNHEX(SHA2('service', 256)), 8)) \
             FROM seq_1_to_{many}"
        ),
    )
    .await;
    let claim = async || {
        let before = rows_read(&database.url()).await;
        let claimed = store
            .client_messages_for_processing(CLIENT, 10, None)
            .await
            .unwrap();
        assert_eq!(claimed.len(), 10);
        rows_read(&database.url()).await - before
    };
    claim().await;
    let rows = claim().await;
    let _ = connection.disconnect().await;
    store.close().await.unwrap();
    (many, rows)
}

#[tokio::test]
async fn claim_costs_the_same_however_many_wait() {
    let most = match std::env::var_os("FLEETHOLD_LONG") {
        Some(_) => 1_000_000,
        None => 100_000,
    };
    let (_, few) = rows_of_a_claim(1_000).await;
    let (many, rows) = rows_of_a_claim(most).await;
    println!("a claim of 10 reads {few} rows with 1000 waiting and {rows} with {many}");
    assert!(
        rows * 10 <= few * 12 && few * 10 <= rows * 12,
        "{few} and {rows}"
    );
}

#[tokio::test]
async fn claim_locks_what_it_returns_and_no_more() {
    let Counted {
        store,
        database,
        proxy,
    } = counted().await;
    let messages: Vec<_> = (0..50).map(|number| to_client(number, CLIENT)).collect();
    store.store_messages(&messages, None).await.unwrap();
    // The store's own claim, between the statement that locks and the next one.
    let held = proxy.hold_on(&b"-- claim (for clients)"[..]);
    let claiming = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .client_messages_for_processing(CLIENT, 10, None)
                .await
                .unwrap()
        }
    });
    held.arrived().await;
    let mut other = database.connect().await;
    run(&mut other, "START TRANSACTION").await;
    let free: Vec<Vec<u8>> = other
        .query("SELECT message_id FROM pending_messages FOR UPDATE SKIP LOCKED")
        .await
        .unwrap();
    run(&mut other, "ROLLBACK").await;
    drop(held);
    let claimed = claiming.await.unwrap();
    println!(
        "of 50 messages, a claim of 10 locks {} and returns {}",
        50 - free.len(),
        claimed.len()
    );
    assert_eq!(claimed.len(), 10);
    assert_eq!(free.len(), 40, "what is not returned is not locked");
    let claimed = store
        .client_messages_for_processing(CLIENT, 100, None)
        .await
        .unwrap();
    assert_eq!(claimed.len(), 40);
    let _ = other.disconnect().await;
    store.close().await.unwrap();
}

#[test]
fn statements_keep_to_what_every_engine_has() {
    const FORBIDDEN: &[&str] = &[
        "GET_LOCK",
        "TRIGGER",
        "PROCEDURE",
        "TEMPORARY",
        "SAVEPOINT",
        "RETURNING",
        "REPLACE INTO",
        "IGNORE",
        "SELECT *",
        "LOCK TABLES",
        "UUID(",
        "RAND(",
    ];
    // What only some files may use: only leases go by the database's clock, and
    // only a table without key is read by counting its rows.
    const ONLY: &[(&str, &[&str])] = &[
        ("NOW(", &["leases.rs"]),
        ("OFFSET", &["old.rs", "records.rs"]),
    ];
    let mut statements = 0;
    let mut files = Vec::new();
    for directory in ["src", "src/maintenance"] {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        files.extend(
            std::fs::read_dir(directory)
                .unwrap()
                .map(|file| file.unwrap().path()),
        );
    }
    for path in files.iter().filter(|path| path.is_file()) {
        let source = std::fs::read_to_string(path).unwrap();
        for sql in source.split("\"\\\n-- ").skip(1) {
            let sql = sql.split("\";").next().unwrap_or_default();
            let (name, body) = sql.split_once('\n').expect("a name on its own line");
            statements += 1;
            assert!(
                name.starts_with(|first: char| first.is_ascii_lowercase()),
                "{}: {name}",
                path.display()
            );
            let upper = body.to_uppercase();
            for word in FORBIDDEN {
                assert!(
                    !upper.contains(word),
                    "{}: {name} uses {word}",
                    path.display()
                );
            }
            for (word, files) in ONLY {
                let file = path.file_name().unwrap().to_str().unwrap();
                assert!(
                    files.contains(&file) || !upper.contains(word),
                    "{}: {name} uses {word}",
                    path.display()
                );
            }
            if upper.contains("SKIP LOCKED") {
                assert!(!upper.contains(" JOIN "), "{name} joins what it locks");
            }
            if upper.starts_with("INSERT") {
                assert!(body.contains('('), "{name} names its columns");
            }
        }
    }
    assert!(statements > 80, "{statements} statements are found");
}
