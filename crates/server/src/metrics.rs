//! What this server counts and measures, in Prometheus' text format.
//!
//! Metrics named `fleetspeak_…` have upstream's names, types and labels
//! (protocol specification section 5.5); those named `fleethold_…` are ours.
//! Nothing is global: one [`Metrics`] belongs to one server.

mod exchange;
mod family;
mod labels;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::monitoring::{KillNotification, ResourceUsageData};
use fleethold_store::StoreStats;
use prometheus::core::Collector;
use prometheus::{
    CounterVec, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub(crate) use self::exchange::{Exchange, PollType};
use self::family::Family;
use self::labels::text;
pub(crate) use self::labels::{ClientLabels, reason_name};
pub(crate) use self::store::Measured;

type Counters = Family<IntCounterVec>;
type Histograms = Family<HistogramVec>;

/// All metrics of a server.
pub(crate) struct Metrics {
    registry: Registry,
    /// Whether labels of clients and versions of agents are told apart.
    by_client_labels: bool,

    ingested: Counters,
    ingested_bytes: Counters,
    sent: Counters,
    sent_bytes: Counters,
    saved: Counters,
    saved_bytes: Counters,
    processed: Histograms,
    errored: Histograms,
    dropped: Counters,
    polls: Counters,
    poll_times: [Histograms; 5],
    store_calls: Histograms,
    usage: Counters,
    usage_rates: [Histograms; 6],
    kills: Counters,

    streams: IntGauge,
    claims: Histogram,
    refusals: Counters,
    repairs: IntCounter,
    notifications_sent: Counters,
    notifications_received: Counters,
    certificates: IntGaugeVec,
    queue_depth: IntGaugeVec,
    queue_overdue: GaugeVec,
    store_waits: IntCounterVec,
    store_wait_seconds: CounterVec,
    store_waiting: IntGaugeVec,
}

/// What became of a message that a service was asked to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processed {
    Success,
    TemporaryError,
    PermanentError,
}

