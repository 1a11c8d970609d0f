//! Simulated agents by the thousand, from one process, against any server that
//! speaks the protocol.
//!
//! Each agent has its own key and enrols as real ones do. Messages carry
//! numbers, so that each one that is lost or comes twice is found. Latencies
//! count from the time an operation was meant to begin.
//!
//! # Limits
//!
//! A run is bounded in agents, messages and time ([`Settings::check`]). Unless
//! told whose it is, the generator talks to loopback only.

mod admin;
mod agent;
mod failure;
mod identity;
mod ledger;
mod modes;
mod pace;
mod preflight;
mod report;
mod service;
mod stream;
mod trust;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fleethold_store::Random;
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};

pub use agent::{Http, SERVICE};
pub use ledger::Totals;
pub use modes::{Broadcast, Deliver, Ingest, Mixed, Mode, Poll, Stream};
pub use pace::Latencies;
pub use report::Report;
pub use watch::{ProcessUse, Watched};

pub(crate) use watch::{bytes_in, peak_mib, written_bytes};

use admin::Admin;
use agent::{Agent, Surroundings};
use pace::Recorder;
use service::Service;
use watch::Watch;

/// The most agents of a run.
pub const MOST_AGENTS: u32 = 100_000;
/// The longest run.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The most messages of a run, counted before it begins.
pub const MOST_MESSAGES: u64 = 20_000_000;

/// How many agents connect at the same time.
const CONNECTING: usize = 32;
/// How often an agent tries to get ready for a run.
const MOST_TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);
/// How much longer than planned a run may take.
const OVERTIME: Duration = Duration::from_secs(120);

/// Where the server is, and how agents talk to it.
#[derive(Clone)]
pub struct Settings {
    /// Where agents connect, HOST:PORT.
    pub target: String,
    /// Where the admin interface listens, for modes that send to agents.
    pub admin: Option<String>,
    /// The certificates that agents trust.
    pub ca_pem: Vec<u8>,
    /// The name in the server's certificate, if it is not the host of the target.
    pub server_name: Option<String>,
    /// Whether the server may be on another machine.
    pub own_server: bool,
    /// How many agents.
    pub agents: u32,
    /// How long a run takes.
    pub duration: Duration,
    /// Operations per second of all agents together (an open loop); otherwise
    /// each agent begins the next when the last has ended (a closed loop).
    pub rate: Option<f64>,
    /// The version of HTTP.
    pub http: Http,
    /// Whether agents compress what they send.
    pub deflate: bool,
    /// Where the generator serves the service `bench`, which the server's
    /// configuration has to name.
    pub service_listen: Option<SocketAddr>,
    /// Processes whose use is measured.
    pub watched: Vec<Watched>,
    /// Directories whose growth is measured.
    pub directories: Vec<PathBuf>,
    /// Called with what begins.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Settings {
    /// Checks what can be checked without a server.
    ///
    /// # Errors
    /// Says what to change.
    pub fn check(&self) -> Result<()> {
        if self.agents == 0 || self.agents > MOST_AGENTS {
            bail!(
                "{} agents are not possible; ask for 1 to {MOST_AGENTS}",
                self.agents
            );
        }
        if self.duration.is_zero() || self.duration > LONGEST {
            bail!(
                "a run of {} s is not possible; ask for up to {} s",
                self.duration.as_secs_f64(),
                LONGEST.as_secs()
            );
        }
        if let Some(rate) = self.rate {
            if !rate.is_finite() || !(0.01..=1e6).contains(&rate) {
                bail!("a rate of {rate} per second is not possible; ask for 0.01 to 1000000");
            }
            if rate * self.duration.as_secs_f64() > MOST_MESSAGES as f64 {
                bail!(
                    "{rate} per second for {} s are more than {MOST_MESSAGES} operations; ask for less",
                    self.duration.as_secs()
                );
            }
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "agents": self.agents,
            "seconds": self.duration.as_secs_f64(),
            "rate_per_second": self.rate,
            "loop": if self.rate.is_some() { "open" } else { "closed" },
            "http": match self.http { Http::One => "1.1", Http::Two => "2" },
            "deflate": self.deflate,
        })
    }
}

/// A fleet of simulated agents and its server.
pub struct Bench {
    /// May be changed between runs, except for where the server is.
    pub settings: Settings,
    around: Arc<Surroundings>,
    admin: Option<Admin>,
    service: Option<Service>,
    random: Random,
    fleet: Vec<Arc<Agent>>,
    broadcasts: u32,
}

impl Bench {
    /// Checks that all that a run needs is there, before any load.
    ///
    /// # Errors
    /// Says in one sentence what is wrong and what to do.
    pub async fn connect(settings: Settings) -> Result<Self> {
        preflight::connect(settings).await
    }

