//! How much faster callers are together: single messages per call, each call
//! answered when it is on disk.
//!
//! ```text
//! cargo run --release -p fleethold-sqlite --example group_commit [seconds per row]
//! ```
#![expect(clippy::print_stdout, reason = "prints what it measures")]

mod measured;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fleethold_store::{MessageId, MessageStore, Random, Store};
use futures::future::try_join_all;
use measured::{Result, floor, message, store};
use rusqlite::params;

#[tokio::main]
async fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(3), |text| text.parse())?;
    let time = Duration::from_secs(seconds);
    let random = Arc::new(Random::from_os());

    let (_directory, bare) = floor(measured::RANDOM)?;
    let mut insert = bare.prepare(measured::INSERT)?;
    let start = Instant::now();
    let mut rows = 0_u32;
    while start.elapsed() < time {
        let id = MessageId::random(&random);
        insert.execute(params![id.as_bytes(), &[9_u8; 250][..]])?;
        rows += 1;
    }
    let floor = f64::from(rows) / start.elapsed().as_secs_f64();
    println!("bare table, random key, one row per commit  {floor:>8.0}/s");

    let mut alone = None;
    for callers in [1, 16, 64] {
        let (_directory, store, contact) = store(&random).await?;
        let start = Instant::now();
        let calls = try_join_all((0..callers).map(|_| {
            let (store, random, contact) = (store.clone(), Arc::clone(&random), contact.clone());
            async move {
                tokio::spawn(async move {
                    let mut calls = 0_u32;
                    while start.elapsed() < time {
                        let message = message(&random, Some(measured::CLIENT), None);
                        store.store_messages(&[message], Some(&contact)).await?;
                        calls += 1;
                    }
                    Ok::<_, fleethold_store::Error>(calls)
                })
                .await
            }
        }))
        .await?;
        let calls = calls.into_iter().sum::<std::result::Result<u32, _>>()?;
        let rate = f64::from(calls) / start.elapsed().as_secs_f64();
        let alone = *alone.get_or_insert(rate);
        println!(
            "{callers:>2} callers                                  {rate:>8.0}/s  \
             {:.1} times one commit per call, {:.1} times the bare table",
            rate / alone,
            rate / floor,
        );
        store.close().await?;
    }
    Ok(())
}
