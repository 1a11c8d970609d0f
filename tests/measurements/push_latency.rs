//! How long a message takes from the call of the admin interface to the
//! service on a waiting, streaming stock agent.
//!
//! Run it with `scripts/measure-push-latency`. Both ends read the same
//! monotonic clock; the time includes the gRPC call, the commit and the agent's
//! pipe to its service. Before each message the previous one is acknowledged,
//! so that the agent only waits.

#[path = "../end_to_end/harness/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "the end-to-end tests use the rest"
)]
mod harness;

use harness::{AgentOptions, Bed};

const COUNT: usize = 30;

fn main() {
    report("HTTP/1.1", &measure(AgentOptions::STREAMING));
    report(
        "HTTP/2",
        &measure(AgentOptions {
            http2: true,
            ..AgentOptions::STREAMING
        }),
    );
}

/// Returns the times of all messages in milliseconds, the shortest first.
fn measure(options: AgentOptions) -> Vec<f64> {
    let bed = Bed::start();
    let agent = bed.start_agent("one", options);
    let client = bed.service.client_of(&agent);
    bed.service.exchange(&client, "warm-up");

    let mut times: Vec<_> = (0..COUNT)
        .map(|number| {
            let text = number.to_string();
            let sent = bed.service.send(&client.id, "Text", &text);
            let delivery = agent.wait_for_delivery(|delivery| delivery.text == text);
            bed.service.wait_until_done(&[sent.id]);
            delivery.arrived_ns.abs_diff(sent.called_ns) as f64 / 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn report(transport: &str, times: &[f64]) {
    println!(
        "push latency over {transport}, {COUNT} messages: median {:.1} ms, 90 % within {:.1} ms, longest {:.1} ms",
        times[COUNT / 2],
        times[COUNT * 9 / 10],
        times[COUNT - 1],
    );
}