    /// Runs one mode.
    ///
    /// # Errors
    /// If the run cannot begin or its agents cannot enrol. What fails during
    /// the run is counted.
    pub async fn run(&mut self, mode: &Mode) -> Result<Report> {
        self.settings.check()?;
        mode.check(&self.settings)?;
        preflight::allow_files(self.settings.agents)?;
        let longest = mode.longest(&self.settings) + OVERTIME;
        let name = mode.name();
        match tokio::time::timeout(longest, Box::pin(modes::run(self, mode))).await {
            Ok(report) => report,
            Err(_) => bail!(
                "{name} was given up after {} s: the server does not get on with it",
                longest.as_secs()
            ),
        }
    }

    /// Returns so many agents that have not made contact yet, which join the fleet.
    fn recruit(&mut self, count: usize) -> Result<Vec<Arc<Agent>>> {
        let first = self.fleet.len();
        for number in first..first + count {
            let number = u32::try_from(number).context("too many agents")?;
            self.fleet.push(Arc::new(Agent::new(number, &self.around)?));
        }
        Ok(self.fleet[first..].to_vec())
    }

    /// Returns the first `count` agents of the fleet, all of which have enrolled.
    async fn enrolled(&mut self, count: u32) -> Result<Vec<Arc<Agent>>> {
        let count = usize::try_from(count)?;
        let around = Arc::clone(&self.around);
        if self.fleet.len() < count {
            (self.settings.progress)(&format!("enrolling {count} agents"));
            let missing = count - self.fleet.len();
            let newcomers = self.recruit(missing)?;
            let enrol = |agent: Arc<Agent>| async move {
                let mut connection = agent.connect().await?;
                agent.poll(&mut connection, Vec::new()).await
            };
            for_all(newcomers, CONNECTING, enrol)
                .await
                .context("an agent cannot enrol")?;
        }
        // Versions may have changed since they were made.
        let agents = self.fleet[..count].iter();
        agents.map(|agent| agent.in_surroundings(&around)).collect()
    }

    fn admin(&self) -> Result<Admin> {
        let admin = self.admin.clone();
        admin.context("this mode sends messages to agents; say where the admin interface is")
    }

    fn service(&self) -> Result<&Service> {
        let service = self.service.as_ref();
        service.context(
            "this mode counts what arrives at the service `bench`; say where the generator shall serve it",
        )
    }

    /// Chooses the version of HTTP and the compression of all agents from now on.
    ///
    /// # Errors
    /// If the certificates cannot be used.
    pub fn speak(&mut self, http: Http, deflate: bool) -> Result<()> {
        self.settings.http = http;
        self.settings.deflate = deflate;
        self.around = Arc::new(preflight::surroundings(&self.settings, self.around.server)?);
        Ok(())
    }
}

/// Does something for all agents, some at a time, until one has failed in vain.
async fn for_all<T, F: Future<Output = Result<T, failure::Failure>>>(
    agents: Vec<Arc<Agent>>,
    at_once: usize,
    act: impl Fn(Arc<Agent>) -> F,
) -> Result<Vec<T>> {
    let act = &act;
    // Databases refuse work now and then that must only be tried again.
    let try_again = |agent: Arc<Agent>| async move {
        let mut tries = 0;
        loop {
            tries += 1;
            match act(Arc::clone(&agent)).await {
                Err(_) if tries < MOST_TRIES => tokio::time::sleep(BETWEEN_TRIES).await,
                result => return result,
            }
        }
    };
    let mut waiting = agents.into_iter();
    let mut running: FuturesUnordered<_> = waiting.by_ref().take(at_once).map(try_again).collect();
    let mut results = Vec::new();
    while let Some(result) = running.next().await {
        results.push(result?);
        if let Some(agent) = waiting.next() {
            running.push(try_again(agent));
        }
    }
    Ok(results)
}

/// One run: what is measured from its beginning to its end.
struct Run {
    mode: &'static str,
    parameters: Value,
    watch: Watch,
    recorder: Arc<Recorder>,
    started: Instant,
}

impl Run {
    fn begin(bench: &Bench, mode: &'static str, parameters: &Value) -> Self {
        (bench.settings.progress)(mode);
        let mut all = bench.settings.json();
        if let (Some(all), Some(own)) = (all.as_object_mut(), parameters.as_object()) {
            all.extend(own.clone());
        }
        Self {
            mode,
            parameters: all,
            watch: Watch::begin(&bench.settings.watched, &bench.settings.directories),
            recorder: Arc::new(Recorder::new(bench.settings.duration)),
            started: Instant::now(),
        }
    }

    /// Ends the run; `main` names the latencies of its recorder.
    fn end(self, main: &'static str, figures: Vec<(&'static str, f64)>) -> Report {
        let (processes, bytes_grown) = self.watch.read();
        Report {
            mode: self.mode,
            parameters: self.parameters,
            seconds: self.started.elapsed().as_secs_f64(),
            figures,
            latencies: vec![(main, self.recorder.latencies())],
            messages: Vec::new(),
            failures: self.recorder.failures(),
            processes,
            bytes_grown,
            per_second: self.recorder.seconds(),
            snapshots: Vec::new(),
            cut_off: false,
        }
    }
}
