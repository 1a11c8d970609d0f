//! Histories that told a broken store from the model once, as short as they could be made, by what was broken.
//!
//! Steps, not seeds: a seed means another history as soon as `ops` changes.

use super::ops::{Done, Op, Sent};

type History = fn() -> Vec<Op>;

pub(super) const REGRESSIONS: &[(&str, History)] = &[
    ("ids_are_known_after_reopening", || {
        vec![
            Op::StoreMessages {
                messages: vec![sent(1, None), sent(2, Some(0))],
                contact: None,
            },
            Op::Reopen,
            Op::GetMessages {
                messages: vec![1, 2],
                want_data: true,
            },
            Op::StoreMessages {
                messages: vec![sent(1, None)],
                contact: None,
            },
        ]
    }),
    ("claim_moves_the_due_time", || {
        vec![store(3), claim(2), claim(2), later(900_000_000), claim(2)]
    }),
    ("release_ends_a_claim_three_times_at_most", || {
        let again = || [claim(9), release()];
        let mut ops = vec![store(1)];
        ops.extend((0..5).flat_map(|_| again()));
        ops.extend([later(900_000_000), claim(9)]);
        ops
    }),
    ("failure_does_not_replace_a_success", || {
        let with = |result| Sent {
            result: Some(result),
            ..sent(1, None)
        };
        let results = [Done::Success(1), Done::Failure(2), Done::Success(3)];
        let stored = results.map(|result| Op::StoreMessages {
            messages: vec![with(result)],
            contact: None,
        });
        [stored.to_vec(), vec![Op::GetMessageResult { message: 1 }]].concat()
    }),
    ("allocation_is_full_at_its_limit", || {
        let save = |message| Op::SaveBroadcastMessage {
            message: sent(message, Some(message)),
            broadcast: 0,
            client: message,
            allocation: Some(0),
        };
        vec![
            client(0),
            client(1),
            Op::CreateBroadcast {
                broadcast: 0,
                flavour: 0,
                limit: 1,
            },
            Op::CreateAllocation {
                broadcast: 0,
                percent: 100,
                seconds: 900,
            },
            save(0),
            save(1),
        ]
    }),
    ("dropped_call_stores_all_or_nothing", || {
        (1..5)
            .map(|polls| Op::Drop {
                polls,
                call: Box::new(store(3)),
            })
            .collect()
    }),
];

fn sent(message: u8, to: Option<u8>) -> Sent {
    Sent {
        message,
        to,
        service: 0,
        flavour: 0,
        result: None,
    }
}

/// Stores messages 1, 2, … for client 0.
fn store(count: u8) -> Op {
    Op::StoreMessages {
        messages: (1..=count).map(|message| sent(message, Some(0))).collect(),
        contact: None,
    }
}

fn claim(limit: u64) -> Op {
    Op::Claim {
        client: 0,
        limit,
        tokens: None,
    }
}

fn release() -> Op {
    Op::Release {
        client: 0,
        messages: vec![1],
    }
}

fn client(client: u8) -> Op {
    Op::AddClient {
        client,
        labels: Vec::new(),
        blacklisted: false,
    }
}

fn later(micros: u64) -> Op {
    Op::AdvanceClock { micros }
}