/// One more open stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream(IntGauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn new(by_client_labels: bool) -> Self {
        let make = Maker(Registry::new());
        let message = [
            "backlogged",
            "source_service",
            "destination_service",
            "message_type",
            "client_labels",
        ];
        let sent = &message[1..];
        let saved = ["for_client", "service", "message_type", "client_labels"];
        let poll = ["http_status_code", "poll_type", "cache_hit"];
        let usage = ["blacklisted", "scope", "version", "client_data_labels"];
        let poll_histogram = |name: &str, help| {
            make.histograms(
                &format!("fleetspeak_server_client_polls_{name}"),
                help,
                &poll,
                3,
            )
        };
        let usage_histogram = |name: &str, help| {
            let name = format!("fleetspeak_server_resource_usage_data_received_{name}");
            make.histograms(&name, help, &usage, 1)
        };
        Self {
            by_client_labels,
            ingested: make.counters(
                "fleetspeak_messages_ingested_total",
                "Messages of agents given to a service, at once or from the backlog",
                &message,
                1,
            ),
            ingested_bytes: make.counters(
                "fleetspeak_messages_ingested_payload_bytes_size",
                "Bytes of the payloads of ingested messages",
                &message,
                1,
            ),
            sent: make.counters(
                "fleetspeak_messages_sent_total",
                "Messages handed to agents",
                sent,
                0,
            ),
            sent_bytes: make.counters(
                "fleetspeak_messages_sent_payload_bytes_size",
                "Bytes of the payloads of messages handed to agents",
                sent,
                0,
            ),
            saved: make.counters(
                "fleetspeak_messages_saved_total",
                "Messages of agents stored for the first time",
                &saved,
                1,
            ),
            saved_bytes: make.counters(
                "fleetspeak_messages_saved_payload_bytes_size",
                "Bytes of the stored payloads of messages of agents",
                &saved,
                1,
            ),
            processed: make.histograms(
                "fleetspeak_server_messages_processed_latency",
                "Seconds a service took for a message it processed",
                &["is_first_try", "message_type", "service", "client_labels"],
                1,
            ),
            errored: make.histograms(
                "fleetspeak_server_messages_errored_latency",
                "Seconds a service took for a message it did not process",
                &["is_first_try", "is_temp", "message_type", "client_labels"],
                2,
            ),
            dropped: make.counters(
                "fleetspeak_server_messages_dropped_total",
                "Messages that wait for a retry because their service is busy",
                &["is_first_try", "service", "message_type", "client_labels"],
                1,
            ),
            polls: make.counters(
                "fleetspeak_server_client_polls_total",
                "Exchanges with agents",
                &poll,
                3,
            ),
            poll_times: [
                poll_histogram("operation_time_latency", "Seconds an exchange took"),
                poll_histogram("read_time_latency", "Seconds until all was read"),
                poll_histogram("write_time_latency", "Seconds until all was written"),
                poll_histogram("read_megabytes_size_distribution", "Megabytes read"),
                poll_histogram("write_megabytes_size_distribution", "Megabytes written"),
            ],
            store_calls: make.histograms(
                "fleetspeak_server_datastore_operations_completed_latency",
                "Seconds a call of the store took",
                &["operation", "errored"],
                2,
            ),
            usage: make.counters(
                "fleetspeak_server_resource_usage_data_received_total",
                "Resource usage reports of agents",
                &usage,
                1,
            ),
            usage_rates: [
                usage_histogram("mean_user_cpu_rate_distribution", "Milliseconds per second"),
                usage_histogram("max_user_cpu_rate_distribution", "Milliseconds per second"),
                usage_histogram(
                    "mean_system_cpu_rate_distribution",
                    "Milliseconds per second",
                ),
                usage_histogram("max_system_cpu_rate", "Milliseconds per second"),
                usage_histogram("mean_resident_memory_bytes_distribution", "Bytes"),
                usage_histogram("max_resident_memory_bytes_distribution", "Bytes"),
            ],
            kills: make.counters(
                "fleetspeak_server_kill_notifications_received_total",
                "Services that agents have killed",
                &["blacklisted", "reason", "service", "client_data_labels"],
                2,
            ),
            streams: make.register(
                IntGauge::new("fleethold_streams", "Open streams of agents").expect(NAMED),
            ),
            claims: make.register(
                Histogram::with_opts(HistogramOpts::new(
                    "fleethold_claim_latency_seconds",
                    "Seconds the store took to hand out what is due to an agent",
                ))
                .expect(NAMED),
            ),
            refusals: make.counters(
                "fleethold_refusals_total",
                "Connections, requests and calls that were refused",
                &["reason"],
                1,
            ),
            repairs: make.register(
                IntCounter::new(
                    "fleethold_overlong_values_total",
                    "Over-long values of messages that were cut or left out when stored",
                )
                .expect(NAMED),
            ),
            notifications_sent: make.counters(
                "fleethold_notifications_sent_total",
                "Clients that another server was told of, or should have been",
                &["result"],
                1,
            ),
            notifications_received: make.counters(
                "fleethold_notifications_received_total",
                "Clients that another server told this one of, and calls that were refused",
                &["result"],
                1,
            ),
            certificates: make.register(
                IntGaugeVec::new(
                    Opts::new(
                        "fleethold_certificate_expiry_timestamp_seconds",
                        "When the certificate of a listener expires, in seconds since 1970",
                    ),
                    &["listener"],
                )
                .expect(NAMED),
            ),
            queue_depth: make.register(
                IntGaugeVec::new(
                    Opts::new(
                        "fleethold_queue_depth",
                        "Overdue messages that wait for a service; 10000 stands for that and more",
                    ),
                    &["queue"],
                )
                .expect(NAMED),
            ),
            queue_overdue: make.register(
                GaugeVec::new(
                    Opts::new(
                        "fleethold_queue_oldest_overdue_seconds",
                        "For how long the oldest overdue message has been due; 0 if none is",
                    ),
                    &["queue"],
                )
                .expect(NAMED),
            ),
            store_waits: make.register(
                IntCounterVec::new(
                    Opts::new(
                        "fleethold_store_waits_total",
                        "Calls that got their turn in the store",
                    ),
                    &["pool"],
                )
                .expect(NAMED),
            ),
            store_wait_seconds: make.register(
                CounterVec::new(
                    Opts::new(
                        "fleethold_store_wait_seconds_total",
                        "Seconds calls have waited for their turn in the store",
                    ),
                    &["pool"],
                )
                .expect(NAMED),
            ),
            store_waiting: make.register(
                IntGaugeVec::new(
                    Opts::new(
                        "fleethold_store_waiting",
                        "Calls that wait for their turn in the store",
                    ),
                    &["pool"],
                )
                .expect(NAMED),
            ),
            registry: make.0,
        }
    }

    /// Counts a message that its service is about to process.
    pub(crate) fn ingested(&self, message: &Message, client: &ClientLabels, backlogged: bool) {
        let values = [
            text(backlogged),
            source(message),
            destination(message),
            &message.message_type,
            self.labels(&client.full),
        ];
        self.ingested.of(values).inc();
        self.ingested_bytes
            .of(values)
            .inc_by(payload_bytes(message));
    }

    /// Counts messages handed to an agent.
    pub(crate) fn sent(&self, messages: &[Message], client: &ClientLabels) {
        for message in messages {
            let values = [
                source(message),
                destination(message),
                &message.message_type,
                self.labels(&client.full),
            ];
            self.sent.of(values).inc();
            self.sent_bytes.of(values).inc_by(payload_bytes(message));
        }
    }

    /// Counts messages of an agent that were stored.
    pub(crate) fn saved(&self, messages: &[Message], client: &ClientLabels) {
        for message in messages {
            let values = [
                text(false),
                destination(message),
                &message.message_type,
                self.labels(&client.full),
            ];
            self.saved.of(values).inc();
            self.saved_bytes.of(values).inc_by(payload_bytes(message));
        }
    }

    /// Counts an answer of a service, or that it does not exist.
    pub(crate) fn processed(
        &self,
        message: &Message,
        client: &ClientLabels,
        first_try: bool,
        took: Duration,
        outcome: Processed,
    ) {
        let labels = self.labels(&client.full);
        let kind = &message.message_type;
        let first_try = text(first_try);
        let took = took.as_secs_f64();
        if outcome == Processed::Success {
            let values = [first_try, kind, destination(message), labels];
            self.processed.of(values).observe(took);
        } else {
            let temporary = text(outcome == Processed::TemporaryError);
            self.errored
                .of([first_try, temporary, kind, labels])
                .observe(took);
        }
    }

    /// Counts a message whose service is too busy for it.
    pub(crate) fn dropped(&self, message: &Message, client: &ClientLabels, first_try: bool) {
        let labels = self.labels(&client.full);
        self.dropped
            .of([
                text(first_try),
                destination(message),
                &message.message_type,
                labels,
            ])
            .inc();
    }

    /// Begins to measure an exchange with an agent.
    pub(crate) fn exchange(self: &Arc<Self>, kind: PollType) -> Exchange {
        Exchange::new(Arc::clone(self), kind)
    }

    /// Counts a resource usage report.
    pub(crate) fn usage(
        &self,
        client: &ClientLabels,
        blacklisted: bool,
        report: &ResourceUsageData,
    ) {
        let (version, labels) = match self.by_client_labels {
            true => (report.version.as_str(), client.short.as_str()),
            false => ("", ""),
        };
        let values = [text(blacklisted), &report.scope, version, labels];
        self.usage.of(values).inc();
        let Some(usage) = &report.resource_usage else {
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "a metric")]
        let max_memory = usage.max_resident_memory as f64;
        let rates = [
            usage.mean_user_cpu_rate,
            usage.max_user_cpu_rate,
            usage.mean_system_cpu_rate,
            usage.max_system_cpu_rate,
            usage.mean_resident_memory,
            max_memory,
        ];
        for (histogram, rate) in self.usage_rates.iter().zip(rates) {
            // One agent's nonsense would spoil the sum for ever.
            if rate.is_finite() {
                histogram.of(values).observe(rate.max(0.0));
            }
        }
    }

    /// Counts a report that an agent has killed a service.
    pub(crate) fn killed(
        &self,
        client: &ClientLabels,
        blacklisted: bool,
        report: &KillNotification,
    ) {
        let values = [
            text(blacklisted),
            reason_name(report.reason()),
            &report.service,
            self.labels(&client.short),
        ];
        self.kills.of(values).inc();
    }

    /// Counts an open stream until the answer is dropped.
    pub(crate) fn open_stream(&self) -> OpenStream {
        self.streams.inc();
        OpenStream(self.streams.clone())
    }

    /// Follows what was counted elsewhere, by reason.
    pub(crate) fn set_refused(&self, reasons: impl Iterator<Item = (&'static str, u64)>) {
        for (reason, count) in reasons {
            let refused = self.refusals.of([reason]);
            refused.inc_by(count.saturating_sub(refused.get()));
        }
    }

    /// Counts what another server was told: `sent`, `failed` or `dropped`.
    pub(crate) fn notification_sent(&self, result: &'static str, count: u64) {
        self.notifications_sent.of([result]).inc_by(count);
    }

    /// Counts what another server told us: `woken`, `no_stream` or `refused`.
    pub(crate) fn notification_received(&self, result: &'static str, count: u64) {
        self.notifications_received.of([result]).inc_by(count);
    }

    /// Notes when the certificate of a listener expires.
    pub(crate) fn set_certificate_expiry(&self, listener: &'static str, expiry: SystemTime) {
        let seconds = expiry
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        self.certificates
            .with_label_values(&[listener])
            .set(seconds);
    }

    /// Notes what the store says of itself; what it does not know is left out.
    pub(crate) fn set_store_stats(&self, stats: &StoreStats) {
        if let Some(depth) = stats.overdue_server_messages {
            let depth = i64::try_from(depth).unwrap_or(i64::MAX);
            self.queue_depth.with_label_values(&["server"]).set(depth);
        }
        if let Some(age) = stats.oldest_overdue_server_message {
            let oldest = self.queue_overdue.with_label_values(&["server"]);
            oldest.set(age.as_secs_f64());
        }
        for (pool, waits) in [("read", stats.reads), ("write", stats.writes)] {
            let Some(waits) = waits else { continue };
            let pool = &[pool];
            let waiting = i64::try_from(waits.waiting).unwrap_or(i64::MAX);
            self.store_waiting.with_label_values(pool).set(waiting);
            // The store counts; we only follow.
            let count = self.store_waits.with_label_values(pool);
            count.inc_by(waits.count.saturating_sub(count.get()));
            let seconds = self.store_wait_seconds.with_label_values(pool);
            seconds.inc_by((waits.time.as_secs_f64() - seconds.get()).max(0.0));
        }
    }

    /// Returns all metrics as text.
    pub(crate) fn encode(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| {
                tracing::error!(%error, "cannot write metrics");
                String::new()
            })
    }

    fn labels<'a>(&self, labels: &'a str) -> &'a str {
        match self.by_client_labels {
            true => labels,
            false => "",
        }
    }
}

/// The names are constants, and a test makes all of them.
const NAMED: &str = "metrics are named correctly";

/// Makes metrics and registers them.
struct Maker(Registry);

impl Maker {
    fn counters(&self, name: &str, help: &str, labels: &[&str], fixed: usize) -> Counters {
        let series = IntCounterVec::new(Opts::new(name, help), labels).expect(NAMED);
        Family::new(self.register(series), fixed)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], fixed: usize) -> Histograms {
        let series = HistogramVec::new(HistogramOpts::new(name, help), labels).expect(NAMED);
        Family::new(self.register(series), fixed)
    }

    fn register<C: Collector + Clone + 'static>(&self, metric: C) -> C {
        self.0.register(Box::new(metric.clone())).expect(NAMED);
        metric
    }
}

fn source(message: &Message) -> &str {
    message
        .source
        .as_ref()
        .map_or("", |address| &address.service_name)
}

fn destination(message: &Message) -> &str {
    message
        .destination
        .as_ref()
        .map_or("", |address| &address.service_name)
}

fn payload_bytes(message: &Message) -> u64 {
    message.data.as_ref().map_or(0, |data| {
        u64::try_from(data.type_url.len() + data.value.len()).unwrap_or(u64::MAX)
    })
}
