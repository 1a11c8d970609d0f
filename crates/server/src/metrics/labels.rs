//! How values look as labels of metrics.

use fleethold_proto::fleetspeak::Label;
use fleethold_proto::fleetspeak::monitoring::kill_notification::Reason;

/// The labels of a client as upstream writes them.
#[derive(Debug, Default)]
pub(crate) struct ClientLabels {
    /// `service:label,…`, sorted.
    pub(crate) full: String,
    /// `label,…`, sorted.
    pub(crate) short: String,
}

impl ClientLabels {
    pub(crate) fn of(labels: &[Label]) -> Self {
        let joined = |text: fn(&Label) -> String| {
            let mut texts: Vec<_> = labels.iter().map(text).collect();
            texts.sort();
            texts.join(",")
        };
        Self {
            full: joined(|label| format!("{}:{}", label.service_name, label.label)),
            short: joined(|label| label.label.clone()),
        }
    }
}

pub(super) fn text(value: bool) -> &'static str {
    match value {
        true => "true",
        false => "false",
    }
}

pub(crate) fn reason_name(reason: Reason) -> &'static str {
    reason.as_str_name()
}
