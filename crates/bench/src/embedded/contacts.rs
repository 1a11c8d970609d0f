//! Recording contacts of a fleet, alone and with a message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use fleethold_store::{ClientData, ClientId, ClientStore, ContactData};
use tokio::task::JoinSet;

use crate::embedded::bed::{Bed, contact};
use crate::embedded::floors::Shape;
use crate::embedded::measure::rates;
use crate::embedded::samples::{Kind, message};
use crate::embedded::{Bench, Row};
use crate::figures::median;

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let count = bench.scale.clients;
    bench.begin(&format!("adding {count} clients"));
    let bed = Arc::new(fleet(bench).await?);
    let clients: Arc<[_]> = clients(count).into();
    let mut stored = 0;
    for (with_message, what) in [(false, "contact"), (true, "contact with 1 pending message")] {
        for callers in [1, 16, 64] {
            let name = format!("{what}, callers: {callers}");
            bench.begin(&name);
            let rounds = rates(bench.scale, async |calls| {
                if with_message {
                    stored += u64::from(calls * callers);
                }
                round(&bed, &clients, callers, calls, with_message).await
            })
            .await?;
            let rates: Vec<_> = rounds
                .into_iter()
                .map(|rate| rate * f64::from(callers))
                .collect();
            let kind = if with_message {
                Kind::ForServer
            } else {
                Kind::Processed
            };
            let shape = Shape::of(1, kind, 100);
            let ratios = bench.floors.ratios(shape, median(&rates)).await?;
            bench.rows.push(Row {
                group: "clients",
                name,
                unit: "calls/s",
                samples: rates,
                ratios: Some(ratios),
            });
        }
    }
    if let Some(bed) = Arc::into_inner(bed) {
        bed.finish(stored).await?;
    }
    Ok(())
}

/// Ids in the order in which their clients come.
fn clients(count: u32) -> Vec<ClientId> {
    let id = |number: u32| ClientId::from_public_key(&number.to_be_bytes());
    (0..count).map(id).collect()
}

/// A store with [`clients`](crate::embedded::Scale::clients) clients besides the usual one.
pub(crate) async fn fleet(bench: &Bench<'_>) -> Result<Bed> {
    const CALLERS: usize = 64;
    let bed = Bed::new(bench).await?;
    let clients = clients(bench.scale.clients);
    let data = ClientData {
        key: vec![4; 91].into(),
        ..ClientData::default()
    };
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (store, data) = (bed.store.clone(), data.clone());
        let clients: Vec<_> = clients
            .iter()
            .skip(caller)
            .step_by(CALLERS)
            .copied()
            .collect();
        callers.spawn(async move {
            for client in clients {
                store.add_client(client, &data).await?;
            }
            Ok::<_, fleethold_store::Error>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(bed)
}

async fn round(
    bed: &Arc<Bed>,
    clients: &Arc<[ClientId]>,
    callers: u32,
    calls: u32,
    with_message: bool,
) -> Result<Duration> {
    let payload = Bytes::from(vec![9; 100]);
    let mut work = Vec::new();
    for _ in 0..callers {
        let calls = (0..calls).map(|_| {
            let at = usize::try_from(bed.random.next_u64() % u64::try_from(clients.len())?)?;
            let client = clients[at];
            let message =
                with_message.then(|| message(&bed.random, Some(client), None, payload.clone()));
            Ok((contact(client), message))
        });
        work.push(calls.collect::<Result<Vec<(ContactData, _)>>>()?);
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for calls in work {
        let bed = Arc::clone(bed);
        tasks.spawn(async move {
            for (contact, message) in &calls {
                match message {
                    Some(message) => {
                        let messages = std::slice::from_ref(message);
                        bed.store.store_contact(contact, messages).await?
                    }
                    None => bed.store.record_client_contact(contact).await?,
                };
            }
            Ok::<_, fleethold_store::Error>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(start.elapsed())
}
