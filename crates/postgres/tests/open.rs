//! What cannot be opened: one clear message each, and nothing is changed.

mod bed;

use std::error::Error;
use std::sync::Arc;

use bed::Database;
use fleethold_postgres::{OpenError, PostgresOptions, PostgresStore};
use fleethold_store::{Clock, Random, Store, SystemClock};

async fn try_open(url: &str) -> Result<PostgresStore, OpenError> {
    let random = Arc::new(Random::from_os());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::clone(&random)));
    let options = PostgresOptions::from_url(url).expect("a URL");
    PostgresStore::open(options, clock, random).await
}

/// Opens what must be refused, and returns the message.
async fn refused(url: &str) -> String {
    let error = try_open(url).await.expect_err("it is refused");
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(!text.contains("secret"), "{text}");
    text
}

fn place(database: &Database) -> &str {
    let (_, rest) = database.url.split_once('@').expect("a user");
    rest
}

async fn tables(database: &Database) -> i64 {
    let client = database.connect().await;
    let sql = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn an_empty_database_gets_the_schema_and_a_second_start_changes_nothing() {
    let database = Database::empty("").await;
    let stores = futures::future::join_all((0..12).map(|_| try_open(&database.url))).await;
    let made = tables(&database).await;
    for store in stores {
        store
            .expect("servers may start at once")
            .close()
            .await
            .unwrap();
    }
    try_open(&database.url)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
    assert_eq!(tables(&database).await, made);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let text = refused(&format!("postgres://u:secret@127.0.0.1:{port}/d")).await;
    assert!(
        text.contains(&format!("127.0.0.1:{port}")) && text.contains("check host and port"),
        "{text}"
    );
}

#[tokio::test]
async fn a_missing_database_is_named_with_what_makes_it() {
    let database = Database::empty("").await;
    let text = refused(&format!("{}_other", database.url)).await;
    assert!(
        text.contains("_other` does not exist; create it: CREATE DATABASE"),
        "{text}"
    );
}

#[tokio::test]
async fn an_unknown_user_is_refused() {
    let database = Database::empty("").await;
    let text = refused(&format!(
        "postgres://nobody_knows:secret@{}",
        place(&database)
    ))
    .await;
    assert!(
        text.contains("`nobody_knows`; check user and password"),
        "{text}"
    );
}

#[tokio::test]
async fn a_user_without_rights_is_told_and_changes_nothing() {
    let database = Database::empty("").await;
    let admin = database.connect().await;
    let user = format!("weak_{}", database.name);
    admin
        .batch_execute(&format!("CREATE ROLE {user} LOGIN"))
        .await
        .unwrap();
    let weak = format!("postgres://{user}@{}", place(&database));
    let before = tables(&database).await;
    let text = refused(&weak).await;
    assert!(
        text.contains("lacks rights") && text.contains("OWNER TO"),
        "{text}"
    );
    assert_eq!(tables(&database).await, before);
    // The schema is there, and another's.
    try_open(&database.url)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
    let text = refused(&weak).await;
    assert!(text.contains("lacks rights"), "{text}");
    admin
        .batch_execute(&format!("DROP ROLE {user}"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_read_only_database_is_refused() {
    let database = Database::empty("").await;
    let admin = database.connect().await;
    let sql = format!(
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        database.name
    );
    admin.batch_execute(&sql).await.unwrap();
    let text = refused(&database.url).await;
    assert!(
        text.contains("is read-only; connect to the primary"),
        "{text}"
    );
    assert_eq!(tables(&database).await, 0);
}

#[tokio::test]
async fn another_encoding_is_refused_with_what_makes_a_right_one() {
    let database = Database::empty("ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'").await;
    let text = refused(&database.url).await;
    assert!(
        text.contains("encoding SQL_ASCII") && text.contains("ENCODING 'UTF8'"),
        "{text}"
    );
    assert_eq!(tables(&database).await, 0);
}

#[tokio::test]
async fn a_database_of_somebody_else_is_refused() {
    let database = Database::empty("").await;
    let admin = database.connect().await;
    admin
        .batch_execute("CREATE TABLE accounts (id integer)")
        .await
        .unwrap();
    let text = refused(&database.url).await;
    assert!(text.contains("table `accounts`"), "{text}");
    assert_eq!(tables(&database).await, 1);
}

#[tokio::test]
async fn a_newer_or_altered_schema_is_refused() {
    let database = Database::new().await;
    let admin = database.connect().await;
    let sql = "INSERT INTO fleethold_migrations (version, checksum) VALUES (99, 'x')";
    admin.batch_execute(sql).await.unwrap();
    let text = refused(&database.url).await;
    assert!(text.contains("schema version 99, newer than"), "{text}");
    let sql = "DELETE FROM fleethold_migrations WHERE version = 99;
        UPDATE fleethold_migrations SET checksum = 'x' WHERE version = 1";
    admin.batch_execute(sql).await.unwrap();
    let text = refused(&database.url).await;
    assert!(text.contains("migration 1 differs"), "{text}");
}

#[tokio::test]
async fn tls_that_the_server_lacks_is_told() {
    let database = Database::new().await;
    let text = refused(&format!("{}?sslmode=require", database.url)).await;
    assert!(text.contains("check password, sslmode"), "{text}");
    let preferred = try_open(&format!("{}?sslmode=prefer", database.url)).await;
    preferred.unwrap().close().await.unwrap();
}
