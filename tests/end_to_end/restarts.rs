//! A server that dies or is stopped, and comes back.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::harness::{AgentOptions, Bed, Status, wait_until};

#[test]
fn messages_accepted_before_a_sigkill_reach_the_agent() {
    let mut bed = Bed::start();
    let mut agent = bed.start_agent("one", AgentOptions::STREAMING);
    let client = bed.service.client_of(&agent);
    let finished: Vec<_> = (0..10)
        .map(|number| bed.service.exchange(&client, &format!("finished-{number}")))
        .collect();
    bed.service.wait_until_done(&finished);
    bed.take_away(&mut agent);

    // The connector repeats a call that fails, under the same message id.
    let accepted = Mutex::new(Vec::new());
    let Bed {
        service, server, ..
    } = &mut bed;
    let known = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..200 {
                let id = service
                    .send(&client.id, "Text", &format!("pending-{number}"))
                    .id;
                accepted.lock().expect("no sender panics").push(id);
            }
        });
        let accepted = || accepted.lock().expect("no sender panics").clone();
        wait_until("fifty accepted messages", || {
            let count = accepted().len();
            if count >= 50 { Ok(()) } else { Err(count) }
        });
        server.kill();
        let known = accepted();
        server.start_again();
        known
    });
    assert!(known.len() < 200, "the server was not killed in the middle");

    assert!(
        bed.service
            .statuses(&finished)
            .iter()
            .all(|status| *status == Status::Done)
    );
    let statuses = bed.service.statuses(&known);
    assert!(
        statuses.iter().all(|status| *status == Status::Pending),
        "{statuses:?}"
    );

    agent.start_again();
    let texts = (0..200).map(|number| format!("pending-{number}")).collect();
    bed.service.wait_for_echoes(&client.id, &texts);
    bed.service
        .wait_until_done(&accepted.into_inner().expect("no sender panics"));
}

#[test]
fn messages_of_a_streaming_agent_survive_a_sigkill_of_the_server() {
    messages_of_an_agent_survive_a_sigkill(AgentOptions::STREAMING);
}

#[test]
fn messages_of_a_polling_agent_survive_a_sigkill_of_the_server() {
    messages_of_an_agent_survive_a_sigkill(AgentOptions::POLLING);
}

fn messages_of_an_agent_survive_a_sigkill(options: AgentOptions) {
    const COUNT: usize = 1000;
    let mut bed = Bed::start();
    let agent = bed.start_agent("one", options);
    let client = bed.service.client_of(&agent);
    bed.service
        .send(&client.id, "Burst", &format!("answer {COUNT}"));
    wait_until("the first of many answers", || {
        let count = bed.service.received().len();
        if count >= 50 { Ok(()) } else { Err(count) }
    });
    bed.server.kill();
    let before: HashSet<_> = bed
        .service
        .received()
        .into_iter()
        .map(|message| message.text)
        .collect();
    assert!(
        before.len() < COUNT,
        "the server was not killed in the middle"
    );

    bed.server.start_again();
    let expected = (0..COUNT)
        .map(|number| format!("answer-{number}"))
        .collect();
    bed.service.wait_for_echoes(&client.id, &expected);
}

#[test]
fn sigterm_stops_the_server_within_ten_seconds_while_an_agent_streams() {
    let mut bed = Bed::start();
    let agent = bed.start_agent("one", AgentOptions::STREAMING);
    let client = bed.service.client_of(&agent);
    bed.service.exchange(&client, "before");

    bed.server.stop(Duration::from_secs(10));
    bed.server.start_again();
    bed.service.exchange(&client, "after");
}
