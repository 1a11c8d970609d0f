//! What metrics there are.

use std::collections::BTreeMap;

use bytes::Bytes;
use fleethold_proto::Any;
use fleethold_proto::fleetspeak::monitoring::AggregatedResourceUsage;
use fleethold_proto::fleetspeak::monitoring::kill_notification::Reason;
use fleethold_proto::fleetspeak::{Address, Label};
use fleethold_store::Waits;

use super::*;

fn client() -> ClientLabels {
    let label = |service: &str, label: &str| Label {
        service_name: service.to_owned(),
        label: label.to_owned(),
    };
    ClientLabels::of(&[
        label("client", "linux"),
        label("client", "amd64"),
        label("a", "z"),
    ])
}

fn message() -> Message {
    let address = |service: &str| {
        Some(Address {
            service_name: service.to_owned(),
            ..Address::default()
        })
    };
    Message {
        source: address("shell"),
        destination: address("GRR"),
        message_type: "Report".to_owned(),
        data: Some(Any {
            type_url: "type".to_owned(),
            value: Bytes::from_static(b"value"),
        }),
        ..Message::default()
    }
}

/// Uses every metric once.
fn use_everything(metrics: &Arc<Metrics>) {
    let (client, message) = (client(), message());
    let second = Duration::from_secs(1);
    metrics.ingested(&message, &client, false);
    metrics.sent(std::slice::from_ref(&message), &client);
    metrics.saved(std::slice::from_ref(&message), &client);
    metrics.processed(&message, &client, true, second, Processed::Success);
    metrics.processed(&message, &client, true, second, Processed::PermanentError);
    metrics.dropped(&message, &client, false);
    drop(metrics.exchange(PollType::Poll));
    metrics
        .store_calls
        .of(["StoreMessages", "false"])
        .observe(1.0);
    let report = ResourceUsageData {
        scope: "client".to_owned(),
        version: "1".to_owned(),
        resource_usage: Some(AggregatedResourceUsage::default()),
        ..ResourceUsageData::default()
    };
    metrics.usage(&client, false, &report);
    let kill = KillNotification {
        reason: Reason::MemoryExceeded.into(),
        service: "shell".to_owned(),
        ..KillNotification::default()
    };
    metrics.killed(&client, true, &kill);
    metrics.set_refused([("connections", 1)].into_iter());
    metrics.set_certificate_expiry("agents", SystemTime::UNIX_EPOCH + second);
    let waits = Some(Waits::default());
    metrics.set_store_stats(&StoreStats {
        overdue_server_messages: Some(1),
        oldest_overdue_server_message: Some(second),
        reads: waits,
        writes: waits,
    });
}

/// Writes names, types, labels and help texts of all metrics, one to a line.
fn described(metrics: &Metrics) -> String {
    let mut lines = String::new();
    for family in metrics.registry.gather() {
        let mut labels: Vec<_> = family.get_metric()[0]
            .get_label()
            .iter()
            .map(|label| label.name().to_owned())
            .collect();
        labels.sort();
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        lines.push_str(&format!(
            "{} {kind} {{{}}} {}\n",
            family.name(),
            labels.join(", "),
            family.help()
        ));
    }
    lines
}

// After a deliberate change, write what the failing test prints into the file.
#[test]
fn p_199_metrics_have_upstreams_names_types_and_labels() {
    let metrics = Arc::new(Metrics::new(true));
    use_everything(&metrics);
    let described = described(&metrics);
    assert_eq!(described, include_str!("golden.txt"), "\n{described}");
}

#[test]
fn p_199_client_labels_are_sorted_joined_and_can_be_switched_off() {
    let with = Arc::new(Metrics::new(true));
    let without = Arc::new(Metrics::new(false));
    for metrics in [&with, &without] {
        use_everything(metrics);
    }
    let text = with.encode();
    assert!(
        text.contains(r#"client_labels="a:z,client:amd64,client:linux""#),
        "{text}"
    );
    assert!(
        text.contains(r#"client_data_labels="amd64,linux,z""#),
        "{text}"
    );
    assert!(text.contains(r#"reason="MEMORY_EXCEEDED""#), "{text}");
    let text = without.encode();
    assert!(!text.contains("amd64"), "{text}");
    assert!(text.contains(r#"client_labels="""#), "{text}");
}

#[test]
fn p_199_histograms_have_the_usual_buckets_and_payloads_count_type_and_value() {
    let metrics = Arc::new(Metrics::new(true));
    use_everything(&metrics);
    let mut buckets: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for family in metrics.registry.gather() {
        for metric in family.get_metric() {
            let bounds = metric.get_histogram().get_bucket();
            let bounds = bounds.iter().map(|bucket| bucket.upper_bound()).collect();
            buckets.insert(family.name().to_owned(), bounds);
        }
    }
    buckets.retain(|_, bounds| !bounds.is_empty());
    assert_eq!(buckets.len(), 15, "{buckets:?}");
    for (name, bounds) in buckets {
        let usual = [
            0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ];
        assert_eq!(bounds, usual, "{name}");
    }
    let values = ["false", "shell", "GRR", "Report", &client().full];
    assert_eq!(metrics.ingested_bytes.of(values).get(), 9);
}

#[test]
fn nonsense_of_an_agent_spoils_no_metric() {
    let metrics = Arc::new(Metrics::new(true));
    let report = ResourceUsageData {
        resource_usage: Some(AggregatedResourceUsage {
            mean_user_cpu_rate: f64::NAN,
            max_user_cpu_rate: f64::INFINITY,
            mean_system_cpu_rate: -1.0,
            ..AggregatedResourceUsage::default()
        }),
        ..ResourceUsageData::default()
    };
    metrics.usage(&ClientLabels::default(), false, &report);
    let text = metrics.encode();
    assert!(!text.contains("NaN") && !text.contains(" inf"), "{text}");
}
