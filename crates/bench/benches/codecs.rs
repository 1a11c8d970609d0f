//! Ids, and messages and contacts on their way between wire and store.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use fleethold_proto::fleetspeak::{Address, ContactData, Message, ValidationInfo};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::record::MessageRecord;
use fleethold_store::{ClientId, MessageId};
use prost::Message as _;

fn ids(c: &mut Criterion) {
    let client = ClientId::new([0xab; 8]);
    let message = MessageId::new([0xcd; 32]);
    let (client_hex, message_hex) = (client.to_string(), message.to_string());
    c.bench_function("client id: parse hex", |b| {
        b.iter(|| black_box(&client_hex).parse::<ClientId>());
    });
    c.bench_function("message id: parse hex", |b| {
        b.iter(|| black_box(&message_hex).parse::<MessageId>());
    });
    c.bench_function("client id: print hex", |b| {
        b.iter(|| black_box(client).to_string());
    });
    c.bench_function("message id: print hex", |b| {
        b.iter(|| black_box(message).to_string());
    });
    let source_message_id = [7; 16];
    c.bench_function("message id: SHA-256 of its source", |b| {
        b.iter(|| {
            MessageId::for_source(black_box(Some(client)), "service-0001", &source_message_id)
        });
    });
    let key = [4; 91];
    c.bench_function("client id: SHA-256 of its key", |b| {
        b.iter(|| ClientId::from_public_key(black_box(&key)));
    });
}

fn records(c: &mut Criterion) {
    for payload_bytes in [100, 10_000] {
        let message = message(payload_bytes);
        c.bench_function(&format!("message of {payload_bytes} B: parse"), |b| {
            b.iter(|| MessageRecord::parse("bench", black_box(&message)));
        });
        let record = MessageRecord::parse("bench", &message).expect("a valid message");
        c.bench_function(
            &format!("message of {payload_bytes} B: put together"),
            |b| b.iter(|| black_box(record.clone()).into_message()),
        );
    }
}

fn contacts(c: &mut Criterion) {
    for (messages, payload_bytes) in [(0, 0), (1, 100), (100, 100), (100, 10_000)] {
        let contact = ContactData {
            sequencing_nonce: 0x1234_5678_9abc_def0,
            messages: vec![message(payload_bytes); messages],
            client_clock: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_456_789,
            }),
            ..ContactData::default()
        };
        let name = format!("contact with {messages} × {payload_bytes} B");
        let encoded = Bytes::from(contact.encode_to_vec());
        c.bench_function(&format!("{name}: encode"), |b| {
            b.iter(|| black_box(&contact).encode_to_vec());
        });
        // From shared bytes, as the server does: payloads are not copied.
        c.bench_function(&format!("{name}: decode"), |b| {
            b.iter(|| ContactData::decode(black_box(&encoded).clone()));
        });
    }
}

fn message(payload_bytes: usize) -> Message {
    let address = |client: &'static [u8], service: &str| Address {
        client_id: Bytes::from_static(client),
        service_name: service.into(),
    };
    Message {
        message_id: Bytes::from_static(&[3; 32]),
        source: Some(address(&[1; 8], "service-0001")),
        source_message_id: Bytes::from_static(&[2; 16]),
        destination: Some(address(&[], "service-0002")),
        message_type: "message-type-016".into(),
        creation_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_789,
        }),
        data: Some(Any {
            type_url: "type.googleapis.com/example.package.AMessage".into(),
            value: vec![9; payload_bytes].into(),
        }),
        validation_info: Some(ValidationInfo {
            tags: [("result".to_owned(), "passed".to_owned())].into(),
        }),
        ..Message::default()
    }
}

criterion_group!(codecs, ids, records, contacts);
criterion_main!(codecs);
