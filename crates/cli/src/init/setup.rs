//! What is to be made: upstream's configurator file or flags, checked as a whole before anything is touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fleethold_proto::fleetspeak::components;
use fleethold_proto::fleetspeak::config::Config;
use fleethold_server::config::{ConfigText, parse, split_listen};
use rustls::pki_types::ServerName;

use super::InitArgs;
use super::paths::expand;
use crate::output::{Exit, Failure};
use crate::serve;

/// A configurator file in one line.
const EXAMPLE: &str = "configuration_name: \"Lazy Corp\" public_host_port: \"fleet.example:443\" \
     components_config { https_config { listen_address: \":443\" } }";

/// An installation.
pub(super) struct Setup {
    pub(super) name: String,
    /// Without certificate and key.
    pub(super) components: components::Config,
    pub(super) public_addresses: Vec<String>,
    /// The name in the server's certificate, if it is not the host; or empty.
    pub(super) server_name: String,
    /// What the certificate is valid for; the server name comes first, agents look for it alone.
    pub(super) names: Vec<ServerName<'static>>,
    /// A URL, or empty.
    pub(super) proxy: String,
    pub(super) paths: Paths,
}

/// The files of an installation; those that are absent are not wanted.
pub(super) struct Paths {
    pub(super) ca: PathBuf,
    pub(super) ca_key: Option<PathBuf>,
    pub(super) server: PathBuf,
    pub(super) server_key: PathBuf,
    pub(super) components: PathBuf,
    pub(super) linux: Option<PathBuf>,
    pub(super) darwin: Option<PathBuf>,
    pub(super) windows: Option<PathBuf>,
    pub(super) debian_package: Option<PathBuf>,
}

impl Setup {
    /// Reads the configurator file that the command line names, or the flags that stand for one.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, never nothing.
    pub(super) fn new(args: &InitArgs) -> Result<Self, Vec<Failure>> {
        let (config, file) = match &args.config {
            Some(file) => {
                let text = serve::read(file).map_err(|failure| vec![failure])?;
                let config_text = ConfigText {
                    path: file,
                    text: &text,
                };
                let config = parse(&config_text, EXAMPLE)
                    .map_err(|error| vec![serve::wrong_config(error)])?;
                (config, Some(file.as_path()))
            }
            None => (from_flags(args).map_err(|failure| vec![failure])?, None),
        };
        let mut reader = Reader {
            file,
            problems: Vec::new(),
        };
        let setup = reader.setup(config, args);
        match (setup, reader.problems) {
            (Some(setup), problems) if problems.is_empty() => Ok(setup),
            (_, problems) => Err(problems),
        }
    }
}

/// Returns the configurator file that the flags stand for.
fn from_flags(args: &InitArgs) -> Result<Config, Failure> {
    let dir = plain(&args.dir)?;
    let in_dir = |name: &str| format!("{dir}/{name}");
    let (ca, ca_key) = match &args.ca_certificate {
        Some(ca) => {
            // A mistyped name must not become another CA.
            serve::read(ca)?;
            let key = args.ca_key.as_deref().map(|key| {
                serve::read(key)?;
                plain(key)
            });
            (plain(ca)?, key.transpose()?.unwrap_or_default())
        }
        None => (in_dir("ca.pem"), in_dir("ca-key.pem")),
    };
    let first = args.public_addresses.first();
    let port = first.and_then(|address| Some(split_listen(address).ok()?.1));
    let listen = args.listen.clone();
    let listen = listen.or_else(|| Some(format!(":{}", port?)));
    Ok(Config {
        configuration_name: args.name.clone().unwrap_or_default(),
        components_config: Some(components::Config {
            https_config: Some(components::HttpsConfig {
                listen_address: listen.unwrap_or_default(),
                ..components::HttpsConfig::default()
            }),
            admin_config: Some(components::AdminConfig {
                listen_address: args.admin_listen.clone(),
            }),
            ..components::Config::default()
        }),
        trusted_cert_file: ca,
        trusted_cert_key_file: ca_key,
        server_cert_file: in_dir("server.pem"),
        server_cert_key_file: in_dir("server-key.pem"),
        server_component_configuration_file: in_dir("server.components.config"),
        public_host_port: args.public_addresses.clone(),
        linux_client_configuration_file: in_dir("linux.client.configuration"),
        darwin_client_configuration_file: in_dir("darwin.client.configuration"),
        windows_client_configuration_file: in_dir("windows.client.configuration"),
        ..Config::default()
    })
}

