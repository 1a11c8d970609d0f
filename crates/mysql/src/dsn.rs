//! How a database is named: as the stock server names it in
//! `mysql_data_source_name` (the data source names of its Go driver), or as a URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use mysql_async::{ClientIdentity, Opts, OptsBuilder, SslOpts};
use percent_encoding::percent_decode_str;

/// A database and the way to it, its password included; never shows that.
#[derive(Clone, PartialEq, Eq)]
pub struct DataSource {
    user: String,
    password: Option<String>,
    /// Ways to one database, in the order in which they are tried; at least one.
    addresses: Vec<Address>,
    database: String,
    tls: Tls,
    ca: Option<PathBuf>,
    /// Of the session, if the name asks for it.
    pub(crate) isolation: Option<Isolation>,
    cleartext_password: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp { host: String, port: u16 },
    Socket(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    No,
    /// Without a look at the certificate if the server offers it, else without TLS.
    Preferred,
    /// Without a look at the certificate.
    Unverified,
    Verified,
}

/// A cluster has fewer nodes than this.
const MOST_HOSTS: usize = 16;

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket(path) => f.write_str(path),
        }
    }
}

/// How transactions see each other. Stores are correct at each; the first is the fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// `READ COMMITTED`.
    #[default]
    ReadCommitted,
    /// `REPEATABLE READ`.
    RepeatableRead,
    /// `SERIALIZABLE`.
    Serializable,
}

impl Isolation {
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches('\'').to_ascii_lowercase();
        match text.replace([' ', '_'], "-").as_str() {
            "read-committed" => Some(Self::ReadCommitted),
            "repeatable-read" => Some(Self::RepeatableRead),
            "serializable" => Some(Self::Serializable),
            _ => None,
        }
    }
}

/// Parameters of the Go driver that mean nothing here: what they choose is
/// always so, never so, or has an option of its own.
const WITHOUT_EFFECT: &[&str] = &[
    "allowAllFiles",
    "allowNativePasswords",
    "allowOldPasswords",
    "charset",
    "checkConnLiveness",
    "clientFoundRows",
    "collation",
    "columnsWithAlias",
    "compress",
    "connectionAttributes",
    "interpolateParams",
    "loc",
    "maxAllowedPacket",
    "multiStatements",
    "parseTime",
    "readTimeout",
    "rejectReadOnly",
    "timeTruncate",
    "time_zone",
    "timeout",
    "writeTimeout",
];

