//! Passwords and certificates: on a server of its own, which asks for both.

mod bed;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use bed::connect;
use fleethold_postgres::{OpenError, PostgresOptions, PostgresStore};
use fleethold_store::{ClientData, ClientId, ClientStore, Clock, Random, Store, SystemClock};
use fleethold_testdb::postgres;
use fleethold_testdb::postgres::url;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_postgres::Client;

/// An authority, and where its certificate is.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    file: PathBuf,
}

impl Authority {
    fn new(directory: &tempfile::TempDir, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = directory.path().join(name);
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { params, key, file }
    }

    /// Returns certificate and key of a server at this address.
    fn server(&self, address: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![address.to_owned()]).unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Lets the server write a file into its directory, as its user, for it alone.
async fn write(admin: &Client, name: &str, content: &str) {
    let lines: Vec<_> = content.lines().map(|line| format!("('{line}')")).collect();
    let sql = format!(
        "COPY (VALUES {}) TO PROGRAM 'umask 077; cat > {name}'",
        lines.join(", ")
    );
    admin.batch_execute(&sql).await.expect("the server writes");
}

async fn open(url: &str) -> Result<PostgresStore, OpenError> {
    let random = Arc::new(Random::from_os());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::clone(&random)));
    let options = PostgresOptions::from_url(url).expect("a URL");
    PostgresStore::open(options, clock, random).await
}

async fn refused(url: &str) -> String {
    let error = open(url).await.expect_err("it is refused");
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(!text.contains("secret"), "{text}");
    text
}

#[tokio::test]
async fn only_the_right_password_over_the_right_certificate_opens_a_store() {
    let server = tokio::task::spawn_blocking(|| postgres::private(&[]))
        .await
        .unwrap()
        .expect("PostgreSQL is installed");
    let port = server.port();
    let admin = connect(&format!("{}/postgres", url(port))).await;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(&directory, "authority.pem");
    let other = Authority::new(&directory, "other.pem");
    let (certificate, key) = authority.server("127.0.0.1");
    write(&admin, "server.crt", &certificate).await;
    write(&admin, "server.key", &key).await;
    write(
        &admin,
        "pg_hba.conf",
        "hostssl all guarded 127.0.0.1/32 scram-sha-256\n\
         host all guarded 127.0.0.1/32 reject\n\
         host all all 127.0.0.1/32 trust",
    )
    .await;
    for sql in [
        "CREATE USER guarded PASSWORD 'secret'",
        "CREATE DATABASE guarded OWNER guarded",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    ] {
        admin.batch_execute(sql).await.expect(sql);
    }
    let login = |password: &str, host: &str, more: &str| {
        format!("postgres://guarded:{password}@{host}:{port}/guarded?{more}")
    };
    let trusting = |authority: &Authority| {
        let file = authority.file.display();
        format!("sslmode=verify-full&sslrootcert={file}")
    };
    let right = login("secret", "127.0.0.1", &trusting(&authority));
    // The settings are read some time after they were written.
    let mut opened = open(&right).await;
    for _ in 0..100 {
        if opened.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        opened = open(&right).await;
    }
    let store = opened.expect("the right password and certificate");
    let id = ClientId::new([1; 8]);
    store.add_client(id, &ClientData::default()).await.unwrap();
    let sql = "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl \
        JOIN pg_stat_activity USING (pid) WHERE usename = 'guarded'";
    let row = admin.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 0, "it has connections");
    assert!(row.get::<_, bool>(1), "all of them are encrypted");
    store.close().await.unwrap();

    let wrong = refused(&login("secret2", "127.0.0.1", &trusting(&authority))).await;
    assert!(wrong.contains("password"), "{wrong}");
    let stranger = refused(&login("secret", "127.0.0.1", &trusting(&other))).await;
    assert!(stranger.contains("sslrootcert"), "{stranger}");
    let elsewhere = refused(&login("secret", "localhost", &trusting(&authority))).await;
    assert!(elsewhere.contains("sslrootcert"), "{elsewhere}");
    let plain = refused(&login("secret", "127.0.0.1", "sslmode=disable")).await;
    assert!(plain.contains("127.0.0.1"), "{plain}");
    // Encrypted against whoever listens, not against whoever answers.
    for mode in ["require", "prefer"] {
        let store = open(&login("secret", "127.0.0.1", &format!("sslmode={mode}"))).await;
        let store = store.expect(mode);
        assert_eq!(store.list_clients(&[]).await.unwrap().len(), 1, "{mode}");
        store.close().await.unwrap();
    }
}
