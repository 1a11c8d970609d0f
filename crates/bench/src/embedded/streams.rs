//! Streams of client ids, and what a reader that pauses does to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use fleethold_store::{ClientStore, MessageStore};
use futures::StreamExt;

use crate::embedded::bed::{Bed, contact};
use crate::embedded::contacts::fleet;
use crate::embedded::samples::{CLIENT, message};
use crate::embedded::{Bench, Row};

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let clients = bench.scale.clients;
    bench.begin(&format!("adding {clients} clients"));
    let bed = Arc::new(fleet(bench).await?);
    bench.begin("streams");
    let mut rates = Vec::new();
    for _ in 0..bench.scale.repetitions {
        let start = Instant::now();
        read(&bed, clients, Duration::ZERO).await?;
        rates.push(f64::from(clients) / start.elapsed().as_secs_f64());
    }
    bench.rows.push(Row {
        group: "streams",
        name: format!("stream of {clients} client ids"),
        unit: "ids/s",
        samples: rates,
        ratios: None,
    });

    let pause = bench.scale.pause;
    let mut stored = 0;
    for is_paused in [false, true] {
        let begin = if is_paused { PAUSED } else { ALONE };
        bench.begin(begin);
        let over = Arc::new(AtomicBool::new(false));
        let calls = [Call::Read, Call::Store, Call::Contact].map(|call| {
            let (bed, over) = (Arc::clone(&bed), Arc::clone(&over));
            tokio::spawn(async move { delays(&bed, call, &over).await })
        });
        if is_paused {
            read(&bed, clients, pause).await?;
        } else {
            tokio::time::sleep(pause).await;
        }
        over.store(true, Ordering::Relaxed);
        for (call, delays) in [Call::Read, Call::Store, Call::Contact]
            .into_iter()
            .zip(calls)
        {
            let mut delays = delays.await??;
            if call == Call::Store {
                stored += delays.len();
            }
            delays.sort_by(f64::total_cmp);
            let longest = delays.last().copied().unwrap_or_default();
            let late = delays
                .get(delays.len() * 999 / 1000)
                .copied()
                .unwrap_or_default();
            for (what, delay) in [("longest", longest), ("99.9 % of", late)] {
                bench.rows.push(Row {
                    group: "streams",
                    name: name(what, call, is_paused),
                    unit: "ms",
                    samples: vec![delay],
                    ratios: None,
                });
            }
        }
    }
    if let Some(bed) = Arc::into_inner(bed) {
        bed.finish(u64::try_from(stored)?).await?;
    }
    Ok(())
}

const ALONE: &str = "without stream";
const PAUSED: &str = "during a paused stream";

pub(crate) fn name(what: &str, call: Call, is_paused: bool) -> String {
    let condition = if is_paused { PAUSED } else { ALONE };
    format!("{what} {}, {condition}", call.name())
}

/// What is done meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    Store,
    Contact,
}

impl Call {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "get_client_data",
            Self::Store => "store_messages",
            Self::Contact => "record_client_contact",
        }
    }
}

/// Reads all ids, with a pause in the middle.
async fn read(bed: &Bed, clients: u32, pause: Duration) -> Result<()> {
    let mut ids = bed.store.stream_client_ids(true, None);
    let mut count = 0;
    while let Some(id) = ids.next().await {
        id?;
        count += 1;
        if count == clients / 2 && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    // And the one every bed has.
    ensure!(
        count == clients + 1,
        "{count} of {clients} ids were streamed"
    );
    Ok(())
}

/// Calls again and again until it is over; returns how many milliseconds each took.
async fn delays(bed: &Bed, call: Call, over: &AtomicBool) -> Result<Vec<f64>> {
    let payload = Bytes::from(vec![9; 100]);
    let contact = contact(CLIENT);
    let mut delays = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let messages = [message(&bed.random, Some(CLIENT), None, payload.clone())];
        let start = Instant::now();
        match call {
            Call::Read => drop(bed.store.get_client_data(CLIENT).await?),
            Call::Store => {
                bed.store
                    .store_messages(&messages, Some(&bed.contact))
                    .await?
            }
            Call::Contact => drop(bed.store.record_client_contact(&contact).await?),
        }
        delays.push(start.elapsed().as_secs_f64() * 1_000.0);
        // Calls of a fleet have gaps; without any, the three only wait for a processor.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(delays)
}
