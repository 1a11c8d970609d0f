//! Moving everything from one store to another, checking and measuring it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::maintenance::{
    CopyError, EXPIRED, Lease, Old, Progress, Removed, Table, compare, copy,
};
use fleethold_store::{
    BROADCAST_UNLIMITED, ClientData, Clock, ErrorKind, Maintenance, ManualClock, MemoryStore,
    Random, Store,
};
use tokio::sync::oneshot;

use crate::samples::{
    C1, C2, SERVICE, WITH_DATA, at, broadcast, broadcast_id, client_id, contact, failure, ids_of,
    label, message_id, seconds, success, to_client, to_server, usage_report, with_result,
};
use crate::{Bed, cases};

cases![
    all_rows_of_a_store_are_exported if maintains,
    all_rows_come_into_an_empty_store_and_work_there if maintains,
    an_interrupted_copy_goes_on_where_it_was if maintains,
    a_copy_never_mixes_with_other_rows if maintains,
    a_healthy_store_has_no_findings if maintains,
    only_one_holder_has_a_lease if forgets,
    what_is_old_is_removed_and_nothing_else if forgets,
    old_rows_are_removed_step_by_step if forgets,
    lost_lease_removes_nothing if forgets,
];

/// Stores something in every table, in many variants.
async fn fill(store: &dyn Store, clock: &ManualClock) {
    let data = ClientData {
        key: Bytes::from_static(b"a key"),
        labels: vec![label("client", "linux"), label("", "Bär \0 ")],
        blacklisted: false,
    };
    store.add_client(C1, &data).await.unwrap();
    for number in 2..40 {
        let data = ClientData::default();
        store.add_client(client_id(number), &data).await.unwrap();
    }
    store.blacklist_client(client_id(3)).await.unwrap();
    let messages: Vec<_> = (0..30).map(|number| to_server(number, C1)).collect();
    let mut streaming = contact(C1);
    streaming.streaming_to = Some("here".into());
    streaming.nonce_sent = u64::MAX;
    let first = store.store_contact(&streaming, &messages).await.unwrap();
    clock.advance(Duration::from_secs(1));
    let mut polling = contact(C1);
    polling.nonce_sent = 7;
    // The agent sends some again.
    let second = store.store_contact(&polling, &messages[..5]).await.unwrap();
    let waiting: Vec<_> = (100..140).map(|number| to_client(number, C1)).collect();
    store.store_messages(&waiting, None).await.unwrap();
    let taken = store
        .client_messages_for_processing(C1, 10, None)
        .await
        .unwrap();
    let taken = ids_of(&taken);
    for contact in [&first, &second] {
        store
            .link_messages_to_contact(contact, &taken)
            .await
            .unwrap();
    }
    let results = [
        (taken[0], success(50)),
        (taken[1], failure(51, "no \0 way")),
    ];
    store.set_message_results(&results).await.unwrap();
    let mut bare = to_client(200, C2);
    bare.data = None;
    bare.source_message_id = Bytes::from_static(b"\0\xff");
    store.store_messages(&[bare], None).await.unwrap();
    for _ in 0..2 {
        store
            .record_resource_usage_data(C2, &usage_report())
            .await
            .unwrap();
    }
    let limited = Broadcast {
        required_labels: vec![label("client", "linux")],
        group_name: "group".into(),
        expiration_time: Some(seconds(10_000_000)),
        ..broadcast(1)
    };
    store.create_broadcast(&limited, 100).await.unwrap();
    store
        .create_broadcast(&broadcast(2), BROADCAST_UNLIMITED)
        .await
        .unwrap();
    let expiry = clock.now() + Duration::from_secs(60);
    let allocation = store
        .create_allocation(broadcast_id(1), 0.1, expiry)
        .await
        .unwrap()
        .expect("room under the limit");
    store
        .save_broadcast_message(
            &to_client(300, C1),
            broadcast_id(1),
            C1,
            Some(allocation.id),
        )
        .await
        .unwrap();
    store
        .save_broadcast_message(&to_client(301, C2), broadcast_id(2), C2, None)
        .await
        .unwrap();
    for (service, name) in [("", ""), (SERVICE, "Ä \0")] {
        let content = vec![7; 70_000];
        store
            .store_file(service, name, &mut &content[..])
            .await
            .unwrap();
    }
}

