//! `fleethold check-config`: says what would keep a server from starting, and changes nothing.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use anyhow::anyhow;
use clap::Args;
use fleethold_server::config::ConfigText;
use fleethold_server::{AdminConfig, AgentsConfig, Config};
use serde_json::json;

use super::plan::{self, Plan};
use super::{ServeArgs, not_started};
use crate::output::{self, Exit, Failure};
use crate::store::{StoreUrl, parse, postgres_options};

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a start would find.
struct Found {
    config: Config,
    store: Option<StoreUrl>,
    problems: Vec<Failure>,
}

pub(crate) async fn run(args: CheckArgs) -> Result<(), Failure> {
    let Found {
        config,
        store,
        mut problems,
    } = match args.serve.components_config.clone() {
        Some(components) => upstream(args.serve, &components),
        None => data_dir(args.serve),
    };
    problems.extend(
        fleethold_server::check(&config)
            .await
            .into_iter()
            .map(not_started),
    );
    problems.extend(store.as_ref().and_then(|store| check_store(store).err()));

    if args.json {
        output::print_json(&json!({
            "ok": problems.is_empty(),
            "problems": problems.iter().map(Failure::json).collect::<Vec<_>>(),
            "warnings": config.warnings,
        }))?;
    } else {
        for warning in &config.warnings {
            output::note(&format!("warning: {warning}"));
        }
        if problems.is_empty() {
            output::print("the configuration is good\n")?;
        }
    }
    let Some(last) = problems.pop() else {
        return Ok(());
    };
    problems.iter().for_each(Failure::report);
    Err(last.with_exit(Exit::Usage))
}

fn upstream(mut args: ServeArgs, components: &Path) -> Found {
    let services = args.services_config.take();
    let agents = args.agents.clone();
    let notifications = args.notifications.clone();
    let operation = args.operation.clone();
    let mut problems = Vec::new();
    let (mut config, store) = match Plan::from_upstream(args, components) {
        Ok(plan) => (plan.config, Some(plan.store)),
        Err(failure) => {
            problems.push(failure);
            (Config::default(), None)
        }
    };
    if let Some(services) = services {
        problems.extend(read_services(&mut config, &services).err());
    }
    agents.apply(&mut config);
    problems.extend(notifications.apply(&mut config).err());
    problems.extend(operation.apply(&mut config).err());
    Found {
        config,
        store,
        problems,
    }
}

/// Looks at what is in the data directory; what is not there is made by the first start.
fn data_dir(args: ServeArgs) -> Found {
    let mut problems = Vec::new();
    let mut config = Config {
        admin: Some(AdminConfig {
            listen: args.admin_listen.clone(),
        }),
        ..Config::default()
    };
    let mut pem = |name| match fs::read_to_string(args.data_dir.join(name)) {
        Ok(pem) => Some(pem),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            let path = args.data_dir.join(name);
            let error = anyhow!(error).context(format!("cannot read `{}`", path.display()));
            let hint = "allow the user who runs the server to read it";
            problems.push(Failure::new(Exit::Usage, error).hint(hint));
            None
        }
    };
    if let (Some(certificates_pem), Some(key_pem)) = (pem("server.pem"), pem("server-key.pem")) {
        config.agents = Some(AgentsConfig {
            listen: args.listen.clone(),
            certificates_pem,
            key_pem,
            ..AgentsConfig::default()
        });
    }
    problems.extend(plan::certificate_names_of(&args.listen, &args.public_addresses).err());
    let own = args.data_dir.join("services.config");
    match args.services_config {
        Some(services) => problems.extend(read_services(&mut config, &services).err()),
        None if own.exists() => problems.extend(read_services(&mut config, &own).err()),
        None => {}
    }
    args.services
        .into_iter()
        .for_each(|service| config.add_service(service));
    args.agents.apply(&mut config);
    problems.extend(args.notifications.apply(&mut config).err());
    problems.extend(args.operation.apply(&mut config).err());
    Found {
        config,
        store: args.store,
        problems,
    }
}

fn read_services(config: &mut Config, path: &Path) -> Result<(), Failure> {
    let text = plan::read(path)?;
    let services = ConfigText { path, text: &text };
    config.read_services(&services).map_err(plan::wrong_config)
}

/// Checks that a store can be opened or made, without doing so.
fn check_store(store: &StoreUrl) -> Result<(), Failure> {
    let path = match store {
        StoreUrl::Sqlite(path) => path,
        StoreUrl::Postgres(url) => return postgres_options(url).map(drop),
        StoreUrl::Mysql(name) => return parse(name).map(drop),
    };
    let failed = |error: std::io::Error, hint: &str| {
        let error = anyhow!(error).context(format!("cannot use database `{}`", path.display()));
        Err(Failure::new(Exit::Usage, error).hint(hint))
    };
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let directory = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            match directory.map_or(Ok(true), Path::try_exists) {
                Ok(true) => Ok(()),
                Ok(false) => failed(
                    error,
                    "make its directory, or choose another one with --store",
                ),
                Err(error) => failed(error, "check the path"),
            }
        }
        Err(error) => failed(error, "allow the user who runs the server to change it"),
    }
}
