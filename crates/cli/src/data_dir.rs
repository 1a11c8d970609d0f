//! The directory in which a server without configuration keeps everything, made on its first start.
//!
//! ```text
//! ca.pem ca-key.pem            the CA that agents trust
//! server.pem server-key.pem    the certificate agents see, renewed when needed
//! services.config              the services of this server; for people to edit
//! fleethold.db                 the store
//! lock                         held by the running server
//! agent/client.config          what an agent needs, rewritten when addresses change
//! agent/communicator.txt       how often agents call; for people to edit
//! agent/textservices/          services of the agent; for people to fill
//! ```
//!
//! Each file appears whole or not at all, and a key before its certificate; so a start that was cut off is completed
//! by the next one. Files made for people are never touched again.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use fleethold_proto::text;
use fleethold_store::Random;
use rustls::pki_types::ServerName;

use crate::agent_config::{self, AgentConfig};
use crate::identity::{self, Identity, Part, Parts, Replace, Wanted};
use crate::install::{self, Readers};
use crate::output::{Exit, Failure};

const SERVICES: &str = "\
# The services of this server, read at each start (text form of
# fleetspeak.server.ServerConfig). A service receives what agents send to its
# name. Factory GRPC passes messages on to a program that implements
# fleetspeak.grpcservice.Processor; factory NOOP drops them.
#
# services {
#   name: \"GRR\"
#   factory: \"GRPC\"
#   config {
#     [type.googleapis.com/fleetspeak.grpcservice.Config] {
#       target: \"localhost:11111\"
#       insecure: true
#     }
#   }
# }
#
# How often broadcasts are read again.
# broadcast_poll_time { seconds: 60 }
";

const COMMUNICATOR: &str = "\
# How an agent talks to its server, read when the agent starts (text form of
# fleetspeak.client.CommunicatorConfig). Agents vary each delay by half of it.
# Without this file an agent polls every 300 s and, when it cannot reach the
# server, waits 300 s; raise the numbers again for a fleet of thousands.

# Seconds between polls of an agent that does not stream.
max_poll_delay_seconds: 60
# Seconds a message may wait for others.
max_buffer_delay_seconds: 1
# Seconds to wait after a failure.
min_failure_delay_seconds: 10
";

/// An open data directory; no other server can open it until it is dropped.
pub(crate) struct DataDir {
    root: PathBuf,
    /// What this start has made or changed, as paths below the root.
    made: Vec<String>,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, and makes it if needed.
    pub(crate) fn open(root: &Path) -> Result<Self, Failure> {
        let root = std::path::absolute(root).context("cannot find the current directory")?;
        if root.to_str().is_none() {
            let error = format!(
                "the path of the data directory `{}` is not UTF-8",
                root.display()
            );
            return Err(Failure::usage(error).hint("choose another one with --data-dir"));
        }
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .with_context(|| format!("cannot create data directory `{}`", root.display()))
            .map_err(|error| Failure::from(error).hint("choose another one with --data-dir"))?;
        let mode = fs::metadata(&root).map_or(0o700, |data| data.permissions().mode());
        if mode & 0o077 != 0 {
            tracing::warn!(directory = %root.display(), "other users of this machine may read the data directory");
        }
        let lock = lock(&root)?;
        Ok(Self {
            root,
            made: Vec::new(),
            _lock: lock,
        })
    }

    /// Returns the absolute path of the directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns what this start has made or changed so far.
    pub(crate) fn made(&self) -> &[String] {
        &self.made
    }

