//! Storing messages: callers × messages per call × payload.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::MessageStore;
use tokio::task::JoinSet;

use crate::embedded::bed::Bed;
use crate::embedded::floors::Shape;
use crate::embedded::measure::rates;
use crate::embedded::samples::{Kind, Samples};
use crate::embedded::{Bench, Row};
use crate::figures::median;

/// One combination.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) callers: u32,
    pub(crate) messages: u32,
    pub(crate) payload_bytes: usize,
    pub(crate) kind: Kind,
}

impl Cell {
    pub(crate) fn name(self) -> String {
        let Self {
            callers,
            messages,
            payload_bytes,
            kind,
        } = self;
        let kind = kind.name();
        format!("{messages} × {payload_bytes} B {kind}, callers: {callers}")
    }
}

const PAYLOADS: [(Kind, &[usize]); 3] = [
    (Kind::Processed, &[100, 10_000]),
    (Kind::ForServer, &[100, 10_000]),
    (Kind::ForClients, &[100]),
];

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    for (kind, payloads) in PAYLOADS {
        for payload_bytes in payloads {
            for messages in [1, 10, 100] {
                for callers in [1, 16, 64] {
                    let cell = Cell {
                        callers,
                        messages,
                        payload_bytes: *payload_bytes,
                        kind,
                    };
                    store(bench, cell).await?;
                }
            }
        }
    }
    Ok(())
}

pub(crate) async fn store(bench: &mut Bench<'_>, cell: Cell) -> Result<()> {
    let name = cell.name();
    bench.begin(&format!("storing {name}"));
    let bed = Arc::new(Bed::of(bench).await?);
    let samples = Samples::new(cell.kind, cell.payload_bytes);
    let mut stored = u64::from(bench.scale.prefill);
    let rounds = rates(bench.scale, async |calls| {
        stored += u64::from(calls) * u64::from(cell.messages) * u64::from(cell.callers);
        round(&bed, &samples, cell, calls).await
    })
    .await?;
    if let Some(bed) = Arc::into_inner(bed) {
        bed.finish(stored).await?;
    }
    let per_round = f64::from(cell.messages * cell.callers);
    let rates: Vec<_> = rounds.into_iter().map(|rate| rate * per_round).collect();
    let shape = Shape::of(cell.messages, cell.kind, cell.payload_bytes);
    let ratios = bench.floors.ratios(shape, median(&rates)).await?;
    bench.rows.push(Row {
        group: "storing",
        name,
        unit: "messages/s",
        samples: rates,
        ratios: Some(ratios),
    });
    Ok(())
}

/// Lets each caller make `calls` calls, one after the other.
async fn round(bed: &Arc<Bed>, samples: &Samples, cell: Cell, calls: u32) -> Result<Duration> {
    let work: Vec<Vec<Vec<Message>>> = (0..cell.callers)
        .map(|_| {
            let calls = (0..calls).map(|_| samples.list(&bed.random, cell.messages));
            calls.collect()
        })
        .collect();
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for calls in work {
        let bed = Arc::clone(bed);
        callers.spawn(async move {
            let contact = cell.kind.comes_with_contact().then_some(&bed.contact);
            for messages in &calls {
                bed.store.store_messages(messages, contact).await?;
            }
            // Whoever ends last frees the messages, not the callers in between.
            Ok::<_, fleethold_store::Error>((Instant::now(), calls))
        });
    }
    let mut last = start;
    let mut done = Vec::new();
    while let Some(caller) = callers.join_next().await {
        let (end, calls) = caller??;
        last = last.max(end);
        done.push(calls);
    }
    Ok(last - start)
}
