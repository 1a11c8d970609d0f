//! Calls of many callers that share transactions: what they cost, and that each
//! caller gets its own answer whatever becomes of the others.
#![expect(
    clippy::print_stdout,
    reason = "the measured figures are worth reading"
)]

mod bed;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bed::load::{client, contact, id, message, success};
use bed::{Database, connect, options, run};
use fleethold_mysql::{MysqlOptions, MysqlStore};
use fleethold_proto::fleetspeak::Label;
use fleethold_store::{
    ClientData, ClientStore, ContactId, ErrorKind, ManualClock, MessageStore, Outcome, Random,
    ServiceLimits, Store,
};
use fleethold_testdb::{Cut, Proxy, mariadb};
use futures::future::join_all;
use mysql_async::prelude::Queryable;

struct Counted {
    store: MysqlStore,
    proxy: Proxy,
    database: Database,
}

/// Opens a store that has these many clients, and a connection that works.
async fn counted_on(server: &str, options: MysqlOptions, clients: u64) -> Counted {
    let database = Database::make_on(server).await;
    let port = server.rsplit_once(':').expect("a port").1;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().expect("a port")));
    let proxy = Proxy::start(target).await.unwrap();
    let source = format!(
        "fleethold:fleethold@tcp(127.0.0.1:{})/{}",
        proxy.port(),
        database.name
    );
    let clock = Arc::new(ManualClock::at(100_000));
    let random = Arc::new(Random::seeded(1));
    let store = MysqlStore::open(&source.parse().unwrap(), options, clock, random)
        .await
        .unwrap();
    for number in 1..=clients {
        store
            .add_client(client(number), &ClientData::default())
            .await
            .unwrap();
    }
    Counted {
        store,
        proxy,
        database,
    }
}

async fn counted(clients: u64) -> Counted {
    counted_on(
        bed::server().expect("a database server"),
        options(),
        clients,
    )
    .await
}

/// Each client makes contact with a message of its own, all at once.
async fn contacts(
    store: &MysqlStore,
    clients: impl Iterator<Item = u64>,
) -> Vec<fleethold_store::Result<ContactId>> {
    let calls = clients.map(|number| async move {
        let messages = [message(number, client(number))];
        store.store_contact(&contact(number), &messages).await
    });
    join_all(calls).await
}

/// Looks at the tables: each of the clients has one contact, with this number,
/// and its message is linked to it.
async fn assert_stored(database: &Database, stored: &[(u64, ContactId)]) {
    let mut connection = connect(&database.url()).await;
    let rows: Vec<(Vec<u8>, u64, Vec<u8>, i64)> = connection
        .query(
            "SELECT c.client_id, c.client_contact_id, m.message_id, k.last_contact_time \
             FROM client_contacts AS c \
             LEFT JOIN client_contact_messages AS m ON m.client_contact_id = c.client_contact_id \
             LEFT JOIN clients AS k ON k.client_id = c.client_id AND k.last_contact_time = c.time \
             AND k.last_contact_address = c.address ORDER BY c.client_id",
        )
        .await
        .unwrap();
    let found: Vec<_> = rows
        .into_iter()
        .map(|(client, number, message, _)| (client, format!("{number:x}"), message))
        .collect();
    let expected: Vec<_> = stored
        .iter()
        .map(|(number, contact)| {
            let client = client(*number).as_bytes().to_vec();
            (client, contact.to_string(), id(*number).as_bytes().to_vec())
        })
        .collect();
    assert_eq!(found, expected);
    let _ = connection.disconnect().await;
}

/// Pairs clients with the answers to their calls.
fn answered(
    clients: impl Iterator<Item = u64>,
    answers: Vec<fleethold_store::Result<ContactId>>,
) -> Vec<(u64, ContactId)> {
    let answers = answers.into_iter().map(Result::unwrap);
    clients.zip(answers).collect()
}

