//! Stores under load, and what an oracle finds afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fleethold_conformance::oracle::{Fate, Oracle};
use fleethold_mysql::MysqlStore;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::{ClientId, ContactData, ErrorKind, MessageId, MessageStore, Outcome};

pub(crate) fn client(number: u64) -> ClientId {
    ClientId::new(number.to_be_bytes())
}

pub(crate) fn id(number: u64) -> MessageId {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[24..].copy_from_slice(&number.to_be_bytes());
    MessageId::new(id)
}

pub(crate) fn message(number: u64, to: ClientId) -> Message {
    Message {
        message_id: id(number).to_bytes(),
        destination: Some(Address {
            client_id: to.to_bytes(),
            service_name: "service".into(),
        }),
        creation_time: Some(Timestamp {
            seconds: 1,
            nanos: 0,
        }),
        data: Some(Any {
            type_url: "type".into(),
            value: vec![1; 100].into(),
        }),
        ..Message::default()
    }
}

pub(crate) fn contact(number: u64) -> ContactData {
    ContactData {
        client_id: client(number),
        nonce_sent: number,
        nonce_received: number + 1,
        addr: "192.0.2.1:1".into(),
        client_clock: None,
        streaming_to: None,
        labels: Vec::new(),
    }
}

pub(crate) fn broadcast(number: u64) -> Broadcast {
    Broadcast {
        broadcast_id: number.to_be_bytes().to_vec().into(),
        source: Some(Address {
            client_id: Vec::new().into(),
            service_name: "service".into(),
        }),
        message_type: "type".into(),
        group_name: format!("group {number}"),
        ..Broadcast::default()
    }
}

pub(crate) fn success() -> MessageResult {
    MessageResult {
        processed_time: Some(Timestamp {
            seconds: 2,
            nanos: 0,
        }),
        ..MessageResult::default()
    }
}

/// What a load tells, and is told.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) stop: AtomicBool,
    acknowledged: AtomicU64,
}

impl Progress {
    /// Waits until every writer may have had a turn.
    pub(crate) async fn goes_on(&self) {
        let enough = self.acknowledged.load(Ordering::SeqCst) + 100;
        let reached = async {
            while self.acknowledged.load(Ordering::SeqCst) < enough {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(60);
        let reached = tokio::time::timeout(limit, reached).await;
        reached.expect("the load goes on");
    }
}

/// Stores messages in twos through stores until it is told to stop, and tells an
/// oracle. Each of eight writers rests so long between two calls.
pub(crate) async fn load(
    stores: Vec<MysqlStore>,
    progress: Arc<Progress>,
    rest: Duration,
) -> Oracle {
    let writers = (0..8_u64).map(|writer| {
        let store = stores[usize::try_from(writer).expect("small") % stores.len()].clone();
        let progress = Arc::clone(&progress);
        tokio::spawn(async move {
            let mut fates = Vec::new();
            for round in 0..10_000 {
                if progress.stop.load(Ordering::SeqCst) {
                    break;
                }
                let write = writer * 100_000 + round + 1;
                let parts = [0, 1].map(|part| message(2 * write + part, client(writer)));
                let fate = match store.store_messages(&parts, None).await {
                    Ok(()) => {
                        progress.acknowledged.fetch_add(1, Ordering::SeqCst);
                        Fate::Acknowledged
                    }
                    Err(error) if error.outcome() == Outcome::NotApplied => Fate::Refused,
                    Err(_) => Fate::Unknown,
                };
                fates.push((write, fate));
                tokio::time::sleep(rest).await;
            }
            fates
        })
    });
    let mut oracle = Oracle::default();
    for writer in futures::future::join_all(writers).await {
        for (write, fate) in writer.unwrap() {
            oracle.trying(write, 2);
            oracle.learned(write, fate);
        }
    }
    oracle
}

/// Lists what is stored of the load.
pub(crate) async fn found(store: &MysqlStore) -> Vec<(u64, u32)> {
    let clients: Vec<_> = (0..8).map(client).collect();
    let pending = store
        .get_pending_messages(&clients, 0, 0, false)
        .await
        .unwrap();
    let numbers = pending.iter().map(|message| {
        let bytes = message.message_id[24..].try_into().expect("eight bytes");
        u64::from_be_bytes(bytes)
    });
    numbers
        .map(|number| (number / 2, u32::try_from(number % 2).expect("0 or 1")))
        .collect()
}

/// Waits until a call succeeds again and returns how long that took.
pub(crate) async fn recovery(store: &MysqlStore, number: u64) -> Duration {
    let began = Instant::now();
    loop {
        let new = message(number, client(1_000));
        match store.store_messages(&[new], None).await {
            Ok(()) => return began.elapsed(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
                assert!(began.elapsed() < Duration::from_secs(60), "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Claims messages of the load through stores until it is told to stop; returns
/// which were handed out, once for each time.
pub(crate) async fn claims(stores: Vec<MysqlStore>, progress: Arc<Progress>) -> Vec<MessageId> {
    let claimers = stores.into_iter().map(|store| {
        let progress = Arc::clone(&progress);
        tokio::spawn(async move {
            let mut handed_out = Vec::new();
            for round in 0..100_000 {
                if progress.stop.load(Ordering::SeqCst) {
                    break;
                }
                let of = client(round % 8);
                match store.client_messages_for_processing(of, 20, None).await {
                    Ok(messages) => handed_out.extend(messages.iter().map(|message| {
                        MessageId::try_from(&message.message_id[..]).expect("an id")
                    })),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            handed_out
        })
    });
    let handed_out = futures::future::join_all(claimers).await;
    handed_out.into_iter().flat_map(Result::unwrap).collect()
}
