//! Contacts of many agents at once: what they cost, and that each is stored as
//! if it had come alone.

mod bed;

use std::collections::BTreeMap;

use bed::{Proxied, contact, id, processed, to_client};
use fleethold_postgres::PostgresStore;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::{
    ClientData, ClientId, ClientStore, ContactData, ContactId, ErrorKind, MessageStore, Result,
    Store,
};
use fleethold_testdb::Cut;
use futures::future::join_all;

const AGENTS: u64 = 64;

fn agent(number: u64) -> ClientId {
    ClientId::new((1_000 + number).to_be_bytes())
}

fn contact_of(number: u64) -> ContactData {
    ContactData {
        client_id: agent(number),
        addr: format!("192.0.2.{number}:1"),
        ..contact()
    }
}

/// Two messages that an agent brings, and that were processed already.
fn messages_of(number: u64) -> [Message; 2] {
    [2 * number, 2 * number + 1].map(|message| {
        let mut message = processed(message);
        let source = message.source.as_mut().expect("a source");
        source.client_id = agent(number).to_bytes();
        message
    })
}

struct Fleet {
    proxied: Proxied,
    store: PostgresStore,
}

impl Fleet {
    /// With one connection, so that all statements are prepared when they are
    /// used again.
    async fn new() -> Self {
        Self::with_connections(1).await
    }

    async fn with_connections(count: u16) -> Self {
        let proxied = Proxied::new().await;
        let mut options = proxied.options();
        options.pool_size = count.try_into().unwrap();
        let store = bed::open(options).await;
        let data = ClientData::default();
        for number in 0..AGENTS {
            store.add_client(agent(number), &data).await.unwrap();
        }
        Self { proxied, store }
    }

    async fn trips(&self, calls: impl Future<Output = ()>) -> u64 {
        let before = self.proxied.proxy.round_trips();
        calls.await;
        self.proxied.proxy.round_trips() - before
    }

    async fn contacts(&self, with_messages: bool) -> Vec<Result<ContactId>> {
        let calls = (0..AGENTS).map(|number| async move {
            let messages = messages_of(number);
            let messages = if with_messages { &messages[..] } else { &[] };
            self.store
                .store_contact(&contact_of(number), messages)
                .await
        });
        join_all(calls).await
    }

    async fn claims(&self) -> Vec<usize> {
        let calls = (0..AGENTS).map(|number| async move {
            self.store
                .client_messages_for_processing(agent(number), 10, None)
                .await
                .unwrap()
                .len()
        });
        join_all(calls).await
    }

