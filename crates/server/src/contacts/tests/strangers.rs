//! What an agent tries on others. S-numbers: the list of threats.

use super::*;

async fn is_unknown(bed: &Bed, client: ClientId, source_id: &[u8]) -> bool {
    let id = MessageId::for_source(Some(client), "agent", source_id);
    let found = bed.store.get_messages(&[id], false).await;
    found.is_err_and(|error| error.is_not_found())
}

#[tokio::test]
async fn s8_agent_reaches_nothing_of_another_client() {
    let bed = bed();
    let stranger = bed.contact(1, Vec::new()).await;
    let victim = bed.contact(2, Vec::new()).await;
    let (own, other) = (stranger.client(), victim.client());
    let waiting = bed.send(other, "a", 1).await;
    assert!(stranger.take_messages().await.unwrap().messages.is_empty());

    let report = MessageErrorData {
        message_id: waiting.to_bytes(),
        error: "forged".into(),
    };
    let from_other = Message {
        source: Some(address(Some(other), "agent")),
        ..message(b"from", "sink")
    };
    let to_other = Message {
        destination: Some(address(Some(other), "a")),
        ..message(b"to", "a")
    };
    let tries = vec![
        ack(&[waiting]),
        to_system(b"error", "MessageError", &report),
        from_other,
        to_other,
    ];
    stranger.accept_record(record(tries)).await.unwrap();

    let result = bed.store.get_message_result(waiting).await.unwrap();
    assert_eq!(result, None, "neither acknowledged nor failed");
    // Who has sent a message is who is connected.
    let stored = bed.stored(own, b"from").await;
    assert_eq!(stored.source, Some(address(Some(own), "agent")));
    assert!(is_unknown(&bed, other, b"from").await);
    for client in [own, other] {
        assert!(is_unknown(&bed, client, b"to").await);
    }
    let delivered = victim.take_messages().await.unwrap().messages;
    assert_eq!(delivered.len(), 1, "the operator's message alone");
    assert_eq!(delivered[0].message_id, waiting.to_bytes());
}

#[tokio::test]
async fn s9_ids_an_agent_chooses_never_touch_another_message() {
    let bed = bed();
    let contact = bed.contact(1, vec![message(b"1", "sink")]).await;
    let client = contact.client();
    let first = bed.stored(client, b"1").await;
    assert!(!first.result.as_ref().expect("it is done").failed);

    // Its own older id, for a service that refuses the message.
    bed.clock.set(NOW + 10);
    let again = Message {
        message_type: "other".into(),
        ..message(b"1", "nobody")
    };
    contact.accept_record(record(vec![again])).await.unwrap();
    assert_eq!(bed.stored(client, b"1").await, first);

    // The id of a message that waits for it, and that of another client's.
    let waiting = bed.send(client, "a", 7).await;
    let other = bed.contact(2, vec![message(b"1", "sink")]).await.client();
    let others = bed.stored(other, b"1").await;
    assert_ne!(others.message_id, first.message_id);
    for (number, id) in [
        (b"2", waiting.to_bytes()),
        (b"3", others.message_id.clone()),
    ] {
        let forged = Message {
            message_id: id,
            ..message(number, "nobody")
        };
        contact.accept_record(record(vec![forged])).await.unwrap();
        assert!(bed.stored(client, number).await.result.unwrap().failed);
    }
    assert_eq!(bed.stored(other, b"1").await, others);
    let result = bed.store.get_message_result(waiting).await.unwrap();
    assert_eq!(result, None);

    // The same id from another service of the agent is another message.
    let service = Message {
        source: Some(address(None, "agent2")),
        ..message(b"1", "sink")
    };
    contact.accept_record(record(vec![service])).await.unwrap();
    assert_eq!(bed.stored(client, b"1").await, first);
}
