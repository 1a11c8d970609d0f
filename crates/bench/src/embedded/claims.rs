//! Claims of one client, whatever waits for it and whatever it has done.
//!
//! One caller, whose claims are always of overdue messages: before each claim
//! the clock goes on by more than the retry time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fleethold_store::MessageStore;

use crate::embedded::bed::{Bed, RETRY};
use crate::embedded::floors::Shape;
use crate::embedded::samples::{CLIENT, Kind, Samples};
use crate::embedded::{Bench, Row, memory};
use crate::figures::median;

/// How many messages are pending in a small store.
const FEW: u32 = 100;

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let samples = Samples::new(Kind::ForOneClient, 100);
    let mut bed = Bed::new(bench).await?;
    let mut pending = 0;
    for wanted in bench.scale.pending {
        bench.begin(&format!("storing {wanted} pending messages to claim"));
        bed.fill(&samples, Kind::ForOneClient, wanted - pending)
            .await?;
        pending = wanted;
        claims(bench, &bed, pending, 0).await?;
        if pending >= FEW {
            bench.begin("the memory of claims");
            bed = memory::measure(bench, bed, pending).await?;
        }
    }
    bed.finish(pending.into()).await?;

    let finished = bench.scale.finished;
    bench.begin(&format!("storing {finished} finished messages"));
    let bed = Bed::new(bench).await?;
    let history = Samples::new(Kind::FinishedByClient, 100);
    bed.fill(&history, Kind::FinishedByClient, finished).await?;
    bed.fill(&samples, Kind::ForOneClient, FEW).await?;
    claims(bench, &bed, FEW, finished).await?;
    bed.finish(u64::from(finished + FEW)).await?;
    Ok(())
}

async fn claims(bench: &mut Bench<'_>, bed: &Bed, pending: u32, finished: u32) -> Result<()> {
    for limit in [1, FEW] {
        if limit > pending {
            continue;
        }
        let name = name(limit, pending, finished);
        bench.begin(&name);
        let mut rates = Vec::new();
        for repetition in 0..=bench.scale.repetitions {
            let mut time = Duration::ZERO;
            for _ in 0..bench.scale.claims {
                time += claim(bed, limit).await?;
            }
            // The first one warms the caches.
            if repetition > 0 {
                rates.push(f64::from(bench.scale.claims) / time.as_secs_f64());
            }
        }
        let shape = Shape::of(limit, Kind::ForServer, 100);
        let rows = median(&rates) * f64::from(limit);
        let ratios = bench.floors.ratios(shape, rows).await?;
        bench.rows.push(Row {
            group: "claims",
            name,
            unit: "calls/s",
            samples: rates,
            ratios: Some(ratios),
        });
    }
    Ok(())
}

pub(crate) fn name(limit: u32, pending: u32, finished: u32) -> String {
    if finished == 0 {
        format!("claim of {limit} out of {pending}")
    } else {
        format!("claim of {limit} out of {pending}, {finished} finished")
    }
}

async fn claim(bed: &Bed, limit: u32) -> Result<Duration> {
    bed.clock.advance(RETRY);
    let start = Instant::now();
    let claimed = bed
        .store
        .client_messages_for_processing(CLIENT, limit.into(), None)
        .await?;
    let time = start.elapsed();
    ensure!(
        u32::try_from(claimed.len())? == limit,
        "a claim got {} messages instead of {limit}",
        claimed.len()
    );
    Ok(time)
}