impl DataSource {
    /// Returns where the database is, without user and password.
    pub fn place(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        format!("{}/{}", addresses.join(","), self.database)
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn tls(&self) -> Tls {
        self.tls
    }

    /// Makes the driver's options for each address.
    pub(crate) fn opts(&self, tls: Tls) -> Vec<Opts> {
        let addresses = self.addresses.iter();
        addresses
            .map(|address| self.opts_for(address, tls))
            .collect()
    }

    fn opts_for(&self, address: &Address, tls: Tls) -> Opts {
        let builder = OptsBuilder::default()
            .user(Some(self.user.clone()))
            .pass(self.password.clone())
            .db_name(Some(self.database.clone()))
            // Asked for otherwise, at the price of round trips for each connection.
            .prefer_socket(false)
            .max_allowed_packet(Some(1024 * 1024 * 1024))
            .wait_timeout(Some(28_800))
            .tcp_keepalive(Some(std::time::Duration::from_secs(30)))
            .enable_cleartext_plugin(self.cleartext_password)
            .stmt_cache_size(8);
        let builder = match address {
            Address::Tcp { host, port } => builder.ip_or_hostname(host.clone()).tcp_port(*port),
            Address::Socket(path) => builder.socket(Some(path.clone())),
        };
        let verified = || {
            let roots = self.ca.iter().map(|path| path.clone().into()).collect();
            SslOpts::default()
                .with_root_certs(roots)
                .with_client_identity(None::<ClientIdentity>)
        };
        Opts::from(
            builder.ssl_opts(match tls {
                Tls::No => None,
                Tls::Preferred | Tls::Unverified => Some(
                    SslOpts::default()
                        .with_danger_accept_invalid_certs(true)
                        .with_danger_skip_domain_validation(true),
                ),
                Tls::Verified => Some(verified()),
            }),
        )
    }

    fn new(
        user: String,
        password: Option<String>,
        addresses: Vec<Address>,
        database: String,
    ) -> Self {
        Self {
            user,
            password,
            addresses,
            database,
            tls: Tls::No,
            ca: None,
            isolation: None,
            cleartext_password: false,
        }
    }

    /// `mysql://user:password@host:port/database?parameters`, with commas
    /// between the hosts if there are several: nodes of one cluster.
    fn from_url(rest: &str) -> Result<Self, String> {
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (place, database) = place
            .split_once('/')
            .ok_or("it names no database; write mysql://USER:PASSWORD@HOST/DATABASE")?;
        let (account, host) = place.rsplit_once('@').unwrap_or(("", place));
        let (user, password) = account
            .split_once(':')
            .map_or((account, None), |(user, word)| (user, Some(word)));
        let decoded = |text: &str, what: &str| {
            percent_decode_str(text)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| format!("its {what} is no text"))
        };
        let password = password.map(|word| decoded(word, "password")).transpose()?;
        let hosts: Vec<_> = host.split(',').collect();
        if hosts.len() > MOST_HOSTS {
            return Err(format!("it names more than {MOST_HOSTS} hosts"));
        }
        if hosts.len() > 1 && hosts.contains(&"") {
            return Err("one of its hosts is empty".to_owned());
        }
        let addresses = hosts
            .into_iter()
            .map(|host| tcp(&decoded(host, "host")?))
            .collect::<Result<_, _>>()?;
        let database = decoded(database, "database")?;
        Self::new(decoded(user, "user")?, password, addresses, database).with(parameters)
    }

    /// `user:password@protocol(address)/database?parameters`, as Go's driver reads it.
    fn from_go(name: &str) -> Result<Self, String> {
        let (place, parameters) = match name.rfind('/') {
            // A `?` before the last slash belongs to the password, or to a path in a parameter.
            Some(_) => {
                let end = go_end_of_place(name);
                let rest = &name[end + 1..];
                let (database, parameters) = rest.split_once('?').unwrap_or((rest, ""));
                ((&name[..end], database), parameters)
            }
            None => {
                return Err(
                    "it has no slash before the database; write USER:PASSWORD@tcp(HOST:PORT)/DATABASE"
                        .to_owned(),
                );
            }
        };
        let (place, database) = place;
        let database = percent_decode_str(database)
            .decode_utf8()
            .map_err(|_| "its database is no text".to_owned())?
            .into_owned();
        let (account, network) = place.rsplit_once('@').unwrap_or(("", place));
        let (user, password) = account
            .split_once(':')
            .map_or((account, None), |(user, word)| (user, Some(word)));
        let (protocol, address) = match network.split_once('(') {
            Some((protocol, address)) => (
                protocol,
                address
                    .strip_suffix(')')
                    .ok_or("its address has no closing parenthesis")?,
            ),
            None => (network, ""),
        };
        let address = match protocol {
            "" | "tcp" | "tcp4" | "tcp6" if address.contains(',') => {
                return Err(
                    "the stock server's driver takes one host; for several nodes of a cluster write mysql://USER:PASSWORD@HOST,HOST/DATABASE".to_owned(),
                );
            }
            "" | "tcp" | "tcp4" | "tcp6" => tcp(address)?,
            "unix" if address.is_empty() => Address::Socket("/tmp/mysql.sock".to_owned()),
            "unix" => Address::Socket(address.to_owned()),
            other => {
                return Err(format!(
                    "protocol `{other}` is none of tcp and unix; write USER:PASSWORD@tcp(HOST:PORT)/DATABASE"
                ));
            }
        };
        Self::new(
            user.to_owned(),
            password.map(str::to_owned),
            vec![address],
            database,
        )
        .with(parameters)
    }

