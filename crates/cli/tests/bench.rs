//! The load generator, against servers that run here: that nothing is lost or
//! doubled, that limits hold, and that what cannot work is refused before any
//! load. Speed is never asserted.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::{Finished, command, finish, run};
use tempfile::TempDir;

/// A server with the services of the generator.
struct Bed {
    dir: TempDir,
    service: String,
    agents: String,
    admin: String,
    server: Child,
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _may_have_ended = self.server.kill();
        let _ended = self.server.wait();
    }
}

impl Bed {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = free_address();
        let connection = format!("target: {service:?} insecure: true");
        let services = format!(
            r#"
            services {{
              name: "bench" factory: "GRPC" max_parallelism: 10000
              config {{ [type.googleapis.com/fleetspeak.grpcservice.Config] {{ {connection} }} }}
            }}
            services {{
              name: "batch" factory: "GRPC" max_parallelism: 10000
              config {{ [type.googleapis.com/fleethold.service.v1.BatchConfig] {{ connection {{ {connection} }} }} }}
            }}
            services {{ name: "noop" factory: "NOOP" max_parallelism: 10000 }}"#
        );
        fs::write(dir.path().join("services.config"), services).unwrap();
        // Each message of an operator is logged, and nobody reads that here.
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut server = command()
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen"])
            .args(["127.0.0.1:0", "--max-enrolments-per-second", "10000"])
            .args(["--max-connections-per-second", "10000", "--data-dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut values = BTreeMap::new();
        for line in BufReader::new(server.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let (name, value) = line.split_once(' ').unwrap();
            values.insert(name.to_owned(), value.trim().to_owned());
            if name == "ready" {
                break;
            }
        }
        assert!(values.contains_key("ready"), "the server did not start");
        Self {
            agents: values.remove("agents").unwrap(),
            admin: values.remove("admin").unwrap(),
            dir,
            service,
            server,
        }
    }

    /// Runs a mode and returns its report.
    fn bench(&self, words: &str) -> Value {
        let json = self.dir.path().join("report.json");
        let plot = self.dir.path().join("plot.svg");
        let mut bench = command();
        bench
            .arg("bench")
            .args(words.split(' '))
            .args(["--target", &self.agents])
            .args(["--admin", &self.admin])
            .args(["--service-listen", &self.service])
            .arg("--ca")
            .arg(self.dir.path().join("ca.pem"))
            .arg("--watch")
            .arg(format!("server={}", self.server.id()))
            .arg("--data")
            .arg(self.dir.path())
            .arg("--json")
            .arg(&json)
            .arg("--plot")
            .arg(&plot);
        let finished = finish(&mut bench);
        assert_eq!(finished.stderr, "", "progress is for terminals");
        let text = finished.data();
        assert!(text.contains("process server"), "{text}");
        assert!(fs::read_to_string(plot).unwrap().starts_with("<svg"));
        let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        assert_eq!(report["failures"], serde_json::json!({}), "{text}");
        report
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[track_caller]
fn nothing_lost_or_doubled(report: &Value, direction: &str) -> u64 {
    let totals = &report["messages"][direction];
    let number = |name: &str| totals[name].as_u64().unwrap();
    assert!(number("accepted") > 0, "{totals}");
    assert_eq!((number("missing"), number("doubled")), (0, 0), "{totals}");
    assert!(number("arrived") >= number("accepted"), "{totals}");
    number("accepted")
}

fn figure(report: &Value, name: &str) -> f64 {
    report["figures"][name].as_f64().unwrap()
}

#[test]
fn agents_enrol_and_poll_over_both_versions_of_http() {
    let bed = Bed::start();
    let report = bed.bench("enroll --agents 40 --seconds 20");
    assert!((figure(&report, "enrolments") - 40.0).abs() < 0.5);
    for words in [
        "poll --agents 8 --seconds 0.5",
        "poll --agents 8 --seconds 0.5 --http 2 --deflate",
        "poll --agents 4 --seconds 0.5 --handshake",
    ] {
        let report = bed.bench(words);
        assert!(figure(&report, "polls") >= 4.0, "{words}: {report}");
        assert_eq!(report["parameters"]["loop"], "closed");
    }
    let report = bed.bench("poll --agents 8 --seconds 0.5 --rate 40");
    assert_eq!(report["parameters"]["loop"], "open");
    // Neither more nor fewer than planned.
    assert!((figure(&report, "polls") - 20.0).abs() < 0.5, "{report}");
    // The server knows them all, and those that tried whether it is there.
    let admin = &*bed.admin;
    let clients = run(["client", "list", "--json", "--admin", admin]).json();
    assert!(clients.as_array().unwrap().len() > 40 + 8, "{clients}");
}

#[test]
fn messages_of_agents_arrive_once_by_polls_and_streams() {
    let bed = Bed::start();
    for words in [
        "ingest --agents 8 --seconds 0.5 --messages 1",
        "ingest --agents 4 --seconds 0.5 --messages 100 --http 2",
        "ingest --agents 4 --seconds 0.5 --messages 10 --payload 10000 --deflate",
        "ingest --agents 4 --seconds 0.5 --messages 10 --streaming",
        "ingest --agents 4 --seconds 0.5 --messages 10 --streaming --http 2 --deflate",
        "ingest --agents 4 --seconds 0.5 --messages 20 --service noop",
    ] {
        let report = bed.bench(words);
        let accepted = nothing_lost_or_doubled(&report, "to_service");
        assert!((figure(&report, "messages") - accepted as f64).abs() < 0.5);
    }
}

#[test]
fn messages_to_agents_arrive_once_from_a_backlog_at_a_rate_and_on_streams() {
    let bed = Bed::start();
    let report = bed.bench("deliver --agents 4 --seconds 20 --backlog 150");
    assert_eq!(nothing_lost_or_doubled(&report, "to_agents"), 600);
    let report = bed.bench("deliver --agents 4 --seconds 1 --rate 30 --poll-every 0.3");
    assert_eq!(nothing_lost_or_doubled(&report, "to_agents"), 30);
    for words in [
        "stream --agents 10 --seconds 1 --rate 30",
        "stream --agents 10 --seconds 1 --rate 30 --http 2 --deflate",
    ] {
        let report = bed.bench(words);
        assert_eq!(nothing_lost_or_doubled(&report, "to_agents"), 30);
        assert!(report["latencies"]["arrival"]["count"] == 30, "{report}");
    }
}

#[test]
fn broadcasts_reach_all_once_and_never_more_than_their_limit() {
    let bed = Bed::start();
    for (words, expected) in [
        ("broadcast --agents 20 --seconds 20", 20.0),
        ("broadcast --agents 20 --seconds 20 --limit 7", 7.0),
        ("broadcast --agents 10 --seconds 20 --poll-every 0.3", 10.0),
        (
            "broadcast --agents 10 --seconds 20 --limit 3 --poll-every 0.3",
            3.0,
        ),
    ] {
        let report = bed.bench(words);
        let found = ["reached", "doubled", "over_limit"].map(|name| figure(&report, name));
        assert_eq!(found, [expected, 0.0, 0.0], "{words}");
    }
}

#[test]
fn a_mixed_fleet_loses_nothing_and_a_soak_looks_at_itself() {
    let bed = Bed::start();
    let fleet = "--agents 20 --poll-every 0.5 --up-per-hour 3600 --down-per-hour 3600";
    let report = bed.bench(&format!("mixed --seconds 2 {fleet}"));
    for direction in ["to_service", "to_agents"] {
        nothing_lost_or_doubled(&report, direction);
    }
    assert_eq!(figure(&report, "broadcast_reached"), 20.0, "{report}");
    assert_eq!(figure(&report, "broadcast_doubled"), 0.0);
    let report = bed.bench(&format!("soak --seconds 2 {fleet}"));
    let snapshots = report["snapshots"].as_array().unwrap();
    assert!(!snapshots.is_empty());
    assert!(snapshots[0]["processes"][0]["last_kib"].as_u64() > Some(0));
}

/// Runs a mode that must be refused, and returns what it says.
fn refused(arguments: &[&str]) -> String {
    let finished = finish(command().arg("bench").args(arguments));
    finished.failure(2)
}

#[test]
fn what_cannot_work_is_refused_in_one_message_before_any_load() {
    let bed = Bed::start();
    let ca = bed.dir.path().join("ca.pem");
    let ca = ca.to_str().unwrap();
    let target = &*bed.agents;
    let admin = &*bed.admin;
    let nobody = free_address();

    let text = refused(&["poll", "--target", &nobody, "--ca", ca]);
    assert!(text.contains("cannot reach a server for agents"), "{text}");

    let text = refused(&["poll", "--target", "192.0.2.1:4443", "--ca", ca]);
    assert!(text.contains("--i-own-this-server"), "{text}");
    let text = refused(&[
        "deliver",
        "--target",
        target,
        "--ca",
        ca,
        "--admin",
        "192.0.2.1:1",
    ]);
    assert!(text.contains("--i-own-this-server"), "{text}");

    let text = refused(&["poll", "--target", target, "--ca", "/nonexistent/ca.pem"]);
    assert!(
        text.contains("cannot read") && text.contains("ca.pem"),
        "{text}"
    );
    let config = bed.dir.path().join("services.config");
    let text = refused(&["poll", "--target", target, "--ca", config.to_str().unwrap()]);
    assert!(text.contains("it holds no certificate"), "{text}");

    let text = refused(&[
        "poll",
        "--target",
        target,
        "--ca",
        ca,
        "--server-name",
        "elsewhere",
    ]);
    assert!(text.contains("cannot trust the server"), "{text}");

    let text = refused(&[
        "deliver", "--target", target, "--ca", ca, "--admin", &nobody,
    ]);
    assert!(text.contains("cannot use the admin interface"), "{text}");

    for (arguments, problem) in [
        (["--agents", "1000000"], "agents are not possible"),
        (["--seconds", "1000000"], "give 0.1 to 86400 seconds"),
        (["--rate", "0"], "rate"),
    ] {
        let mut all = vec!["poll", "--target", target, "--ca", ca];
        all.extend(arguments);
        let text = refused(&all);
        assert!(text.contains(problem), "{arguments:?}: {text}");
    }
    // Only those that tried it have made contact; nobody was let down.
    let clients = run(["client", "list", "--json", "--admin", admin]).json();
    assert!(clients.as_array().unwrap().len() <= 2, "{clients}");
}

#[test]
fn too_few_open_files_are_noticed_before_any_load() {
    let bed = Bed::start();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -n 200 && exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_fleethold"))
        .args(["bench", "poll", "--agents", "500", "--target"])
        .arg(&bed.agents)
        .arg("--ca")
        .arg(bed.dir.path().join("ca.pem"));
    let text = finish(&mut shell).failure(2);
    assert!(text.contains("500 agents need 628 open files"), "{text}");
    assert!(text.contains("ulimit -Hn"), "{text}");
}

#[test]
fn a_comparison_without_its_programs_or_documents_is_refused() {
    let missing = [
        "compare",
        "--systems",
        "stock",
        "--stock",
        "/nonexistent/server",
    ];
    let text = refused(&missing);
    assert!(text.contains("scripts/interop-venv"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let document = dir.path().join("page.md");
    fs::write(&document, "no markers").unwrap();
    let report = [
        "compare",
        "--systems",
        "sqlite",
        "--report",
        document.to_str().unwrap(),
    ];
    let text = refused(&report);
    assert!(text.contains("<!-- compare: begin -->"), "{text}");
}

#[test]
fn the_cost_card_counts_what_polls_and_messages_cost() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("cost.json");
    let mut cost = command();
    cost.args(["bench", "cost", "--quick", "--systems", "sqlite", "--dir"])
        .arg(dir.path().join("data"))
        .arg("--json")
        .arg(&json);
    let table = finish(&mut cost).data();
    assert!(
        table.contains("| idle poll | fleethold, SQLite |"),
        "{table}"
    );
    let card: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let [poll, one, hundred, down] = &card.as_array().unwrap()[..] else {
        panic!("{card}");
    };
    let number = |cost: &Value, name: &str| cost[name].as_f64().unwrap();
    for cost in [poll, one] {
        assert!((number(cost, "syncs") - 1.0).abs() < 1e-9, "{cost}");
    }
    assert!((number(hundred, "syncs") - 0.01).abs() < 1e-9, "{hundred}");
    assert!(number(hundred, "statements") < number(one, "statements"));
    assert!(number(down, "statements") >= 1.0, "{down}");
}

fn stock_server() -> PathBuf {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let venv = std::env::var_os("FLEETHOLD_INTEROP_VENV").unwrap_or("target/interop-venv".into());
    root.join(venv)
        .join("fleetspeak-server-bin/usr/bin/fleetspeak-server")
}

#[test]
fn a_quick_comparison_with_the_stock_server_fills_its_documents() {
    let stock = stock_server();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(
        path("page.md"),
        "before\n<!-- compare: begin -->\n<!-- compare: end -->\nafter\n",
    )
    .unwrap();
    fs::write(
        path("sizing.md"),
        "<!-- sizing: begin -->\n<!-- sizing: end -->\n",
    )
    .unwrap();
    let mut compare = command();
    compare
        .args(["bench", "compare", "--quick", "--systems"])
        // Where upstream's programs are missing, the rest is tried.
        .arg(if stock.exists() {
            "stock,sqlite"
        } else {
            "sqlite"
        })
        .arg("--stock")
        .arg(&stock)
        .arg("--dir")
        .arg(path("data"))
        .arg("--json")
        .arg(path("raw.json"))
        .arg("--plot")
        .arg(path("plots.svg"))
        .arg("--report")
        .arg(path("page.md"))
        .arg("--sizing")
        .arg(path("sizing.md"));
    let output = compare.output().unwrap();
    let finished = Finished {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    finished.data();
    let raw: Value = serde_json::from_slice(&fs::read(path("raw.json")).unwrap()).unwrap();
    let works = raw["works"].as_object().unwrap();
    for work in [
        "poll",
        "enroll",
        "ingest100",
        "deliver",
        "push_median",
        "broadcast",
    ] {
        assert!(
            works[work]["sqlite"]["median"].as_f64() > Some(0.0),
            "{work}: {raw:#}"
        );
        if stock.exists() && work != "broadcast" {
            assert!(
                works[work]["stock"]["median"].as_f64() > Some(0.0),
                "{work}: {raw:#}"
            );
        }
    }
    // What goes wrong on the other server is its own affair.
    let notes = raw["notes"].as_array().unwrap();
    let ours: Vec<_> = notes
        .iter()
        .filter(|note| note.as_str().unwrap().starts_with("fleethold"))
        .collect();
    assert!(ours.is_empty(), "{ours:#?}");
    // One second is too short for figures.
    let check = &raw["sizing_checks"]["sqlite"];
    assert_eq!(check["streams"].as_f64(), Some(10.0), "{check:#}");
    let sizing = fs::read_to_string(path("sizing.md")).unwrap();
    assert!(sizing.contains("| measured ÷ computed |"), "{sizing}");
    let page = fs::read_to_string(path("page.md")).unwrap();
    assert!(page.starts_with("before\n") && page.ends_with("after\n"));
    assert!(
        page.contains("| idle polls, kept connections |") && page.contains("plots.svg"),
        "{page}"
    );
    let left: Vec<_> = fs::read_dir(path("data")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
