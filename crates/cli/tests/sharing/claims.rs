//! Who hands out what both servers store: each message once, as far as this
//! server decides it, and nothing is left behind for want of our column.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::{GetMessageStatusRequest, GetPendingMessageCountRequest};
use fleethold_proto::fleetspeak::{Address, ContactData, Message, MessageResult};
use fleethold_proto::pack;
use fleethold_store::{MessageId, Random};
use futures::future::join_all;
use http::StatusCode;
use prost::Message as _;
use rcgen::KeyPair;
use tokio::sync::watch;

use crate::agent::{Agent, message, post};
use crate::bed::{ABSENT, Bed, Place, block_on};
use crate::database::{rows, sql};
use crate::harness::wait_until;

/// How often agents ask both servers at once.
const ROUNDS: usize = 12;
/// How many messages wait for an agent then, stored by each server.
const MESSAGES: usize = 15;
/// How many times it asks each server, all at once.
const POLLS: usize = 3;

/// One answer to an agent.
struct Answer {
    by_own: bool,
    asked: Instant,
    answered: Instant,
    messages: BTreeSet<Bytes>,
}

async fn insert(place: &Place, agent: &Agent) -> Bytes {
    let id = MessageId::random(&Random::from_os()).to_bytes();
    let service = |client_id: Bytes| Address {
        client_id,
        service_name: "tool".to_owned(),
    };
    let message = Message {
        message_id: id.clone(),
        source: Some(service(Bytes::new())),
        destination: Some(service(agent.id.to_bytes())),
        message_type: "Order".to_owned(),
        data: Some(pack(&Address::default())),
        ..Message::default()
    };
    place.admin().await.insert_message(message).await.unwrap();
    id
}

/// Asks a server for messages; the stock one may fail under concurrency.
async fn ask(agent: &Agent, by_own: bool) -> Answer {
    let asked = Instant::now();
    let request = post("/message", agent.wrap(&ContactData::default()));
    let (status, body) = agent.fetch(request).await;
    let messages = match status {
        StatusCode::OK => ContactData::decode(body).unwrap().messages,
        status if by_own => panic!("{status}: {}", String::from_utf8_lossy(&body)),
        _ => Vec::new(),
    };
    Answer {
        by_own,
        asked,
        answered: Instant::now(),
        messages: messages.into_iter().map(|given| given.message_id).collect(),
    }
}

async fn pending(place: &Place, agent: &Agent) -> u64 {
    let request = GetPendingMessageCountRequest {
        client_ids: vec![agent.id.to_bytes()],
    };
    let mut admin = place.admin().await;
    let count = admin.get_pending_message_count(request).await.unwrap();
    count.into_inner().count
}

async fn result(place: &Place, id: &MessageId) -> Option<MessageResult> {
    let request = GetMessageStatusRequest {
        message_id: id.to_bytes(),
    };
    let mut admin = place.admin().await;
    let status = admin.get_message_status(request).await.unwrap();
    status.into_inner().result
}

/// Who begins to ask in a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Both,
    Own,
    Stock,
}

/// Lets both servers store messages, and hand them out at the same time, or one
/// of them when the other has answered once: so both have some.
async fn compete(stock: &Place, own: &Place, at: [&Agent; 2]) -> (BTreeSet<Bytes>, Vec<Answer>) {
    let (mut sent, mut answers) = (BTreeSet::new(), Vec::new());
    for round in 0..ROUNDS {
        for _ in 0..MESSAGES {
            sent.insert(insert(stock, at[0]).await);
            sent.insert(insert(own, at[1]).await);
        }
        let first = [First::Both, First::Own, First::Stock][round % 3];
        let answered = &watch::Sender::new(first == First::Both);
        let polls = (0..2 * POLLS).map(|number| async move {
            let by_own = number % 2 == 1;
            if by_own != (first == First::Own) {
                let mut answered = answered.subscribe();
                answered.wait_for(|answered| *answered).await.unwrap();
            }
            let answer = ask(at[number % 2], by_own).await;
            answered.send_replace(true);
            answer
        });
        answers.extend(join_all(polls).await);
    }
    for _ in 0..ROUNDS {
        answers.push(ask(at[1], true).await);
        let given: BTreeSet<_> = answers.iter().flat_map(|answer| &answer.messages).collect();
        if given.len() == sent.len() {
            break;
        }
    }
    (sent, answers)
}

/// Says what the servers did; nothing is asserted.
#[expect(clippy::print_stdout, reason = "for docs/compatibility.md")]
fn report(sent: &BTreeSet<Bytes>, given: &BTreeMap<&Bytes, Vec<&Answer>>) {
    let count = |wanted: &dyn Fn(usize, usize) -> bool| {
        let times = given.values().map(|answers| {
            let own = answers.iter().filter(|answer| answer.by_own).count();
            (own, answers.len() - own)
        });
        times.filter(|(own, stock)| wanted(*own, *stock)).count()
    };
    println!(
        "{} messages: {} handed out by this server, {} by the stock server, {} of these by both, \
         {} more than once by the stock server",
        sent.len(),
        count(&|own, _| own > 0),
        count(&|_, stock| stock > 0),
        count(&|own, stock| own > 0 && stock > 0),
        count(&|_, stock| stock > 1),
    );
}

