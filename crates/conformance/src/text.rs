//! Hostile text in every field, and every limit at its edge and one past it
//! (specification section 2.2).

use std::time::Duration;

use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Annotations, Message, ValidationInfo, annotations};
use fleethold_store::limits::{
    MAX_ADDRESS_CHARS, MAX_NAME_CHARS, MAX_TEXT_BYTES, cut_bytes, cut_chars,
};
use fleethold_store::{ClientData, ContactData, ErrorKind, Result};
use prost::Message as _;

use crate::checks::{assert_messages, assert_same};
use crate::samples::{
    C1, address, broadcast, client_id, contact, failure, label, message_id, seconds, tags,
    to_client, usage_report,
};
use crate::{Bed, cases};

cases![
    f_14_hostile_text_in_messages_comes_back_or_is_cut,
    f_14_limits_of_messages_hold_to_the_character,
    f_17_hostile_text_in_labels_is_kept_or_refused,
    f_18_hostile_text_in_contacts_never_cuts_a_client_off,
    s15_hostile_names_of_files_are_kept_or_refused,
    s15_hostile_text_in_broadcasts_is_kept_or_refused,
    f_21_hostile_scope_is_kept_or_cut,
];

/// Texts that have broken stores; of at most 128 characters first.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "a",
        "A",
        "a ",
        " a",
        "a\t",
        "á",
        "a\u{301}",
        "ß",
        "ss",
        "\u{1F980}",
        "\u{10FFFF}",
        "\u{FFFD}",
        "\u{FEFF}a",
        "\u{202E}a",
        "'\"\\;--%_",
        "x'); DELETE FROM clients; --",
        "x\\'); DELETE FROM clients; #",
        "\u{0}",
        "a\u{0}b",
        "a\u{0}",
        "\r\n",
    ]
    .map(str::to_owned)
    .into();
    texts.push("\u{1F980}".repeat(MAX_NAME_CHARS));
    texts.push("\u{1F980}".repeat(MAX_NAME_CHARS + 1));
    texts.push("x".repeat(1 << 20));
    texts
}

/// Whether a stored text is the one given, cut, and with U+FFFD for U+0000
/// where a database cannot hold that.
fn is_kept(found: &str, given: &str) -> bool {
    found == given || found == given.replace('\u{0}', "\u{FFFD}")
}

async fn f_14_hostile_text_in_messages_comes_back_or_is_cut(bed: Bed) {
    for (number, text) in (1..).zip(hostile()) {
        let client = client_id(number);
        let message = Message {
            source: Some(address(None, &text)),
            destination: Some(address(Some(client), &text)),
            message_type: text.clone(),
            validation_info: Some(tags(&text)),
            annotations: Some(Annotations {
                entries: vec![annotations::Entry {
                    key: text.clone(),
                    value: text.clone(),
                }],
            }),
            ..to_client(number, client)
        };
        bed.send(std::slice::from_ref(&message)).await;
        let claimed = bed.claim(client).await;
        assert_eq!(
            claimed.len(),
            1,
            "a message with {:?} is claimed",
            cut_chars(&text, 9)
        );
        let cut = cut_chars(&text, MAX_NAME_CHARS);
        let services = [&claimed[0].source, &claimed[0].destination];
        let services = services.map(|address| address.as_ref().unwrap().service_name.as_str());
        for found in services
            .into_iter()
            .chain([claimed[0].message_type.as_str()])
        {
            assert!(is_kept(found, cut), "{found:?} for {cut:?}");
        }
        let small = text.len() < MAX_TEXT_BYTES / 3;
        let kept = (
            message.validation_info.filter(|_| small),
            message.annotations.filter(|_| small),
        );
        let found = (
            claimed[0].validation_info.clone(),
            claimed[0].annotations.clone(),
        );
        assert!(
            found == kept,
            "serialised parts are kept whole or not at all"
        );
        let result = failure(50, &text);
        bed.store
            .set_message_result(None, message_id(number), &result)
            .await
            .unwrap();
        let found = bed
            .store
            .get_message_result(message_id(number))
            .await
            .unwrap();
        let found = found.expect("a result").failed_reason;
        assert!(
            is_kept(&found, cut_bytes(&text, MAX_TEXT_BYTES)),
            "the reason is kept or cut"
        );
    }
}