    /// Returns certificates that agents will accept for `names` for a while, renewing what is missing or too old.
    pub(crate) fn certificates(
        &mut self,
        names: &[ServerName<'_>],
        now: SystemTime,
        random: &Random,
    ) -> Result<Identity, Failure> {
        let place = |name: &str| self.path(name).display().to_string();
        let found = Parts {
            ca_key: self.read("ca-key.pem")?,
            ca: self.read("ca.pem")?,
            server_key: self.read("server-key.pem")?,
            server: self.read("server.pem")?,
        };
        let wanted = Wanted {
            ca_name: "fleethold CA",
            server_name: "fleethold server",
            names,
            looked_for: names,
            replace: Replace::Unusable,
            now,
            places: Parts {
                ca_key: place("ca-key.pem"),
                ca: place("ca.pem"),
                server_key: place("server-key.pem"),
                server: place("server.pem"),
            },
        };
        let identity = identity::complete(found, &wanted, random)?;
        for (part, pem) in &identity.made {
            let (name, readers) = match part {
                Part::CaKey => ("ca-key.pem", Readers::Owner),
                Part::Ca => ("ca.pem", Readers::Everybody),
                Part::ServerKey => ("server-key.pem", Readers::Owner),
                Part::Server => ("server.pem", Readers::Everybody),
            };
            self.write(name, readers, pem)?;
        }
        Ok(identity)
    }

    /// Returns path and text of the services file.
    pub(crate) fn services(&mut self) -> Result<(PathBuf, String), Failure> {
        let text = self.read_or_make("services.config", SERVICES)?;
        Ok((self.path("services.config"), text))
    }

    /// Writes what an agent needs to reach the server at `addresses`, and returns the path of its configuration.
    pub(crate) fn agent(&mut self, ca_pem: &str, addresses: &[String]) -> Result<PathBuf, Failure> {
        let agent = self.path("agent");
        for dir in [agent.clone(), agent.join("textservices")] {
            fs::create_dir_all(&dir)
                .with_context(|| format!("cannot create directory `{}`", dir.display()))?;
        }
        self.read_or_make("agent/communicator.txt", COMMUNICATOR)?;

        let text_path = |path: &Path| path.to_str().expect("the root is UTF-8").to_owned();
        let config = AgentConfig {
            trusted_certs: ca_pem,
            servers: addresses,
            streaming: true,
            ..AgentConfig::default()
        };
        let files = agent_config::files(&text_path(&agent), &text_path(&agent.join("state")));
        let config = config.message(files);
        let text = format!(
            "# What an agent needs to connect. Written at each start of the server when it\n\
             # differs; to change it for an agent elsewhere, copy it.\n{}",
            text::print(&config)
        );
        if self.read("agent/client.config")?.as_deref() != Some(&text) {
            self.write("agent/client.config", Readers::Everybody, &text)?;
        }
        Ok(self.path("agent/client.config"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(anyhow::Error::new(error)
                .context(format!("cannot read `{}`", path.display()))
                .into()),
        }
    }

    fn read_or_make(&mut self, name: &str, new: &str) -> Result<String, Failure> {
        if let Some(text) = self.read(name)? {
            return Ok(text);
        }
        self.write(name, Readers::Everybody, new)?;
        Ok(new.to_owned())
    }

    fn write(&mut self, name: &str, readers: Readers, text: &str) -> Result<(), Failure> {
        let path = self.path(name);
        install::replace(&path, readers, text.as_bytes())
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        self.made.push(name.to_owned());
        Ok(())
    }
}

/// Keeps a second server out; the system lets go of the lock when the process ends, however it ends.
fn lock(root: &Path) -> Result<File, Failure> {
    let path = root.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(Readers::Owner.mode())
        .open(&path)
        .with_context(|| format!("cannot open `{}`", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let error = anyhow::anyhow!(
                "data directory `{}` is in use by another server",
                root.display()
            );
            Err(Failure::new(Exit::Temporary, error)
                .hint("stop that server, or choose another --data-dir"))
        }
        Err(TryLockError::Error(error)) => Err(anyhow::Error::new(error)
            .context(format!("cannot lock `{}`", path.display()))
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, UNIX_EPOCH};

    use fleethold_proto::fleetspeak::client::generic::{Config, config::PersistenceHandler};

    use super::*;

    const ADDRESSES: [&str; 1] = ["localhost:4443"];

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn names(names: &[&'static str]) -> Vec<ServerName<'static>> {
        names
            .iter()
            .map(|name| ServerName::try_from(*name).unwrap())
            .collect()
    }

    /// Everything a start does in the directory; returns what it made.
    fn start(
        root: &Path,
        names: &[ServerName<'_>],
        now: SystemTime,
        addresses: &[&str],
    ) -> Vec<String> {
        let random = Random::seeded(7);
        let mut dir = DataDir::open(root).unwrap();
        let certificates = dir.certificates(names, now, &random).unwrap();
        dir.services().unwrap();
        let addresses: Vec<_> = addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect();
        dir.agent(&certificates.ca_pem, &addresses).unwrap();
        dir.made().to_vec()
    }

    fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(contents(&path));
            } else {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
        found
    }

    #[test]
    fn first_start_makes_everything_and_keeps_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("new/data");
        let made = start(&root, &names(&["localhost"]), now(), &ADDRESSES);
        let expected = [
            "ca-key.pem",
            "ca.pem",
            "server-key.pem",
            "server.pem",
            "services.config",
            "agent/communicator.txt",
            "agent/client.config",
        ];
        assert_eq!(made, expected);
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(""), 0o700);
        assert_eq!(mode("ca-key.pem"), 0o600);
        assert_eq!(mode("server-key.pem"), 0o600);
        assert!(root.join("agent/textservices").is_dir());
        let leftovers = contents(&root)
            .into_keys()
            .filter(|path| path.extension().is_some_and(|e| e == "tmp"));
        assert_eq!(leftovers.count(), 0);
    }

    #[test]
    fn second_start_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES);
        let before = contents(dir.path());
        let made = start(
            dir.path(),
            &names(&["localhost"]),
            now() + Duration::from_secs(60),
            &ADDRESSES,
        );
        assert_eq!(made, Vec::<String>::new());
        assert_eq!(contents(dir.path()), before);
    }

    #[test]
    fn a_start_that_was_cut_off_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES);
        let files = [
            "ca-key.pem",
            "ca.pem",
            "server-key.pem",
            "server.pem",
            "services.config",
        ];
        // Files appear in this order; after a crash the last ones are missing.
        for missing in 0..files.len() {
            for file in &files[missing..] {
                fs::remove_file(dir.path().join(file)).unwrap();
            }
            fs::write(dir.path().join("ca-key.pem.fleethold.tmp"), "torn").unwrap();
            let made = start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES);
            assert_eq!(
                made[..files.len() - missing],
                files[missing..],
                "from {missing}"
            );
        }
    }

    #[test]
    fn the_leaf_is_renewed_in_its_last_month_and_for_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let localhost = names(&["localhost"]);
        start(dir.path(), &localhost, now(), &ADDRESSES);
        assert!(start(dir.path(), &localhost, now() + 334 * day, &ADDRESSES).is_empty());
        let later = now() + 336 * day;
        assert_eq!(
            start(dir.path(), &localhost, later, &ADDRESSES),
            ["server.pem"]
        );
        assert_eq!(
            start(
                dir.path(),
                &names(&["localhost", "10.0.0.1"]),
                later,
                &ADDRESSES
            ),
            ["server.pem"]
        );
        // Fewer names are covered by what there is.
        assert!(start(dir.path(), &localhost, later, &ADDRESSES).is_empty());
    }

    #[test]
    fn the_agent_configuration_follows_the_addresses() {
        let dir = tempfile::tempdir().unwrap();
        start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES);
        let made = start(
            dir.path(),
            &names(&["localhost"]),
            now(),
            &["fleet.example:443", "b.example:443"],
        );
        assert_eq!(made, ["agent/client.config"]);
        let text = fs::read_to_string(dir.path().join("agent/client.config")).unwrap();
        let config: Config = text::parse(&text).unwrap();
        assert_eq!(config.server, ["fleet.example:443", "b.example:443"]);
        assert!(config.streaming);
        assert_eq!(
            config.trusted_certs,
            fs::read_to_string(dir.path().join("ca.pem")).unwrap()
        );
        let Some(PersistenceHandler::FilesystemHandler(handler)) = config.persistence_handler
        else {
            panic!("no filesystem handler in {text}");
        };
        assert!(Path::new(&handler.configuration_directory).is_absolute());
        assert!(Path::new(&handler.state_file).starts_with(&handler.configuration_directory));
    }

    #[test]
    fn files_for_people_are_kept_and_valid() {
        let dir = tempfile::tempdir().unwrap();
        start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES);
        let communicator = fs::read_to_string(dir.path().join("agent/communicator.txt")).unwrap();
        text::parse::<fleethold_proto::fleetspeak::client::CommunicatorConfig>(&communicator)
            .unwrap();
        // The example in the comments is one that works.
        let uncommented: String = SERVICES
            .lines()
            .skip_while(|line| !line.starts_with("# services"))
            .filter(|line| !line.ends_with('.'))
            .map(|line| {
                format!(
                    "{}\n",
                    line.trim_start_matches("# ").trim_start_matches('#')
                )
            })
            .collect();
        let path = Path::new("services.config");
        let services = fleethold_server::config::ConfigText {
            path,
            text: &uncommented,
        };
        let mut config = fleethold_server::Config::default();
        config.read_services(&services).unwrap();
        assert_eq!(config.services.len(), 1);

        fs::write(dir.path().join("services.config"), "# Mine.\n").unwrap();
        start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES);
        assert_eq!(
            fs::read_to_string(dir.path().join("services.config")).unwrap(),
            "# Mine.\n"
        );
    }

    #[test]
    fn a_leaf_cannot_be_renewed_without_the_ca_key() {
        let dir = tempfile::tempdir().unwrap();
        start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES);
        fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
        assert!(start(dir.path(), &names(&["localhost"]), now(), &ADDRESSES).is_empty());
        let mut data = DataDir::open(dir.path()).unwrap();
        let renewed = data.certificates(&names(&["other.example"]), now(), &Random::seeded(1));
        assert!(renewed.is_err());
    }

    #[test]
    fn two_servers_cannot_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let Err(failure) = DataDir::open(dir.path()) else {
            panic!("opened twice")
        };
        assert_eq!(failure.exit, Exit::Temporary);
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }
}
