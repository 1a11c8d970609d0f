//! A process that writes under load is killed, and the store it leaves is
//! judged by what the process was told.
//!
//! The process is this program again, see [`child`]. It is killed at random
//! times, while a commit begins, and after a commit before anybody hears of it.
//! `FLEETHOLD_CRASH_KILLS` says how often in all, `FLEETHOLD_CRASH_SEED` when;
//! see `docs/reliability.md`.

mod child;
mod findings;
mod history;
mod parent;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use child::Death;
use parent::{Stage, Whose, kill_repeatedly};

/// How often a process is killed in CI, all cases together.
const KILLS: u64 = 200;

struct Case {
    name: &'static str,
    whose: Whose,
    stage: Stage,
    /// Of [`KILLS`].
    kills: u64,
    death: fn(u64) -> Death,
}

const CASES: &[Case] = &[
    Case {
        name: "one_store_outlives_kills_at_random_times",
        whose: Whose::One,
        stage: Stage::Open,
        kills: 65,
        death: |_| Death::AtRandom,
    },
    Case {
        name: "fresh_stores_outlive_kills_at_random_times",
        whose: Whose::Fresh,
        stage: Stage::Start,
        kills: 50,
        death: |_| Death::AtRandom,
    },
    Case {
        name: "one_store_outlives_kills_at_each_commit",
        whose: Whose::One,
        stage: Stage::Open,
        kills: 35,
        death: |round| Death::InCommit(1 + round),
    },
    Case {
        name: "one_store_outlives_kills_after_each_commit_before_its_answers",
        whose: Whose::One,
        stage: Stage::Open,
        kills: 40,
        death: |round| Death::AfterCommit(1 + round),
    },
    Case {
        name: "store_that_moves_its_ids_to_the_table_outlives_kills",
        whose: Whose::Large,
        stage: Stage::Open,
        kills: 10,
        // It takes some 300 commits to move a set of ids.
        death: |round| match round % 4 {
            0 => Death::AtRandom,
            1 => Death::InCommit(1 + round),
            2 => Death::AfterCommit(250 + 10 * (round % 16)),
            _ => Death::InCommit(250 + 10 * (round % 16)),
        },
    },
];

fn main() -> ExitCode {
    if let Some(order) = child::Order::from_environment() {
        return child::run(&order);
    }
    let number = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    };
    let kills = number("FLEETHOLD_CRASH_KILLS", KILLS);
    let seed = number("FLEETHOLD_CRASH_SEED", 1);
    let trials = CASES
        .iter()
        .zip(0..)
        .map(|(case, position)| {
            let kills = (case.kills * kills).div_ceil(KILLS);
            Trial::test(case.name, move || {
                let seed = seed * 1_000 + position;
                kill_repeatedly(case.whose, case.stage, seed, kills, case.death)
                    .map_err(Failed::from)
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
