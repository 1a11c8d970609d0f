//! `fleethold init`: what it makes, what it keeps, and what it refuses.

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

#[test]
fn p_217_files_have_their_modes_and_nothing_else_is_left() {
    let bed = Bed::new();
    assert_eq!(bed.said(&[])["made"], ALL);
    assert_eq!(bed.contents().len(), ALL.len());
    for (name, mode) in ALL
        .iter()
        .zip([0o600, 0o644, 0o600, 0o644, 0o600, 0o644, 0o644, 0o644])
    {
        assert_eq!(bed.mode(name), mode, "{name}");
    }
}

#[test]
fn directories_that_are_made_for_secrets_are_their_owners() {
    let mut bed = Bed::new();
    bed.config.server_component_configuration_file = "secret/deep/components".to_owned();
    bed.config.linux_client_configuration_file = "public/linux".to_owned();
    bed.init(&[]).data();
    assert_eq!(bed.mode("secret"), 0o700);
    assert_eq!(bed.mode("secret/deep"), 0o700);
    assert_eq!(bed.mode("public"), 0o755);
}

#[test]
fn p_215_ca_has_the_extensions_of_the_stock_one() {
    let bed = Bed::new();
    bed.init(&[]).data();
    with_certificate(&bed.read("ca.pem"), |ca| {
        assert_eq!(ca.subject().to_string(), "CN=Lazy Corp Fleetspeak CA");
        assert_eq!(ca.issuer(), ca.subject());
        let constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        let usage = ca.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.digital_signature());
        assert!(ca.extensions().iter().any(|extension| {
            matches!(
                extension.parsed_extension(),
                ParsedExtension::SubjectKeyIdentifier(_)
            )
        }));
        let days = ca.validity().time_to_expiration().unwrap().whole_days();
        assert!((3648..=3650).contains(&days), "{days}");
    });
    assert!(
        bed.read("ca-key.pem")
            .starts_with("-----BEGIN EC PRIVATE KEY-----\n")
    );
    assert!(
        bed.read("server-key.pem")
            .starts_with("-----BEGIN EC PRIVATE KEY-----\n")
    );
}

#[test]
fn p_215_server_certificate_is_a_leaf_for_every_public_host_and_the_server_name() {
    let mut bed = Bed::new();
    bed.config.server_name = "name.example".to_owned();
    bed.init(&[]).data();
    let issuer_key = with_certificate(&bed.read("ca.pem"), key_identifier);
    with_certificate(&bed.read("server.pem"), |leaf| {
        assert_eq!(leaf.subject().to_string(), "CN=Lazy Corp Fleetspeak Server");
        assert_eq!(leaf.issuer().to_string(), "CN=Lazy Corp Fleetspeak CA");
        let constraints = leaf.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature());
        assert!(!usage.value.key_cert_sign());
        assert!(
            leaf.extended_key_usage()
                .unwrap()
                .unwrap()
                .value
                .server_auth
        );
        assert!(!key_identifier(leaf).is_empty());
        let authority =
            leaf.extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
                    _ => None,
                });
        assert_eq!(authority.unwrap().0, issuer_key);
        let names = &leaf
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names;
        assert_eq!(
            names,
            &[
                GeneralName::DNSName("fleet.example"),
                GeneralName::IPAddress(&[127, 0, 0, 1]),
                GeneralName::DNSName("name.example"),
            ]
        );
        let days = leaf.validity().time_to_expiration().unwrap().whole_days();
        assert!((363..=365).contains(&days), "{days}");
    });
}

fn key_identifier(certificate: &X509Certificate<'_>) -> Vec<u8> {
    let mut extensions = certificate.extensions().iter();
    let found = extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    found.unwrap_or_default()
}

