//! Tests that choose which jobs share a transaction.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use fleethold_store::{
    ClientData, ClientId, ClientStore, ErrorKind, ManualClock, Outcome, Random, Store,
};
use futures::FutureExt;
use futures::future::join_all;
use tempfile::TempDir;

use crate::error::Worked;
use crate::writer::{BATCH_BYTES, Tx};
use crate::{SqliteOptions, SqliteStore};

fn open(options: SqliteOptions) -> (TempDir, SqliteStore) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fleet.db");
    let clock = Arc::new(ManualClock::at(1));
    let store = SqliteStore::open(path, options, clock, Arc::new(Random::seeded(1)));
    (directory, store.unwrap())
}

/// Lets the writer stand still until the sender is used.
fn hold(store: &SqliteStore) -> (Sender<()>, impl Future<Output = ()>) {
    let (release, held): (_, Receiver<()>) = channel();
    let (started, begun) = tokio::sync::oneshot::channel();
    let writer = Arc::clone(&store.shared.writer);
    let held = tokio::spawn(async move {
        let job = writer.run("hold", move |_| {
            started.send(()).unwrap();
            held.recv().unwrap();
            Ok(())
        });
        job.await.unwrap();
    });
    (release, async move {
        begun.await.unwrap();
        drop(held);
    })
}

async fn has(store: &SqliteStore, client: u8) -> bool {
    store.get_client_data(id(client)).await.is_ok()
}

fn id(client: u8) -> ClientId {
    ClientId::new([client; 8])
}

