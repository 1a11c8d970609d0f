//! What each system does when it is its turn.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::systems::{BATCH, Bed, NOOP, Programs, System};
use super::works::Work;
use super::{Comparison, Options};
use crate::load::{Bench, Broadcast, Deliver, Http, Ingest, Mode, Poll, Report, SERVICE, Stream};

/// Pushes per second to waiting streams.
const PUSHES_PER_SECOND: f64 = 40.0;
/// How often polling agents ask for a broadcast.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// The payload of small messages.
pub(super) const SMALL: usize = 100;

/// Works through all modes on a system with empty data.
pub(super) async fn turn(
    comparison: &mut Comparison,
    options: &Options,
    programs: &Programs,
    system: System,
    repetition: u32,
) {
    let about = format!("{}, repetition {}", system.title(), repetition + 1);
    let mut turn = Turn {
        comparison,
        options,
        system,
        about,
        repetition,
    };
    if let Err(error) = Box::pin(turn.all(programs)).await {
        turn.note(&format!("{error:#}"));
    }
}

/// Does what is too long to be repeated.
pub(super) async fn once(
    comparison: &mut Comparison,
    options: &Options,
    programs: &Programs,
    system: System,
) {
    let mut turn = Turn {
        comparison,
        options,
        system,
        about: system.title().to_owned(),
        repetition: 0,
    };
    if let Err(error) = Box::pin(turn.disk(programs)).await {
        turn.note(&format!("disk: {error:#}"));
    }
    if let Err(error) = Box::pin(turn.broadcasts(programs)).await {
        turn.note(&format!("broadcast: {error:#}"));
    }
    if system != System::Stock
        && let Err(error) = Box::pin(turn.fleet(programs)).await
    {
        turn.note(&format!("large fleet: {error:#}"));
    }
}

pub(super) struct Turn<'a> {
    pub(super) comparison: &'a mut Comparison,
    pub(super) options: &'a Options,
    pub(super) system: System,
    about: String,
    repetition: u32,
}