#[tokio::test]
async fn contacts_and_looks_of_many_callers_share_round_trips() {
    let Counted {
        store,
        proxy,
        database,
    } = counted(64).await;
    let mut before = proxy.round_trips();
    let mut spent = || {
        let now = proxy.round_trips();
        now - std::mem::replace(&mut before, now)
    };
    let stored = answered(1..=64, contacts(&store, 1..=64).await);
    let storing = spent();
    assert_stored(&database, &stored).await;

    let tokens = ServiceLimits::from([("service".to_owned(), 10), ("system".to_owned(), 10)]);
    for limits in [Some(&tokens), None] {
        let idle = (1_001..=1_064)
            .map(|number| store.client_messages_for_processing(client(number), 100, limits));
        for claimed in join_all(idle).await {
            assert!(claimed.unwrap().is_empty());
        }
        let looking = spent();
        println!("round trips of 64 callers: contacts {storing}, looks {looking}");
        // With those of connections that are made.
        assert!(looking <= 8, "{looking}");
    }
    assert!(storing <= 8, "{storing}");

    // Some have something, each its own, and some have nothing.
    let claims = (33..=96)
        .map(|number| store.client_messages_for_processing(client(number), 100, Some(&tokens)));
    let answers = join_all(claims).await;
    let claiming = spent();
    println!("round trips of 64 callers, half of which get something: {claiming}");
    // Two that look and two for each group of 32 that claims.
    assert!(claiming <= 12, "{claiming}");
    for (number, claimed) in (33..=96).zip(answers) {
        let claimed: Vec<_> = claimed.unwrap().into_iter().map(|m| m.message_id).collect();
        let expected: Vec<_> = (number <= 64)
            .then(|| id(number).to_bytes())
            .into_iter()
            .collect();
        assert_eq!(claimed, expected, "client {number}");
    }
    let claims =
        (1..=64).map(|number| store.client_messages_for_processing(client(number), 100, None));
    for (number, claimed) in (1..=64).zip(join_all(claims).await) {
        let expected = usize::from(number <= 32);
        assert_eq!(claimed.unwrap().len(), expected, "client {number}");
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn look_sees_what_a_stock_server_has_stored() {
    let Counted {
        store,
        database,
        proxy: _proxy,
    } = counted(20).await;
    answered(1..=20, contacts(&store, 1..=20).await);
    let mut connection = connect(&database.url()).await;
    run(
        &mut connection,
        "UPDATE pending_messages SET fleethold_queue = NULL",
    )
    .await;
    let mut claimed = 0;
    // What another caller just puts into queues is for the next look.
    for _ in 0..2 {
        let claims =
            (1..=20).map(|number| store.client_messages_for_processing(client(number), 100, None));
        let answers = join_all(claims).await.into_iter();
        claimed += answers.map(|answer| answer.unwrap().len()).sum::<usize>();
    }
    assert_eq!(claimed, 20);
    let _ = connection.disconnect().await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn contact_of_a_client_that_does_not_exist_fails_alone() {
    let Counted {
        store,
        database,
        proxy: _proxy,
    } = counted(20).await;
    let unknown = [7, 99, 21];
    let mut numbers: Vec<_> = (1..=20).filter(|number| *number != 7).collect();
    numbers.insert(5, 99);
    numbers.push(21);
    let mut stored = Vec::new();
    let answers = contacts(&store, numbers.iter().copied()).await;
    for (number, answer) in numbers.into_iter().zip(answers) {
        match answer {
            Ok(contact) => stored.push((number, contact)),
            Err(error) => {
                assert!(unknown.contains(&number), "{number}: {error:?}");
                assert!(error.is_not_found(), "{error:?}");
            }
        }
    }
    assert_eq!(stored.len(), 19);
    assert_stored(&database, &stored).await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn contact_whose_client_is_locked_waits_alone() {
    let server = bed::server().expect("a database server");
    let patient = MysqlOptions {
        lock_wait: Duration::from_secs(1),
        retry_for: Duration::from_secs(60),
        ..options()
    };
    let Counted {
        store,
        database,
        proxy: _proxy,
    } = counted_on(server, patient, 20).await;
    let mut other = connect(&database.url()).await;
    run(&mut other, "START TRANSACTION").await;
    run(
        &mut other,
        "UPDATE clients SET blacklisted = 0, last_contact_time = 1 \
         WHERE client_id = x'0000000000000007'",
    )
    .await;
    let locked = async {
        let messages = [message(7, client(7))];
        store.store_contact(&contact(7), &messages).await
    };
    let free = async {
        let numbers = (1..=20).filter(|number| *number != 7);
        let stored = answered(numbers.clone(), contacts(&store, numbers).await);
        // Only when all the others have their answers.
        run(&mut other, "ROLLBACK").await;
        stored
    };
    let (locked, mut stored) = tokio::join!(locked, free);
    stored.insert(6, (7, locked.unwrap()));
    assert_stored(&database, &stored).await;
    let _ = other.disconnect().await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn contacts_of_a_lost_commit_are_recorded_once() {
    for cut in [Cut::BeforeRequest, Cut::AfterAnswer] {
        let Counted {
            store,
            proxy,
            database,
        } = counted(20).await;
        proxy.cut_on(&b"COMMIT"[..], cut);
        let stored = answered(1..=20, contacts(&store, 1..=20).await);
        assert!(!proxy.take_back(), "it was cut");
        assert_stored(&database, &stored).await;
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn callers_of_a_group_that_fails_are_told_what_is_known() {
    let server = bed::server().expect("a database server");
    let hasty = MysqlOptions {
        retry_for: Duration::ZERO,
        ..options()
    };
    let Counted {
        store,
        proxy,
        database: _database,
    } = counted_on(server, hasty, 20).await;
    proxy.cut_on(&b"COMMIT"[..], Cut::AfterAnswer);
    for answer in contacts(&store, 1..=20).await {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
        assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
        assert_eq!(error.operation(), "store_contact");
    }
    proxy.refuse(true);
    for answer in contacts(&store, 1..=20).await {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
        assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
    }
    proxy.refuse(false);
    store.close().await.unwrap();
}

#[tokio::test]
async fn contacts_have_their_numbers_whatever_the_server_counts_by() {
    let server = mariadb::private(&["--auto-increment-increment=3", "--auto-increment-offset=2"])
        .expect("a database server");
    let url = mariadb::url(server.port());
    let Counted {
        store,
        database,
        proxy: _proxy,
    } = counted_on(&url, options(), 20).await;
    let stored = answered(1..=20, contacts(&store, 1..=20).await);
    assert_stored(&database, &stored).await;
    let numbers: BTreeSet<_> = stored
        .iter()
        .map(|(_, contact)| contact.to_string())
        .collect();
    let expected: BTreeSet<_> = (0..20).map(|nth| format!("{:x}", 2 + 3 * nth)).collect();
    assert_eq!(numbers, expected);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_contacts_at_once_has_its_own_number_and_links() {
    let Counted {
        store,
        database,
        proxy,
    } = counted(64).await;
    let before = proxy.round_trips();
    let calls = (1..=64).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut stored = Vec::new();
            for round in 0..5 {
                let new = 1_000 * number + round;
                let messages = [message(new, client(number))];
                let contact = store.store_contact(&contact(number), &messages).await;
                stored.push((contact.unwrap().to_string(), new));
            }
            stored
        })
    });
    let mut stored: Vec<_> = join_all(calls)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    println!(
        "{} round trips for 320 contacts",
        proxy.round_trips() - before
    );
    assert!(
        proxy.round_trips() - before <= 160,
        "they share transactions"
    );
    let mut connection = connect(&database.url()).await;
    let rows: Vec<(u64, Vec<u8>, Vec<u8>)> = connection
        .query(
            "SELECT l.client_contact_id, l.message_id, c.client_id \
             FROM client_contact_messages AS l \
             JOIN client_contacts AS c ON c.client_contact_id = l.client_contact_id",
        )
        .await
        .unwrap();
    let mut found: Vec<_> = rows
        .into_iter()
        .map(|(contact, message, of)| {
            let message = u64::from_be_bytes(message[24..].try_into().unwrap());
            assert_eq!(of, client(message / 1_000).as_bytes(), "its own client");
            (format!("{contact:x}"), message)
        })
        .collect();
    found.sort();
    stored.sort();
    assert_eq!(found, stored);
    let _ = connection.disconnect().await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn call_that_gets_no_connection_says_so() {
    let server = bed::server().expect("a database server");
    let one = MysqlOptions {
        connections: 1.try_into().expect("not zero"),
        wait_limit: Duration::from_millis(20),
        ..options()
    };
    let Counted {
        store,
        proxy,
        database: _database,
    } = counted_on(server, one, 1).await;
    let held = proxy.hold_on(&b"-- store_messages\n"[..]);
    let storing = tokio::spawn({
        let store = store.clone();
        async move { store.store_messages(&[message(1, client(1))], None).await }
    });
    held.arrived().await;
    let error = store.get_client_data(client(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.to_string().contains("busy"), "{error}");
    drop(held);
    storing.await.unwrap().unwrap();
    store.get_client_data(client(1)).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn first_contacts_go_together_with_others_and_one_of_a_known_client_fails_alone() {
    for cut in [None, Some(Cut::BeforeRequest), Some(Cut::AfterAnswer)] {
        let Counted {
            store,
            proxy,
            database,
        } = counted(32).await;
        let data = &ClientData {
            key: vec![1, 2, 3].into(),
            ..ClientData::default()
        };
        let make = |number: u64| {
            let store = &store;
            async move {
                if number.is_multiple_of(2) {
                    store.enrol(data, &contact(number)).await
                } else {
                    let messages = [message(number, client(number))];
                    store.store_contact(&contact(number), &messages).await
                }
            }
        };
        let before = proxy.round_trips();
        if let Some(cut) = cut {
            proxy.cut_on(&b"COMMIT"[..], cut);
        }
        // Odd clients are there up to 31, even ones from 34 on are new.
        let numbers = || (1..32).step_by(2).chain((34..=64).step_by(2));
        let contacts = answered(numbers(), join_all(numbers().map(make)).await);
        let spent = proxy.round_trips() - before;
        println!("{spent} round trips for 32 contacts, {cut:?}");
        assert!(cut.is_some() || spent <= 4, "{spent}");
        let mut connection = connect(&database.url()).await;
        let rows: Vec<(Vec<u8>, u64)> = connection
            .query("SELECT client_id, client_contact_id FROM client_contacts ORDER BY client_id")
            .await
            .unwrap();
        let _ = connection.disconnect().await;
        let found = rows.into_iter();
        let found: Vec<_> = found
            .map(|(id, number)| (id, format!("{number:x}")))
            .collect();
        let expected = contacts.iter();
        let expected: Vec<_> = expected
            .map(|(number, contact)| (client(*number).as_bytes().to_vec(), contact.to_string()))
            .collect();
        assert_eq!(found, expected, "{cut:?}");

        // Of these, 2 and 34 exist.
        let second = [2, 3, 34, 66, 68];
        let answers = join_all(second.map(make)).await;
        for (number, answer) in second.into_iter().zip(answers) {
            let kind = answer.err().map(|error| error.kind());
            let expected = [2, 34]
                .contains(&number)
                .then_some(ErrorKind::AlreadyExists);
            assert_eq!(kind, expected, "client {number}");
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn changes_of_many_callers_share_transactions_and_each_has_its_own_answer() {
    for cut in [None, Some(Cut::BeforeRequest), Some(Cut::AfterAnswer)] {
        let Counted {
            store,
            proxy,
            database: _database,
        } = counted(20).await;
        let recorded = store.record_client_contact(&contact(1)).await.unwrap();
        let unknown = ContactId::from_number(1 << 30);
        let known: Vec<_> = (1..=20)
            .map(|number| message(number, client(number)))
            .collect();
        store.store_messages(&known, None).await.unwrap();
        let before = proxy.round_trips();
        if let Some(cut) = cut {
            proxy.cut_on(&b"COMMIT"[..], cut);
        }
        let change = |number: u64| {
            let (store, recorded, unknown) = (&store, &recorded, &unknown);
            async move {
                let known = [id(number)];
                match number % 4 {
                    0 => store.set_message_results(&[(known[0], success())]).await,
                    1 => store.link_messages_to_contact(recorded, &known).await,
                    2 => store.link_messages_to_contact(unknown, &known).await,
                    _ => {
                        let new = message(number + 100, client(number));
                        store.store_messages(&[new], Some(recorded)).await
                    }
                }
            }
        };
        let answers = join_all((1..=20).map(change)).await;
        let spent = proxy.round_trips() - before;
        println!("{spent} round trips for 20 changes, {cut:?}");
        assert!(cut.is_some() || spent <= 4, "{spent}");
        for (number, answer) in (1..).zip(answers) {
            let kind = answer.err().map(|error| error.kind());
            let expected = (number % 4 == 2).then_some(ErrorKind::NotFound);
            assert_eq!(kind, expected, "change {number}, {cut:?}");
        }
        for number in 1..=20 {
            let result = store.get_message_result(id(number)).await.unwrap();
            assert_eq!(result.is_some(), number % 4 == 0, "message {number}");
            let new = store.get_messages(&[id(number + 100)], false).await;
            assert_eq!(new.is_ok(), number % 4 == 3, "new message {number}");
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn clients_of_many_callers_are_added_together_and_one_that_exists_fails_alone() {
    for cut in [None, Some(Cut::BeforeRequest), Some(Cut::AfterAnswer)] {
        let Counted {
            store,
            proxy,
            database: _database,
        } = counted(5).await;
        let data = |number: u64| ClientData {
            key: number.to_be_bytes().to_vec().into(),
            labels: vec![Label {
                service_name: "client".into(),
                label: format!("label {number}"),
            }],
            blacklisted: number.is_multiple_of(2),
        };
        let add = |numbers: std::ops::RangeInclusive<u64>| {
            let adding = numbers.map(|number| {
                let (store, data) = (store.clone(), data(number));
                async move { store.add_client(client(number), &data).await }
            });
            join_all(adding)
        };
        let before = proxy.round_trips();
        if let Some(cut) = cut {
            proxy.cut_on(&b"COMMIT"[..], cut);
        }
        for added in add(6..=69).await {
            added.unwrap();
        }
        let spent = proxy.round_trips() - before;
        println!("{spent} round trips for 64 clients, {cut:?}");
        assert!(cut.is_some() || spent <= 4, "{spent}");
        let answers = add(60..=80).await;
        for (number, answer) in (60..=80).zip(answers) {
            let kind = answer.err().map(|error| error.kind());
            let expected = (number < 70).then_some(ErrorKind::AlreadyExists);
            assert_eq!(kind, expected, "client {number}");
        }
        for number in 6..=80 {
            let found = store.get_client_data(client(number)).await.unwrap();
            assert_eq!(found, data(number));
        }
        store.close().await.unwrap();
    }
}
