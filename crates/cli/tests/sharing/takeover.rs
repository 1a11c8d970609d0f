//! A database of the stock server: taken over under traffic, used, handed back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fleethold_proto::fleetspeak::ContactData;
use fleethold_proto::fleetspeak::server::ListClientsRequest;

use crate::agent::Agent as SimulatedAgent;
use crate::bed::{Bed, block_on, fleethold};
use crate::database::{rows, sql};
use crate::harness::{Agent, AgentOptions, Client, ServerSideService, Status, wait_until};

const CANARY: AgentOptions = AgentOptions {
    label: Some("canary"),
    ..AgentOptions::POLLING
};

/// Everything that can be seen of a database's shape.
fn shape(bed: &Bed) -> Vec<String> {
    rows(
        &bed.database.url,
        "SELECT CONCAT_WS(' ', table_name, column_name, ordinal_position, column_type, \
         is_nullable, column_key, extra) FROM information_schema.columns \
         WHERE table_schema = DATABASE() \
         UNION ALL SELECT CONCAT_WS(' ', table_name, index_name, seq_in_index, column_name) \
         FROM information_schema.statistics WHERE table_schema = DATABASE() ORDER BY 1",
    )
}

/// Makes what waits for services due, which takes a minute and more.
fn make_backlog_due(bed: &Bed) {
    let due = "UPDATE pending_messages SET scheduled_time = 1 WHERE for_server = 1";
    sql(&bed.database.url, &[due]);
}

/// Waits until so many messages wait for services.
fn wait_for_backlog(bed: &Bed, count: usize) {
    let waiting = "SELECT LOWER(HEX(message_id)) FROM pending_messages WHERE for_server = 1";
    wait_until("a message to wait for its service", || {
        let waiting = rows(&bed.database.url, waiting);
        if waiting.len() == count {
            Ok(())
        } else {
            Err(waiting)
        }
    });
}

/// Sends messages to an agent that is away, more than one contact carries of
/// some, and returns their ids and texts.
fn send_many(
    service: &ServerSideService,
    to: &Client,
    word: &str,
    count: usize,
) -> (Vec<String>, Vec<String>) {
    let texts = (0..count).map(|number| format!("{word}-{number}"));
    texts
        .map(|text| (service.send(&to.id, "Text", &text).id, text))
        .unzip()
}

/// Sends messages as long as `meanwhile` takes, at least 30, and returns their ids.
fn under_traffic<T>(
    service: &ServerSideService,
    to: &Client,
    meanwhile: impl FnOnce() -> T,
) -> (Vec<String>, T) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut ids = Vec::new();
            while !done.load(Ordering::SeqCst) || ids.len() < 30 {
                let text = format!("traffic-{}", ids.len());
                ids.push(service.send(&to.id, "Text", &text).id);
            }
            ids
        });
        let outcome = meanwhile();
        done.store(true, Ordering::SeqCst);
        (traffic.join().expect("every message is taken"), outcome)
    })
}

fn assert_all_once(agent: &Agent, texts: &[String]) {
    for text in texts {
        assert_eq!(agent.times_delivered(text), 1, "{text}");
    }
}