impl Turn<'_> {
    async fn all(&mut self, programs: &Programs) -> Result<()> {
        let size = self.options.size;
        (self.options.progress)(&format!("{}: start", self.about));
        let bed = Bed::make(self.system, programs).await?;
        let running = bed.start().await?;
        let mut bench = bed.connect(&running).await?;
        bench.settings.duration = size.window;

        // First, while the server has no memory left over from others.
        bench.settings.agents = size.streams;
        bench.settings.rate = Some(PUSHES_PER_SECOND);
        let stream = Mode::Stream(Stream {
            payload_bytes: SMALL,
        });
        if let Some(report) = self.run(&mut bench, &stream).await {
            if let Some(latencies) = report.latency("arrival") {
                let curve = latencies.curve();
                self.comparison.curves.insert(("push", self.system), curve);
                self.add(Work::PushMedian, latencies.percentile_ms(50.0));
                self.add(Work::PushP99, latencies.percentile_ms(99.0));
            }
            self.figure(Work::StreamMemory, &report, "stream_kib_each");
        }
        bench.settings.rate = None;
        bench.settings.agents = size.enrolments;
        // Slower ones enrol as many as there is time for.
        bench.settings.duration = size.window * 4;
        if let Some(report) = self.run(&mut bench, &Mode::Enroll).await {
            self.figure(Work::Enroll, &report, "enrolments_per_second");
        }
        bench.settings.duration = size.window;
        bench.settings.agents = size.agents;
        for (handshake, work, cpu) in [
            (false, Work::Poll, Work::CpuPoll),
            (true, Work::PollHandshake, Work::CpuHandshake),
        ] {
            if let Some(report) = self.run(&mut bench, &Mode::Poll(Poll { handshake })).await {
                self.figure(work, &report, "polls_per_second");
                self.cpu(cpu, &report, "polls");
                if !handshake && let Some(latencies) = report.latency("poll") {
                    let curve = latencies.curve();
                    self.comparison.curves.insert(("poll", self.system), curve);
                }
            }
        }
        self.ingest(&mut bench).await?;
        self.deliver(&mut bench).await;
        let watch = crate::load::peak_mib(running.watched[0].pid);
        if let Some(mib) = watch {
            self.add(Work::Memory, mib);
        }
        drop(bench);
        running.stop().await
    }

    async fn ingest(&mut self, bench: &mut Bench) -> Result<()> {
        let ingest = |messages, payload_bytes, service: &str, counted, streaming| {
            Mode::Ingest(Ingest {
                messages,
                payload_bytes,
                service: service.to_owned(),
                counted,
                streaming,
            })
        };
        let mut works = vec![
            (Work::Ingest1, ingest(1, SMALL, SERVICE, true, false)),
            (Work::Ingest10, ingest(10, SMALL, SERVICE, true, false)),
            (Work::Ingest100, ingest(100, SMALL, SERVICE, true, false)),
            (Work::IngestLarge, ingest(10, 10_000, SERVICE, true, false)),
            (Work::IngestNoop, ingest(100, SMALL, NOOP, false, false)),
        ];
        if self.system != System::Stock {
            works.push((Work::IngestBatch, ingest(100, SMALL, BATCH, true, false)));
        }
        works.push((
            Work::IngestStreaming,
            ingest(100, SMALL, SERVICE, true, true),
        ));
        for (work, mode) in works {
            if work == Work::IngestStreaming {
                bench.speak(Http::Two, true)?;
            }
            // More messages at once than a service takes in a second or two
            // would wait in the store, for minutes.
            let full = matches!(&mode, Mode::Ingest(ingest) if ingest.messages == 100);
            let agents = self.options.size.agents;
            bench.settings.agents = if full { agents.div_ceil(4) } else { agents };
            let Some(report) = self.run(bench, &mode).await else {
                continue;
            };
            self.figure(work, &report, "messages_per_second");
            match work {
                Work::Ingest1 => {
                    self.cpu(Work::CpuUp1, &report, "messages");
                    if let Some(latencies) = report.latency("contact") {
                        let curve = latencies.curve();
                        self.comparison
                            .curves
                            .insert(("ingest", self.system), curve);
                    }
                }
                Work::Ingest100 => self.cpu(Work::CpuUp100, &report, "messages"),
                _ => {}
            }
        }
        bench.settings.agents = self.options.size.agents;
        bench.speak(Http::One, false)
    }

    async fn deliver(&mut self, bench: &mut Bench) {
        let (agents, backlog) = self.options.size.backlog;
        bench.settings.agents = agents;
        bench.settings.duration = self.options.size.window * 6;
        let deliver = Mode::Deliver(Deliver {
            backlog,
            payload_bytes: SMALL,
            poll_every: POLL_EVERY,
        });
        if let Some(report) = self.run(bench, &deliver).await {
            self.figure(Work::Deliver, &report, "messages_per_second");
            self.figure(Work::Insert, &report, "inserts_per_second");
            self.cpu(Work::CpuDown, &report, "messages");
        }
    }

    /// Measures what messages and polls leave on disk.
    async fn disk(&mut self, programs: &Programs) -> Result<()> {
        let size = self.options.size;
        (self.options.progress)(&format!("{}: disk", self.about));
        let mut bed = Bed::make(self.system, programs).await?;
        let mut bytes = Vec::new();
        let mut counts = Vec::new();
        let polls = Mode::Poll(Poll::default());
        let messages = Mode::Ingest(Ingest {
            messages: 100,
            payload_bytes: SMALL,
            service: NOOP.to_owned(),
            counted: false,
            streaming: false,
        });
        // The first run makes what is there once only.
        for mode in [&polls, &polls, &messages] {
            let running = bed.start().await?;
            let mut bench = bed.connect(&running).await?;
            bench.settings.agents = size.agents;
            bench.settings.duration = match bytes.is_empty() {
                true => size.disk / 8,
                false => size.disk,
            };
            let report = self.run(&mut bench, mode).await;
            let count = report
                .and_then(|report| report.figure("polls").or_else(|| report.figure("messages")));
            counts.push(count.unwrap_or(0.0));
            drop(bench);
            running.stop().await?;
            bytes.push(bed.data_bytes().await? as f64);
        }
        let poll = (bytes[1] - bytes[0]) / counts[1].max(1.0);
        self.add(Work::DiskPoll, poll);
        // Contacts with a hundred messages are part of what these cost.
        self.add(
            Work::DiskMessage,
            (bytes[2] - bytes[1]) / counts[2].max(1.0),
        );
        Ok(())
    }

    async fn broadcasts(&mut self, programs: &Programs) -> Result<()> {
        let size = self.options.size;
        let bed = Bed::make(self.system, programs).await?;
        let running = bed.start().await?;
        let mut bench = bed.connect(&running).await?;
        bench.settings.agents = size.streams;
        bench.settings.duration = size.broadcast_limit;
        let broadcast = Mode::Broadcast(Broadcast {
            limit: None,
            poll_every: None,
        });
        if let Some(report) = self.run(&mut bench, &broadcast).await {
            self.figure(Work::BroadcastReached, &report, "reached");
            self.seconds(Work::Broadcast, &report);
        }
        if self.system != System::Stock {
            // Upstream's limits are used up over several refreshes of a minute each.
            let limited = Mode::Broadcast(Broadcast {
                limit: Some(size.streams / 3),
                poll_every: Some(POLL_EVERY),
            });
            if let Some(report) = self.run(&mut bench, &limited).await {
                self.seconds(Work::BroadcastLimited, &report);
            }
        }
        drop(bench);
        running.stop().await
    }

    /// Runs a mode; what goes wrong is noted.
    pub(super) async fn run(&mut self, bench: &mut Bench, mode: &Mode) -> Option<Report> {
        (self.options.progress)(&format!("{}: {}", self.about, mode.name()));
        let report = match bench.run(mode).await {
            Ok(report) => report,
            Err(error) => {
                self.note(&format!("{}: {error:#}", mode.name()));
                return None;
            }
        };
        let mut raw = report.json();
        raw["system"] = json!(self.system.name());
        raw["repetition"] = json!(self.repetition + 1);
        self.comparison.runs.push(raw);
        if report.wrong() > 0 {
            let parameters = &report.parameters;
            for (direction, totals) in &report.messages {
                self.note(&format!(
                    "{} {parameters}: {direction}: of {} accepted messages {} did not arrive while the run lasted, {} came more than once",
                    mode.name(),
                    totals.accepted,
                    totals.missing,
                    totals.doubled
                ));
            }
        }
        for name in ["doubled", "over_limit", "broadcast_doubled"] {
            let count = report.figure(name).unwrap_or(0.0);
            if count > 0.0 {
                self.note(&format!("{}: {name}: {count}", mode.name()));
            }
        }
        let failed: u64 = report.failures.values().sum();
        if failed > 0 {
            let first = report.failures.keys().next().cloned().unwrap_or_default();
            self.note(&format!("{}: {failed} failures, as: {first}", mode.name()));
        }
        Some(report)
    }

    fn note(&mut self, text: &str) {
        let note = format!("{}: {text}", self.about);
        self.comparison.notes.push(note);
    }

    pub(super) fn add(&mut self, work: Work, value: f64) {
        self.comparison.add(work, self.system, value);
    }

    pub(super) fn figure(&mut self, work: Work, report: &Report, name: &str) {
        if let Some(value) = report.figure(name) {
            self.add(work, value);
        }
    }

    pub(super) fn seconds(&mut self, work: Work, report: &Report) {
        if let Some(value) = report.figure("all_ms") {
            self.add(work, value / 1e3);
        }
    }

    /// Adds the processor time of server and database for each operation.
    pub(super) fn cpu(&mut self, work: Work, report: &Report, operations: &str) {
        let count = report.figure(operations).unwrap_or(0.0);
        if count > 0.0 {
            self.add(work, cpu_seconds(report) / count * 1e6);
        }
    }
}

/// Returns the processor time of server and database.
pub(super) fn cpu_seconds(report: &Report) -> f64 {
    let used = report
        .processes
        .iter()
        .filter(|process| process.name != "generator");
    used.map(|process| process.cpu_seconds).sum()
}
