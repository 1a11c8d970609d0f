//! Log lines on standard error.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::output::{Failure, colored};

/// What is logged, and how.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// How log lines look
    #[arg(
        long,
        env = "FLEETHOLD_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or directives such as info,fleethold_server=debug
    #[arg(
        long = "log",
        env = "FLEETHOLD_LOG",
        default_value = "info",
        value_name = "LEVEL"
    )]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

impl LogArgs {
    /// Starts to log; only once in a process.
    pub(crate) fn install(&self) -> Result<(), Failure> {
        // A bare level is about us; libraries only report what may need attention.
        let directives = match self.log.parse::<tracing::level_filters::LevelFilter>() {
            Ok(level) if level > tracing::level_filters::LevelFilter::WARN => {
                format!("warn,audit=info,fleethold={level}")
            }
            // Who changed what is not a matter of the level.
            Ok(level) if level > tracing::level_filters::LevelFilter::OFF => {
                format!("{level},audit=info")
            }
            _ => self.log.clone(),
        };
        let filter = EnvFilter::try_new(&directives).map_err(|error| {
            Failure::usage(format!("cannot use `{}` for --log: {error}", self.log))
                .hint("write error, warn, info, debug or trace")
        })?;
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => logs.with_ansi(colored(&std::io::stderr())).init(),
            LogFormat::Json => logs.json().flatten_event(true).init(),
        }
        Ok(())
    }
}