#[test]
fn agents_of_the_three_systems_get_what_they_need() {
    let mut bed = Bed::new();
    bed.config.server_name = "name.example".to_owned();
    bed.config.proxy = "http://proxy.example:3128".to_owned();
    let components = bed.config.components_config.as_mut().unwrap();
    components.required_label = "lazy".to_owned();
    components.https_config.as_mut().unwrap().disable_streaming = true;
    bed.init(&[]).data();
    for name in ["linux", "darwin", "windows"] {
        let mut config: AgentConfig = text::parse(&bed.read(name)).unwrap();
        let persistence = config.persistence_handler.take().unwrap();
        let expected = AgentConfig {
            trusted_certs: bed.read("ca.pem"),
            server: bed.config.public_host_port.clone(),
            client_label: vec!["lazy".to_owned()],
            proxy: "http://proxy.example:3128".to_owned(),
            server_name: "name.example".to_owned(),
            streaming: false,
            ..AgentConfig::default()
        };
        assert_eq!(config, expected);
        match (name, persistence) {
            ("windows", PersistenceHandler::RegistryHandler(registry)) => assert_eq!(
                registry.configuration_key,
                r"HKEY_LOCAL_MACHINE\SOFTWARE\FleetspeakClient"
            ),
            (_, PersistenceHandler::FilesystemHandler(files)) => {
                assert_eq!(files.configuration_directory, "/etc/fleetspeak-client");
            }
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn components_file_is_the_given_one_with_certificate_and_key_and_starts_the_server() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let made: Components = text::parse(&bed.read("components")).unwrap();
    let mut expected = bed.config.components_config.clone().unwrap();
    let https = expected.https_config.as_mut().unwrap();
    https.certificates = bed.read("server.pem");
    https.key = bed.read("server-key.pem");
    assert_eq!(made, expected);
    let mut serve = command();
    serve.current_dir(bed.dir.path());
    serve.args(["serve", "--components-config", "components"]);
    serve.args(["--store", "sqlite:fleet.db"]);
    Serving::spawn(&mut serve).stop();
}

#[test]
fn p_216_another_run_changes_nothing() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let before = bed.contents();
    let said = bed.said(&[]);
    assert_eq!(said["kept"], ALL);
    assert_eq!(bed.contents(), before);
}

#[test]
fn p_216_deleted_server_certificate_is_issued_again_by_the_same_ca() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let (ca, before) = (bed.read("ca.pem"), bed.read("server.pem"));
    // As GRR does it: certificate and key move away.
    for name in ["server.pem", "server-key.pem"] {
        fs::rename(bed.path(name), bed.path(&format!("{name}.old"))).unwrap();
    }
    let said = bed.said(&[]);
    assert_eq!(said["made"], ["server-key.pem", "server.pem"]);
    assert_eq!(said["changed"], ["components"]);
    assert_eq!(bed.read("ca.pem"), ca);
    assert_ne!(bed.read("server.pem"), before);
    let components: Components = text::parse(&bed.read("components")).unwrap();
    assert_eq!(
        components.https_config.unwrap().certificates,
        bed.read("server.pem")
    );
}

#[test]
fn renewal_replaces_the_server_certificate_and_nothing_that_agents_know() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let before = bed.read("server.pem");
    let said = bed.said(&["--renew"]);
    assert_eq!(said["changed"], ["server.pem", "components"]);
    assert_eq!(
        said["kept"],
        [
            "ca-key.pem",
            "ca.pem",
            "server-key.pem",
            "linux",
            "darwin",
            "windows"
        ]
    );
    assert_ne!(bed.read("server.pem"), before);
}

#[test]
fn another_public_host_gets_into_the_certificate_and_to_agents() {
    let mut bed = Bed::new();
    bed.init(&[]).data();
    bed.config
        .public_host_port
        .push("other.example:443".to_owned());
    let said = bed.said(&[]);
    assert_eq!(
        said["changed"],
        ["server.pem", "components", "linux", "darwin", "windows"]
    );
    with_certificate(&bed.read("server.pem"), |leaf| {
        let names = &leaf
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names;
        assert!(names.contains(&GeneralName::DNSName("other.example")));
    });
}