    fn with(mut self, parameters: &str) -> Result<Self, String> {
        if self.database.is_empty() {
            return Err("it names no database".to_owned());
        }
        for parameter in parameters.split('&').filter(|text| !text.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| format!("parameter `{name}` is no text"))?;
            match name {
                "tls" | "ssl-mode" => {
                    self.tls = match value.to_ascii_lowercase().as_str() {
                        "" | "false" | "0" | "disabled" => Tls::No,
                        "true" | "1" | "verify_identity" => Tls::Verified,
                        "skip-verify" | "required" => Tls::Unverified,
                        "preferred" => Tls::Preferred,
                        _ => {
                            return Err(format!(
                                "TLS configuration `{value}` is known to the program that registered it only; write tls=true, and tls-ca=FILE for a certificate authority of your own"
                            ));
                        }
                    }
                }
                "tls-ca" => self.ca = Some(PathBuf::from(value.as_ref())),
                "allowCleartextPasswords" => {
                    self.cleartext_password = matches!(value.as_ref(), "true" | "1");
                }
                "tx_isolation" | "transaction_isolation" | "isolation" => {
                    self.isolation = Some(Isolation::parse(&value).ok_or_else(|| {
                        format!("isolation `{value}` is none of READ-COMMITTED, REPEATABLE-READ and SERIALIZABLE")
                    })?);
                }
                name if WITHOUT_EFFECT.contains(&name) => {}
                name => {
                    return Err(format!(
                        "parameter `{name}` is not known here; leave it out, or set it on the server if it is one of its variables"
                    ));
                }
            }
        }
        if self.ca.is_some() && self.tls == Tls::No {
            self.tls = Tls::Verified;
        }
        Ok(self)
    }
}

/// Returns where the slash before the database is: the last one that is not
/// part of the parameters.
fn go_end_of_place(name: &str) -> usize {
    // The driver takes the last slash. One in a parameter's value has to be
    // escaped there; tls-ca, which is ours, has plain ones.
    let place = match name.find("/?").or_else(|| {
        let question = name.rfind('?')?;
        name[..question].rfind('/')
    }) {
        Some(slash) => slash,
        None => name.rfind('/').unwrap_or(0),
    };
    // A question mark in the password has no slash behind it but the last.
    if name[place..].contains('@') {
        name.rfind('/').unwrap_or(place)
    } else {
        place
    }
}

fn tcp(address: &str) -> Result<Address, String> {
    const DEFAULT_PORT: u16 = 3306;
    let wrong = || "its address is not HOST:PORT".to_owned();
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            (host, rest.strip_prefix(':'))
        }
        None => match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => port.parse().map_err(|_| wrong())?,
    };
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

impl FromStr for DataSource {
    type Err = String;

    /// Reads a name; errors never repeat the password.
    fn from_str(name: &str) -> Result<Self, String> {
        match ["mysql://", "mariadb://"]
            .iter()
            .find_map(|scheme| name.strip_prefix(scheme))
        {
            Some(rest) => Self::from_url(rest),
            None => Self::from_go(name),
        }
    }
}

