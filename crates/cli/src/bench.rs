//! `fleethold bench …`: load on a server of one's own, and what it carries.

mod compare;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use fleethold_bench::load::{
    self, Bench, Broadcast, Deliver, Http, Ingest, Mixed, Mode, Poll, Settings, Stream, Watched,
};
use indicatif::ProgressBar;

use crate::admin::host_port;
use crate::output::{self, Exit, Failure};

#[derive(Subcommand, Debug)]
pub(crate) enum BenchCommand {
    /// Let new agents enrol
    Enroll(LoadArgs),
    /// Let agents poll when there is nothing to do
    Poll {
        #[command(flatten)]
        load: LoadArgs,
        /// Make a new connection for each poll
        #[arg(long)]
        handshake: bool,
    },
    /// Let agents send messages to a service
    ///
    /// The server's services file has to name the service `bench`, with factory GRPC and the target of --service-listen.
    Ingest {
        #[command(flatten)]
        load: LoadArgs,
        /// Messages in each contact
        #[arg(long, value_name = "N", default_value_t = 10)]
        messages: u32,
        /// Another service that takes the messages; what arrives there is not counted
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Send on streams, not in polls
        #[arg(long)]
        streaming: bool,
        #[command(flatten)]
        payload: PayloadArgs,
    },
    /// Send messages to polling agents, from a backlog or, with --rate, at a rate
    Deliver {
        #[command(flatten)]
        load: LoadArgs,
        /// Messages that wait for each agent
        #[arg(long, value_name = "N", default_value_t = 100)]
        backlog: u32,
        /// How often each agent polls, with --rate
        #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
        poll_every: f64,
        #[command(flatten)]
        payload: PayloadArgs,
    },
    /// Push messages to agents on open streams, 20 per second or as --rate says
    Stream {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        payload: PayloadArgs,
    },
    /// Send a broadcast to all agents
    Broadcast {
        #[command(flatten)]
        load: LoadArgs,
        /// The most agents that may have it
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        /// Let agents poll so often, in the place of streams
        #[arg(long, value_name = "SECONDS")]
        poll_every: Option<f64>,
    },
    /// Do all of it at once, as a fleet does in a day
    Mixed(MixedArgs),
    /// As `mixed`, for long, with a snapshot every ten seconds
    Soak(MixedArgs),
    /// Compare the stock server with this one on each store, in the same run
    Compare(compare::CompareArgs),
    /// Count what polls and messages cost the database of each system
    Cost(compare::CostArgs),
    /// Answer agents with nothing; the floor of a comparison starts it
    #[command(hide = true)]
    Echo {
        /// Where certificate and key are
        #[arg(long)]
        directory: PathBuf,
        /// What to answer
        #[arg(long, default_value_t = 200)]
        status: u16,
    },
}

/// Where the load goes and how large it is.
#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// Where agents connect
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    target: String,
    /// The certificate (PEM) by which agents recognize the server
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// The admin interface of the same server, for what operators send
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    admin: Option<String>,
    /// The name in the server's certificate, if it is not the host of --target
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Where to serve the service `bench`, for modes that count what arrives there
    #[arg(long, value_name = "IP:PORT")]
    service_listen: Option<SocketAddr>,
    /// How many agents
    #[arg(long, value_name = "N", default_value_t = 64)]
    agents: u32,
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Begin so many operations per second, however long they take (an open loop), in the place of one after the other
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// The version of HTTP
    #[arg(long, value_enum, default_value_t = HttpVersion::One)]
    http: HttpVersion,
    /// Compress what agents send
    #[arg(long)]
    deflate: bool,
    /// A process whose use of processor and memory is reported, with its children; the server first
    #[arg(long, value_name = "NAME=PID", value_parser = watched)]
    watch: Vec<Watched>,
    /// A directory whose growth is reported
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write plots to this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Allow a server that is not on this machine; load on a server of others is an attack
    #[arg(long)]
    i_own_this_server: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HttpVersion {
    /// HTTP/1.1
    #[value(name = "1.1")]
    One,
    /// HTTP/2
    #[value(name = "2")]
    Two,
}

#[derive(Args, Debug)]
pub(crate) struct PayloadArgs {
    /// Bytes of payload in each message
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    payload: usize,
}

#[derive(Args, Debug)]
pub(crate) struct MixedArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// The part of agents that stream; the others poll
    #[arg(long, value_name = "0..1", default_value_t = 0.5)]
    streaming: f64,
    /// How often the others poll
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    poll_every: f64,
    /// Messages from each agent, per hour
    #[arg(long, value_name = "N", default_value_t = 60.0)]
    up_per_hour: f64,
    /// Messages to each agent, per hour
    #[arg(long, value_name = "N", default_value_t = 6.0)]
    down_per_hour: f64,
    #[command(flatten)]
    payload: PayloadArgs,
}