#[test]
fn owner_and_mode_that_people_chose_for_a_file_stay() {
    let bed = Bed::new();
    bed.init(&[]).data();
    fs::set_permissions(bed.path("components"), fs::Permissions::from_mode(0o640)).unwrap();
    bed.init(&["--renew"]).data();
    assert_eq!(bed.mode("components"), 0o640);
    fs::set_permissions(
        bed.path("server-key.pem"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let said = bed.init(&[]);
    assert!(
        said.stderr.contains("everybody can read"),
        "{}",
        said.stderr
    );
}

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

#[test]
fn existing_ca_is_used_and_never_changed() {
    for key in [
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(),
    ] {
        let bed = Bed::new();
        OtherCa::new(key).write(&bed);
        let before = (bed.read("ca.pem"), bed.read("ca-key.pem"));
        let said = bed.said(&[]);
        assert_eq!(said["made"], ALL[2..]);
        assert_eq!((bed.read("ca.pem"), bed.read("ca-key.pem")), before);
        with_certificate(&bed.read("server.pem"), |leaf| {
            assert!(leaf.issuer().to_string().contains("They & Co"));
        });
        // The key may be elsewhere as long as nothing is to be issued.
        fs::remove_file(bed.path("ca-key.pem")).unwrap();
        assert_eq!(bed.said(&[])["kept"], ALL[1..]);
        let refused = bed.init(&["--renew"]).failure(1);
        assert!(refused.contains("without the CA key"), "{refused}");
        assert!(refused.contains("put the key back"), "{refused}");
    }
}

#[test]
fn ca_that_cannot_be_used_is_refused_with_the_reason() {
    let mut bed = Bed::new();
    let ca = OtherCa::new(KeyPair::generate().unwrap());
    ca.write(&bed);
    let good = (bed.read("ca.pem"), bed.read("ca-key.pem"));
    let other = KeyPair::generate().unwrap().serialize_pem();
    let certificate = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = ca.params.clone();
        change(&mut params);
        params.self_signed(&ca.key).unwrap().pem()
    };
    let expired = certificate(&|params| {
        params.not_before = UNIX_EPOCH.into();
        params.not_after = (now() - Duration::from_secs(60)).into();
    });
    let leaf = certificate(&|params| params.is_ca = IsCa::NoCa);
    let early = certificate(&|params| {
        params.not_before = (now() + Duration::from_secs(86_400)).into();
    });
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let both = format!("{}{}", good.0, good.1);
    for (certificate, key, reason) in [
        (&*good.0, &*other, "it is the key of another certificate"),
        (&good.0, encrypted, "it is encrypted"),
        (&good.0, "nonsense", "there is no private key in PEM"),
        (&expired, &good.1, "it has expired"),
        (&early, &good.1, "it is not valid yet"),
        (&leaf, &good.1, "is not the certificate of a CA"),
        ("nonsense", &good.1, "there is no certificate in PEM"),
        (&both, &good.1, "there is a private key in it"),
    ] {
        fs::write(bed.path("ca.pem"), certificate).unwrap();
        fs::write(bed.path("ca-key.pem"), key).unwrap();
        let before = bed.contents();
        let refused = bed.init(&[]).failure(2);
        assert!(refused.contains(reason), "{refused}");
        assert!(refused.contains("hint:"), "{refused}");
        assert!(
            refused.contains("ca.pem") || refused.contains("ca-key.pem"),
            "{refused}"
        );
        assert!(!refused.contains("BEGIN"), "{refused}");
        assert_eq!(bed.contents(), before, "{reason}");
    }
    // Nor without any key.
    bed.config.trusted_cert_key_file.clear();
    fs::write(bed.path("ca.pem"), &good.0).unwrap();
    let refused = bed.init(&[]).failure(2);
    assert!(
        refused.contains("`trusted_cert_key_file` is missing"),
        "{refused}"
    );
}

#[test]
fn certificate_that_expires_soon_is_renewed_by_its_ca() {
    for (days, renewed) in [(29, true), (31, false), (-1, true)] {
        let bed = Bed::new();
        let ca = OtherCa::new(KeyPair::generate().unwrap());
        ca.write(&bed);
        ca.issue(&bed, &HOSTS, days);
        let before = bed.read("server.pem");
        bed.init(&[]).data();
        assert_eq!(
            bed.read("server.pem") != before,
            renewed,
            "{days} days left"
        );
    }
}

#[test]
fn certificate_from_elsewhere_is_kept_with_a_warning_until_renewal_is_asked_for() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let elsewhere = OtherCa::new(KeyPair::generate().unwrap());
    elsewhere.issue(&bed, &HOSTS, 100);
    let before = bed.read("server.pem");
    let said = bed.init(&[]);
    assert!(
        said.stderr.contains("would not accept the server"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("--renew"), "{}", said.stderr);
    said.data();
    assert_eq!(bed.read("server.pem"), before);
    let said = bed.init(&["--renew"]);
    assert_eq!(said.stderr, "");
    assert_ne!(bed.read("server.pem"), before);
}

#[test]
fn parts_that_do_not_belong_together_are_refused_and_kept() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let good: Vec<_> = ALL[..4].iter().map(|name| bed.read(name)).collect();
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    for (name, replacement, reason) in [
        (
            "server-key.pem",
            Some(other_key.as_str()),
            "do not belong together",
        ),
        ("server-key.pem", None, "but not its key"),
        (
            "server.pem",
            Some("nonsense"),
            "there is no certificate in PEM",
        ),
        ("ca.pem", None, "put the CA back"),
    ] {
        match replacement {
            Some(text) => fs::write(bed.path(name), text).unwrap(),
            None => fs::remove_file(bed.path(name)).unwrap(),
        }
        let before = bed.contents();
        let refused = bed.init(&[]).failure(2);
        assert!(refused.contains(reason), "{refused}");
        assert!(refused.contains("hint:"), "{refused}");
        assert_eq!(bed.contents(), before, "{reason}");
        for (name, text) in ALL.iter().zip(&good) {
            fs::write(bed.path(name), text).unwrap();
        }
    }
}