fn memory(bed: &Bed) -> MemoryStore {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&bed.clock);
    MemoryStore::new(clock, Arc::new(Random::seeded(2)))
}

async fn assert_equal(one: &dyn Maintenance, other: &dyn Maintenance) {
    for table in Table::ALL {
        let compared = compare(one, other, table).await.unwrap();
        assert!(compared.is_equal(), "{compared:?}");
        assert_eq!(compared.rows, compared.other_rows, "{table}");
        assert!(compared.rows > 0, "{table} is not empty");
    }
}

async fn all_rows_of_a_store_are_exported(bed: Bed) {
    fill(&*bed.store, &bed.clock).await;
    let target = memory(&bed);
    let mut pages = 0;
    let done = copy(bed.maintenance(), "it", &target, |_| pages += 1)
        .await
        .unwrap();
    assert!(pages >= Table::ALL.len());
    let rows: u64 = target
        .sizes()
        .await
        .unwrap()
        .rows
        .iter()
        .map(|(_, rows)| rows)
        .sum();
    assert_eq!((done.table, done.rows), (None, rows));
    assert_equal(bed.maintenance(), &target).await;
    // What the model has after the same calls is the same.
    let clock = Arc::new(ManualClock::at(100_000));
    let model_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let other = MemoryStore::new(model_clock, Arc::new(Random::seeded(1)));
    fill(&other, &clock).await;
    for table in Table::ALL {
        // Allocation ids are random.
        if table != Table::Broadcasts {
            let compared = compare(bed.maintenance(), &other, table).await.unwrap();
            assert!(compared.is_equal(), "{compared:?}");
        }
    }
}

async fn all_rows_come_into_an_empty_store_and_work_there(bed: Bed) {
    let source = memory(&bed);
    fill(&source, &bed.clock).await;
    copy(&source, "it", bed.maintenance(), |_| {})
        .await
        .unwrap();
    assert_equal(&source, bed.maintenance()).await;

    let due: Vec<_> = (110..140).map(message_id).collect();
    assert_eq!(ids_of(&bed.claim(C1).await), due, "what is due, in order");
    bed.clock.advance(Duration::from_secs(3600));
    let later = bed.claim(C1).await.len();
    assert_eq!(later, 39, "all without result, the broadcast's included");
    assert_eq!(bed.claim_on_server().await.len(), 30);
    assert_eq!(bed.read(&due).await.len(), 30);
    let stored = to_server(1, C1);
    bed.send(&[stored]).await;
    let sizes = bed.maintenance().sizes().await.unwrap();
    assert_eq!(sizes.rows[1], (Table::Messages, 73), "known ids are known");
    let sent = bed.store.list_sent_broadcasts(C1).await.unwrap();
    assert_eq!(sent, [broadcast_id(1)]);
    let progress = bed.store.broadcast_progress(broadcast_id(1)).await.unwrap();
    assert_eq!((progress.sent, progress.pending), (1, 1));
    let expiry = bed.clock.now() + Duration::from_secs(60);
    let rest = bed
        .store
        .create_allocation(broadcast_id(1), 1.0, expiry)
        .await
        .unwrap()
        .expect("the reclaimed rest");
    assert_eq!(rest.limit, 99, "one of 100 was sent");
    let contacts = bed.store.list_client_contacts(C1).await.unwrap();
    assert_eq!(contacts.len(), 2);
    let file = bed.store.read_file(SERVICE, "Ä \0").await.unwrap();
    assert_eq!(file.content.len(), 70_000);
    // New rows take no number of an old one.
    let contact = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    let ids = [message_id(110)];
    let linked = bed.store.link_messages_to_contact(&contact, &ids).await;
    linked.unwrap();
    let links = bed.maintenance().sizes().await.unwrap().rows[3];
    assert_eq!(links, (Table::Links, 30 + 5 + 2 * 10 + 1));
}