async fn f_14_limits_of_messages_hold_to_the_character(bed: Bed) {
    let text = |chars: usize| "ä".repeat(chars);
    for (number, chars) in [(1, MAX_NAME_CHARS), (2, MAX_NAME_CHARS + 1)] {
        let with = |chars| Message {
            source: Some(address(None, &text(chars))),
            destination: Some(address(Some(C1), &text(chars))),
            message_type: text(chars),
            ..to_client(number, C1)
        };
        bed.send(&[with(chars)]).await;
        let found = bed.read(&[message_id(number)]).await;
        assert_messages(
            "names have 128 characters",
            &found,
            &[with(chars.min(MAX_NAME_CHARS))],
        );
    }
    // The tag, the key and the lengths take some bytes.
    let overhead = tags(&"v".repeat(60_000)).encoded_len() - 60_000;
    for (number, bytes) in [(3, MAX_TEXT_BYTES), (4, MAX_TEXT_BYTES + 1)] {
        let info: ValidationInfo = tags(&"v".repeat(bytes - overhead));
        let entry = |value| annotations::Entry {
            key: "k".into(),
            value,
        };
        let notes = |length: usize| Annotations {
            entries: vec![entry("v".repeat(length))],
        };
        let notes = notes(bytes - (notes(60_000).encoded_len() - 60_000));
        assert_eq!((info.encoded_len(), notes.encoded_len()), (bytes, bytes));
        let message = Message {
            validation_info: Some(info),
            annotations: Some(notes),
            ..to_client(number, C1)
        };
        bed.send(std::slice::from_ref(&message)).await;
        let fits = bytes <= MAX_TEXT_BYTES;
        let expected = Message {
            validation_info: message.validation_info.clone().filter(|_| fits),
            annotations: message.annotations.clone().filter(|_| fits),
            ..message
        };
        let found = bed.read(&[message_id(number)]).await;
        assert!(
            found == [expected],
            "serialised parts have 65,535 bytes; tried {bytes}"
        );
        let result = failure(50, &"r".repeat(bytes));
        bed.store
            .set_message_result(None, message_id(number), &result)
            .await
            .unwrap();
        let found = bed
            .store
            .get_message_result(message_id(number))
            .await
            .unwrap();
        assert_eq!(found.expect("a result").failed_reason.len(), MAX_TEXT_BYTES);
    }
}

async fn f_17_hostile_text_in_labels_is_kept_or_refused(bed: Bed) {
    bed.add_client(C1).await;
    let mut kept = Vec::new();
    for (number, text) in (1_000..).zip(hostile()) {
        for label in [label("client", &text), label(&text, "label")] {
            let added = bed.store.add_client_label(C1, &label).await;
            let data = ClientData {
                labels: vec![label.clone()],
                ..ClientData::default()
            };
            let id = client_id(2 * number + u64::from(label.service_name == text));
            let new = bed.store.add_client(id, &data).await;
            assert_eq!(added.is_ok(), new.is_ok(), "both refuse the same");
            if is_accepted(added, &text) {
                let found = bed.store.get_client_data(id).await.unwrap();
                assert_same("a label is kept as it is", &found, &data);
                kept.push(label);
            }
        }
    }
    kept.sort_by(|a, b| (&a.service_name, &a.label).cmp(&(&b.service_name, &b.label)));
    kept.dedup();
    let found = bed.store.get_client_data(C1).await.unwrap().labels;
    assert_same("labels are compared byte by byte", &found, &kept);
    for label in &kept {
        bed.store.remove_client_label(C1, label).await.unwrap();
    }
    let found = bed.store.get_client_data(C1).await.unwrap().labels;
    assert_same("and removed one by one", &found, &[]);
}

