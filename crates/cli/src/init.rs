//! `fleethold init`: makes everything that a server and its agents need to know each other, as `fleetspeak-config` does.
//!
//! Everything is read and checked first, then written beside its place, and only then put there. A CA is never
//! replaced, so another run completes or renews what is missing or old.

mod debian;
mod paths;
mod setup;

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use fleethold_proto::fleetspeak::components;
use fleethold_proto::text;
use fleethold_server::Config;
use fleethold_server::config::ConfigText;
use fleethold_store::{Clock, Random};
use serde_json::json;

use self::setup::Setup;
use crate::admin::host_port;
use crate::agent_config::{AgentConfig, System};
use crate::identity::{self, Identity, Part, Parts, Replace, Wanted};
use crate::install::{Readers, Staged};
use crate::output::{self, Exit, Failure};
use crate::serve;

#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// Upstream's configurator file, a text-format fleetspeak.config.Config, which names everything that is made
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What this installation is called in its certificates
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    name: Option<String>,
    /// An address under which agents reach the server; may be given several times
    #[arg(long = "public-address", value_name = "HOST:PORT", value_parser = serve::public_address)]
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    public_addresses: Vec<String>,
    /// The directory to make the files in
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./fleethold-init",
        conflicts_with = "config"
    )]
    dir: PathBuf,
    /// Where the server listens for agents, if not on all addresses and the port of the first public one
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, conflicts_with = "config")]
    listen: Option<String>,
    /// Where the admin interface listens
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6061")]
    #[arg(value_parser = host_port, conflicts_with = "config")]
    admin_listen: String,
    /// The certificate of an existing CA in PEM, in the place of a new one
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    ca_certificate: Option<PathBuf>,
    /// The key of that CA in PEM; needed only when a server certificate is made
    #[arg(long, value_name = "FILE", requires = "ca_certificate")]
    ca_key: Option<PathBuf>,
    /// Make another server certificate even if the one that is there is good; the CA stays
    #[arg(long)]
    renew: bool,
    /// Make a Debian package of the Linux agents' configuration
    #[arg(long, value_name = "FILE")]
    debian_package: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A file to be written.
struct Output {
    path: PathBuf,
    readers: Readers,
    bytes: Vec<u8>,
}

/// What became of the files.
#[derive(Default)]
struct Done {
    made: Vec<PathBuf>,
    changed: Vec<PathBuf>,
    kept: Vec<PathBuf>,
    warnings: Vec<String>,
}

pub(crate) fn run(args: InitArgs, clock: &dyn Clock, random: &Random) -> Result<(), Failure> {
    let setup = Setup::new(&args).map_err(|mut problems| {
        let last = problems.pop().expect("a setup without problems is made");
        problems.iter().for_each(Failure::report);
        last
    })?;
    let replace = if args.renew {
        Replace::Always
    } else {
        Replace::Own
    };
    let done = setup.make(replace, clock, random)?;
    report(&args, &setup, &done)
}

impl Setup {
    /// Makes what is missing or old.
    fn make(&self, replace: Replace, clock: &dyn Clock, random: &Random) -> Result<Done, Failure> {
        let ca_dir = parent(&self.paths.ca);
        make_directory(ca_dir, Readers::Owner)?;
        let _lock = lock(ca_dir)?;

        let mut done = Done::default();
        let identity = self.identity(replace, clock, random)?;
        done.warnings.extend(identity.warnings.iter().cloned());
        let outputs = self.outputs(&identity, clock, &mut done)?;
        let mut staged = Vec::new();
        for output in &outputs {
            let path = &output.path;
            let old = read_bytes(path)?;
            if old.as_ref() == Some(&output.bytes) {
                done.kept.push(path.clone());
                continue;
            }
            make_directory(parent(path), output.readers)?;
            let new = Staged::new(path, output.readers, &output.bytes)
                .with_context(|| format!("cannot write `{}`", path.display()))
                .map_err(|error| {
                    Failure::from(error).hint("nothing was changed; make it possible for this user to write there, and try again")
                })?;
            match old {
                Some(_) => done.changed.push(path.clone()),
                None => done.made.push(path.clone()),
            }
            staged.push((path, new));
        }
        for (path, new) in staged {
            new.place()
                .with_context(|| format!("cannot write `{}`", path.display()))
                .map_err(|error| {
                    Failure::from(error).hint("try again, the rest will be completed")
                })?;
        }
        let secrets = [&self.paths.server_key, &self.paths.components];
        for path in secrets.into_iter().chain(&self.paths.ca_key) {
            warn_of_readers(path, &mut done.warnings);
        }
        Ok(done)
    }