#[test]
fn this_server_hands_out_nothing_that_either_server_has_leased() {
    let bed = Bed::make("claims");
    let (stock, own) = (bed.place("stock"), bed.place("own"));
    let stock_server = stock.start_stock();
    let _own_server = own.start_own(&["--takeover=add"]);
    let key = KeyPair::generate().unwrap();
    let at = [&stock, &own].map(|place| Agent::with_key(place.agents(), &bed.authority, &key));

    // One after the other.
    block_on(async {
        ask(&at[0], false).await;
        let from_stock = insert(&stock, &at[0]).await;
        assert_eq!(ask(&at[0], false).await.messages, [from_stock].into());
        assert_eq!(ask(&at[1], true).await.messages, BTreeSet::new());
        let from_own = insert(&own, &at[1]).await;
        assert_eq!(ask(&at[1], true).await.messages, [from_own].into());
        assert_eq!(ask(&at[0], false).await.messages, BTreeSet::new());
        // What the stock server has stored, without our column.
        let from_stock = insert(&stock, &at[0]).await;
        assert_eq!(ask(&at[1], true).await.messages, [from_stock].into());
        assert_eq!(ask(&at[0], false).await.messages, BTreeSet::new());
    });
    let queues = "SELECT DISTINCT IF(fleethold_queue IS NULL, 'no', 'a') FROM pending_messages";
    assert_eq!(rows(&bed.database.url, queues), ["a"], "all are in a queue");

    // Both at once.
    let (sent, answers) = block_on(compete(&stock, &own, at.each_ref()));
    let mut given: BTreeMap<&Bytes, Vec<&Answer>> = BTreeMap::new();
    for answer in &answers {
        for message in &answer.messages {
            given.entry(message).or_default().push(answer);
        }
    }
    assert!(
        given.keys().copied().eq(&sent),
        "every message is handed out"
    );
    for (message, answers) in &given {
        let own = answers.iter().filter(|answer| answer.by_own);
        assert!(
            own.clone().count() <= 1,
            "{message:02x?}: twice by this one"
        );
        for answer in own {
            let before = answers
                .iter()
                .find(|other| !other.by_own && other.answered < answer.asked);
            assert!(before.is_none(), "{message:02x?}: leased by the other");
        }
    }
    let by = |own: bool| answers.iter().filter(move |answer| answer.by_own == own);
    let count = |own: bool| by(own).map(|answer| answer.messages.len()).sum::<usize>();
    let (by_own, by_stock) = (count(true), count(false));
    assert!(by_own > 0 && by_stock > 0, "{by_own} and {by_stock}");
    report(&sent, &given);
    let all = sent.len() + 3;
    for place in [&stock, &own] {
        assert_eq!(block_on(pending(place, &at[0])), all as u64);
    }
    drop(stock_server);
    bed.assert_sound();
}

#[test]
fn backlog_of_a_stock_server_is_processed_by_this_one() {
    let bed = Bed::make("backlog");
    let stock = bed.place("stock");
    // The service that is absent there is here.
    let own = bed.place_with("own", ABSENT);
    let stock_server = stock.start_stock();
    let _own_server = own.start_own(&["--takeover=add"]);
    let agent = Agent::new(stock.agents(), &bed.authority);
    block_on(async {
        // It tries for half a minute to reach the service, and agents wait.
        let answer = Message {
            data: Some(pack(&Address::default())),
            ..message(ABSENT, 1)
        };
        let contact = ContactData {
            messages: vec![answer],
            ..ContactData::default()
        };
        let request = post("/message", agent.wrap(&contact));
        let mut connection = agent.connect(request.version()).await;
        let answered = connection.send(request).await.unwrap();
        assert_eq!(answered.status(), StatusCode::OK);
    });
    let id = MessageId::for_source(Some(agent.id), "hello", &1_u32.to_be_bytes());
    assert_eq!(block_on(result(&own, &id)), None);
    let waiting = "SELECT COALESCE(HEX(fleethold_queue), 'none') FROM pending_messages";
    wait_until("this server to see what waits", || {
        let waiting = rows(&bed.database.url, waiting);
        if waiting == [""] {
            Ok(())
        } else {
            Err(waiting)
        }
    });
    stock_server.stop();
    let due = "UPDATE pending_messages SET scheduled_time = 1";
    sql(&bed.database.url, &[due]);
    let result = wait_until("a result", || block_on(result(&own, &id)).ok_or("none"));
    assert!(!result.failed, "{result:?}");
    assert_eq!(rows(&bed.database.url, waiting), [""; 0]);
    bed.assert_sound();
}