#[test]
fn database_is_taken_over_under_traffic_and_handed_back() {
    let bed = Bed::make("takeover");
    let (stock, own) = (bed.place("stock"), bed.place("own"));
    // One prefers the stock server, the other this one, when they have the choice.
    let loyal = bed.start_agent("loyal", &[&stock, &own], CANARY);
    let mut curious = bed.start_agent("curious", &[&own, &stock], CANARY);

    // This one knows the stock server only, and waits until that is back.
    let late = AgentOptions {
        label: Some("late"),
        ..CANARY
    };
    let late = bed.start_agent("late", &[&stock], late);

    // The stock server fills its database.
    let stock_server = stock.start_stock();
    let stock_service = stock.start_service();
    let [loyal_client, curious_client] =
        [&loyal, &curious].map(|agent| stock_service.client_of(agent));
    let late_client = stock_service.client_of(&late);
    // Broadcasts reach agents that have not started their services yet, in vain.
    let mut ids: Vec<_> = [&loyal_client, &curious_client, &late_client]
        .map(|client| stock_service.exchange(client, "first"))
        .into();
    stock_service.broadcast("old news", &["client:canary"], 10);
    for agent in [&loyal, &curious] {
        agent.wait_for_delivery(|delivery| delivery.text == "old news");
    }
    stock_service.wait_until_nothing_is_pending(&curious_client.id);
    curious.kill();
    let (for_curious, old_texts) = send_many(&stock_service, &curious_client, "old", 30);
    let content = bed.path().join("content");
    std::fs::write(&content, "from the old days").unwrap();
    let content = content.to_str().unwrap();
    fleethold([
        "file",
        "put",
        "echo",
        "tool",
        content,
        "--admin",
        &stock.admin,
    ]);

    // This program looks, joins, and the stock server goes on.
    let before = shape(&bed);
    let (traffic, (report, mut own_server)) = under_traffic(&stock_service, &loyal_client, || {
        let check = own.arguments(&["--takeover=check"]);
        let report = fleethold(["serve".to_owned()].into_iter().chain(check));
        assert_eq!(shape(&bed), before, "looking changes nothing");
        (report, own.start_own(&["--takeover=add"]))
    });
    let own_service = own.start_service();
    for part in ["was made by a stock server", "to be added: column"] {
        assert!(report.contains(part), "{report}");
    }
    let after = shape(&bed);
    for line in &before {
        assert!(after.contains(line), "{line} is kept");
    }
    stock_service.wait_until_done(&traffic);
    curious.start_again();
    own_service.wait_for_echoes(&curious_client.id, &old_texts.iter().cloned().collect());
    own_service.wait_until_done(&for_curious);
    assert_all_once(&curious, &old_texts);
    ids.extend(traffic.into_iter().chain(for_curious));

    // The stock server leaves.
    drop(stock_service);
    stock_server.stop();
    ids.push(own_service.exchange(&loyal_client, "second"));
    own_service.wait_until_done(&ids);
    let clients = own_service.clients();
    assert_eq!(clients.len(), 3, "{clients:?}");
    assert_eq!(
        own_server.download("echo", "tool").as_deref(),
        Some(&b"from the old days"[..])
    );
    own_service.broadcast("new news", &["client:canary"], 10);
    own_service.broadcast("for late ones", &["client:late"], 1);
    for agent in [&loyal, &curious] {
        agent.wait_for_delivery(|delivery| delivery.text == "new news");
    }
    own_service.wait_until_nothing_is_pending(&curious_client.id);
    curious.kill();
    let (for_curious, new_texts) = send_many(&own_service, &curious_client, "new", 30);
    drop(own_service);
    // Its answer has nowhere to go.
    own.send(&loyal_client.id, "backlog");
    wait_for_backlog(&bed, 1);
    bed.assert_sound();

    // This program leaves; the stock server knows all it has done.
    own_server.stop(std::time::Duration::from_secs(30));
    let stock_server = stock.start_stock();
    let stock_service = stock.start_service();
    let waiting = stock_service.statuses(&for_curious);
    assert!(waiting.iter().all(|status| *status == Status::Pending));
    stock_service.wait_until_done(&ids);
    curious.start_again();
    stock_service.wait_for_echoes(&curious_client.id, &new_texts.iter().cloned().collect());
    stock_service.wait_until_done(&for_curious);
    assert_all_once(&curious, &new_texts);
    make_backlog_due(&bed);
    stock_service.wait_for_echo(&loyal_client.id, "backlog");
    late.wait_for_delivery(|delivery| delivery.text == "for late ones");
    stock_service.exchange(&late_client, "hello");
    stock_service.exchange(&loyal_client, "third");
    assert_eq!(stock_service.clients().len(), 3);

    // And this program again, without being told anything.
    stock_server.stop();
    let _own_server = own.start_own(&[]);
    let own_service = own.start_service();
    own_service.exchange(&loyal_client, "fourth");
    for agent in [&loyal, &curious] {
        for text in ["old news", "new news"] {
            assert_eq!(agent.times_delivered(text), 1, "{}: {text}", agent.name());
        }
    }
    assert_eq!(late.times_delivered("for late ones"), 1);
    bed.assert_sound();
}

#[test]
fn database_in_latin1_is_taken_over_after_the_statements_that_check_prints() {
    let bed = Bed::make("latin1");
    let database = bed.database.url.rsplit_once('/').expect("a database").1;
    let alter = format!("ALTER DATABASE {database} CHARACTER SET latin1");
    sql(&bed.database.url, &[&alter]);
    let (stock, own) = (bed.place("stock"), bed.place("own"));
    let _stock_server = stock.start_stock();
    let check = || {
        let check = own.arguments(&["--takeover=check"]);
        fleethold(["serve".to_owned()].into_iter().chain(check))
    };
    let report = check();
    let alters = report.lines().filter_map(|line| {
        let start = line.find("ALTER TABLE")?;
        line.starts_with("in the way: ").then(|| &line[start..])
    });
    let alters: Vec<_> = alters.collect();
    assert!(alters.len() > 5, "{report}");
    sql(&bed.database.url, &alters);
    let report = check();
    assert!(!report.contains("in the way"), "{report}");
    let _own_server = own.start_own(&["--takeover=add"]);
    // Either server writes what the tables could not hold before, and the other reads it.
    for (at, other) in [(&stock, &own), (&own, &stock)] {
        let mut agent = SimulatedAgent::new(at.agents(), &bed.authority);
        agent.labels = vec!["größer ✓".to_owned()];
        block_on(agent.poll(&ContactData::default()));
        let clients = block_on(async {
            let request = ListClientsRequest::default();
            let clients = other.admin().await.list_clients(request).await;
            clients.unwrap().into_inner().clients
        });
        let id = agent.id.to_bytes();
        let client = clients.iter().find(|client| client.client_id == id);
        let labels = &client.expect("the other server lists it").labels;
        assert_eq!(labels[0].label, "größer ✓");
    }
}
