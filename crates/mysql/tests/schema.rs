//! Databases as they are found: those of stock servers of all times, and those
//! that cannot be used.

mod bed;

use std::sync::Arc;
use std::time::Duration;

use bed::{Database, connect, options, run};
use fleethold_mysql::{
    DataSource, DatabaseState, Inspection, MysqlOptions, MysqlStore, OpenError, Takeover, inspect,
};
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_store::{
    ClientData, ClientId, ClientStore, ManualClock, MessageStore, Random, Store,
};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

const LIMIT: Duration = Duration::from_secs(10);

/// Makes what a stock server of today makes: our tables without our additions.
async fn stock(connection: &mut Conn, database: &Database) {
    let clock = Arc::new(ManualClock::at(100_000));
    let store = database
        .open(options(), &clock, &Arc::new(Random::seeded(1)))
        .await;
    store.close().await.unwrap();
    for sql in [
        "DROP TABLE fleethold_messages, fleethold_broadcast_groups, \
         fleethold_broadcast_messages, fleethold_copies, fleethold_leases, \
             fleethold_locks, fleethold_schema",
        "ALTER TABLE pending_messages DROP INDEX fleethold_queue, DROP COLUMN fleethold_queue",
    ] {
        run(connection, sql).await;
    }
}

async fn open(source: &DataSource, options: MysqlOptions) -> Result<MysqlStore, OpenError> {
    let clock = Arc::new(ManualClock::at(100_000));
    MysqlStore::open(source, options, clock, Arc::new(Random::seeded(1))).await
}