impl fmt::Debug for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSource")
            .field("user", &self.user)
            .field("addresses", &self.addresses)
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("ca", &self.ca)
            .field("isolation", &self.isolation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> (String, Option<String>, String, Tls) {
        let source: DataSource = name
            .parse()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let place = source.place();
        (source.user, source.password, place, source.tls)
    }

    #[test]
    fn names_of_the_stock_server_are_read_as_its_driver_does() {
        for (name, user, password, place, tls) in [
            ("u:p@tcp(db:3307)/f", "u", Some("p"), "db:3307/f", Tls::No),
            ("u:p@tcp(db)/f", "u", Some("p"), "db:3306/f", Tls::No),
            ("u:p@tcp/f", "u", Some("p"), "127.0.0.1:3306/f", Tls::No),
            ("u@/f", "u", None, "127.0.0.1:3306/f", Tls::No),
            ("/f", "", None, "127.0.0.1:3306/f", Tls::No),
            ("u:p@(db)/f", "u", Some("p"), "db:3306/f", Tls::No),
            (
                "u:p@unix(/run/my.sock)/f",
                "u",
                Some("p"),
                "/run/my.sock/f",
                Tls::No,
            ),
            ("u:p@unix/f", "u", Some("p"), "/tmp/mysql.sock/f", Tls::No),
            (
                "u:p@tcp([::1]:3306)/f",
                "u",
                Some("p"),
                "::1:3306/f",
                Tls::No,
            ),
            (
                "u:a:b@c/d?e@tcp(db)/f",
                "u",
                Some("a:b@c/d?e"),
                "db:3306/f",
                Tls::No,
            ),
            (
                "u:p@tcp(db)/f?tls=true&parseTime=true",
                "u",
                Some("p"),
                "db:3306/f",
                Tls::Verified,
            ),
            (
                "u:p@tcp(db)/f?tls=skip-verify",
                "u",
                Some("p"),
                "db:3306/f",
                Tls::Unverified,
            ),
            (
                "u:p@tcp(db)/f?tls=preferred&loc=Europe%2FBerlin",
                "u",
                Some("p"),
                "db:3306/f",
                Tls::Preferred,
            ),
            (
                "u:p@tcp(db)/f?tls-ca=/etc/ca.pem",
                "u",
                Some("p"),
                "db:3306/f",
                Tls::Verified,
            ),
            (
                "u:p@tcp(db)/f%2Fg?charset=utf8mb4",
                "u",
                Some("p"),
                "db:3306/f/g",
                Tls::No,
            ),
        ] {
            let expected = (user.into(), password.map(Into::into), place.into(), tls);
            assert_eq!(parsed(name), expected, "{name}");
        }
    }

    #[test]
    fn urls_are_read() {
        for (name, user, password, place, tls) in [
            (
                "mysql://u:p@db:3307/f",
                "u",
                Some("p"),
                "db:3307/f",
                Tls::No,
            ),
            (
                "mariadb://u:p%40%2F@db/f",
                "u",
                Some("p@/"),
                "db:3306/f",
                Tls::No,
            ),
            ("mysql://db/f", "", None, "db:3306/f", Tls::No),
            (
                "mysql://u@[::1]/f?tls-ca=/etc/ca.pem",
                "u",
                None,
                "::1:3306/f",
                Tls::Verified,
            ),
            (
                "mysql://u@db/f?ssl-mode=required",
                "u",
                None,
                "db:3306/f",
                Tls::Unverified,
            ),
            (
                "mysql://u:p,q@a,b:3307,[::1]/f",
                "u",
                Some("p,q"),
                "a:3306,b:3307,::1:3306/f",
                Tls::No,
            ),
        ] {
            let expected = (user.into(), password.map(Into::into), place.into(), tls);
            assert_eq!(parsed(name), expected, "{name}");
        }
        let source: DataSource = "mysql://u@db/f?isolation=serializable".parse().unwrap();
        assert_eq!(source.isolation, Some(Isolation::Serializable));
    }

    #[test]
    fn wrong_names_say_what_is_wrong_and_keep_the_password() {
        for (name, problem) in [
            ("u:secret@tcp(db:3306)", "no slash"),
            ("u:secret@tcp(db:3306)/", "no database"),
            ("u:secret@tcp(db:port)/f", "HOST:PORT"),
            ("u:secret@tcp(db/f", "closing parenthesis"),
            ("u:secret@pipe(db)/f", "protocol `pipe`"),
            ("u:secret@tcp(db)/f?sql_mode=ANSI", "parameter `sql_mode`"),
            ("u:secret@tcp(db)/f?tls=mine", "TLS configuration `mine`"),
            ("u:secret@tcp(db)/f?tx_isolation='none'", "isolation"),
            ("mysql://u:secret@db", "no database"),
            ("mysql://u:secret@db:x/f", "HOST:PORT"),
            ("mysql://u:secret@a,,b/f", "hosts is empty"),
            ("u:secret@tcp(a,b)/f", "takes one host"),
        ] {
            let error = name.parse::<DataSource>().unwrap_err();
            assert!(error.contains(problem), "{name}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let source: DataSource = "u:secret@tcp(db)/f".parse().unwrap();
        assert!(!format!("{source:?} {}", source.place()).contains("secret"));
    }
}
