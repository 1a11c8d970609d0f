//! What a message costs: bytes on disk, and messages per second at 100 per call
//! beside bare tables of the same size and durability.
//!
//! ```text
//! cargo run --release -p fleethold-sqlite --example footprint [messages]
//! ```
#![expect(clippy::print_stdout, reason = "prints what it measures")]

mod measured;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fleethold_proto::fleetspeak::Message;
use fleethold_store::{ClientId, MessageId, MessageStore, Random, Store};
use measured::{CLIENT, Result, floor, message, path, processed, store};
use rusqlite::params;
use tempfile::TempDir;

const CALL: u32 = 100;

#[tokio::main]
async fn main() -> Result<()> {
    let messages = std::env::args()
        .nth(1)
        .map_or(Ok(200_000), |text| text.parse())?;
    let random = Arc::new(Random::from_os());
    for (name, schema) in [
        ("bare table, sequential key", measured::SEQUENTIAL),
        ("bare table, random key", measured::RANDOM),
    ] {
        let (directory, mut bare) = floor(schema)?;
        let ids: Vec<_> = (0..messages).map(|_| MessageId::random(&random)).collect();
        let start = Instant::now();
        for ids in ids.chunks(usize::try_from(CALL)?) {
            let transaction = bare.transaction()?;
            let mut insert = transaction.prepare_cached(measured::INSERT)?;
            for id in ids {
                insert.execute(params![id.as_bytes(), &[9_u8; 250][..]])?;
            }
            drop(insert);
            transaction.commit()?;
        }
        let time = start.elapsed();
        bare.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        report(name, messages, time, &directory)?;
    }

    let from_client = |random: &Random| message(random, Some(CLIENT), None);
    let to_one = |random: &Random| message(random, None, Some(CLIENT));
    let to_many = |random: &Random| {
        let mut client = [0; 8];
        random.fill(&mut client[6..]);
        message(random, None, Some(ClientId::new(client)))
    };
    type Make<'a> = &'a dyn Fn(&Random) -> Message;
    for (name, make) in [
        ("processed, with contact", &processed as Make<'_>),
        ("pending for the server, with contact", &from_client),
        ("pending for one client, with contact", &to_one),
        ("pending for 65,536 clients, with contact", &to_many),
    ] {
        let (directory, store, contact) = store(&random).await?;
        let mut time = Duration::ZERO;
        for _ in 0..messages / CALL {
            let call: Vec<_> = (0..CALL).map(|_| make(&random)).collect();
            let start = Instant::now();
            store.store_messages(&call, Some(&contact)).await?;
            time += start.elapsed();
        }
        store.close().await?;
        report(name, messages / CALL * CALL, time, &directory)?;
    }
    Ok(())
}

fn report(name: &str, messages: u32, time: Duration, directory: &TempDir) -> Result<()> {
    let bytes = std::fs::metadata(path(directory))?.len() / u64::from(messages);
    let rate = f64::from(messages) / time.as_secs_f64();
    println!("{name:42} {rate:>8.0}/s  {bytes:>5} bytes each");
    Ok(())
}
