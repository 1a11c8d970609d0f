//! More messages than fit into a statement, a page or a cache.

use fleethold_store::ClientId;

use crate::checks::{assert_messages, assert_same};
use crate::samples::{
    C1, C2, WITH_DATA, WITHOUT_DATA, client_id, ids_of, message_id, success, to_client,
};
use crate::{Bed, cases};

cases![
    more_messages_than_a_statement_has_parameters,
    f_11_hundred_thousand_pending_messages_are_listed_and_removed,
    f_12_claim_costs_the_same_however_many_wait_or_are_done if counts_work,
];

async fn more_messages_than_a_statement_has_parameters(bed: Bed) {
    const MANY: u64 = 33_000;
    let messages: Vec<_> = (0..MANY).map(|number| to_client(number, C1)).collect();
    let ids = ids_of(&messages);
    bed.send(&messages).await;
    let found = bed.read(&ids).await;
    assert_messages("any number of messages can be read", &found, &messages);
    let clients: Vec<ClientId> = (0..MANY).map(client_id).collect();
    let found = bed
        .store
        .get_pending_messages(&clients, 32_998, 5, WITH_DATA)
        .await
        .unwrap();
    assert_messages(
        "any number of clients can be asked for",
        &found,
        &messages[32_998..],
    );
    let count = bed.store.get_pending_message_count(&clients).await.unwrap();
    assert_same("any number of clients can be asked for", &count, &MANY);
    assert_eq!(
        bed.claim(C1).await.len(),
        messages.len(),
        "any number can be claimed"
    );

    let results: Vec<_> = ids.iter().take(100).map(|id| (*id, success(50))).collect();
    bed.store.set_message_results(&results).await.unwrap();
    bed.store.delete_pending_messages(&clients).await.unwrap();
    let count = bed.store.get_pending_message_count(&[C1]).await.unwrap();
    assert_same("any number of messages can be removed", &count, &0);
    let results: Vec<_> = ids.iter().map(|id| (*id, success(51))).collect();
    bed.store.set_message_results(&results).await.unwrap();
    let result = bed
        .store
        .get_message_result(ids[ids.len() - 1])
        .await
        .unwrap();
    assert_same(
        "any number of results can be set",
        &result,
        &Some(success(51)),
    );
}

async fn f_11_hundred_thousand_pending_messages_are_listed_and_removed(bed: Bed) {
    const MANY: u64 = 100_000;
    const CALLS: u64 = 10;
    for call in 0..CALLS {
        let numbers = call * MANY / CALLS..(call + 1) * MANY / CALLS;
        let messages: Vec<_> = numbers.map(|number| to_client(number, C1)).collect();
        bed.send(&messages).await;
    }
    bed.send(&[to_client(MANY, C2)]).await;
    let read = |offset, limit| {
        bed.store
            .get_pending_messages(&[C1], offset, limit, WITHOUT_DATA)
    };
    let found = ids_of(&read(0, 0).await.unwrap());
    assert!(
        found.iter().copied().eq((0..MANY).map(message_id)),
        "all pending messages are listed, by id; found {}",
        found.len()
    );
    let page = ids_of(&read(MANY - 3, 10).await.unwrap());
    assert_same("the last page", &page, &ids_from(MANY - 3, 3));
    bed.store.delete_pending_messages(&[C1]).await.unwrap();
    let count = bed
        .store
        .get_pending_message_count(&[C1, C2])
        .await
        .unwrap();
    assert_same("all of this client are removed, in one call", &count, &1);
    assert_messages("nothing of them is due", &bed.claim(C1).await, &[]);
    let last = bed
        .store
        .get_message_result(message_id(MANY - 1))
        .await
        .unwrap();
    assert!(last.is_some_and(|result| result.failed), "each has failed");
}

async fn f_12_claim_costs_the_same_however_many_wait_or_are_done(bed: Bed) {
    const MANY: u64 = 10_000;
    let claim = async |client| {
        let before = bed.work();
        let claimed = bed
            .store
            .client_messages_for_processing(client, 1, None)
            .await
            .unwrap();
        assert_eq!(claimed.len(), 1, "one of those that are due");
        bed.work() - before
    };
    let send = async |numbers: std::ops::Range<u64>, client| {
        let messages: Vec<_> = numbers.map(|number| to_client(number, client)).collect();
        bed.send(&messages).await;
        messages
    };
    send(0..1, client_id(9)).await;
    claim(client_id(9)).await;
    send(1..2, C1).await;
    let one = claim(C1).await;
    send(2..MANY, C1).await;
    let many = claim(C1).await;

    let done = send(MANY..2 * MANY, C2).await;
    let results: Vec<_> = ids_of(&done)
        .into_iter()
        .map(|id| (id, success(50)))
        .collect();
    bed.store.set_message_results(&results).await.unwrap();
    send(2 * MANY..2 * MANY + 1, C2).await;
    let after_many = claim(C2).await;
    assert!(
        many <= one + one / 2 && after_many <= one + one / 2,
        "a claim costs {one} with one message, {many} with {MANY} waiting, {after_many} with {MANY} done"
    );
}

fn ids_from(first: u64, count: u64) -> Vec<fleethold_store::MessageId> {
    (first..first + count).map(message_id).collect()
}
