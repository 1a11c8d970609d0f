//! Servers that take no more connections, no writes, no numbers, or only TLS.

mod bed;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bed::load::{client, contact, id, message, recovery};
use bed::{Database, connect, options, run};
use fleethold_mysql::{DataSource, MysqlOptions, MysqlStore, OpenError};
use fleethold_store::{
    ClientData, ClientStore, ErrorKind, ManualClock, MessageStore, Random, Store,
};
use fleethold_testdb::mariadb;
use mysql_async::prelude::Queryable;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

async fn open(source: &str, options: MysqlOptions) -> Result<MysqlStore, OpenError> {
    let source: DataSource = source.parse().expect("a data source");
    let clock = Arc::new(ManualClock::at(100_000));
    MysqlStore::open(&source, options, clock, Arc::new(Random::seeded(1))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_connections_or_writes_is_used_again_when_it_has_them() {
    let server = mariadb::private(&["--max-connections=10"]).expect("a database server");
    let url = mariadb::url(server.port());
    let database = Database::make_on(&url).await;
    let mut admin = connect(&format!("{url}/")).await;
    // Who may do everything may also write to a server that is read-only.
    for sql in [
        "CREATE USER plain@'127.0.0.1' IDENTIFIED BY 'plain'".to_owned(),
        format!("GRANT ALL ON {}.* TO plain@'127.0.0.1'", database.name),
    ] {
        run(&mut admin, &sql).await;
    }
    let plain = database
        .url()
        .replace("fleethold:fleethold@", "plain:plain@");
    let store = open(&plain, options()).await.expect("it can be opened");
    store
        .store_messages(&[message(1, client(1))], None)
        .await
        .unwrap();

    run(&mut admin, "SET GLOBAL read_only = 1").await;
    let new = [message(2, client(1))];
    let error = store.store_messages(&new, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    assert!(error.to_string().contains("read-only"), "{error}");
    run(&mut admin, "SET GLOBAL read_only = 0").await;
    recovery(&store, 3).await;

    let of_store: Vec<u64> = admin
        .query("SELECT id FROM information_schema.processlist WHERE user = 'plain'")
        .await
        .unwrap();
    let mut others = Vec::new();
    let opts = mysql_async::Opts::from_url(&plain).unwrap();
    while let Ok(other) = mysql_async::Conn::new(opts.clone()).await {
        others.push(other);
        assert!(others.len() < 20, "there is a limit");
    }
    for connection in of_store {
        run(&mut admin, &format!("KILL CONNECTION {connection}")).await;
        let left = format!("SELECT 1 FROM information_schema.processlist WHERE id = {connection}");
        while admin.query_first::<u64, _>(&left).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // Takes the places of the store's connections, too.
    while let Ok(other) = mysql_async::Conn::new(opts.clone()).await {
        others.push(other);
        assert!(others.len() < 20, "there is a limit");
    }
    let new = [message(4, client(1))];
    let error = store.store_messages(&new, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    assert!(error.to_string().contains("no connection left"), "{error}");
    for other in others {
        other.disconnect().await.unwrap();
    }
    recovery(&store, 5).await;
    let pending = store.get_pending_message_count(&[client(1)]).await.unwrap();
    assert_eq!(pending, 1, "what was refused has not happened");
    admin.disconnect().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn host_that_only_reads_is_left_for_the_next_one() {
    let servers = [0, 1].map(|_| mariadb::private(&[]).expect("a database server"));
    let mut hosts = Vec::new();
    for server in &servers {
        let url = mariadb::url(server.port());
        let mut admin = connect(&format!("{url}/")).await;
        for sql in [
            "CREATE DATABASE fleet",
            "CREATE USER plain@'127.0.0.1' IDENTIFIED BY 'plain'",
            "GRANT ALL ON fleet.* TO plain@'127.0.0.1'",
        ] {
            run(&mut admin, sql).await;
        }
        let store = open(&format!("{url}/fleet"), options()).await.unwrap();
        store.close().await.unwrap();
        hosts.push((format!("127.0.0.1:{}", server.port()), admin));
    }
    let both = format!("mysql://plain:plain@{},{}/fleet", hosts[0].0, hosts[1].0);
    let store = open(&both, options()).await.expect("it can be opened");
    let new = [message(1, client(1))];
    store.store_messages(&new, None).await.unwrap();

    run(&mut hosts[0].1, "SET GLOBAL read_only = 1").await;
    let new = [message(2, client(1))];
    let stored = store.store_messages(&new, None).await;
    stored.expect("the next host takes it");
    let pending = store.get_pending_message_count(&[client(1)]).await.unwrap();
    assert_eq!(pending, 1, "these two hosts do not replicate each other");
    for (_, admin) in hosts {
        admin.disconnect().await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn messages_are_kept_when_contacts_have_no_number_left() {
    let database = Database::make().await;
    let store = open(&database.url(), options()).await.unwrap();
    store
        .add_client(client(1), &ClientData::default())
        .await
        .unwrap();
    let mut connection = database.connect().await;
    // Upstream's column has 31 bits.
    run(
        &mut connection,
        "ALTER TABLE client_contacts AUTO_INCREMENT = 2147483647",
    )
    .await;
    let last = store
        .store_contact(&contact(1), &[message(1, client(1))])
        .await
        .unwrap();
    assert_eq!(last.to_string(), "7fffffff");
    for number in 2..4 {
        let mut of_client = contact(number);
        of_client.client_id = client(1);
        let new = [message(number, client(1))];
        store.store_contact(&of_client, &new).await.unwrap();
    }
    let stored = store
        .get_messages(&[id(1), id(2), id(3)], false)
        .await
        .unwrap();
    assert_eq!(stored.len(), 3, "no message is lost");
    let contacts = store.list_client_contacts(client(1)).await.unwrap();
    assert_eq!(
        contacts.len(),
        1,
        "contacts without number are not recorded"
    );
    connection.disconnect().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn database_of_another_character_set_holds_every_character() {
    let database = Database::make().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        &format!("ALTER DATABASE {} CHARACTER SET latin1", database.name),
    )
    .await;
    let store = open(&database.url(), options()).await.unwrap();
    let mut new = message(1, client(1));
    new.message_type = "\u{1f980} \u{4e2d}".into();
    store.store_messages(&[new.clone()], None).await.unwrap();
    let found = store.get_messages(&[id(1)], false).await.unwrap();
    assert_eq!(found[0].message_type, new.message_type);
    connection.disconnect().await.unwrap();
    store.close().await.unwrap();
}

/// Writes an authority and a certificate of its for 127.0.0.1.
fn authority(directory: &Path, name: &str) -> [String; 3] {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let write = |part: &str, text: String| {
        let path = directory.join(format!("{name}-{part}.pem"));
        std::fs::write(&path, text).unwrap();
        path.to_str().expect("a plain path").to_owned()
    };
    [
        write("ca", root.pem()),
        write("certificate", certificate.pem()),
        write("key", key.serialize_pem()),
    ]
}

#[tokio::test]
async fn certificate_of_the_server_is_verified() {
    // The server runs as another user.
    let directory = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let [ca, certificate, key] = authority(directory.path(), "right");
    let [other_ca, ..] = authority(directory.path(), "other");
    let server = mariadb::private(&[
        &format!("--ssl-cert={certificate}"),
        &format!("--ssl-key={key}"),
        &format!("--ssl-ca={ca}"),
    ])
    .expect("a database server");
    let database = Database::make_on(&mariadb::url(server.port())).await;
    let mut admin = database.connect().await;
    run(
        &mut admin,
        "CREATE USER safe@'127.0.0.1' IDENTIFIED BY 'safe' REQUIRE SSL",
    )
    .await;
    let grant = format!("GRANT ALL ON {}.* TO safe@'127.0.0.1'", database.name);
    run(&mut admin, &grant).await;
    let safe = database.url().replace("fleethold:fleethold@", "safe:safe@");
    for (parameters, problem) in [
        (format!("?tls=true&tls-ca={other_ca}"), "tls-ca=FILE"),
        ("?tls=true".to_owned(), "tls-ca=FILE"),
        (String::new(), "refuses user `safe`"),
    ] {
        let error = open(&format!("{safe}{parameters}"), options())
            .await
            .expect_err("it is not safe");
        let text = error.to_string();
        assert!(text.contains(problem), "{parameters}: {text}");
    }
    let tables: Vec<String> = admin.query("SHOW TABLES").await.unwrap();
    assert!(tables.is_empty(), "nothing is changed: {tables:?}");
    for parameters in [format!("?tls=true&tls-ca={ca}"), "?tls=skip-verify".into()] {
        let store = open(&format!("{safe}{parameters}"), options())
            .await
            .unwrap_or_else(|error| panic!("{parameters}: {error:?}"));
        store
            .add_client(client(1), &ClientData::default())
            .await
            .or_else(|error| match error.kind() {
                ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            })
            .unwrap();
        store.close().await.unwrap();
    }
    // By name it is another server.
    let named = safe.replace("@127.0.0.1:", "@localhost:");
    let error = open(&format!("{named}?tls-ca={ca}"), options()).await;
    let text = error
        .expect_err("the name is not in the certificate")
        .to_string();
    assert!(text.contains("no TLS connection"), "{text}");
    admin.disconnect().await.unwrap();
}