#[test]
fn every_field_that_is_wrong_is_named_with_what_to_write() {
    type Change = fn(&mut Config);
    let changes: [(Change, &str, &str); 19] = [
        (
            |c| c.configuration_name.clear(),
            "`configuration_name` is missing",
            "Lazy Corp",
        ),
        (
            |c| c.configuration_name = "a\nb".into(),
            "control characters",
            "in one line",
        ),
        (
            |c| c.components_config = None,
            "`components_config` is missing",
            "https_config {",
        ),
        (
            |c| c.components_config.as_mut().unwrap().https_config = None,
            "`components_config.https_config` is missing",
            "listen_address",
        ),
        (
            |c| {
                let components = c.components_config.as_mut().unwrap();
                components
                    .https_config
                    .as_mut()
                    .unwrap()
                    .listen_address
                    .clear();
            },
            "https_config.listen_address` is missing",
            "listen_address: \":443\"",
        ),
        (
            |c| {
                let components = c.components_config.as_mut().unwrap();
                components.admin_config.as_mut().unwrap().listen_address = "localhost".into();
            },
            "admin_config.listen_address` has no port",
            "localhost:9000",
        ),
        (
            |c| c.public_host_port.clear(),
            "`public_host_port` is missing",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = "fleet.example".into(),
            "has no port",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = ":443".into(),
            "has no host",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = "a:0".into(),
            "port 0",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = "a,b:1".into(),
            "neither a host name",
            "fleet.example:443",
        ),
        (
            |c| c.server_name = "a:1".into(),
            "`server_name` is `a:1`",
            "without a port",
        ),
        (
            |c| c.proxy = "proxy.example".into(),
            "`proxy` is no URL",
            "http://",
        ),
        (
            |c| c.trusted_cert_file.clear(),
            "`trusted_cert_file` is missing",
            "ca.pem",
        ),
        (
            |c| c.server_cert_file.clear(),
            "`server_cert_file` is missing",
            "server.pem",
        ),
        (
            |c| c.server_cert_key_file.clear(),
            "`server_cert_key_file` is missing",
            "server-key.pem",
        ),
        (
            |c| c.server_component_configuration_file.clear(),
            "`server_component_configuration_file` is missing",
            "server.components.config",
        ),
        (
            |c| c.linux_client_configuration_file = "$BED/server.pem".into(),
            "names the same file as `server_cert_file`",
            "a file of its own",
        ),
        (
            |c| c.trusted_cert_file = "$NO_SUCH_THING/ca".into(),
            "`NO_SUCH_THING`",
            "set it",
        ),
    ];
    for (change, problem, hint) in changes {
        let mut bed = Bed::new();
        change(&mut bed.config);
        let refused = bed.init(&[]).failure(2);
        assert!(refused.contains(problem), "{problem}: {refused}");
        assert!(refused.contains(hint), "{hint}: {refused}");
        assert_eq!(bed.contents(), BTreeMap::new(), "{problem}");
    }
}

