//! Sixteen callers at once, and what must hold whoever comes first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fleethold_proto::fleetspeak::MessageResult;
use fleethold_store::clock::CLIENT_RETRY;
use fleethold_store::{ClientId, Clock, MessageId};
use futures::future::join_all;

use crate::checks::assert_same;
use crate::samples::{
    C1, client_id, failure, ids_of, label, message_id, success, to_client, with_result,
};
use crate::{Bed, cases};

const TASKS: u64 = 16;

cases![
    f_01_no_message_is_handed_out_twice_within_its_lease,
    f_06_results_of_many_writers_follow_the_table_in_every_order,
    f_06_results_of_racing_writers_are_those_of_some_order,
    labels_set_by_many_callers_are_all_there,
];

async fn f_01_no_message_is_handed_out_twice_within_its_lease(bed: Bed) {
    const CLIENTS: u64 = 4;
    const EACH: u64 = 100;
    for client in 0..CLIENTS {
        let numbers = client * EACH..(client + 1) * EACH;
        let messages: Vec<_> = numbers
            .map(|number| to_client(number, client_id(client)))
            .collect();
        bed.send(&messages).await;
    }
    // When each message was handed out last, by the clock before the call.
    let leases: Arc<Mutex<BTreeMap<MessageId, Vec<Lease>>>> = Arc::default();
    let callers = (0..TASKS).map(|task| {
        let (store, clock, leases) = (
            Arc::clone(&bed.store),
            Arc::clone(&bed.clock),
            Arc::clone(&leases),
        );
        tokio::spawn(async move {
            for round in 0..40 {
                let before = clock.now();
                let client = client_id((task + round) % CLIENTS);
                let claimed = store
                    .client_messages_for_processing(client, 7, None)
                    .await
                    .unwrap();
                let after = clock.now();
                let mut leases = leases.lock().unwrap();
                for id in ids_of(&claimed) {
                    leases.entry(id).or_default().push(Lease { before, after });
                }
                if task == 0 {
                    clock.advance(Duration::from_secs(60));
                }
            }
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    let leases = std::mem::take(&mut *leases.lock().unwrap());
    assert_eq!(
        leases.len() as u64,
        CLIENTS * EACH,
        "every message is handed out"
    );
    for (id, leases) in leases {
        for (place, first) in leases.iter().enumerate() {
            for second in &leases[place + 1..] {
                assert!(
                    first.may_end_before(second) || second.may_end_before(first),
                    "{id} is handed out twice within its lease: {first:?} {second:?}"
                );
            }
        }
    }
}

/// The clock around the call that handed a message out.
#[derive(Debug)]
struct Lease {
    before: std::time::SystemTime,
    after: std::time::SystemTime,
}

impl Lease {
    /// A call that lost conflicts claims much later than it began: any moment
    /// between its two times may be the lease's first.
    fn may_end_before(&self, next: &Self) -> bool {
        self.before + CLIENT_RETRY <= next.after
    }
}

/// What the table of section 3.2.1 leaves after these writers, in this order.
fn by_the_table(writers: &[Option<MessageResult>]) -> Option<MessageResult> {
    let mut stored: Option<MessageResult> = None;
    for writer in writers.iter().flatten() {
        if !writer.failed || stored.is_none() {
            stored = Some(writer.clone());
        }
    }
    stored
}

/// Returns all lists of this length of what a writer may say.
fn lists_of_writers(length: usize) -> Vec<Vec<Option<MessageResult>>> {
    let mut lists = vec![Vec::new()];
    for place in 0..length {
        let second = 50 + i64::try_from(place).expect("few");
        let writers = [None, Some(success(second)), Some(failure(second, "broken"))];
        lists = lists
            .into_iter()
            .flat_map(|list| {
                let writers = writers.clone();
                writers.map(|writer| [&list[..], &[writer]].concat())
            })
            .collect();
    }
    lists
}

async fn f_06_results_of_many_writers_follow_the_table_in_every_order(bed: Bed) {
    let mut number = 0;
    for writers in (2..=4).flat_map(lists_of_writers) {
        number += 1;
        let message = to_client(number, C1);
        for writer in &writers {
            let written = match writer {
                Some(result) => with_result(&message, result.clone()),
                None => message.clone(),
            };
            bed.send(&[written]).await;
        }
        let found = bed
            .store
            .get_message_result(message_id(number))
            .await
            .unwrap();
        assert_same(
            &format!("specification section 3.2.1: {writers:?}"),
            &found,
            &by_the_table(&writers),
        );
    }
}

async fn f_06_results_of_racing_writers_are_those_of_some_order(bed: Bed) {
    let mut number = 0;
    for writers in (2..=4).flat_map(lists_of_writers) {
        number += 1;
        let message = to_client(number, C1);
        let calls = writers.iter().cloned().map(|writer| {
            let store = Arc::clone(&bed.store);
            let written = match writer {
                Some(result) => with_result(&message, result),
                None => message.clone(),
            };
            tokio::spawn(async move { store.store_messages(&[written], None).await })
        });
        for call in join_all(calls).await {
            call.unwrap().unwrap();
        }
        let found = bed
            .store
            .get_message_result(message_id(number))
            .await
            .unwrap();
        let possible: Vec<_> = orders(&writers)
            .iter()
            .map(|order| by_the_table(order))
            .collect();
        assert!(possible.contains(&found), "{found:?} after {writers:?}");
        let pending = bed.store.get_pending_message_count(&[C1]).await.unwrap();
        assert_eq!(
            pending == 1,
            found.is_none(),
            "a message is pending or has a result"
        );
        let done = [(message_id(number), success(99))];
        bed.store.set_message_results(&done).await.unwrap();
    }
}

fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    (0..items.len())
        .flat_map(|first| {
            let mut rest = items.to_vec();
            let first = rest.remove(first);
            orders(&rest)
                .into_iter()
                .map(move |rest| [std::slice::from_ref(&first), &rest[..]].concat())
        })
        .collect()
}

async fn labels_set_by_many_callers_are_all_there(bed: Bed) {
    bed.add_client(C1).await;
    let callers = (0..TASKS).map(|task| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move {
            for number in 0..10 {
                let own = label("client", &format!("{task:02}-{number}"));
                store.add_client_label(C1, &own).await.unwrap();
                let shared = label("shared", &number.to_string());
                store.add_client_label(C1, &shared).await.unwrap();
                if number % 2 == 1 {
                    store.remove_client_label(C1, &own).await.unwrap();
                }
            }
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    let own = (0..TASKS).flat_map(|task| {
        (0..10)
            .step_by(2)
            .map(move |number| label("client", &format!("{task:02}-{number}")))
    });
    let shared = (0..10).map(|number| label("shared", &number.to_string()));
    let expected: Vec<_> = own.chain(shared).collect();
    let found = bed
        .store
        .get_client_data(C1 as ClientId)
        .await
        .unwrap()
        .labels;
    assert_same("no label is lost and none comes back", &found, &expected);
}
