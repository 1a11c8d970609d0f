//! `fleethold init`: what it makes, what it keeps, and what it refuses.

mod kept;
mod made;
mod refused;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleethold_proto::fleetspeak::client::generic::Config as AgentConfig;
use fleethold_proto::fleetspeak::client::generic::config::PersistenceHandler;
use fleethold_proto::fleetspeak::components::{AdminConfig, Config as Components, HttpsConfig};
use fleethold_proto::fleetspeak::config::Config;
use fleethold_proto::text;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256,
};
use serde_json::Value;
use support::{Finished, Serving, command, finish};
use tempfile::TempDir;
use x509_parser::prelude::{GeneralName, ParsedExtension, Pem, X509Certificate};

/// A directory with a configurator file.
struct Bed {
    dir: TempDir,
    config: Config,
}

impl Bed {
    fn new() -> Self {
        let file = |name: &str| format!("$BED/{name}");
        let config = Config {
            configuration_name: "Lazy Corp".to_owned(),
            components_config: Some(Components {
                https_config: Some(HttpsConfig {
                    listen_address: "127.0.0.1:0".to_owned(),
                    ..HttpsConfig::default()
                }),
                admin_config: Some(AdminConfig {
                    listen_address: "127.0.0.1:0".to_owned(),
                }),
                ..Components::default()
            }),
            trusted_cert_file: file("ca.pem"),
            trusted_cert_key_file: file("ca-key.pem"),
            server_cert_file: file("server.pem"),
            server_cert_key_file: file("server-key.pem"),
            server_component_configuration_file: file("components"),
            public_host_port: vec!["fleet.example:443".to_owned(), "127.0.0.1:4443".to_owned()],
            linux_client_configuration_file: file("linux"),
            darwin_client_configuration_file: file("darwin"),
            windows_client_configuration_file: file("windows"),
            ..Config::default()
        };
        let dir = tempfile::tempdir().unwrap();
        Self { dir, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self) -> Command {
        let mut made = command();
        made.current_dir(self.dir.path());
        made.env("BED", self.dir.path());
        made.arg("init");
        made
    }

    /// Runs `init` with the configurator file.
    fn init(&self, more: &[&str]) -> Finished {
        fs::write(self.path("configurator"), text::print(&self.config)).unwrap();
        finish(self.command().args(["--config", "configurator"]).args(more))
    }

    /// Runs `init` and returns the names of the files it says it has made, changed or kept.
    fn said(&self, more: &[&str]) -> BTreeMap<String, Vec<String>> {
        let said = self.init(&[more, &["--json"]].concat()).json();
        let names = |key: &str| {
            let paths = said[key].as_array().unwrap().iter();
            paths.map(|path| self.name(path)).collect()
        };
        ["made", "changed", "kept"]
            .map(|key| (key.to_owned(), names(key)))
            .into()
    }

    fn name(&self, path: &Value) -> String {
        let path = Path::new(path.as_str().unwrap());
        path.strip_prefix(self.dir.path())
            .unwrap()
            .display()
            .to_string()
    }

    /// Everything that is in the directory, but for what the test itself has written.
    fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap() != "configurator")
            .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
            .collect()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }
}

fn with_certificate<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let pem = Pem::iter_from_buffer(pem.as_bytes())
        .next()
        .unwrap()
        .unwrap();
    look(&pem.parse_x509().unwrap())
}

const ALL: [&str; 8] = [
    "ca-key.pem",
    "ca.pem",
    "server-key.pem",
    "server.pem",
    "components",
    "linux",
    "darwin",
    "windows",
];

/// A CA that somebody else has made.
struct OtherCa {
    params: CertificateParams,
    key: KeyPair,
}

impl OtherCa {
    fn new(key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Their CA");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "They & Co");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { params, key }
    }

    fn write(&self, bed: &Bed) {
        let pem = self.params.self_signed(&self.key).unwrap().pem();
        fs::write(bed.path("ca.pem"), pem).unwrap();
        fs::write(bed.path("ca-key.pem"), self.key.serialize_pem()).unwrap();
    }

    /// Issues a certificate for the server, valid for some days.
    fn issue(&self, bed: &Bed, names: &[&str], days: i64) {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = UNIX_EPOCH.into();
        let seconds = Duration::from_secs(days.unsigned_abs() * 86_400);
        params.not_after = match days > 0 {
            true => now() + seconds,
            false => now() - seconds,
        }
        .into();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        fs::write(bed.path("server.pem"), pem).unwrap();
        fs::write(bed.path("server-key.pem"), key.serialize_pem()).unwrap();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program has the time of the system"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

const HOSTS: [&str; 2] = ["fleet.example", "127.0.0.1"];
