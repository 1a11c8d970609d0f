//! Polls of many clients at once, in a store with a backlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use fleethold_store::{ClientId, MessageStore};
use tokio::task::JoinSet;

use crate::embedded::bed::{Bed, RETRY};
use crate::embedded::floors::Shape;
use crate::embedded::samples::{Kind, message};
use crate::embedded::{Bench, Row};
use crate::figures::median;

pub(crate) const CALLERS: usize = 16;

/// What a poll is answered with; also the most it asks for.
const MOST: u32 = 100;

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let backlog = bench.scale.backlog;
    bench.begin(&format!("storing a backlog of {backlog}"));
    let bed = Arc::new(Bed::new(bench).await?);
    // A tenth of the messages is for clients that have one.
    let singles = clients(1, backlog / 10);
    let hundreds = clients(2, (backlog - backlog / 10) / MOST);
    fill(&bed, &singles, 1).await?;
    fill(&bed, &hundreds, MOST).await?;

    bench.begin("polls");
    let (mut nothing, mut one, mut hundred) = (Vec::new(), Vec::new(), Vec::new());
    for repetition in 0..=bench.scale.repetitions {
        bed.clock.advance(RETRY);
        let of_hundred = poll(&bed, &hundreds, MOST).await?;
        let of_one = poll(&bed, &singles, 1).await?;
        // All have messages, and none of them is due again.
        let of_nothing = poll(&bed, &singles, 0).await?;
        if repetition > 0 {
            nothing.push(rate(&singles, of_nothing));
            one.push(rate(&singles, of_one));
            hundred.push(rate(&hundreds, of_hundred));
        }
    }
    let messages = singles.len() + hundreds.len() * usize::try_from(MOST)?;
    if let Some(bed) = Arc::into_inner(bed) {
        bed.finish(u64::try_from(messages)?).await?;
    }
    for (due, rates) in [(0, nothing), (1, one), (MOST, hundred)] {
        let shape = Shape::of(due.max(1), Kind::ForServer, 100);
        let rows = median(&rates) * f64::from(due.max(1));
        let ratios = bench.floors.ratios(shape, rows).await?;
        bench.rows.push(Row {
            group: "polls",
            name: name(due),
            unit: "calls/s",
            samples: rates,
            ratios: Some(ratios),
        });
    }
    Ok(())
}

pub(crate) fn name(due: u32) -> String {
    format!("polls, {due} due, callers: {CALLERS}")
}

fn rate(clients: &[ClientId], time: Duration) -> f64 {
    f64::from(u32::try_from(clients.len()).unwrap_or(u32::MAX)) / time.as_secs_f64()
}

/// Ids as they come: in no order.
fn clients(first: u8, count: u32) -> Vec<ClientId> {
    let id = |number: u32| {
        let mut bytes = [first; 8];
        bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
        ClientId::new(bytes)
    };
    (0..count).map(id).collect()
}

/// Stores messages for each client, one for all of them after the other.
async fn fill(bed: &Bed, clients: &[ClientId], each: u32) -> Result<()> {
    let payload = Bytes::from(vec![9; 100]);
    for _ in 0..each {
        for clients in clients.chunks(1_000) {
            let messages: Vec<_> = clients
                .iter()
                .map(|client| message(&bed.random, None, Some(*client), payload.clone()))
                .collect();
            bed.store.store_messages(&messages, None).await?;
        }
    }
    Ok(())
}

/// Polls each client once; fails unless each gets `due` messages.
async fn poll(bed: &Arc<Bed>, clients: &[ClientId], due: u32) -> Result<Duration> {
    let due = usize::try_from(due)?;
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let bed = Arc::clone(bed);
        let clients: Vec<_> = clients
            .iter()
            .skip(caller)
            .step_by(CALLERS)
            .copied()
            .collect();
        callers.spawn(async move {
            for client in clients {
                let claimed = bed
                    .store
                    .client_messages_for_processing(client, MOST.into(), None)
                    .await?;
                ensure!(
                    claimed.len() == due,
                    "a poll got {} messages instead of {due}",
                    claimed.len()
                );
            }
            Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(start.elapsed())
}
