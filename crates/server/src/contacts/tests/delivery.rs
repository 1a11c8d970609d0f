//! Messages for agents: tokens, claims, acknowledgements.

use super::*;
use crate::services::system::DIE;

#[tokio::test]
async fn p_090_to_093_tokens_limit_what_each_service_gets() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let client = peer(1).client;
    for number in 1..=3 {
        bed.send(client, "a", number).await;
    }
    bed.send(client, "b", 4).await;
    let contact = bed
        .begin(peer(1), tokens(&[("a", 2)]), ContactKind::Stream)
        .await
        .ok()
        .unwrap();
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 2);
    assert!(contact.take_messages().await.unwrap().messages.is_empty());

    let accepted = contact.accept_record(tokens(&[("a", 1)])).await.unwrap();
    assert!(accepted.deliver, "P-093: tokens from 0 to 1");
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);

    assert!(
        contact
            .accept_record(tokens(&[("b", 5)]))
            .await
            .unwrap()
            .deliver
    );
    let delivery = contact.take_messages().await.unwrap();
    assert_eq!(
        delivery.messages[0].destination,
        Some(address(Some(client), "b"))
    );
    assert!(
        !contact
            .accept_record(tokens(&[("b", 1)]))
            .await
            .unwrap()
            .deliver
    );
}

#[tokio::test]
async fn p_093_tokens_that_come_during_a_claim_are_used_at_once() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let begun = bed.begin(peer(1), tokens(&[("a", 1)]), ContactKind::Stream);
    let contact = begun.await.ok().unwrap();
    let at_claim = contact.tokens().clone();
    let accepted = contact.accept_record(tokens(&[("a", 1)])).await.unwrap();
    assert!(!accepted.deliver, "the service had a token already");
    let claimed = Message {
        destination: Some(address(Some(contact.client()), "a")),
        ..Message::default()
    };
    assert!(contact.use_tokens(&[claimed], at_claim));
    let at_claim = contact.tokens().clone();
    assert!(
        !contact.use_tokens(&[], at_claim),
        "the claim was not limited"
    );
}

#[tokio::test]
async fn p_092_agent_that_never_sent_tokens_has_no_limits() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    contact
        .accept_record(record(vec![message(b"1", "sink")]))
        .await
        .unwrap();
    bed.send(contact.client(), "any", 1).await;
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);
}

#[tokio::test]
async fn p_094_die_costs_no_token_and_is_done_when_handed_out() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let id = MessageId::new([1; 32]);
    let die = Message {
        message_id: id.to_bytes(),
        message_type: DIE.into(),
        source: Some(address(None, "operator")),
        destination: Some(address(Some(peer(1).client), SYSTEM)),
        creation_time: Some(timestamp(bed.clock.now())),
        data: Some(pack(&DieRequest { force: true })),
        ..Message::default()
    };
    bed.store.store_messages(&[die], None).await.unwrap();
    let contact = bed
        .begin(peer(1), tokens(&[(SYSTEM, 1)]), ContactKind::Stream)
        .await
        .ok()
        .unwrap();
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);
    let result = bed.store.get_message_result(id).await.unwrap().unwrap();
    assert!(!result.failed);
    assert_eq!(contact.tokens().as_ref().unwrap()[SYSTEM], 1);
}

#[tokio::test]
async fn p_100_unacknowledged_message_comes_again_after_15_minutes() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let id = bed.send(contact.client(), "a", 1).await;
    let mut taken = Vec::new();
    for seconds in [0, 899, 900] {
        bed.clock.set(NOW + seconds);
        taken.push(contact.take_messages().await.unwrap().messages.len());
    }
    assert_eq!(taken, [1, 0, 1]);
    contact
        .accept_record(record(vec![ack(&[id])]))
        .await
        .unwrap();
    bed.clock.set(NOW + 5000);
    assert!(contact.take_messages().await.unwrap().messages.is_empty());
    assert!(
        !bed.store
            .get_message_result(id)
            .await
            .unwrap()
            .unwrap()
            .failed
    );
}

