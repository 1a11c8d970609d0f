//! A message to an agent's service and the answer to it, over each transport.

use crate::harness::{AgentOptions, Bed};

#[test]
fn messages_go_both_ways_by_polling() {
    messages_go_both_ways(AgentOptions::POLLING);
}

#[test]
fn messages_go_both_ways_by_polling_with_deflate() {
    messages_go_both_ways(AgentOptions {
        deflate: true,
        ..AgentOptions::POLLING
    });
}

#[test]
fn messages_go_both_ways_by_polling_over_http2() {
    messages_go_both_ways(AgentOptions {
        http2: true,
        ..AgentOptions::POLLING
    });
}

#[test]
fn messages_go_both_ways_by_polling_over_http2_with_deflate() {
    messages_go_both_ways(AgentOptions {
        http2: true,
        deflate: true,
        ..AgentOptions::POLLING
    });
}

#[test]
fn messages_go_both_ways_by_streaming() {
    messages_go_both_ways(AgentOptions::STREAMING);
}

#[test]
fn messages_go_both_ways_by_streaming_with_deflate() {
    messages_go_both_ways(AgentOptions {
        deflate: true,
        ..AgentOptions::STREAMING
    });
}

#[test]
fn messages_go_both_ways_by_streaming_over_http2() {
    messages_go_both_ways(AgentOptions {
        http2: true,
        ..AgentOptions::STREAMING
    });
}

#[test]
fn messages_go_both_ways_by_streaming_over_http2_with_deflate() {
    messages_go_both_ways(AgentOptions {
        http2: true,
        deflate: true,
        ..AgentOptions::STREAMING
    });
}

fn messages_go_both_ways(options: AgentOptions) {
    let bed = Bed::start();
    let agent = bed.start_agent("one", options);
    let client = bed.service.client_of(&agent);

    let first = bed.service.exchange(&client, "first");
    // Longer than any buffer on the way; the text does not compress well.
    let long: String = (0..40_000)
        .map(|number: u64| format!("{:x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let second = bed.service.exchange(&client, &long);

    // The agent has acknowledged both.
    bed.service.wait_until_done(&[first, second]);
    assert_eq!(agent.times_delivered("first"), 1);
}

#[test]
fn five_hundred_answers_arrive_by_streaming() {
    many_answers_arrive(AgentOptions::STREAMING);
}

#[test]
fn five_hundred_answers_arrive_by_polling() {
    many_answers_arrive(AgentOptions::POLLING);
}

/// More than fit into a contact, and more than the agent lets out without an
/// acknowledgement.
fn many_answers_arrive(options: AgentOptions) {
    let bed = Bed::start();
    let agent = bed.start_agent("one", options);
    let client = bed.service.client_of(&agent);
    bed.service.send(&client.id, "Burst", "answer 500");
    let expected = (0..500).map(|number| format!("answer-{number}")).collect();
    bed.service.wait_for_echoes(&client.id, &expected);
}

#[test]
fn messages_for_an_absent_agent_wait_for_it() {
    let mut bed = Bed::start();
    let mut agent = bed.start_agent("one", AgentOptions::POLLING);
    let client = bed.service.client_of(&agent);
    bed.service.exchange(&client, "present");
    bed.take_away(&mut agent);

    // More than one contact may carry.
    let texts: Vec<_> = (0..120).map(|number| format!("absent-{number}")).collect();
    let ids: Vec<_> = texts
        .iter()
        .map(|text| bed.service.send(&client.id, "Text", text).id)
        .collect();
    agent.start_again();

    bed.service
        .wait_for_echoes(&client.id, &texts.iter().cloned().collect());
    bed.service.wait_until_done(&ids);
    for text in &texts {
        assert_eq!(agent.times_delivered(text), 1, "{text}");
    }
}

#[test]
fn messages_pushed_to_a_stream_whose_agent_dies_reach_the_next_one() {
    let bed = Bed::start();
    let mut agent = bed.start_agent("one", AgentOptions::STREAMING);
    let client = bed.service.client_of(&agent);
    bed.service.exchange(&client, "present");
    // It no longer reads: what is pushed ends in its connection.
    agent.freeze();
    let texts: Vec<_> = (0..20).map(|number| format!("pushed-{number}")).collect();
    let ids: Vec<_> = texts
        .iter()
        .map(|text| bed.service.send(&client.id, "Text", text).id)
        .collect();
    agent.kill();
    agent.start_again();
    bed.service
        .wait_for_echoes(&client.id, &texts.iter().cloned().collect());
    bed.service.wait_until_done(&ids);
}