async fn an_interrupted_copy_goes_on_where_it_was(bed: Bed) {
    let source = memory(&bed);
    fill(&source, &bed.clock).await;
    let mut rows = 0;
    for pages in 1.. {
        let (stop, stopped) = oneshot::channel();
        let (mut stop, mut left) = (Some(stop), pages);
        let report = |_: &Progress| {
            left -= 1_i32;
            if left == 0 {
                let _ = stop.take().expect("sent once").send(());
            }
        };
        // Whatever the copy is doing then, it is dropped.
        tokio::select! {
            biased;
            _ = stopped => {}
            done = copy(&source, "it", bed.maintenance(), report) => match done {
                Ok(_) => break,
                // The page of the copy before has come after this one began.
                Err(CopyError::Target(error)) if error.is_retryable() => {}
                Err(error) => panic!("{error}"),
            }
        }
        let come = bed.maintenance().imported().await.unwrap();
        let come = come.expect("a page has come").rows;
        assert!(come >= rows, "nothing is forgotten");
        rows = come;
    }
    assert_equal(&source, bed.maintenance()).await;
    let again = copy(&source, "it", bed.maintenance(), |_| {})
        .await
        .unwrap();
    assert_eq!(again.table, None, "there is nothing left to do");
    assert_equal(&source, bed.maintenance()).await;
}

async fn a_copy_never_mixes_with_other_rows(bed: Bed) {
    let source = memory(&bed);
    fill(&source, &bed.clock).await;
    bed.add_client(client_id(99)).await;
    let refused = copy(&source, "it", bed.maintenance(), |_| {}).await;
    assert!(matches!(refused, Err(CopyError::NotEmpty)), "{refused:?}");
    let sizes = bed.maintenance().sizes().await.unwrap();
    assert_eq!(sizes.rows[0], (Table::Clients, 1), "nothing was changed");

    let begun = Progress {
        source: "one".into(),
        table: Some(Table::Clients),
        cursor: None,
        rows: 0,
    };
    bed.maintenance()
        .import_rows(&[], None, &begun)
        .await
        .unwrap();
    let imported = bed.maintenance().imported().await.unwrap();
    assert_eq!(imported, Some(begun.clone()));
    let refused = copy(&source, "other", bed.maintenance(), |_| {}).await;
    assert!(
        matches!(&refused, Err(CopyError::OtherSource(source)) if source == "one"),
        "{refused:?}"
    );
    let page = source.export_rows(Table::Clients, None, 5).await.unwrap();
    let mut rows = page.rows;
    rows.push(rows[0].clone());
    let twice = bed
        .maintenance()
        .import_rows(&rows[..5], Some(&begun), &begun)
        .await;
    twice.unwrap();
    let elsewhere = bed.maintenance().import_rows(&[], None, &begun).await;
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::Transient);
    let again = bed
        .maintenance()
        .import_rows(&rows[4..], Some(&begun), &begun)
        .await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let sizes = bed.maintenance().sizes().await.unwrap();
    assert_eq!(sizes.rows[0], (Table::Clients, 6), "all or nothing");
    let compared = compare(&source, bed.maintenance(), Table::Clients)
        .await
        .unwrap();
    assert!(!compared.is_equal());
    assert!(
        compared
            .differences
            .iter()
            .any(|text| text.contains("client 00")),
        "{compared:?}"
    );
}

