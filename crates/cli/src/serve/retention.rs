//! How long a server keeps what grows with time, on the command line.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use fleethold_store::maintenance::{Retention, RetentionTask};
use fleethold_store::{Clock, Maintenance, Random};
use tokio::task::JoinHandle;

const RETENTION: &str = "Retention in days; 0 for ever (docs/operations.md)";

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct RetentionArgs {
    /// How long contacts are kept [default: 14, on MySQL for ever]
    #[arg(long, value_name = "DAYS", help_heading = RETENTION, value_parser = days())]
    keep_contacts: Option<u64>,
    /// How long resource usage records are kept [default: 14, on MySQL for ever]
    #[arg(long, value_name = "DAYS", help_heading = RETENTION, value_parser = days())]
    keep_usage: Option<u64>,
    /// How long messages are kept after they have a result [default: 15, on MySQL for ever]
    #[arg(long, value_name = "DAYS", help_heading = RETENTION, value_parser = days())]
    keep_messages: Option<u64>,
    /// How long messages wait for their client before they fail [default: 14, on MySQL for ever]
    #[arg(long, value_name = "DAYS", help_heading = RETENTION, value_parser = days())]
    keep_pending: Option<u64>,
}

/// A hundred years are for ever.
fn days() -> impl clap::builder::TypedValueParser {
    clap::value_parser!(u64).range(0..=36_500)
}

impl RetentionArgs {
    /// Returns what to keep, given what a store of this kind keeps by default.
    pub(super) fn or(self, default: Retention) -> Retention {
        let age = |days: Option<u64>, default| match days {
            None => default,
            Some(0) => None,
            Some(days) => Some(Duration::from_secs(days * 24 * 60 * 60)),
        };
        Retention {
            contacts: age(self.keep_contacts, default.contacts),
            usage: age(self.keep_usage, default.usage),
            messages: age(self.keep_messages, default.messages),
            pending: age(self.keep_pending, default.pending),
        }
    }

    /// Removes what is old, again and again, until the result is aborted.
    pub(super) fn start(
        retention: Retention,
        store: Arc<dyn Maintenance>,
        clock: Arc<dyn Clock>,
        random: &Random,
    ) -> Option<JoinHandle<()>> {
        let days = |age: Option<Duration>| {
            age.map_or("for ever".to_owned(), |age| {
                format!("{} days", age.as_secs() / (24 * 60 * 60))
            })
        };
        tracing::info!(
            contacts = days(retention.contacts),
            usage = days(retention.usage),
            messages = days(retention.messages),
            pending = days(retention.pending),
            "what is older is removed"
        );
        if retention == Retention::NONE {
            return None;
        }
        let task = RetentionTask::new(store, retention, clock, random);
        // Several servers that start together do not begin together.
        let first = RetentionTask::EVERY.mul_f64(0.1 * random.unit());
        Some(tokio::spawn(async move {
            tokio::time::sleep(first).await;
            loop {
                match task.round().await {
                    Ok(0) => {}
                    Ok(rows) => tracing::info!(rows, "removed what was too old"),
                    Err(error) => tracing::warn!(%error, "cannot remove what is too old"),
                }
                tokio::time::sleep(RetentionTask::EVERY).await;
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_replace_the_default_and_none_is_for_ever() {
        let args = RetentionArgs {
            keep_contacts: Some(2),
            keep_usage: Some(0),
            keep_messages: None,
            keep_pending: None,
        };
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        let kept = args.or(Retention::default());
        assert_eq!((kept.contacts, kept.usage), (days(2), None));
        assert_eq!((kept.messages, kept.pending), (days(15), days(14)));
        let kept = args.or(Retention::NONE);
        assert_eq!((kept.contacts, kept.messages), (days(2), None));
    }
}