#[test]
fn everything_that_is_wrong_with_fields_is_said_at_once() {
    let mut bed = Bed::new();
    bed.config.configuration_name.clear();
    bed.config.proxy = "proxy".to_owned();
    bed.config.public_host_port[1] = "b".to_owned();
    let refused = bed.init(&[]).failure(2);
    for field in ["configuration_name", "proxy", "public_host_port"] {
        assert!(refused.contains(field), "{refused}");
    }
}

#[test]
fn text_that_is_no_configuration_is_refused_with_its_place() {
    let bed = Bed::new();
    let init = || finish(bed.command().args(["--config", "configurator"]));
    let refused = init().failure(2);
    assert!(
        refused.contains("cannot read configuration `configurator`"),
        "{refused}"
    );
    fs::write(
        bed.path("configurator"),
        "configuration_name: \"a\"\nconfiguration: \"b\"\n",
    )
    .unwrap();
    let refused = init().failure(2);
    assert!(refused.contains("line 2"), "{refused}");
    assert!(refused.contains("`public_host_port`"), "{refused}");
}

#[test]
fn nothing_is_changed_when_one_file_cannot_be_written() {
    let mut bed = Bed::new();
    bed.init(&[]).data();
    fs::create_dir(bed.path("taken")).unwrap();
    bed.config.windows_client_configuration_file = "$BED/taken/file".to_owned();
    fs::create_dir(bed.path("taken/file.tmp")).unwrap();
    let before: Vec<_> = ALL.map(|name| bed.read(name)).into();
    let refused = bed.init(&["--renew"]).failure(1);
    assert!(refused.contains("taken/file"), "{refused}");
    assert!(refused.contains("nothing was changed"), "{refused}");
    assert_eq!(ALL.map(|name| bed.read(name)).to_vec(), before);
    let leftovers = fs::read_dir(bed.dir.path()).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|extension| extension == "tmp")
    });
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn run_that_was_cut_off_is_completed_by_the_next() {
    let bed = Bed::new();
    bed.init(&[]).data();
    for from in 1..ALL.len() {
        for name in &ALL[from..] {
            fs::remove_file(bed.path(name)).unwrap();
        }
        fs::write(bed.path("server.pem.tmp"), "torn").unwrap();
        assert_eq!(bed.said(&[])["made"], ALL[from..], "from {from}");
        assert!(bed.contents().len() <= ALL.len() + 1);
    }
}

#[test]
fn flags_do_without_a_configurator_file() {
    let bed = Bed::new();
    let flags = [
        "--name",
        "Lazy Corp",
        "--public-address",
        "fleet.example:443",
    ];
    let made = finish(bed.command().args(flags).args(["--dir", "new/dir"])).data();
    assert!(
        made.contains("start    fleethold serve --components-config "),
        "{made}"
    );
    let components: Components =
        text::parse(&bed.read("new/dir/server.components.config")).unwrap();
    assert_eq!(components.https_config.unwrap().listen_address, ":443");
    assert_eq!(
        components.admin_config.unwrap().listen_address,
        "127.0.0.1:6061"
    );
    for system in ["linux", "darwin", "windows"] {
        let config = bed.read(&format!("new/dir/{system}.client.configuration"));
        let config: AgentConfig = text::parse(&config).unwrap();
        assert_eq!(config.server, ["fleet.example:443"]);
        assert!(config.streaming);
    }
    assert_eq!(bed.mode("new/dir"), 0o700);

    // A CA that is there, and one that is not.
    let ca = OtherCa::new(KeyPair::generate().unwrap());
    ca.write(&bed);
    let more = ["--ca-certificate", "ca.pem", "--ca-key"];
    let run = |key: &str| {
        finish(
            bed.command()
                .args(flags)
                .args(["--dir", "other"])
                .args(more)
                .arg(key),
        )
    };
    let refused = run("missing.pem").failure(2);
    assert!(refused.contains("missing.pem"), "{refused}");
    run("ca-key.pem").data();
    let config = bed.read("other/linux.client.configuration");
    let config: AgentConfig = text::parse(&config).unwrap();
    assert_eq!(config.trusted_certs, bed.read("ca.pem"));
    assert!(!bed.path("other/ca.pem").exists());
}