    fn identity(
        &self,
        replace: Replace,
        clock: &dyn Clock,
        random: &Random,
    ) -> Result<Identity, Failure> {
        let paths = &self.paths;
        let ca_key = paths.ca_key.as_deref();
        let found = Parts {
            ca_key: ca_key.map(read_text).transpose()?.flatten(),
            ca: read_text(&paths.ca)?,
            server_key: read_text(&paths.server_key)?,
            server: read_text(&paths.server)?,
        };
        let place = |path: &Path| path.display().to_string();
        let wanted = Wanted {
            ca_name: &format!("{} Fleetspeak CA", self.name),
            server_name: &format!("{} Fleetspeak Server", self.name),
            names: &self.names,
            looked_for: match self.server_name.as_str() {
                "" => &self.names,
                _ => &self.names[..1],
            },
            replace,
            now: clock.now(),
            places: Parts {
                ca_key: ca_key.map_or_else(
                    || "not given: trusted_cert_key_file or --ca-key".to_owned(),
                    place,
                ),
                ca: place(&paths.ca),
                server_key: place(&paths.server_key),
                server: place(&paths.server),
            },
        };
        identity::complete(found, &wanted, random)
    }

    /// Returns all files, also those that are as they should be, in the order in which they appear.
    fn outputs(
        &self,
        identity: &Identity,
        clock: &dyn Clock,
        done: &mut Done,
    ) -> Result<Vec<Output>, Failure> {
        let paths = &self.paths;
        let mut outputs = Vec::new();
        let mut add = |path: &Path, readers, text: &str| {
            outputs.push(Output {
                path: path.to_owned(),
                readers,
                bytes: text.as_bytes().to_vec(),
            });
        };
        for part in [Part::CaKey, Part::Ca, Part::ServerKey, Part::Server] {
            let (path, readers) = match part {
                Part::CaKey => (paths.ca_key.as_deref(), Readers::Owner),
                Part::Ca => (Some(&*paths.ca), Readers::Everybody),
                Part::ServerKey => (Some(&*paths.server_key), Readers::Owner),
                Part::Server => (Some(&*paths.server), Readers::Everybody),
            };
            let Some(path) = path else { continue };
            match identity.made.iter().find(|(made, _)| *made == part) {
                Some((_, pem)) => add(path, readers, pem),
                None if path.exists() => done.kept.push(path.to_owned()),
                None => {}
            }
        }

        let components = self.components_text(identity);
        add(&paths.components, Readers::Owner, &components);
        let config_text = ConfigText {
            path: &paths.components,
            text: &components,
        };
        if let Err(error) = Config::from_upstream(&config_text, None) {
            let warning = format!(
                "fleethold would not start with this: {error}; {}",
                error.hint()
            );
            done.warnings.push(warning);
        }

        let linux_config = self.agent_text(identity, System::Linux);
        for (path, system) in [
            (&paths.linux, System::Linux),
            (&paths.darwin, System::Darwin),
            (&paths.windows, System::Windows),
        ] {
            if let Some(path) = path {
                add(path, Readers::Everybody, &self.agent_text(identity, system));
            }
        }
        if let Some(path) = &paths.debian_package {
            let bytes = debian::package(&self.name, &linux_config, clock.now())
                .context("cannot make the Debian package")?;
            outputs.push(Output {
                path: path.clone(),
                readers: Readers::Everybody,
                bytes,
            });
        }
        Ok(outputs)
    }