async fn refusal(source: &DataSource, options: MysqlOptions) -> String {
    let error = open(source, options).await.expect_err("it is refused");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Everything that can be seen of a database's shape.
async fn shape(connection: &mut Conn) -> Vec<String> {
    connection
        .query(
            "SELECT CONCAT_WS(' ', table_name, column_name, ordinal_position, column_type, \
             is_nullable, column_key, extra) FROM information_schema.columns \
             WHERE table_schema = DATABASE() \
             UNION ALL SELECT CONCAT_WS(' ', table_name, index_name, seq_in_index, column_name) \
             FROM information_schema.statistics WHERE table_schema = DATABASE() ORDER BY 1",
        )
        .await
        .expect("the shape")
}

fn with(takeover: Takeover) -> MysqlOptions {
    MysqlOptions {
        takeover,
        ..options()
    }
}

#[tokio::test]
async fn new_database_has_the_names_and_types_of_a_stock_server() {
    let database = Database::make().await;
    let mut connection = database.connect().await;
    stock(&mut connection, &database).await;
    let mut constraints: Vec<String> = connection
        .query(
            "SELECT constraint_name FROM information_schema.referential_constraints \
             WHERE constraint_schema = DATABASE() AND delete_rule = 'CASCADE'",
        )
        .await
        .unwrap();
    constraints.sort();
    assert_eq!(
        constraints,
        [
            "broadcast_allocations_fk_1",
            "broadcast_labels_fk_1",
            "broadcast_sent_fk_1",
            "broadcast_sent_fk_2",
            "client_contact_messages_fk_1",
            "client_contact_messages_fk_2",
            "client_contacts_fk_1",
            "client_labels_fk_1",
            "client_resource_usage_records_fk_1",
            "pending_messages_fk_1",
        ]
    );
    let found = shape(&mut connection).await;
    for line in [
        "client_contacts client_contact_id 1 int(11) NO PRI auto_increment",
        "clients last_clock_seconds 7 bigint(20) unsigned YES",
        "messages failed 13 tinyint(4) YES",
        "messages source_message_id 4 varbinary(16) YES",
        "pending_messages data_value 6 mediumblob YES",
        "client_resource_usage_records max_num_fds 15 int(11) YES",
        "broadcasts destination_service_name 3 varchar(128) YES",
        "messages destination_client_id 1 destination_client_id",
        "pending_messages scheduled_time 1 scheduled_time",
        "client_contact_messages client_contact_messages_fk_2 1 message_id",
    ] {
        assert!(
            found.iter().any(|found| found.trim_end() == line),
            "{line} in {found:#?}"
        );
    }
}

#[tokio::test]
async fn database_of_a_stock_server_is_left_alone_until_somebody_decides() {
    let database = Database::make().await;
    let mut connection = database.connect().await;
    stock(&mut connection, &database).await;
    let before = shape(&mut connection).await;
    let found: Inspection = inspect(&database.source(), LIMIT).await.unwrap();
    assert_eq!(found.state, DatabaseState::Stock);
    assert_eq!(found.obstacles, [""; 0]);
    assert!(
        found
            .additions
            .iter()
            .any(|what| what.contains("fleethold_queue")),
        "{found:?}"
    );
    assert!(
        found
            .reservations
            .iter()
            .any(|what| what.contains("2147483647")),
        "{found:?}"
    );
    let text = refusal(&database.source(), options()).await;
    assert!(text.contains("--takeover=check"), "{text}");
    assert_eq!(shape(&mut connection).await, before, "nothing is changed");

    let store = open(&database.source(), with(Takeover::Add)).await.unwrap();
    store.close().await.unwrap();
    let after = shape(&mut connection).await;
    for line in before {
        assert!(after.contains(&line), "{line} is kept");
    }
    let again = open(&database.source(), options()).await.unwrap();
    again.close().await.unwrap();
    assert_eq!(shape(&mut connection).await, after, "once is enough");
}

#[tokio::test]
async fn f_37_every_shape_of_the_past_has_its_message() {
    let database = Database::make().await;
    let mut connection = database.connect().await;
    stock(&mut connection, &database).await;
    for (alter, back, message) in [
        (
            "ALTER TABLE files ENGINE = Aria",
            "ALTER TABLE files ENGINE = InnoDB",
            "table `files` uses Aria",
        ),
        (
            "ALTER TABLE messages DROP COLUMN annotations",
            "ALTER TABLE messages ADD COLUMN annotations BLOB",
            "column `messages.annotations` is missing",
        ),
        (
            "ALTER TABLE client_resource_usage_records DROP COLUMN max_num_fds",
            "ALTER TABLE client_resource_usage_records ADD COLUMN max_num_fds INT",
            "column `client_resource_usage_records.max_num_fds` is missing",
        ),
        (
            "ALTER TABLE broadcasts DROP COLUMN destination_service_name",
            "ALTER TABLE broadcasts ADD COLUMN destination_service_name VARCHAR(128) \
             AFTER source_service_name",
            "column `broadcasts.destination_service_name` is missing",
        ),
        (
            "ALTER TABLE files CONVERT TO CHARACTER SET latin1",
            "ALTER TABLE files CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
            "table `files` cannot hold every character",
        ),
    ] {
        run(&mut connection, alter).await;
        let before = shape(&mut connection).await;
        let text = refusal(&database.source(), with(Takeover::Add)).await;
        assert!(text.contains(message), "{alter}: {text}");
        assert!(text.contains("ALTER TABLE"), "it says what to do: {text}");
        assert_eq!(shape(&mut connection).await, before, "nothing is changed");
        run(&mut connection, back).await;
    }
    for (alter, reservation) in [
        (
            "ALTER TABLE pending_messages MODIFY data_value BLOB",
            "payloads over 65535 bytes are refused",
        ),
        (
            "ALTER TABLE client_labels DROP FOREIGN KEY client_labels_fk_1",
            "client_labels have no foreign keys with ON DELETE CASCADE",
        ),
        (
            "ALTER TABLE client_labels CONVERT TO CHARACTER SET utf8mb4 \
             COLLATE utf8mb4_general_ci",
            "have no binary collation",
        ),
    ] {
        run(&mut connection, alter).await;
        let found = inspect(&database.source(), LIMIT).await.unwrap();
        assert!(
            found
                .reservations
                .iter()
                .any(|what| what.contains(reservation)),
            "{alter}: {found:?}"
        );
    }
    for alter in [
        "ALTER TABLE messages DROP INDEX destination_client_id",
        "ALTER TABLE pending_messages DROP INDEX scheduled_time",
    ] {
        run(&mut connection, alter).await;
    }
    let found = inspect(&database.source(), LIMIT).await.unwrap();
    let indexes = found
        .additions
        .iter()
        .filter(|what| what.contains("June 2024"));
    assert_eq!(indexes.count(), 2, "{found:?}");
    let store = open(&database.source(), with(Takeover::Add)).await.unwrap();
    let large = Message {
        message_id: vec![1; 32].into(),
        destination: Some(Address {
            client_id: vec![1; 8].into(),
            service_name: "service".into(),
        }),
        creation_time: Some(Timestamp {
            seconds: 1,
            nanos: 0,
        }),
        data: Some(fleethold_proto::Any {
            type_url: "type".into(),
            value: vec![0; 65_536].into(),
        }),
        ..Message::default()
    };
    let error = store.store_messages(&[large], None).await.unwrap_err();
    assert_eq!(error.kind(), fleethold_store::ErrorKind::TooLarge);
    store.close().await.unwrap();
}

#[tokio::test]
async fn f_37_ids_as_text_are_refused() {
    let database = Database::make().await;
    let mut connection = database.connect().await;
    // As stock servers made them before June 2018.
    for sql in [
        "CREATE TABLE clients (client_id VARCHAR(16) PRIMARY KEY, client_key BLOB) \
         ENGINE = InnoDB CHARACTER SET utf8mb4",
        "CREATE TABLE messages (message_id VARCHAR(64) PRIMARY KEY, \
         source_client_id VARCHAR(16) NOT NULL) ENGINE = InnoDB CHARACTER SET utf8mb4",
    ] {
        run(&mut connection, sql).await;
    }
    let before = shape(&mut connection).await;
    let text = refusal(&database.source(), with(Takeover::Add)).await;
    for part in [
        "`clients.client_id` is no binary id",
        "`messages.message_id` is no binary id",
        "before June 2018",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(shape(&mut connection).await, before, "nothing is changed");
}

#[tokio::test]
async fn f_37_contacts_are_widened_whatever_their_links_are_called_and_however_far_somebody_came() {
    const LINK: &str = "client_contact_messages client_contact_id 1 bigint(20) unsigned NO PRI";
    const KEYS: &str = "SELECT constraint_name FROM information_schema.referential_constraints \
                        WHERE constraint_schema = DATABASE() \
                        AND table_name = 'client_contact_messages' \
                        AND referenced_table_name = 'client_contacts'";
    let database = Database::make().await;
    let mut connection = database.connect().await;
    stock(&mut connection, &database).await;
    const UNLINK: &str =
        "ALTER TABLE client_contact_messages DROP FOREIGN KEY client_contact_messages_fk_1";
    for before in [
        // As stock servers made it before April 2024.
        &[
            UNLINK,
            "ALTER TABLE client_contact_messages ADD FOREIGN KEY (client_contact_id) \
             REFERENCES client_contacts (client_contact_id)",
        ][..],
        // Interrupted before the last statement.
        &[UNLINK],
        // Interrupted before the second.
        &[
            UNLINK,
            "ALTER TABLE client_contact_messages MODIFY client_contact_id INTEGER",
        ],
    ] {
        for sql in before {
            run(&mut connection, sql).await;
        }
        let store = open(&database.source(), with(Takeover::Widen)).await;
        store.unwrap().close().await.unwrap();
        let found = shape(&mut connection).await;
        assert!(
            found.iter().any(|line| line.trim_end() == LINK),
            "{before:?}: {found:#?}"
        );
        let keys: Vec<String> = connection.query(KEYS).await.unwrap();
        assert_eq!(keys, ["client_contact_messages_fk_1"], "{before:?}");
        let found = inspect(&database.source(), LIMIT).await.unwrap();
        assert_eq!(found.reservations, [""; 0], "{before:?}");
    }
}

#[tokio::test]
async fn takeover_lets_others_at_a_table_that_a_long_transaction_keeps_locked() {
    let database = Database::make().await;
    let mut long = database.connect().await;
    stock(&mut long, &database).await;
    let mut other = database.connect().await;
    run(&mut long, "START TRANSACTION").await;
    run(&mut long, "SELECT COUNT(*) FROM pending_messages").await;
    let source = database.source();
    let opening = tokio::spawn(async move {
        let options = MysqlOptions {
            lock_wait: Duration::from_secs(1),
            ..with(Takeover::Add)
        };
        open(&source, options).await
    });
    const WAITING: &str = "SELECT id FROM information_schema.processlist \
                           WHERE db = DATABASE() AND state LIKE 'Waiting for table metadata lock'";
    let waits = async {
        while other
            .query_first::<u64, _>(WAITING)
            .await
            .unwrap()
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waits).await.expect("it waits");
    // Whoever comes later queues behind the takeover, which gives way.
    let sql = "SELECT COUNT(*) FROM pending_messages";
    let read = tokio::time::timeout(LIMIT, run(&mut other, sql)).await;
    read.expect("the takeover gives way");
    assert!(!opening.is_finished(), "it tries again");
    run(&mut long, "COMMIT").await;
    let store = opening.await.unwrap().expect("it succeeds");
    store.close().await.unwrap();
}

#[tokio::test]
async fn eight_servers_may_start_on_an_empty_database_at_once() {
    let database = Arc::new(Database::make().await);
    let starts = (0..8).map(|_| {
        let source = database.source();
        tokio::spawn(async move { open(&source, options()).await })
    });
    let mut stores = Vec::new();
    for start in futures::future::join_all(starts).await {
        stores.push(start.unwrap().expect("it starts"));
    }
    let id = ClientId::new([1; 8]);
    stores[0]
        .add_client(id, &ClientData::default())
        .await
        .unwrap();
    for store in &stores {
        assert_eq!(store.list_clients(&[]).await.unwrap().len(), 1);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_what_to_do() {
    let server = bed::server().expect("a database server");
    let database = Database::make().await;
    let name = &database.name;
    let source = |text: String| text.parse::<DataSource>().expect("a data source name");
    let mut admin = connect(&format!("{server}/")).await;
    run(
        &mut admin,
        "CREATE USER IF NOT EXISTS reader@'127.0.0.1' IDENTIFIED BY 'reader'",
    )
    .await;
    run(
        &mut admin,
        &format!("GRANT SELECT ON {name}.* TO reader@'127.0.0.1'"),
    )
    .await;
    let port = server.rsplit_once(':').expect("a port").1;
    for (url, message) in [
        (format!("u:p@tcp(127.0.0.1:1)/{name}"), "cannot reach"),
        (
            format!("fleethold:secret@tcp(127.0.0.1:{port})/{name}"),
            "refuses user `fleethold`",
        ),
        (
            format!("fleethold:fleethold@tcp(127.0.0.1:{port})/fleethold_none"),
            "CREATE DATABASE `fleethold_none`",
        ),
        (
            format!("reader:reader@tcp(127.0.0.1:{port})/{name}"),
            "GRANT it SELECT",
        ),
        (
            format!("fleethold:fleethold@tcp(127.0.0.1:{port})/{name}?tls=true"),
            "TLS",
        ),
    ] {
        let options = MysqlOptions {
            connect_timeout: Duration::from_secs(2),
            ..options()
        };
        let text = refusal(&source(url.clone()), options).await;
        assert!(text.contains(message), "{url}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
    run(&mut admin, "DROP USER reader@'127.0.0.1'").await;
    let mut connection = database.connect().await;
    assert_eq!(shape(&mut connection).await, [""; 0], "nothing is changed");
    let store = open(&database.source(), options()).await.unwrap();
    store.close().await.unwrap();
    run(&mut connection, "UPDATE fleethold_schema SET version = 99").await;
    let text = refusal(&database.source(), options()).await;
    assert!(
        text.contains("version 99") && text.contains("install a newer"),
        "{text}"
    );
}

#[tokio::test]
async fn server_that_is_read_only_or_takes_small_packets_is_refused() {
    // A server of its own: these are settings of the whole server.
    let server = fleethold_testdb::mariadb::private(&["--max-allowed-packet=1M"])
        .expect("a database server");
    let url = fleethold_testdb::mariadb::url(server.port());
    let database = Database::make_on(&url).await;
    let text = refusal(&database.source(), options()).await;
    assert!(
        text.contains("max_allowed_packet is 1048576: set it to"),
        "{text}"
    );
    let mut admin = connect(&format!("{url}/")).await;
    run(&mut admin, "SET GLOBAL max_allowed_packet = 67108864").await;
    run(&mut admin, "SET GLOBAL read_only = 1").await;
    let text = refusal(&database.source(), options()).await;
    assert!(text.contains("read-only"), "{text}");
    run(&mut admin, "SET GLOBAL read_only = 0").await;
    let mut connection = database.connect().await;
    assert_eq!(shape(&mut connection).await, [""; 0], "nothing is changed");
    let store = open(&database.source(), options()).await.unwrap();
    store.close().await.unwrap();
}