#[test]
fn flags_and_configurator_file_exclude_each_other() {
    let bed = Bed::new();
    let run = |flags: &[&str]| finish(bed.command().args(flags)).failure(2);
    assert!(run(&[]).contains("--public-address"));
    assert!(run(&["--config", "f", "--name", "n"]).contains("cannot be used with"));
    assert!(run(&["--config", "f", "--dir", "n"]).contains("cannot be used with"));
}

#[test]
fn two_runs_at_once_do_not_mix() {
    let bed = Bed::new();
    fs::write(bed.path("configurator"), text::print(&bed.config)).unwrap();
    let start = || {
        let mut command = bed.command();
        command.args(["--config", "configurator"]);
        std::thread::spawn(move || finish(&mut command))
    };
    let runs: Vec<_> = (0..4).map(|_| start()).collect();
    let ended: Vec<_> = runs
        .into_iter()
        .map(|run| run.join().unwrap().status)
        .collect();
    assert!(ended.contains(&Some(0)), "{ended:?}");
    assert!(
        ended
            .iter()
            .all(|status| [Some(0), Some(75)].contains(status)),
        "{ended:?}"
    );
    // Key and certificate are of one run.
    assert_eq!(bed.said(&[])["kept"], ALL);
}

#[test]
fn debian_package_is_one_that_dpkg_reads() {
    let bed = Bed::new();
    bed.init(&["--debian-package", "agent.deb"]).data();
    let linux = bed.read("linux");
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new("dpkg-deb");
        command.current_dir(bed.dir.path()).args(arguments);
        finish(&mut command).data()
    };
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        // Not a Debian; the unit tests have read the package by its description.
        return;
    }
    let info = dpkg(&["--info", "agent.deb"]);
    for line in [
        " Package: fleetspeak-client-config\n",
        " Architecture: all\n",
        "agent for Lazy Corp\n",
        "conffiles",
        "postinst",
    ] {
        assert!(info.contains(line), "{line} in {info}");
    }
    let contents = dpkg(&["--contents", "agent.deb"]);
    let files: Vec<_> = contents
        .lines()
        .map(|line| (&line[..10], line.rsplit(' ').next().unwrap()))
        .collect();
    assert_eq!(
        files,
        [
            ("drwxr-xr-x", "./"),
            ("drwxr-xr-x", "./etc/"),
            ("drwxr-xr-x", "./etc/fleetspeak-client/"),
            ("-rw-r--r--", "./etc/fleetspeak-client/client.config"),
            ("drwxr-xr-x", "./etc/fleetspeak-client/textservices/"),
        ]
    );
    assert_eq!(contents.matches("root/root").count(), files.len());
    dpkg(&["--raw-extract", "agent.deb", "unpacked"]);
    assert_eq!(
        bed.read("unpacked/etc/fleetspeak-client/client.config"),
        linux
    );
    assert_eq!(
        bed.read("unpacked/DEBIAN/conffiles"),
        "/etc/fleetspeak-client/client.config\n"
    );
    assert_eq!(bed.mode("unpacked/DEBIAN/postinst"), 0o755);
    let checked = Command::new("sh")
        .arg("-n")
        .arg(bed.path("unpacked/DEBIAN/postinst"))
        .status();
    assert!(checked.unwrap().success());
}