    fn components_text(&self, identity: &Identity) -> String {
        let mut components = self.components.clone();
        let https: &mut components::HttpsConfig = components.https_config.get_or_insert_default();
        https.certificates.clone_from(&identity.server_pem);
        https.key.clone_from(&identity.server_key_pem);
        text::print(&components)
    }

    fn agent_text(&self, identity: &Identity, system: System) -> String {
        let https = self.components.https_config.as_ref();
        let config = AgentConfig {
            trusted_certs: &identity.ca_pem,
            servers: &self.public_addresses,
            server_name: &self.server_name,
            label: &self.components.required_label,
            streaming: https.is_none_or(|https| !https.disable_streaming),
            proxy: &self.proxy,
        };
        text::print(&config.message(system.persistence()))
    }
}

fn report(args: &InitArgs, setup: &Setup, done: &Done) -> Result<(), Failure> {
    if args.json {
        return output::print_json(&json!({
            "made": done.made,
            "changed": done.changed,
            "kept": done.kept,
            "warnings": done.warnings,
        }));
    }
    for warning in &done.warnings {
        output::note(&format!("warning: {warning}"));
    }
    let mut lines = String::new();
    for (what, paths) in [
        ("made", &done.made),
        ("changed", &done.changed),
        ("kept", &done.kept),
    ] {
        for path in paths {
            lines.push_str(&format!("{what:8} {}\n", path.display()));
        }
    }
    if args.config.is_none() {
        let store = parent(&setup.paths.components).join("fleethold.db");
        lines.push_str(&format!(
            "start    fleethold serve --components-config {} --store {}\n",
            serve::shell_word(&setup.paths.components),
            serve::shell_word(Path::new(&format!("sqlite:{}", store.display()))),
        ));
    }
    output::print(&lines)
}

/// Keeps other runs out until it is dropped, if the file system can.
fn lock(dir: &Path) -> Result<Option<File>, Failure> {
    let file =
        File::open(dir).with_context(|| format!("cannot open directory `{}`", dir.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Failure::new(
            Exit::Temporary,
            anyhow::anyhow!("another `init` is at work in `{}`", dir.display()),
        )
        .hint("try again when it has ended")),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes a directory that is not there; one for secrets is its owner's.
fn make_directory(dir: &Path, readers: Readers) -> Result<(), Failure> {
    let mode = match readers {
        Readers::Everybody => 0o755,
        Readers::Owner => 0o700,
    };
    let made = DirBuilder::new().recursive(true).mode(mode).create(dir);
    made.with_context(|| format!("cannot make directory `{}`", dir.display()))
        .map_err(|error| Failure::from(error).hint("make it yourself, or name another one"))
}

fn read_text(path: &Path) -> Result<Option<String>, Failure> {
    let Some(bytes) = read_bytes(path)? else {
        return Ok(None);
    };
    String::from_utf8(bytes).map(Some).map_err(|_| {
        Failure::usage(format!("`{}` is not text", path.display()))
            .hint("keys and certificates are in PEM; convert this one, or move it away")
    })
}

fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::new(Exit::Usage, error)
            .context(format!("cannot read `{}`", path.display()))
            .hint("name a file that this user may read, or one that is not there yet")),
    }
}

fn warn_of_readers(path: &Path, warnings: &mut Vec<String>) {
    let mode = fs::metadata(path).map_or(0, |data| data.permissions().mode());
    if mode & 0o004 != 0 {
        warnings.push(format!(
            "everybody can read `{}`; run: chmod o-rwx {}",
            path.display(),
            serve::shell_word(path)
        ));
    }
}