fn insert(tx: &Tx<'_>, client: u8) -> Worked<()> {
    tx.execute(
        "INSERT INTO clients (client_id, public_key, blacklisted, last_contact_nanos,
         last_contact_address) VALUES (?1, x'', 0, 0, '')",
        [id(client).as_bytes()],
    )?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_one_transaction_succeed_and_fail_on_their_own() {
    let (_directory, store) = open(SqliteOptions::default());
    let (release, held) = hold(&store);
    held.await;
    let writer = &store.shared.writer;
    let panics = writer.run("panics", |tx| {
        insert(tx, 1)?;
        panic!("on purpose");
        #[expect(unreachable_code, reason = "gives the closure its type")]
        Ok(())
    });
    let refused = writer.run("refused", |tx| {
        insert(tx, 2)?;
        insert(tx, 2)
    });
    let mut calls = vec![
        writer.run("first", |tx| insert(tx, 3)).boxed(),
        panics.boxed(),
        writer.run("second", |tx| insert(tx, 4)).boxed(),
        refused.boxed(),
        writer.run("third", |tx| insert(tx, 5)).boxed(),
    ];
    // All are in the queue before the first of them runs.
    for call in &mut calls {
        assert!(call.now_or_never().is_none());
    }
    release.send(()).unwrap();
    let results = join_all(calls).await;

    let kinds: Vec<_> = results
        .iter()
        .map(|result| {
            result
                .as_ref()
                .err()
                .map(|error| (error.kind(), error.outcome()))
        })
        .collect();
    let failed = Some((ErrorKind::Internal, Outcome::NotApplied));
    assert_eq!(kinds, [None, failed, None, failed, None]);
    for (client, expected) in [(1, false), (2, false), (3, true), (4, true), (5, true)] {
        assert_eq!(has(&store, client).await, expected, "{client}");
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_ends_the_transaction_fails_all_in_it_and_the_next_work() {
    let (_directory, store) = open(SqliteOptions::default());
    let (release, held) = hold(&store);
    held.await;
    let writer = &store.shared.writer;
    let ends = writer.run("ends", |tx| {
        insert(tx, 2)?;
        // What SQLite does by itself on some errors.
        tx.execute_batch("ROLLBACK")?;
        insert(tx, 2)?;
        insert(tx, 2)
    });
    let mut calls = vec![
        writer.run("before", |tx| insert(tx, 1)).boxed(),
        ends.boxed(),
        writer.run("after", |tx| insert(tx, 3)).boxed(),
    ];
    for call in &mut calls {
        assert!(call.now_or_never().is_none());
    }
    release.send(()).unwrap();
    let results = join_all(calls).await;
    let error = results[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(results[1].as_ref().unwrap_err().kind(), ErrorKind::Internal);
    results[2].as_ref().unwrap();
    assert!(!has(&store, 1).await);
    assert!(has(&store, 3).await);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_fails_all_jobs_with_an_unknown_outcome() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let refuse = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&refuse);
    let (_directory, store) = open(SqliteOptions {
        on_connect: Some(Arc::new(move |connection| {
            let refuse = Arc::clone(&hook);
            connection
                .commit_hook(Some(move || refuse.load(Ordering::SeqCst)))
                .unwrap();
        })),
        ..SqliteOptions::default()
    });
    refuse.store(true, Ordering::SeqCst);
    let error = store
        .add_client(id(1), &ClientData::default())
        .await
        .unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    refuse.store(false, Ordering::SeqCst);
    assert!(!has(&store, 1).await);
    store
        .add_client(id(1), &ClientData::default())
        .await
        .unwrap();
    assert!(has(&store, 1).await);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_job_runs_alone_and_in_its_turn() {
    let (_directory, store) = open(SqliteOptions::default());
    let (release, held) = hold(&store);
    held.await;
    let writer = &store.shared.writer;
    let count = |tx: &Tx<'_>| -> Worked<i64> {
        Ok(tx.query_row("SELECT count(*) FROM clients", (), |row| row.get(0))?)
    };
    let insert_and_count =
        move |client| move |tx: &Tx<'_>| insert(tx, client).and_then(|()| count(tx));
    let large = writer.run_large("large", move |tx| {
        // A savepoint would make this fail.
        tx.execute_batch("COMMIT; BEGIN")?;
        insert_and_count(2)(tx)
    });
    let mut calls = vec![
        writer.run("before", insert_and_count(1)).boxed(),
        large.boxed(),
        writer.run("after", insert_and_count(3)).boxed(),
    ];
    for call in &mut calls {
        assert!(call.now_or_never().is_none());
    }
    release.send(()).unwrap();
    let counts: Vec<_> = join_all(calls)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(counts, [1, 2, 3]);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_transient_and_needs_no_restart() {
    let (_directory, store) = open(SqliteOptions::default());
    store
        .add_client(id(1), &ClientData::default())
        .await
        .unwrap();
    let allow = |pages: u32| {
        store.shared.writer.run("allow", move |tx| {
            tx.pragma_update(None, "max_page_count", pages)?;
            Ok(())
        })
    };
    // Less than there is already means: not one page more.
    allow(1).await.unwrap();
    let content = vec![1; 100_000];
    for _ in 0..3 {
        let error = fleethold_store::FileStore::store_file(&store, "s", "n", &mut &content[..])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(has(&store, 1).await);
    }
    allow(u32::MAX - 1).await.unwrap();
    fleethold_store::FileStore::store_file(&store, "s", "n", &mut &content[..])
        .await
        .unwrap();
    let file = fleethold_store::FileStore::read_file(&store, "s", "n")
        .await
        .unwrap();
    assert_eq!(file.content.len(), content.len());
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_store_leaves_no_thread() {
    let (_directory, store) = open(SqliteOptions::default());
    let context: Weak<_> = Arc::downgrade(&store.shared.context.ids);
    drop(store);
    // The writing thread held the last reference.
    assert!(context.upgrade().is_none());
}

#[tokio::test]
async fn a_transaction_whose_answers_are_large_takes_no_further_job() {
    let (_directory, store) = open(SqliteOptions::default());
    let writer = &store.shared.writer;
    let (release, held) = hold(&store);
    held.await;
    // Held until their commit, the answers of the first three are enough.
    let mut jobs: Vec<_> = (1..=5)
        .map(|client| {
            let job = writer.run("large answer", move |tx| {
                insert(tx, client)?;
                tx.hold(BATCH_BYTES / 3 + 1);
                Ok(tx.held.get())
            });
            job.boxed()
        })
        .collect();
    for job in &mut jobs {
        assert!(job.now_or_never().is_none());
    }
    let jobs = join_all(jobs);
    release.send(()).unwrap();
    let held: Vec<_> = jobs.await.into_iter().map(|job| job.unwrap()).collect();
    let one = BATCH_BYTES / 3 + 1;
    assert_eq!(held, [one, 2 * one, 3 * one, one, 2 * one]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_refusal_rests_on_can_be_seen_when_it_comes() {
    let (_directory, store) = open(SqliteOptions::default());
    let writer = &store.shared.writer;
    let (release, held) = hold(&store);
    held.await;
    let data = ClientData::default();
    let add = |client| store.add_client(id(client), &data);
    // The transaction goes on for a while after the refusal.
    let later = writer.run("later", |_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        Ok(())
    });
    let refused_then_read = async {
        let refusal = add(1).await.unwrap_err();
        assert_eq!(refusal.kind(), ErrorKind::AlreadyExists);
        has(&store, 1).await
    };
    let mut calls = [
        add(1).map(|added| added.is_ok()).boxed(),
        refused_then_read.boxed(),
    ];
    for call in &mut calls {
        assert!(call.now_or_never().is_none());
    }
    let later = tokio::join!(async { release.send(()).unwrap() }, join_all(calls), later);
    assert_eq!(later.1, [true, true]);
    store.close().await.unwrap();
}
