//! The processor at work on a backlog of server messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_sqlite::SqliteStore;
use fleethold_store::{MessageProcessor, MessageStore};
use tokio::sync::watch;

use crate::embedded::bed::Bed;
use crate::embedded::samples::{Kind, Samples, success};
use crate::embedded::{Bench, Row};

/// More than the first retry time, whatever its jitter.
const OVERDUE: Duration = Duration::from_secs(60 * 60);

/// Far more than a drain takes.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let overdue = bench.scale.overdue;
    let wanted = usize::try_from(overdue)?;
    let mut samples = Vec::new();
    for _ in 0..bench.scale.repetitions.min(3) {
        bench.begin(&format!("drain of {overdue}"));
        let bed = Bed::of(bench).await?;
        let messages = Samples::new(Kind::ForServer, 100);
        bed.fill(&messages, Kind::ForServer, overdue).await?;
        bed.clock.advance(OVERDUE);
        let (processed, mut done) = watch::channel(0);
        let service = Arc::new(Service {
            store: bed.store.clone(),
            processed,
        });
        let start = Instant::now();
        let processor = Arc::clone(&service) as Arc<dyn MessageProcessor>;
        bed.store.register_message_processor(processor).await;
        tokio::time::timeout(LIMIT, done.wait_for(|processed| *processed >= wanted)).await??;
        samples.push(start.elapsed().as_secs_f64());
        bed.store.stop_message_processor().await;
        let processed = *done.borrow();
        ensure!(
            processed == wanted,
            "{processed} of {wanted} were processed"
        );
        bed.clock.advance(OVERDUE);
        let left = bed.store.server_messages_for_processing(1).await?;
        ensure!(left.is_empty(), "a message with a result was handed out");
        drop(service);
        bed.finish(u64::from(bench.scale.prefill + overdue)).await?;
    }
    bench.rows.push(Row {
        group: "drain",
        name: name(overdue),
        unit: "s",
        samples,
        ratios: None,
    });
    Ok(())
}

pub(crate) fn name(overdue: u32) -> String {
    format!("drain of {overdue} overdue server messages")
}

/// Stores a result for each message, as the server does.
struct Service {
    store: SqliteStore,
    processed: watch::Sender<usize>,
}

#[async_trait]
impl MessageProcessor for Service {
    async fn process(&self, mut messages: Vec<Message>) {
        for message in &mut messages {
            message.data = None;
            message.result = Some(success());
        }
        // Not counted, so that the measurement ends with an error.
        if self.store.store_messages(&messages, None).await.is_ok() {
            self.processed
                .send_modify(|processed| *processed += messages.len());
        }
    }
}
