//! `fleethold store …`: moving, checking and measuring stores, without a server.

use std::sync::Arc;

use clap::{Args, Subcommand};
use fleethold_store::maintenance::{self, CopyError, Progress, Table};
use fleethold_store::{Clock, Error, Maintenance, Random};
use serde_json::json;

use super::{StoreUrl, Takeover, check_takeover};
use crate::output::{self, Exit, Failure};

#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Copy everything from one store to a new one, and compare every row
    ///
    /// Stop the servers on both stores first. A copy that was interrupted goes on
    /// where it was. With --json, prints an object with the fields rows and tables;
    /// each table has the fields table, rows and equal.
    Copy(CopyArgs),
    /// Look for rows that refer to missing ones or contradict each other; changes nothing
    ///
    /// Exit status 1 if there are any. With --json, prints an array of objects with
    /// the fields problem, rows and examples.
    Check(StoreArgs),
    /// Count what is stored
    ///
    /// With --json, prints an object with the fields tables, pending_for_clients,
    /// pending_for_server and bytes.
    Stats(StoreArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CopyArgs {
    /// The store to copy, such as sqlite:PATH
    #[arg(long, value_name = "URL")]
    from: StoreUrl,
    /// The store to copy to, which is made if it does not exist
    #[arg(long, value_name = "URL")]
    to: StoreUrl,
    /// What may be done to the database of a stock server, to copy it
    #[arg(long, value_enum, value_name = "WHAT")]
    takeover: Option<Takeover>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StoreArgs {
    /// The store, such as sqlite:PATH
    #[arg(long, value_name = "URL")]
    store: StoreUrl,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl StoreCommand {
    pub(crate) async fn run(self, clock: Arc<dyn Clock>) -> Result<(), Failure> {
        match self {
            Self::Copy(args) => copy(args, clock).await,
            Self::Check(args) => check(args, clock).await,
            Self::Stats(args) => stats(args, clock).await,
        }
    }
}

async fn copy(args: CopyArgs, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    let source = args.from.whereabouts();
    if source == args.to.whereabouts() {
        return Err(Failure::usage("--from and --to name the same store"));
    }
    if args.takeover == Some(Takeover::Check) {
        return check_takeover(&args.from).await;
    }
    args.from.check_exists().await?;
    let random = Arc::new(Random::from_os());
    let opened = args
        .from
        .open_with(args.takeover, Arc::clone(&clock), random);
    let from = opened.await?;
    let to = open(&args.to, &clock).await?;
    let result = copy_and_compare(&*from, &source, &*to).await;
    close(&*from).await?;
    close(&*to).await?;
    let (done, compared) = result?;
    output::note(&format!(
        "copied {} rows from {source}; every row is equal in {}",
        done.rows, args.to
    ));
    if args.json {
        let tables: Vec<_> = compared
            .iter()
            .map(|table| {
                json!({
                    "table": table.table.name(), "rows": table.rows, "equal": table.is_equal()
                })
            })
            .collect();
        return output::print_json(&json!({ "rows": done.rows, "tables": tables }));
    }
    let rows: Vec<_> = compared
        .iter()
        .map(|table| [table.table.to_string(), table.rows.to_string()])
        .collect();
    output::print_table(["TABLE", "ROWS"], &rows)
}

async fn copy_and_compare(
    from: &dyn Maintenance,
    source: &str,
    to: &dyn Maintenance,
) -> Result<(Progress, Vec<maintenance::Comparison>), Failure> {
    let bar = output::progress("copying".to_owned());
    let report = |progress: &Progress| {
        let table = progress.table.map_or("the end", Table::name);
        bar.set_message(format!("copied {} rows, at {table}", progress.rows));
    };
    let copied = maintenance::copy(from, source, to, report).await;
    bar.finish_and_clear();
    let done = copied.map_err(uncopied)?;
    let bar = output::progress("comparing".to_owned());
    let mut compared = Vec::new();
    for table in Table::ALL {
        bar.set_message(format!("comparing {table}"));
        let comparison = maintenance::compare(from, to, table)
            .await
            .map_err(failed("compare the stores"))?;
        compared.push(comparison);
    }
    bar.finish_and_clear();
    let differences: Vec<_> = compared
        .iter()
        .flat_map(|table| &table.differences)
        .cloned()
        .collect();
    if differences.is_empty() {
        return Ok((done, compared));
    }
    let message = format!(
        "the copy differs from the store it was made of: {}",
        differences.join("; ")
    );
    Err(Failure::failed(message).hint(
        "rows that were written during the copy are not in it; stop all servers on both \
         stores, and copy to a new store",
    ))
}

fn uncopied(error: CopyError) -> Failure {
    let hint = match &error {
        CopyError::NotEmpty | CopyError::OtherSource(_) => None,
        _ => Some("run the same command again: it goes on where it was"),
    };
    let exit = match &error {
        CopyError::Source(cause) | CopyError::Target(cause) if cause.is_retryable() => {
            Exit::Temporary
        }
        _ => Exit::Failed,
    };
    let failure = Failure::new(exit, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

async fn check(args: StoreArgs, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    let store = open_existing(&args.store, &clock).await?;
    let bar = output::progress(format!("checking {}", args.store));
    let findings = store.check().await.map_err(failed("check the store"));
    bar.finish_and_clear();
    close(&*store).await?;
    let findings = findings?;
    if args.json {
        let findings: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({
                    "problem": finding.problem,
                    "rows": finding.rows,
                    "examples": finding.examples,
                })
            })
            .collect();
        output::print_json(&json!(findings))?;
    } else {
        for finding in &findings {
            let examples: Vec<_> = finding
                .examples
                .iter()
                .map(|example| output::printable(example))
                .collect();
            output::print(&format!(
                "{} {}, such as {}\n",
                finding.rows,
                finding.problem,
                examples.join(", ")
            ))?;
        }
    }
    match findings.len() {
        0 => {
            output::note(&format!("{} is in order", args.store));
            Ok(())
        }
        kinds => Err(
            Failure::failed(format!("{} has {kinds} kinds of problems", args.store))
                .hint("nothing was changed; a server on it goes on, and skips such rows"),
        ),
    }
}

async fn stats(args: StoreArgs, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    let store = open_existing(&args.store, &clock).await?;
    let bar = output::progress(format!("counting {}", args.store));
    let sizes = store
        .sizes()
        .await
        .map_err(failed("count the store's rows"));
    bar.finish_and_clear();
    close(&*store).await?;
    let sizes = sizes?;
    if args.json {
        let tables: serde_json::Map<_, _> = sizes
            .rows
            .iter()
            .map(|(table, rows)| (table.name().to_owned(), json!(rows)))
            .collect();
        return output::print_json(&json!({
            "tables": tables,
            "pending_for_clients": sizes.pending_for_clients,
            "pending_for_server": sizes.pending_for_server,
            "bytes": sizes.bytes,
        }));
    }
    let mut rows: Vec<_> = sizes
        .rows
        .iter()
        .map(|(table, rows)| [table.to_string(), rows.to_string()])
        .collect();
    let bytes = sizes
        .bytes
        .map_or("-".to_owned(), |bytes| bytes.to_string());
    for (name, number) in [
        ("pending for clients", sizes.pending_for_clients.to_string()),
        (
            "pending for the server",
            sizes.pending_for_server.to_string(),
        ),
        ("bytes on disk", bytes),
    ] {
        rows.push([name.to_owned(), number]);
    }
    output::print_table(["WHAT", "NUMBER"], &rows)
}

async fn open(url: &StoreUrl, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Maintenance>, Failure> {
    url.open(Arc::clone(clock), Arc::new(Random::from_os()))
        .await
}

/// Opens a store that must exist: a wrong path must not make a new one.
async fn open_existing(
    url: &StoreUrl,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn Maintenance>, Failure> {
    url.check_exists().await?;
    open(url, clock).await
}

async fn close(store: &dyn Maintenance) -> Result<(), Failure> {
    store.close().await.map_err(failed("close the store"))
}

fn failed(what: &'static str) -> impl Fn(Error) -> Failure {
    move |error| {
        let exit = if error.is_retryable() {
            Exit::Temporary
        } else {
            Exit::Failed
        };
        Failure::new(exit, error).context(format!("cannot {what}"))
    }
}