/// Checks that a text which is a key was kept, or refused for a reason.
#[track_caller]
fn is_accepted(outcome: Result<()>, text: &str) -> bool {
    let long = text.chars().count() > MAX_NAME_CHARS;
    match outcome {
        Ok(()) => {
            assert!(!long, "a key has at most 128 characters");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
            assert!(
                long || text.contains('\u{0}'),
                "{text:?} is refused without a reason"
            );
            false
        }
    }
}

async fn f_18_hostile_text_in_contacts_never_cuts_a_client_off(bed: Bed) {
    bed.add_client(C1).await;
    let edges = [MAX_ADDRESS_CHARS, MAX_ADDRESS_CHARS + 1].map(|chars| "ä".repeat(chars));
    for text in hostile().into_iter().chain(edges) {
        bed.clock.advance(Duration::from_secs(1));
        let contact = ContactData {
            addr: text.clone(),
            ..contact(C1)
        };
        let recorded = bed.store.record_client_contact(&contact).await;
        recorded.expect("an address never cuts a client off");
        let cut = cut_chars(&text, MAX_ADDRESS_CHARS);
        let contacts = bed.store.list_client_contacts(C1).await.unwrap();
        let last = &contacts[contacts.len() - 1].observed_address;
        assert!(is_kept(last, cut), "{last:?} for {cut:?}");
        assert_same(
            "the client shows the same",
            &bed.client(C1).await.last_contact_address,
            last,
        );
    }
}

async fn s15_hostile_names_of_files_are_kept_or_refused(bed: Bed) {
    let mut kept: Vec<(String, String)> = Vec::new();
    for text in hostile() {
        for (service, name) in [("service", text.as_str()), (&text, "name")] {
            let content = format!("{service}/{name}");
            let stored = bed
                .store
                .store_file(service, name, &mut content.as_bytes())
                .await;
            if is_accepted(stored, &text) {
                kept.push((service.to_owned(), name.to_owned()));
            }
        }
    }
    for (service, name) in &kept {
        let found = bed.store.read_file(service, name).await.unwrap().content;
        let expected = format!("{service}/{name}");
        assert!(
            found == expected.as_bytes(),
            "each name has its own content: {expected:?}"
        );
    }
}

async fn s15_hostile_text_in_broadcasts_is_kept_or_refused(bed: Bed) {
    for (number, text) in (1..).zip(hostile()) {
        let given = Broadcast {
            source: Some(address(None, &text)),
            destination: Some(address(None, &text)),
            message_type: text.clone(),
            required_labels: vec![label(&text, &text)],
            group_name: text.clone(),
            ..broadcast(number)
        };
        if is_accepted(bed.store.create_broadcast(&given, 8).await, &text) {
            let active = bed.store.list_active_broadcasts().await.unwrap();
            let found = active
                .into_iter()
                .find(|info| info.broadcast.broadcast_id == given.broadcast_id);
            let found = found.expect("the new broadcast").broadcast;
            assert!(is_kept(&found.message_type, &text));
            let found = Broadcast {
                message_type: text,
                ..found
            };
            assert_same("a broadcast comes back as given", &found, &given);
        }
    }
}

async fn f_21_hostile_scope_is_kept_or_cut(bed: Bed) {
    bed.add_client(C1).await;
    for text in hostile() {
        bed.clock.advance(Duration::from_secs(1));
        let report = ResourceUsageData {
            scope: text.clone(),
            ..usage_report()
        };
        bed.store
            .record_resource_usage_data(C1, &report)
            .await
            .unwrap();
        let (start, end) = (seconds(0), seconds(4_000_000_000));
        let records = bed
            .store
            .fetch_resource_usage_records(C1, &start, &end)
            .await
            .unwrap();
        let found = &records[records.len() - 1].scope;
        assert!(
            is_kept(found, cut_chars(&text, MAX_NAME_CHARS)),
            "{found:?}"
        );
    }
}