    /// Returns the contacts that brought the messages which are in the database.
    async fn bearers(&self) -> BTreeMap<Vec<u8>, String> {
        let client = self.proxied.database.connect().await;
        let sql = "SELECT message_id, encode(client_id || contact_id, 'hex') FROM messages";
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

fn all_ok(answers: Vec<Result<ContactId>>) -> Vec<ContactId> {
    answers.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn contacts_of_many_agents_share_their_round_trips() {
    let fleet = Fleet::new().await;
    for round in 0..2 {
        let idle = fleet.trips(async { drop(all_ok(fleet.contacts(false).await)) });
        let idle = idle.await;
        let full = fleet.trips(async { drop(all_ok(fleet.contacts(true).await)) });
        let full = full.await;
        let asking = fleet.trips(async { assert_eq!(fleet.claims().await, [0; 64]) });
        let asking = asking.await;
        // The first round prepares statements.
        assert!(
            round == 0 || idle <= 2 && full <= 4 && asking <= 2,
            "{idle} {full} {asking}"
        );
    }
}

#[tokio::test]
async fn each_message_is_linked_to_the_contact_that_brought_it() {
    let fleet = Fleet::new().await;
    let contacts = all_ok(fleet.contacts(true).await);
    let bearers = fleet.bearers().await;
    for (number, contact) in (0..).zip(&contacts) {
        for message in messages_of(number) {
            let bearer = &bearers[&message.message_id.to_vec()];
            assert_eq!(bearer, contact.as_str(), "of agent {number}");
        }
        let listed = fleet
            .store
            .list_client_contacts(agent(number))
            .await
            .unwrap();
        let [listed] = &listed[..] else {
            panic!("one contact: {listed:?}");
        };
        assert_eq!(listed.observed_address, contact_of(number).addr);
    }
}

#[tokio::test]
async fn a_client_that_does_not_exist_keeps_nobody_from_being_stored() {
    let fleet = Fleet::new().await;
    let stranger = ContactData {
        client_id: ClientId::new([9; 8]),
        ..contact()
    };
    let strangers = [processed(1_000)];
    let (unknown, others) = tokio::join!(
        fleet.store.store_contact(&stranger, &strangers),
        fleet.contacts(true)
    );
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(all_ok(others).len() as u64, AGENTS);
    let stored = fleet.bearers().await;
    assert_eq!(stored.len() as u64, 2 * AGENTS);
    assert!(!stored.contains_key(id(1_000).as_bytes().as_slice()));
}

#[tokio::test]
async fn what_the_database_refuses_is_refused_to_its_own_caller() {
    let fleet = Fleet::new().await;
    let refused = 7;
    let address = contact_of(refused).addr;
    let client = fleet.proxied.database.connect().await;
    let rule = format!("ALTER TABLE contacts ADD CHECK (address <> '{address}'::bytea)");
    client.batch_execute(&rule).await.unwrap();
    let answers = fleet.contacts(true).await;
    for (number, answer) in (0..).zip(answers) {
        match answer {
            Ok(_) => assert_ne!(number, refused),
            Err(error) => {
                assert_eq!((number, error.kind()), (refused, ErrorKind::Internal));
            }
        }
    }
    let stored = fleet.bearers().await;
    assert_eq!(stored.len() as u64, 2 * (AGENTS - 1), "all or nothing");
}

#[tokio::test]
async fn contacts_whose_commit_is_cut_off_are_recorded_once() {
    for cut in [Cut::BeforeRequest, Cut::AfterAnswer] {
        let fleet = Fleet::new().await;
        fleet.proxied.proxy.cut_on("COMMIT", cut);
        let contacts = all_ok(fleet.contacts(true).await);
        assert!(!fleet.proxied.proxy.take_back(), "a commit was cut off");
        let bearers = fleet.bearers().await;
        assert_eq!(bearers.len() as u64, 2 * AGENTS);
        for (number, contact) in (0..).zip(&contacts) {
            let listed = fleet.store.list_client_contacts(agent(number)).await;
            assert_eq!(listed.unwrap().len(), 1, "of agent {number}");
            let [message, _] = messages_of(number);
            assert_eq!(&bearers[&message.message_id.to_vec()], contact.as_str());
        }
    }
}

#[tokio::test]
async fn a_client_that_is_locked_keeps_nobody_else_waiting() {
    let fleet = Fleet::with_connections(4).await;
    let locked = 7;
    let mut holder = fleet.proxied.database.connect().await;
    let lock = holder.transaction().await.unwrap();
    let sql = "SELECT 1 FROM clients WHERE client_id = $1 FOR UPDATE";
    let id = agent(locked).as_bytes().to_vec();
    assert_eq!(lock.query(sql, &[&id]).await.unwrap().len(), 1);
    let store = |number: u64| {
        let store = fleet.store.clone();
        tokio::spawn(async move { store.store_contact(&contact_of(number), &[]).await })
    };
    let mut calls: Vec<_> = (0..AGENTS).map(store).collect();
    let waiting = calls.remove(usize::try_from(locked).unwrap());
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert!(!waiting.is_finished());
    lock.rollback().await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn clients_added_together_whose_commit_is_cut_off_are_added_once() {
    for cut in [Cut::BeforeRequest, Cut::AfterAnswer] {
        let fleet = Fleet::new().await;
        let new: Vec<_> = (AGENTS..2 * AGENTS).collect();
        let data = ClientData {
            key: vec![1, 2, 3].into(),
            ..ClientData::default()
        };
        let add = || {
            let calls = new
                .iter()
                .map(|number| fleet.store.add_client(agent(*number), &data));
            join_all(calls)
        };
        let before = fleet.proxied.proxy.round_trips();
        fleet.proxied.proxy.cut_on("COMMIT", cut);
        for added in add().await {
            added.unwrap();
        }
        assert!(!fleet.proxied.proxy.take_back(), "a commit was cut off");
        let trips = fleet.proxied.proxy.round_trips() - before;
        assert!(trips < 20, "{trips} for {} clients", new.len());
        for added in add().await {
            assert_eq!(added.unwrap_err().kind(), ErrorKind::AlreadyExists);
        }
    }
}

#[tokio::test]
async fn who_waits_for_others_when_the_store_closes_is_answered() {
    let fleet = Fleet::new().await;
    let calls = fleet.contacts(true);
    let (answers, closed) = tokio::join!(calls, fleet.store.close());
    closed.unwrap();
    for answer in answers {
        let kind = answer.err().map(|error| error.kind());
        assert!(
            kind.is_none_or(|kind| kind == ErrorKind::Closed),
            "{kind:?}"
        );
    }
}

#[tokio::test]
async fn who_asks_with_many_others_gets_all_that_was_stored_before() {
    let fleet = Fleet::new().await;
    let waiting = (0..AGENTS).filter(|number| number % 3 == 0);
    let messages: Vec<_> = waiting
        .map(|number| {
            let mut message = to_client(number);
            let destination = message.destination.as_mut().expect("a destination");
            destination.client_id = agent(number).to_bytes();
            message
        })
        .collect();
    fleet.store.store_messages(&messages, None).await.unwrap();
    let found = fleet.claims().await;
    for (number, found) in found.into_iter().enumerate() {
        assert_eq!(found, usize::from(number % 3 == 0), "agent {number}");
    }
}

#[tokio::test]
async fn alone_by_option_each_contact_is_a_transaction() {
    let proxied = Proxied::new().await;
    let mut options = proxied.options();
    options.together = false;
    let store = bed::open(options).await;
    let data = ClientData::default();
    for number in 0..3 {
        store.add_client(agent(number), &data).await.unwrap();
    }
    let before = proxied.proxy.round_trips();
    let contacts: Vec<_> = (0..3).map(contact_of).collect();
    for stored in join_all(
        contacts
            .iter()
            .map(|contact| store.store_contact(contact, &[])),
    )
    .await
    {
        stored.unwrap();
    }
    assert!(proxied.proxy.round_trips() - before >= 3);
}
