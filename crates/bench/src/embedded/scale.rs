//! How much of everything is measured.

use std::time::Duration;

/// The sizes of a run.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Scale {
    /// What reports call it.
    pub name: &'static str,
    /// How often each figure is measured.
    pub repetitions: u32,
    /// About how long a repetition of storing takes.
    pub window: Duration,
    /// Rows that stores and tables hold before messages are stored.
    pub prefill: u32,
    /// Pending messages of the client whose messages are claimed, rising.
    pub pending: [u32; 4],
    /// Finished messages in the history of such a client.
    pub finished: u32,
    /// Claims in one repetition.
    pub claims: u32,
    /// Pending messages in the store that is polled.
    pub backlog: u32,
    /// Overdue server messages.
    pub overdue: u32,
    /// Clients of the store whose contacts are recorded and whose ids are streamed.
    pub clients: u32,
    /// How long the reader of a stream pauses.
    pub pause: Duration,
    /// Messages whose place on disk is measured.
    pub footprint: u32,
    /// How large the files are, in bytes.
    pub files: [u32; 2],
}

impl Scale {
    /// The measurement that `docs/benchmarks.md` shows; some five minutes.
    pub const FULL: Self = Self {
        name: "full",
        repetitions: 5,
        window: Duration::from_millis(400),
        prefill: 200_000,
        pending: [1, 100, 10_000, 1_000_000],
        finished: 1_000_000,
        claims: 40,
        backlog: 100_000,
        overdue: 10_000,
        clients: 100_000,
        pause: Duration::from_secs(10),
        footprint: 400_000,
        files: [1_000_000, 15_000_000],
    };

    /// Shows whether something became ten times slower; half a minute.
    pub const QUICK: Self = Self {
        name: "quick",
        repetitions: 3,
        window: Duration::from_millis(30),
        prefill: 10_000,
        pending: [1, 100, 10_000, 50_000],
        finished: 50_000,
        claims: 10,
        backlog: 10_000,
        overdue: 2_000,
        clients: 10_000,
        pause: Duration::from_secs(1),
        footprint: 20_000,
        files: [1_000_000, 15_000_000],
    };

    /// Shows that everything still runs, and nothing else.
    pub const SMOKE: Self = Self {
        name: "smoke",
        repetitions: 2,
        window: Duration::from_millis(2),
        prefill: 500,
        pending: [1, 100, 100, 300],
        finished: 300,
        claims: 2,
        backlog: 1_000,
        overdue: 200,
        clients: 1_500,
        pause: Duration::from_millis(50),
        footprint: 500,
        files: [1_000, 15_000],
    };
}