#[tokio::test]
async fn p_101_acknowledgement_skips_unknown_and_foreign_messages() {
    let bed = bed();
    let mine = bed.contact(1, Vec::new()).await;
    let other = bed.contact(2, Vec::new()).await;
    let for_me = bed.send(mine.client(), "a", 1).await;
    let for_other = bed.send(other.client(), "a", 2).await;
    let unknown = MessageId::new([3; 32]);
    mine.accept_record(record(vec![ack(&[unknown, for_other, for_me])]))
        .await
        .unwrap();
    assert!(
        bed.store
            .get_message_result(for_me)
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        bed.store
            .get_message_result(for_other)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn p_102_error_report_fails_the_senders_own_message_only() {
    let bed = bed();
    let mine = bed.contact(1, Vec::new()).await;
    let other = bed.contact(2, Vec::new()).await;
    let id = bed.send(mine.client(), "a", 1).await;
    let report = MessageErrorData {
        message_id: id.to_bytes(),
        error: "no such service".into(),
    };
    let report = to_system(b"e", "MessageError", &report);
    other
        .accept_record(record(vec![report.clone()]))
        .await
        .unwrap();
    assert!(bed.store.get_message_result(id).await.unwrap().is_none());
    assert!(
        bed.stored(other.client(), b"e")
            .await
            .result
            .unwrap()
            .failed
    );
    mine.accept_record(record(vec![report])).await.unwrap();
    let result = bed.store.get_message_result(id).await.unwrap().unwrap();
    assert_eq!(
        (result.failed, result.failed_reason.as_str()),
        (true, "no such service")
    );
}

#[tokio::test]
async fn p_096_messages_for_a_service_without_tokens_wait_for_weeks() {
    const DAY: u64 = 24 * 60 * 60;
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let id = bed.send(peer(1).client, "a", 1).await;
    for day in 0..60 {
        bed.clock.set(NOW + day * DAY);
        let contact = bed
            .begin(peer(1), tokens(&[("b", 5)]), ContactKind::Stream)
            .await
            .ok()
            .unwrap();
        assert!(contact.take_messages().await.unwrap().messages.is_empty());
    }
    let contact = bed.contact(1, Vec::new()).await;
    let messages = contact.take_messages().await.unwrap().messages;
    assert_eq!(messages[0].message_id, id.to_bytes());
}

#[tokio::test]
async fn p_104_oldest_messages_are_delivered_first() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    for (second, number) in [(1, 9), (2, 3), (3, 7)] {
        bed.clock.set(NOW + second);
        bed.send(contact.client(), "a", number).await;
    }
    let messages = contact.take_messages().await.unwrap().messages;
    let order: Vec<_> = messages
        .iter()
        .map(|message| message.message_id[0])
        .collect();
    assert_eq!(order, [9, 3, 7]);
}

#[tokio::test]
async fn large_messages_come_in_several_claims_and_each_says_that_there_are_more() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let messages: Vec<_> = (1..=12)
        .map(|number| Message {
            message_id: MessageId::new([number; 32]).to_bytes(),
            destination: Some(address(Some(contact.client()), "a")),
            creation_time: Some(timestamp(bed.clock.now())),
            data: Some(Any {
                value: vec![1; 2 * 1024 * 1024].into(),
                ..Any::default()
            }),
            ..Message::default()
        })
        .collect();
    bed.store.store_messages(&messages, None).await.unwrap();
    for (expected, more) in [(4, true), (4, true), (4, true), (0, false)] {
        let delivery = contact.take_messages().await.unwrap();
        assert_eq!((delivery.messages.len(), delivery.more), (expected, more));
    }
}

#[tokio::test]
async fn what_a_contact_gives_back_is_due_at_once_except_what_is_done() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let ids = [
        bed.send(contact.client(), "a", 1).await,
        bed.send(contact.client(), "a", 2).await,
    ];
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 2);
    contact
        .accept_record(record(vec![ack(&ids[..1])]))
        .await
        .unwrap();
    let handle = bed.streams.register(contact.client());
    contact.give_back().await;
    handle.woken().await;
    let again = contact.take_messages().await.unwrap().messages;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].message_id, ids[1].to_bytes());
}
