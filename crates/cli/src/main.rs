//! A Fleetspeak server with an embedded store, and the commands that operate it.

mod admin;
mod agent_config;
mod bench;
mod broadcasts;
mod certificates;
mod clients;
mod data;
mod data_dir;
mod files;
mod identity;
mod init;
mod install;
mod logging;
mod messages;
mod output;
mod serve;
mod signals;
mod stock;
mod store;
mod upload;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use fleethold_store::{Clock, Random, SystemClock};

use crate::output::Failure;

/// A Fleetspeak server with an embedded store
///
/// Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 75 temporary, try again.
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a server; without any flag, one for this machine in ./fleethold-data
    Serve(Box<serve::ServeArgs>),
    /// Check flags and files as for `serve`, and change nothing
    CheckConfig(Box<serve::CheckArgs>),
    /// Make CA, server certificate, components file and agent configurations, or renew them
    Init(Box<init::InitArgs>),
    /// List and blacklist clients
    #[command(subcommand)]
    Client(clients::ClientCommand),
    /// Send messages to agents and see what became of them
    #[command(subcommand)]
    Message(messages::MessageCommand),
    /// Send messages to many agents
    #[command(subcommand)]
    Broadcast(broadcasts::BroadcastCommand),
    /// Store files for agents to download
    #[command(subcommand)]
    File(files::FileCommand),
    /// Move, check and measure stores
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Put load on a server of one's own and measure what it carries
    #[command(subcommand)]
    Bench(Box<bench::BenchCommand>),
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(stock::translate(std::env::args_os()));
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::new(Random::from_os())));
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => Box::pin(serve::run(*args, clock)).await,
            Command::CheckConfig(args) => Box::pin(serve::check_config(*args)).await,
            Command::Init(args) => init::run(*args, &*clock, &Random::from_os()),
            Command::Client(command) => Box::pin(command.run()).await,
            Command::Message(command) => Box::pin(command.run()).await,
            Command::Broadcast(command) => Box::pin(command.run(&*clock)).await,
            Command::File(command) => Box::pin(command.run()).await,
            Command::Store(command) => Box::pin(command.run(clock)).await,
            Command::Bench(command) => Box::pin(command.run()).await,
        }
    });
    // What is stuck in a system call must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}
