//! What happens behind a store's back: conflicts, damaged rows, large numbers.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleetspeak::Message;
use fleethold_store::{ErrorKind, Result, ServiceLimits};
use futures::future::join_all;
use futures::poll;

use crate::checks::{assert_messages, assert_same};
use crate::processor::{OVERDUE, recorder};
use crate::samples::{
    C1, SERVICE, contact, ids_of, message_id, success, tags, to_client, to_server,
};
use crate::{Bed, cases};

cases![
    f_02_claims_in_conflict_hand_out_nothing_twice if conflicts,
    f_03_claims_in_conflict_keep_service_limits if conflicts,
    f_15_damaged_message_blocks_nobody if damages,
    f_19_contact_ids_go_beyond_31_bits if presets_contacts,
    f_32_processor_stops_during_a_conflict if conflicts,
];

async fn f_02_claims_in_conflict_hand_out_nothing_twice(bed: Bed) {
    let messages: Vec<_> = (0..50).map(|number| to_client(number, C1)).collect();
    bed.send(&messages).await;
    let mut claimed = Vec::new();
    for claim in claims_in_conflict(&bed, None).await {
        claimed.extend(ids_of(&claim));
    }
    let unique: BTreeSet<_> = claimed.iter().copied().collect();
    assert_eq!(unique.len(), claimed.len(), "nothing is handed out twice");
    for id in ids_of(&bed.claim(C1).await) {
        assert!(!unique.contains(&id), "what was returned is due later");
    }
    bed.clock.advance(Duration::from_secs(15 * 60));
    let mut again = ids_of(&bed.claim(C1).await);
    again.sort();
    assert_same("all are due again", &again, &ids_of(&messages));
}

async fn f_03_claims_in_conflict_keep_service_limits(bed: Bed) {
    let messages: Vec<_> = (0..50).map(|number| to_client(number, C1)).collect();
    bed.send(&messages).await;
    let limits = ServiceLimits::from([(SERVICE.to_owned(), 5)]);
    let mut sum = 0;
    for claim in claims_in_conflict(&bed, Some(limits)).await {
        assert!(claim.len() <= 5, "never more than the limit says");
        sum += claim.len();
    }
    let rest = bed.claim(C1).await.len();
    assert!(sum + rest <= 50, "{sum} and {rest} of 50 messages");
}

/// Starts claims while every call that writes conflicts, and ends the conflict
/// after that; a claim may fail, but not hang.
async fn claims_in_conflict(bed: &Bed, limits: Option<ServiceLimits>) -> Vec<Vec<Message>> {
    let conflict = begin(bed).await;
    let mut claims: Vec<_> = (0..8)
        .map(|_| {
            let (store, limits) = (Arc::clone(&bed.store), limits.clone());
            Box::pin(async move {
                store
                    .client_messages_for_processing(C1, 20, limits.as_ref())
                    .await
            })
        })
        .collect();
    let mut finished: Vec<Result<Vec<Message>>> = Vec::new();
    let mut waiting = Vec::new();
    for mut claim in claims.drain(..) {
        match poll!(&mut claim) {
            std::task::Poll::Ready(outcome) => finished.push(outcome),
            std::task::Poll::Pending => waiting.push(claim),
        }
    }
    drop(conflict);
    finished.extend(join_all(waiting).await);
    finished
        .into_iter()
        .filter_map(|outcome| match outcome {
            Ok(claimed) => Some(claimed),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
                None
            }
        })
        .collect()
}

async fn f_15_damaged_message_blocks_nobody(bed: Bed) {
    let with_info = |message| Message {
        validation_info: Some(tags("valid")),
        ..message
    };
    let sent = [to_client(1, C1), to_client(2, C1), to_client(3, C1)].map(with_info);
    let on_server = [to_server(4, C1), to_server(5, C1)].map(with_info);
    bed.send(&sent).await;
    bed.send(&on_server).await;
    for damaged in [2, 4] {
        bed.damage(message_id(damaged));
    }
    let pending = ids_of(&bed.pending(&[C1]).await);
    assert_same("the list goes on", &pending, &ids_of(&sent));
    let claimed = bed.claim(C1).await;
    assert_messages(
        "its neighbours are handed out",
        &whole(&claimed),
        &[&sent[..1], &sent[2..]].concat(),
    );
    let (processor, mut calls) = recorder();
    bed.store.register_message_processor(processor).await;
    bed.clock.advance(OVERDUE);
    let delivered = calls.next().await;
    assert_messages("the processor goes on", &whole(&delivered), &on_server[1..]);
    bed.store.stop_message_processor().await;
    for id in [2, 4].map(message_id) {
        bed.store
            .set_message_result(None, id, &success(50))
            .await
            .expect("it can be finished");
        let result = bed.store.get_message_result(id).await.unwrap();
        assert_same("it can be finished", &result, &Some(success(50)));
    }
}

/// Leaves out the damaged message, which may come without what was damaged.
fn whole(messages: &[Message]) -> Vec<Message> {
    let whole = messages
        .iter()
        .filter(|message| message.validation_info.is_some());
    whole.cloned().collect()
}

async fn f_19_contact_ids_go_beyond_31_bits(bed: Bed) {
    bed.add_client(C1).await;
    for number in [1 << 31, 1 << 32, 1 << 53] {
        bed.preset_contacts(number);
        let recorded = bed.store.record_client_contact(&contact(C1)).await.unwrap();
        let found = i64::from_str_radix(recorded.as_str(), 16);
        assert!(found.is_ok_and(|found| found > number), "{recorded}");
        let message = to_client(number.unsigned_abs(), C1);
        let id = crate::samples::id_of(&message);
        bed.store
            .store_messages(&[message], Some(&recorded))
            .await
            .unwrap();
        let linked = bed.store.link_messages_to_contact(&recorded, &[id]).await;
        linked.expect("a large id is an ordinary one");
    }
}

async fn f_32_processor_stops_during_a_conflict(bed: Bed) {
    let (processor, mut calls) = recorder();
    bed.send(&[to_server(1, C1)]).await;
    bed.store.register_message_processor(processor).await;
    let conflict = begin(&bed).await;
    bed.clock.advance(OVERDUE);
    calls.none("nothing can be claimed during a conflict").await;
    let stopped = tokio::time::timeout(Duration::from_secs(20), bed.store.stop_message_processor());
    stopped
        .await
        .expect("stop does not wait for the database for ever");
    drop(conflict);
    bed.send(&[to_server(2, C1)]).await;
    calls.none("a stopped processor is not called").await;
}

/// Begins a conflict; the call may block.
async fn begin(bed: &Bed) -> Box<dyn Any + Send> {
    tokio::task::block_in_place(|| bed.conflict())
}