/// Returns a path of the command line, where the shell has expanded what there was to expand.
fn plain(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).map_err(|error| {
        Failure::new(Exit::Usage, error).context(format!("cannot use `{}`", path.display()))
    })?;
    let text = absolute
        .to_str()
        .ok_or_else(|| Failure::usage(format!("the path `{}` is not UTF-8", path.display())))?;
    Ok(text.trim_end_matches('/').replace('$', "$$"))
}

/// Reads fields and remembers what is wrong with them.
struct Reader<'a> {
    file: Option<&'a Path>,
    problems: Vec<Failure>,
}

impl Reader<'_> {
    fn setup(&mut self, config: Config, args: &InitArgs) -> Option<Setup> {
        let name = config.configuration_name;
        if name.is_empty() {
            self.missing("configuration_name", "\"Lazy Corp\"");
        } else if name.contains(char::is_control) {
            let hint = "write it in one line, for example `configuration_name: \"Lazy Corp\"`";
            self.wrong("configuration_name", "has control characters", hint);
        }
        let components = self.components(config.components_config);
        let names = self.names(&config.public_host_port, &config.server_name);
        if !config.proxy.is_empty() && !config.proxy.contains("://") {
            let hint = "write it as in `proxy: \"http://proxy.example:3128\"`";
            self.wrong("proxy", "is no URL", hint);
        }

        let mut taken = BTreeMap::new();
        let mut path = |reader: &mut Self, field: &'static str, text: &str| -> Option<PathBuf> {
            if text.is_empty() {
                return None;
            }
            let path = match expand(text, |name| std::env::var(name).ok()) {
                Ok(path) => path,
                Err(problem) => {
                    reader.wrong(field, &problem, "name a file");
                    return None;
                }
            };
            if let Some(other) = taken.insert(path.clone(), field) {
                let problem = format!("names the same file as `{other}`");
                reader.wrong(field, &problem, "give each of them a file of its own");
            }
            Some(path)
        };
        let ca = path(self, "trusted_cert_file", &config.trusted_cert_file);
        let ca_key = path(self, "trusted_cert_key_file", &config.trusted_cert_key_file);
        let server = path(self, "server_cert_file", &config.server_cert_file);
        let server_key = path(self, "server_cert_key_file", &config.server_cert_key_file);
        let components_file = path(
            self,
            "server_component_configuration_file",
            &config.server_component_configuration_file,
        );
        let linux = &config.linux_client_configuration_file;
        let linux = path(self, "linux_client_configuration_file", linux);
        let darwin = &config.darwin_client_configuration_file;
        let darwin = path(self, "darwin_client_configuration_file", darwin);
        let windows = &config.windows_client_configuration_file;
        let windows = path(self, "windows_client_configuration_file", windows);
        let debian_package = args.debian_package.as_deref().and_then(|file| {
            let text = plain(file).map_err(|failure| self.problems.push(failure));
            path(self, "--debian-package", &text.ok()?)
        });

        for (field, text, example) in [
            ("trusted_cert_file", &config.trusted_cert_file, "ca.pem"),
            ("server_cert_file", &config.server_cert_file, "server.pem"),
            (
                "server_cert_key_file",
                &config.server_cert_key_file,
                "server-key.pem",
            ),
            (
                "server_component_configuration_file",
                &config.server_component_configuration_file,
                "server.components.config",
            ),
        ] {
            if text.is_empty() {
                self.missing(field, &format!("\"/etc/fleetspeak-server/{example}\""));
            }
        }
        let paths = Paths {
            ca: ca?,
            ca_key,
            server: server?,
            server_key: server_key?,
            components: components_file?,
            linux,
            darwin,
            windows,
            debian_package,
        };
        self.check_ca_key(&paths);
        Some(Setup {
            name,
            components: components?,
            public_addresses: config.public_host_port,
            server_name: config.server_name,
            names,
            proxy: config.proxy,
            paths,
        })
    }

    fn components(&mut self, config: Option<components::Config>) -> Option<components::Config> {
        let example = "{ https_config { listen_address: \":443\" } }";
        let Some(config) = config else {
            self.missing("components_config", example);
            return None;
        };
        let Some(https) = &config.https_config else {
            self.missing(
                "components_config.https_config",
                "{ listen_address: \":443\" }",
            );
            return None;
        };
        let field = "components_config.https_config.listen_address";
        self.listen(field, &https.listen_address, "listen_address: \":443\"");
        if let Some(admin) = &config.admin_config {
            let field = "components_config.admin_config.listen_address";
            let hint = "listen_address: \"localhost:9000\"";
            self.listen(field, &admin.listen_address, hint);
        }
        Some(config)
    }

    fn listen(&mut self, field: &str, address: &str, example: &str) {
        if let Err(problem) = split_listen(address) {
            self.wrong(field, problem, &format!("write for example `{example}`"));
        }
    }

    /// Returns what the server certificate has to be valid for.
    fn names(&mut self, addresses: &[String], server_name: &str) -> Vec<ServerName<'static>> {
        if addresses.is_empty() {
            self.missing("public_host_port", "\"fleet.example:443\"");
        }
        let mut names: Vec<ServerName<'static>> = Vec::new();
        match serve::server_name(server_name) {
            _ if server_name.is_empty() => {}
            Some(name) => names.push(name),
            None => {
                let problem =
                    format!("is `{server_name}`, which is neither a host name nor an address");
                let hint = "write for example `server_name: \"fleet.example\"`, without a port";
                self.wrong("server_name", &problem, hint);
            }
        }
        for address in addresses {
            let name = serve::public_address(address).and_then(|address| {
                let (host, _) = split_listen(&address)?;
                serve::server_name(host).ok_or_else(|| "it names no host".to_owned())
            });
            match name {
                Ok(name) if names.contains(&name) => {}
                Ok(name) => names.push(name),
                Err(problem) => {
                    let problem = format!("is `{address}`: {problem}");
                    let hint = "write for example `public_host_port: \"fleet.example:443\"`";
                    self.wrong("public_host_port", &problem, hint);
                }
            }
        }
        names
    }

    /// The key of the CA may be elsewhere, unless it is needed.
    fn check_ca_key(&mut self, paths: &Paths) {
        if paths.ca_key.is_some() {
            return;
        }
        let why = match (paths.ca.exists(), paths.server.exists()) {
            (false, _) => "is missing, and there is no CA yet, whose key needs a place",
            (_, false) => "is missing, and needed to make the server certificate",
            _ => return,
        };
        match self.file {
            Some(_) => self.wrong(
                "trusted_cert_key_file",
                why,
                "write for example `trusted_cert_key_file: \"/etc/fleetspeak-server/ca-key.pem\"`",
            ),
            None => self.wrong("--ca-key", why, "name the file with the key of the CA"),
        }
    }

    fn missing(&mut self, field: &str, example: &str) {
        let name = field.rsplit('.').next().unwrap_or(field);
        let separator = if example.starts_with('{') { " " } else { ": " };
        let hint = format!("write for example `{name}{separator}{example}`");
        self.wrong(field, "is missing", &hint);
    }

    fn wrong(&mut self, field: &str, problem: &str, hint: &str) {
        let message = match self.file {
            Some(file) => format!("`{}`: field `{field}` {problem}", file.display()),
            None => format!("`{field}` {problem}"),
        };
        self.problems.push(Failure::usage(message).hint(hint));
    }
}
