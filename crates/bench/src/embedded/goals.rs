//! What must hold, and whether it did.
//!
//! The figures of the stock server's store are from another machine, where
//! floor (b) had 34,200 rows/s at 100 rows per transaction. Its rates are
//! scaled by that floor before they are compared with ours.

use std::fmt::{self, Display, Formatter};

use serde_json::{Value, json};

use crate::embedded::report::Row;
use crate::embedded::samples::Kind;
use crate::embedded::storing::Cell;
use crate::embedded::streams::Call;
use crate::embedded::{Scale, claims, drain, footprint, memory, polls, streams};
use crate::figures::number;

/// Floor (b) at 100 rows per transaction, where the stock store was measured.
const STOCK_FLOOR: f64 = 34_200.0;

/// One requirement.
#[derive(Debug)]
pub(crate) struct Goal {
    what: String,
    wanted: Wanted,
    found: f64,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met(&self) -> bool {
        match self.wanted {
            Wanted::AtLeast(least) => self.found >= least,
            Wanted::AtMost(most) => self.found <= most,
        }
    }

    pub(crate) fn json(&self) -> Value {
        let (least, most) = match self.wanted {
            Wanted::AtLeast(least) => (Some(least), None),
            Wanted::AtMost(most) => (None, Some(most)),
        };
        json!({
            "what": self.what,
            "at_least": least,
            "at_most": most,
            "found": self.found,
            "met": self.is_met(),
        })
    }
}

impl Display for Goal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let wanted = match self.wanted {
            Wanted::AtLeast(least) => format!("≥ {}", number(least)),
            Wanted::AtMost(most) => format!("≤ {}", number(most)),
        };
        let met = if self.is_met() { "met" } else { "not met" };
        write!(
            f,
            "| {} | {wanted} | {} | {met} |",
            self.what,
            number(self.found)
        )
    }
}

/// Compares what was measured; leaves out what was not.
pub(crate) fn compare(rows: &[Row], scale: Scale) -> Vec<Goal> {
    let row = |name: &str| rows.iter().find(|row| row.name == name);
    let value = |name: &str| row(name).map(Row::value);
    let ratio = |name: &str, floor: usize| row(name)?.ratios.map(|ratios| ratios[floor]);
    let mut goals = Vec::new();
    let mut goal = |what: &str, wanted: Wanted, found: Option<f64>| {
        goals.extend(found.map(|found| Goal {
            what: what.into(),
            wanted,
            found,
        }));
    };
    use Wanted::{AtLeast, AtMost};

    for kind in [Kind::ForServer, Kind::Processed] {
        let hundred = Cell {
            callers: 1,
            messages: 100,
            payload_bytes: 100,
            kind,
        };
        let what = format!("storing 100 messages per call, {}, × floor ", kind.name());
        let name = hundred.name();
        goal(&format!("{what}(b)"), AtLeast(1.0), ratio(&name, 1));
        goal(&format!("{what}(a), an aim"), AtLeast(0.3), ratio(&name, 0));
    }
    for kind in [Kind::ForServer, Kind::Processed] {
        let single = Cell {
            callers: 64,
            messages: 1,
            payload_bytes: 100,
            kind,
        };
        let what = format!("64 callers, single messages, {}, × floor (b)", kind.name());
        goal(&what, AtLeast(4.0), ratio(&single.name(), 1));
    }
    let floor = ratio(&polls::name(100), 1).zip(value(&polls::name(100)));
    let machine = floor.map(|(ratio, calls)| 100.0 * calls / ratio / STOCK_FLOOR);
    for (due, stock, times) in [(0, 106.0, 50.0), (1, 96.0, 50.0), (100, 180.0, 4.0)] {
        let found = value(&polls::name(due));
        let what = format!("polls, {due} due, × the stock store's {stock} calls/s");
        goal(&what, AtLeast(times), found.map(|found| found / stock));
        let what = format!("{what} scaled to this machine");
        let scaled = found.zip(machine);
        let scaled = scaled.map(|(found, machine)| found / stock / machine);
        goal(&what, AtLeast(times), scaled);
    }
    let what = format!("{} (s)", drain::name(scale.overdue));
    goal(&what, AtMost(1.0), value(&drain::name(scale.overdue)));

    let [_, few, _, many] = scale.pending;
    let cost = |name: String| value(&name).map(|rate| 1.0 / rate);
    for limit in [1, 100] {
        let few_cost = cost(claims::name(limit, few, 0));
        let times = |name: String| cost(name).zip(few_cost).map(|(many, few)| many / few);
        let what = format!("cost of a claim of {limit} out of {many} × out of {few}");
        goal(&what, AtMost(1.5), times(claims::name(limit, many, 0)));
        let what = format!(
            "cost of a claim of {limit} with {} finished",
            scale.finished
        );
        let with_history = claims::name(limit, few, scale.finished);
        goal(&what, AtMost(1.5), times(with_history));
    }
    let memory = value(&memory::name(many)).zip(value(&memory::name(few)));
    goal(
        "memory for the longest backlog over the shortest (MiB), caches included",
        AtMost(128.0),
        memory.map(|(many, few)| many - few),
    );
    for call in [Call::Read, Call::Store, Call::Contact] {
        let longest = |is_paused| value(&streams::name("longest", call, is_paused));
        let delay = longest(true).zip(longest(false));
        goal(
            &format!("a paused stream delays the longest {} by (ms)", call.name()),
            AtMost(20.0),
            delay.map(|(paused, alone)| paused - alone),
        );
    }
    for (kind, stock) in [
        (Kind::Processed, 360.0),
        (Kind::ForServer, 595.0),
        (Kind::ForClients, 595.0),
    ] {
        let name = footprint::name(kind);
        let what = format!("{name} (bytes on disk)");
        goal(&what, AtMost(0.6 * stock), value(&name));
    }
    goals
}
