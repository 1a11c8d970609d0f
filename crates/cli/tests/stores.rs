//! Stores are moved, checked and measured without a server.

mod support;

use std::path::Path;
use std::sync::Arc;

use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ClientData, ClientId, ClientStore, ManualClock, Random, Store};
use serde_json::json;
use support::{command, finish, run};

fn url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

#[tokio::main(flavor = "current_thread")]
async fn fill(path: &Path, clients: u64) {
    let clock = Arc::new(ManualClock::at(42));
    let random = Arc::new(Random::seeded(1));
    let store = SqliteStore::open(path, SqliteOptions::default(), clock, random).unwrap();
    for number in 0..clients {
        let id = ClientId::new(number.to_be_bytes());
        store.add_client(id, &ClientData::default()).await.unwrap();
    }
    store.close().await.unwrap();
}

#[test]
fn store_is_copied_compared_and_copied_no_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from.db"), dir.path().join("to.db"));
    fill(&from, 1_234);
    let (from_url, to_url) = (url(&from), url(&to));
    let copy = ["store", "copy", "--from", &from_url, "--to", &to_url];
    let copied = run([&copy[..], &["--json"]].concat()).json();
    assert_eq!(copied["rows"], 1_234);
    let expected = json!({ "table": "clients", "rows": 1_234, "equal": true });
    assert_eq!(copied["tables"][0], expected);

    let again = run(copy).data();
    assert!(again.contains("clients     1234\n"), "{again}");
    let stats = run(["store", "stats", "--store", &to_url, "--json"]).json();
    assert_eq!(stats["tables"]["clients"], 1_234);
    assert!(stats["bytes"].as_u64() > Some(0), "{stats}");
    let checked = run(["store", "check", "--store", &to_url, "--json"]).json();
    assert_eq!(checked, json!([]));

    // What is written to the source later makes the copy a different store.
    fill_more(&from);
    let failure = run(copy).failure(1);
    assert!(failure.contains("client 00ffffffffffffff"), "{failure}");
    assert!(!failure.contains('\\'), "{failure}");
    assert!(
        failure.contains("hint: rows that were written"),
        "{failure}"
    );
}

#[tokio::main(flavor = "current_thread")]
async fn fill_more(path: &Path) {
    let clock = Arc::new(ManualClock::at(42));
    let random = Arc::new(Random::seeded(1));
    let store = SqliteStore::open(path, SqliteOptions::default(), clock, random).unwrap();
    let id = ClientId::new([0, 255, 255, 255, 255, 255, 255, 255]);
    store.add_client(id, &ClientData::default()).await.unwrap();
    store.close().await.unwrap();
}

#[test]
fn copies_that_would_mix_stores_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from.db"), dir.path().join("to.db"));
    fill(&from, 1);
    fill(&to, 2);
    let (from, to) = (url(&from), url(&to));
    let failure = run(["store", "copy", "--from", &from, "--to", &to]).failure(1);
    assert!(failure.contains("is not empty"), "{failure}");
    let failure = run(["store", "copy", "--from", &from, "--to", &from]).failure(2);
    assert!(failure.contains("the same store"), "{failure}");
    let stats = run(["store", "stats", "--store", &to, "--json"]).json();
    assert_eq!(stats["tables"]["clients"], 2, "nothing was changed");
}

#[test]
fn a_copy_does_not_go_on_with_another_store_of_the_same_name() {
    let dir = tempfile::tempdir().unwrap();
    let to = url(&dir.path().join("to.db"));
    let copy = |from: &str| {
        let here = dir.path().join(from);
        let mut copy = command();
        copy.current_dir(here)
            .args(["store", "copy", "--from", "sqlite:fleet.db", "--to", &to]);
        finish(&mut copy)
    };
    for (number, place) in (1..).zip(["one", "two"]) {
        std::fs::create_dir(dir.path().join(place)).unwrap();
        fill(&dir.path().join(place).join("fleet.db"), number);
    }
    copy("one").data();
    let failure = copy("two").failure(1);
    assert!(failure.contains("part of a copy of sqlite:"), "{failure}");
    assert!(failure.contains("/one/fleet.db"), "{failure}");
    // The same store by another name is the same.
    copy("one").data();
    let again = format!("sqlite:{}/two/../one/fleet.db", dir.path().display());
    run(["store", "copy", "--from", &again, "--to", &to]).data();
    let failure = run([
        "store",
        "copy",
        "--from",
        &again,
        "--to",
        &url(&dir.path().join("one/fleet.db")),
    ]);
    let failure = failure.failure(2);
    assert!(failure.contains("the same store"), "{failure}");
}

#[test]
fn a_wrong_path_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.db");
    let missing_url = url(&missing);
    for command in [
        &["store", "stats", "--store", &missing_url][..],
        &["store", "check", "--store", &missing_url],
        &["store", "copy", "--to", "sqlite:/x", "--from", &missing_url],
    ] {
        let failure = run(command).failure(1);
        assert!(failure.contains("there is no database"), "{failure}");
        assert!(!missing.exists(), "{command:?}");
    }
}

#[test]
fn a_damaged_store_is_reported_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.db");
    fill(&path, 1);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA foreign_keys = OFF;
             INSERT INTO client_labels VALUES (x'00000000000000aa', 'client', 'lost')",
        )
        .unwrap();
    drop(connection);
    let checked = run(["store", "check", "--store", &url(&path)]);
    assert_eq!(checked.status, Some(1), "{checked:#?}");
    assert!(
        checked
            .stdout
            .starts_with("1 rows that refer to rows that do not exist"),
        "{checked:#?}"
    );
    assert!(
        checked.stderr.contains("nothing was changed"),
        "{checked:#?}"
    );
}
