//! Opens databases: good ones, foreign ones, and those in use.

mod bed;

use std::num::NonZeroU16;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bed::{Bed, CLIENT, contact, processed, to_client};
use fleethold_sqlite::{OpenError, SqliteOptions, SqliteStore};
use fleethold_store::{
    ClientStore, ErrorKind, FileStore, ManualClock, MessageId, MessageStore, Random, Store,
};
use rusqlite::Connection;

fn open(path: impl AsRef<Path>) -> Result<SqliteStore, OpenError> {
    let clock = Arc::new(ManualClock::at(1));
    let random = Arc::new(Random::seeded(1));
    SqliteStore::open(path, SqliteOptions::default(), clock, random)
}

#[tokio::test]
async fn every_connection_has_the_same_settings() {
    let directory = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let options = SqliteOptions {
        readers: NonZeroU16::new(3).unwrap(),
        on_connect: Some(Arc::new(move |connection| {
            let number = |name| {
                connection
                    .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
                    .unwrap()
            };
            let journal: String = connection
                .pragma_query_value(None, "journal_mode", |row| row.get(0))
                .unwrap();
            note.lock().unwrap().push((
                journal,
                number("synchronous"),
                number("foreign_keys"),
                number("busy_timeout"),
                number("temp_store"),
                number("wal_autocheckpoint"),
            ));
        })),
        ..SqliteOptions::default()
    };
    let clock = Arc::new(ManualClock::at(1));
    let random = Arc::new(Random::seeded(1));
    let path = directory.path().join("fleet.db");
    let store = SqliteStore::open(path, options, clock, random).unwrap();
    let full = 2;
    let memory = 2;
    let expected = ("wal".to_owned(), full, 1, 5_000, memory, 4_000);
    assert_eq!(*seen.lock().unwrap(), vec![expected; 4]);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_database_in_use_is_refused_at_once_and_free_after_close() {
    let bed = Bed::new().await;
    let error = open(bed.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(bed.path().to_str().unwrap()), "{text}");
    bed.store.close().await.unwrap();
    open(bed.path()).unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_dropped_without_close_has_finished_its_work() {
    let bed = Bed::new().await;
    let Bed {
        store, directory, ..
    } = bed;
    store.store_messages(&[processed(1)], None).await.unwrap();
    let other = store.clone();
    drop(store);
    drop(other);
    let store = open(directory.path().join("fleet.db")).unwrap();
    let id = MessageId::new(bed::id(1));
    assert!(store.get_message_result(id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_reopened_store_has_everything() {
    let bed = Bed::new().await;
    let messages = [processed(1), to_client(2, CLIENT, "a")];
    let number = bed
        .store
        .store_contact(&contact(), &messages)
        .await
        .unwrap();
    bed.store
        .store_file("s", "n", &mut &b"content"[..])
        .await
        .unwrap();
    bed.store.close().await.unwrap();

    let store = bed.open();
    // Known messages are known, so they are linked and not stored again.
    store
        .store_messages(&messages, Some(&number))
        .await
        .unwrap();
    let ids = [1, 2].map(|number| MessageId::new(bed::id(number)));
    assert_eq!(store.get_messages(&ids, true).await.unwrap(), messages);
    let count = store.get_pending_message_count(&[CLIENT]).await.unwrap();
    assert_eq!(count, 1);
    let contacts = store.list_client_contacts(CLIENT).await.unwrap();
    assert_eq!(contacts.len(), 1);
    assert_eq!(contacts[0].sent_nonce, u64::MAX);
    let file = store.read_file("s", "n").await.unwrap();
    assert_eq!(&file.content[..], b"content");
    store.close().await.unwrap();
}

#[tokio::test]
async fn links_are_kept_once() {
    let bed = Bed::new().await;
    let store = &bed.store;
    let messages = [processed(1), to_client(2, CLIENT, "a")];
    let first = store.store_contact(&contact(), &messages).await.unwrap();
    let second = store.store_contact(&contact(), &messages).await.unwrap();
    let ids = [1, 2, 2, 3].map(|number| MessageId::new(bed::id(number)));
    for contact in [&first, &second, &first] {
        store.link_messages_to_contact(contact, &ids).await.unwrap();
    }
    let third = store.store_contact(&contact(), &[]).await.unwrap();
    store.link_messages_to_contact(&third, &ids).await.unwrap();
    store.close().await.unwrap();

    let connection = Connection::open(bed.path()).unwrap();
    let links: Vec<(i64, i64)> = connection
        .prepare(
            "SELECT contact, message FROM messages UNION ALL
             SELECT contact, message FROM contact_messages ORDER BY contact, message",
        )
        .unwrap()
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(links, [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]);
}

#[tokio::test]
async fn a_directory_that_is_missing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(directory.path().join("missing/fleet.db")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("missing") && text.contains("create"),
        "{text}"
    );
    assert!(matches!(error, OpenError::NoDirectory { .. }));
}

#[tokio::test]
async fn files_that_are_no_databases_of_ours_are_refused_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let foreign = directory.path().join("foreign");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE mine (a)")
        .unwrap();
    let mut foreign_of_our_version = Vec::new();
    foreign_of_our_version.extend(std::fs::read(&foreign).unwrap());
    foreign_of_our_version[63] = 1;
    for content in [
        b"a letter".to_vec(),
        vec![0; 4_096],
        std::fs::read(&foreign).unwrap(),
        foreign_of_our_version,
    ] {
        std::fs::write(&path, &content).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
        assert_eq!(std::fs::read(&path).unwrap(), content);
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

#[tokio::test]
async fn a_newer_database_is_refused_unchanged_with_both_versions() {
    let bed = Bed::new().await;
    bed.store.close().await.unwrap();
    let connection = Connection::open(bed.path()).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let content = std::fs::read(bed.path()).unwrap();
    let error = open(bed.path()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::TooNew { .. }), "{text}");
    for part in [bed.path().to_str().unwrap(), "99", "2", "install"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(std::fs::read(bed.path()).unwrap(), content);
}

#[tokio::test]
async fn a_newer_version_in_the_log_of_a_crashed_program_is_refused_too() {
    let bed = Bed::new().await;
    bed.store.close().await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let path = crashed.path().join("fleet.db");
    let connection = Connection::open(bed.path()).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    // Copied while the other program still has it open: version 1 in the file.
    let log = |path: &Path| path.with_extension("db-wal");
    std::fs::copy(bed.path(), &path).unwrap();
    std::fs::copy(log(&bed.path()), log(&path)).unwrap();
    let content = [&path, &log(&path)].map(|path| std::fs::read(path).unwrap());
    let error = open(&path).unwrap_err();
    assert!(
        matches!(error, OpenError::TooNew { found: 99, .. }),
        "{error}"
    );
    let after = [&path, &log(&path)].map(|path| std::fs::read(path).unwrap());
    assert_eq!(after, content);
}

#[tokio::test]
async fn a_damaged_database_is_an_error_that_names_it() {
    let bed = Bed::new().await;
    bed.store.close().await.unwrap();
    let mut content = std::fs::read(bed.path()).unwrap();
    content[100..4_096].fill(0xee);
    std::fs::write(bed.path(), &content).unwrap();
    let error = open(bed.path()).unwrap_err();
    assert!(matches!(error, OpenError::Database { .. }), "{error}");
    assert!(error.to_string().contains("fleet.db"));
    assert_eq!(std::fs::read(bed.path()).unwrap(), content);
}

#[tokio::test]
async fn an_empty_file_is_a_new_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fleet.db");
    std::fs::write(&path, b"").unwrap();
    open(&path).unwrap().close().await.unwrap();
}

#[tokio::test]
async fn the_log_is_gone_after_close() {
    let bed = Bed::new().await;
    bed.store
        .store_messages(&[processed(1)], None)
        .await
        .unwrap();
    let log = bed.path().with_extension("db-wal");
    assert!(log.exists());
    bed.store.close().await.unwrap();
    assert!(!log.exists());
}

#[tokio::test]
async fn a_closed_store_answers_so_and_closes_again() {
    let bed = Bed::new().await;
    let store = &bed.store;
    let waiting = store.stream_client_ids(true, None);
    store.close().await.unwrap();
    store.close().await.unwrap();
    let id = MessageId::new(bed::id(1));
    let errors = [
        store.store_messages(&[], None).await.unwrap_err(),
        store
            .store_messages(&[processed(1)], None)
            .await
            .unwrap_err(),
        store.get_messages(&[id], true).await.unwrap_err(),
        store.get_client_data(CLIENT).await.unwrap_err(),
        store.delete_pending_messages(&[CLIENT]).await.unwrap_err(),
        futures::TryStreamExt::try_collect::<Vec<_>>(waiting)
            .await
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn new_database_can_be_read_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path().join("fleet.db")).unwrap();
    for file in ["fleet.db", "fleet.db-wal", "fleet.db-shm"] {
        let metadata = directory.path().join(file).metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{file}");
    }
    store.close().await.unwrap();
}