async fn a_healthy_store_has_no_findings(bed: Bed) {
    fill(&*bed.store, &bed.clock).await;
    assert_eq!(bed.maintenance().check().await.unwrap(), []);
    let sizes = bed.maintenance().sizes().await.unwrap();
    assert_eq!(
        (sizes.pending_for_clients, sizes.pending_for_server),
        (38 + 1 + 2, 30)
    );
    let names: Vec<_> = sizes.rows.iter().map(|(table, _)| *table).collect();
    assert_eq!(names, Table::ALL);
    let orphan = to_client(400, client_id(77));
    bed.send(&[orphan]).await;
    let findings = bed.maintenance().check().await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].rows, 1);
    assert_eq!(findings[0].examples, [message_id(400).to_string()]);
    let read = bed.store.get_messages(&[message_id(400)], WITH_DATA).await;
    assert_eq!(read.unwrap().len(), 1, "a check changes nothing");
}

const MINUTE: Duration = Duration::from_secs(60);

async fn lease(bed: &Bed) -> Lease {
    let held = bed.maintenance().hold_lease("retention", 1, MINUTE).await;
    held.unwrap().expect("nobody else has it")
}

/// Removes everything old of a kind, in one step.
async fn remove_old(bed: &Bed, what: Old, age: Duration) -> u64 {
    let before = bed.clock.now() - age;
    let lease = lease(bed).await;
    let removed = bed
        .maintenance()
        .remove_old(what, before, None, 1_000, &lease)
        .await
        .unwrap();
    assert_eq!(removed.next, None, "that was all");
    removed.rows
}

async fn rows(bed: &Bed, table: Table) -> u64 {
    let sizes = bed.maintenance().sizes().await.unwrap();
    let found = sizes.rows.iter().find(|(other, _)| *other == table);
    found.expect("a size of every table").1
}

async fn only_one_holder_has_a_lease(bed: Bed) {
    let store = bed.maintenance();
    let first = store.hold_lease("a", 1, MINUTE).await.unwrap();
    let first = first.expect("a new lease");
    assert_eq!((first.name.as_str(), first.holder), ("a", 1));
    assert_eq!(store.hold_lease("a", 2, MINUTE).await.unwrap(), None);
    let other = store.hold_lease("b", 2, MINUTE).await.unwrap();
    assert!(other.is_some(), "another lease");
    bed.pass(MINUTE / 2);
    let kept = store.hold_lease("a", 1, MINUTE).await.unwrap();
    assert_eq!(kept, Some(first.clone()), "kept");
    bed.pass(MINUTE / 2);
    let early = store.hold_lease("a", 2, MINUTE).await.unwrap();
    assert_eq!(early, None, "it was kept until later");
    bed.pass(MINUTE / 2);
    let taken = store.hold_lease("a", 2, MINUTE).await.unwrap();
    let taken = taken.expect("the lease is over");
    assert!(taken.fence > first.fence, "{taken:?}");
    assert_eq!(store.hold_lease("a", 1, MINUTE).await.unwrap(), None);
}