impl BenchCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let (load, mode) = match self {
            Self::Enroll(load) => (load, Mode::Enroll),
            Self::Poll { load, handshake } => (load, Mode::Poll(Poll { handshake })),
            Self::Ingest {
                load,
                messages,
                service,
                streaming,
                payload,
            } => {
                let ingest = Ingest {
                    messages,
                    payload_bytes: payload.payload,
                    counted: service.is_none(),
                    service: service.unwrap_or_else(|| load::SERVICE.to_owned()),
                    streaming,
                };
                (load, Mode::Ingest(ingest))
            }
            Self::Deliver {
                load,
                backlog,
                poll_every,
                payload,
            } => {
                let deliver = Deliver {
                    backlog,
                    payload_bytes: payload.payload,
                    poll_every: seconds("--poll-every", poll_every)?,
                };
                (load, Mode::Deliver(deliver))
            }
            Self::Stream { load, payload } => {
                let payload_bytes = payload.payload;
                (load, Mode::Stream(Stream { payload_bytes }))
            }
            Self::Broadcast {
                load,
                limit,
                poll_every,
            } => {
                let poll_every = poll_every.map(|every| seconds("--poll-every", every));
                let broadcast = Broadcast {
                    limit,
                    poll_every: poll_every.transpose()?,
                };
                (load, Mode::Broadcast(broadcast))
            }
            Self::Mixed(args) => {
                let mixed = args.mixed()?;
                (args.load, Mode::Mixed(mixed))
            }
            Self::Compare(args) => return Box::pin(args.run()).await,
            Self::Cost(args) => return Box::pin(args.run()).await,
            Self::Echo { directory, status } => {
                return Ok(fleethold_bench::compare::serve_echo(&directory, status).await?);
            }
            Self::Soak(args) => {
                let mixed = args.mixed()?;
                (args.load, Mode::Soak(mixed))
            }
        };
        load.run(&mode).await
    }
}

impl MixedArgs {
    fn mixed(&self) -> Result<Mixed, Failure> {
        Ok(Mixed {
            streaming: self.streaming,
            poll_every: seconds("--poll-every", self.poll_every)?,
            up_per_hour: self.up_per_hour,
            down_per_hour: self.down_per_hour,
            payload_bytes: self.payload.payload,
        })
    }
}

impl LoadArgs {
    async fn run(self, mode: &Mode) -> Result<(), Failure> {
        let progress = output::progress(format!("bench {}", mode.name()));
        let settings = self.settings(&progress)?;
        // Nothing has been loaded yet, so all that fails here is wrong usage.
        settings
            .check()
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        let mut bench = Bench::connect(settings)
            .await
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        let report = bench.run(mode).await?;
        progress.finish_and_clear();
        if let Some(file) = &self.json {
            write(file, &format!("{:#}\n", report.json()))?;
        }
        if let Some(file) = &self.plot {
            write(file, &report.plots())?;
        }
        output::print(&report.to_string())?;
        match report.wrong() {
            0 => Ok(()),
            wrong => Err(Failure::failed(format!(
                "{wrong} messages are missing or came more than once"
            ))
            .hint("see the counts above; a figure that loses messages does not count")),
        }
    }

    fn settings(&self, progress: &ProgressBar) -> Result<Settings, Failure> {
        let ca_pem = fs::read(&self.ca).map_err(|error| {
            Failure::usage(format!("cannot read `{}`: {error}", self.ca.display()))
                .hint("`fleethold serve` has it in its data directory as ca.pem")
        })?;
        let progress = progress.clone();
        Ok(Settings {
            target: self.target.clone(),
            admin: self.admin.clone(),
            ca_pem,
            server_name: self.server_name.clone(),
            own_server: self.i_own_this_server,
            agents: self.agents,
            duration: seconds("--seconds", self.seconds)?,
            rate: self.rate,
            http: match self.http {
                HttpVersion::One => Http::One,
                HttpVersion::Two => Http::Two,
            },
            deflate: self.deflate,
            service_listen: self.service_listen,
            watched: self.watch.clone(),
            directories: self.data.clone(),
            progress: Arc::new(move |what| progress.set_message(what.to_owned())),
        })
    }
}

fn seconds(name: &str, value: f64) -> Result<Duration, Failure> {
    let duration = Duration::try_from_secs_f64(value).ok();
    duration
        .filter(|duration| (Duration::from_millis(100)..=load::LONGEST).contains(duration))
        .ok_or_else(|| {
            let most = load::LONGEST.as_secs();
            Failure::usage(format!("{name} is {value}; give 0.1 to {most} seconds"))
        })
}

fn watched(text: &str) -> Result<Watched, String> {
    let (name, pid) = text.split_once('=').unwrap_or(("server", text));
    let pid = pid.parse().map_err(|_| "write NAME=PID".to_owned())?;
    match Path::new(&format!("/proc/{pid}")).exists() {
        true => Ok(Watched {
            name: name.to_owned(),
            pid,
        }),
        false => Err(format!("there is no process {pid}")),
    }
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let written = fs::write(file, text);
    Ok(written.with_context(|| format!("cannot write `{}`", file.display()))?)
}