async fn what_is_old_is_removed_and_nothing_else(bed: Bed) {
    const DAY: Duration = Duration::from_secs(86_400);
    fill(&*bed.store, &bed.clock).await;
    for what in [Old::Contacts, Old::Usage] {
        assert_eq!(remove_old(&bed, what, DAY).await, 0, "{what:?}: too young");
    }
    bed.clock.advance(DAY);
    bed.store.record_client_contact(&contact(C2)).await.unwrap();
    bed.store
        .record_resource_usage_data(C2, &usage_report())
        .await
        .unwrap();
    assert_eq!(remove_old(&bed, Old::Contacts, DAY / 2).await, 2);
    assert_eq!(bed.store.list_client_contacts(C1).await.unwrap(), []);
    assert_eq!(bed.store.list_client_contacts(C2).await.unwrap().len(), 1);
    assert_eq!(rows(&bed, Table::Links).await, 0);
    assert_eq!(remove_old(&bed, Old::Usage, DAY / 2).await, 2);
    assert_eq!(rows(&bed, Table::Usage).await, 1);

    // What is done, by the time of the result; results are of seconds 50 and 51.
    assert_eq!(rows(&bed, Table::Messages).await, 73);
    let age = bed.clock.now().duration_since(at(51)).unwrap();
    assert_eq!(remove_old(&bed, Old::Messages, age).await, 1);
    assert_eq!(rows(&bed, Table::Messages).await, 72);
    let known: Vec<_> = (100..102).map(message_id).collect();
    assert_eq!(ids_of(&bed.read(&known).await), [known[1]]);
    bed.send(&[to_client(100, C1)]).await;
    assert_eq!(
        bed.read(&known).await.len(),
        2,
        "a removed id is free again"
    );

    // What waits for clients fails; what waits for the server stays.
    let age = bed.clock.now().duration_since(at(43)).unwrap();
    let pending = bed.pending(&[C1, C2]).await.len() as u64;
    assert_eq!(remove_old(&bed, Old::Pending, age).await, pending);
    assert_eq!(bed.pending(&[C1, C2]).await, []);
    let expired = bed.store.get_message_result(message_id(110)).await;
    let expired = expired.unwrap().expect("a result");
    assert_eq!(
        (expired.failed, &expired.failed_reason[..]),
        (true, EXPIRED)
    );
    bed.clock.advance(DAY);
    assert_eq!(bed.claim_on_server().await.len(), 30);
    assert_eq!(bed.maintenance().check().await.unwrap(), []);

    // The rest goes with time, but for what is pending and the newest.
    let left = rows(&bed, Table::Messages).await;
    let removed = remove_old(&bed, Old::Messages, DAY / 2).await;
    assert!(removed >= left - 31, "{removed} of {left}");
    let contact = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    let ids = [message_id(1)];
    let linked = bed.store.link_messages_to_contact(&contact, &ids).await;
    linked.unwrap();
    assert_eq!(bed.store.list_client_contacts(C1).await.unwrap().len(), 1);
    assert_eq!(
        rows(&bed, Table::Links).await,
        1,
        "no old link has come back"
    );
}

async fn old_rows_are_removed_step_by_step(bed: Bed) {
    bed.add_client(C1).await;
    let done: Vec<_> = (0..25)
        .map(|number| with_result(&to_client(number, C1), success(50)))
        .collect();
    bed.send(&done).await;
    let waiting: Vec<_> = (50..75).map(|number| to_client(number, C1)).collect();
    bed.send(&waiting).await;
    let lease = lease(&bed).await;
    for what in [Old::Messages, Old::Pending] {
        let (mut removed, mut place, mut steps) = (0, None, 0);
        loop {
            let step = bed
                .maintenance()
                .remove_old(what, at(60), place.as_ref(), 10, &lease)
                .await
                .unwrap();
            assert!(step.rows <= 10, "{step:?}");
            removed += step.rows;
            steps += 1;
            assert!(steps < 20, "it ends");
            place = step.next;
            if place.is_none() {
                break;
            }
        }
        assert_eq!(removed, 25, "{what:?}");
        assert!(steps >= 3, "{steps} steps");
    }
}

async fn lost_lease_removes_nothing(bed: Bed) {
    fill(&*bed.store, &bed.clock).await;
    let old = lease(&bed).await;
    bed.pass(2 * MINUTE);
    let store = bed.maintenance();
    let taken = store.hold_lease("retention", 2, MINUTE).await;
    let taken = taken.unwrap().expect("the old one is over");
    let now = bed.clock.now();
    for what in Old::ALL {
        let refused = store.remove_old(what, now, None, 10, &old).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Transient);
    }
    assert_eq!(rows(&bed, Table::Usage).await, 2, "nothing was removed");
    let removed = store.remove_old(Old::Usage, now, None, 1_000, &taken).await;
    assert_eq!(
        removed.unwrap(),
        Removed {
            rows: 2,
            next: None
        }
    );
}
