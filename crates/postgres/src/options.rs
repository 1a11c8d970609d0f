//! How a database is opened, and the URL that says so.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use fleethold_store::ProcessorOptions;
use percent_encoding::percent_decode_str;

use crate::tls::TlsMode;

/// Called at every commit; `true` makes it fail as a lost conflict does.
pub type OnCommit = Arc<dyn Fn() -> bool + Send + Sync>;

/// The isolation of transactions that write. The store is correct at each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// The fewest conflicts, and the default.
    #[default]
    ReadCommitted,
    /// Snapshot isolation.
    RepeatableRead,
    /// What some distributed engines always do.
    Serializable,
}

impl Isolation {
    pub(crate) fn begin(self) -> &'static str {
        match self {
            Self::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
            Self::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Self::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

/// How a database is opened.
#[derive(Clone)]
pub struct PostgresOptions {
    config: tokio_postgres::Config,
    pub(crate) tls: TlsMode,
    pub(crate) root_certificate: Option<PathBuf>,
    /// How many connections there are at most, besides the one that listens; 16.
    pub pool_size: NonZeroU16,
    /// How long a call waits for a connection; 5 s.
    pub wait_limit: Duration,
    /// How long a call takes at most, with all its repetitions; 10 s. Ten times
    /// that if its work grows with what is stored.
    pub call_limit: Duration,
    /// The isolation of transactions.
    pub isolation: Isolation,
    /// Whether connections keep prepared statements; they must not behind a
    /// pooler that lends a connection per transaction.
    pub prepared: bool,
    /// Whether servers tell each other of new messages through the database, and
    /// one more connection listens for that.
    pub listen: bool,
    /// Whether contacts of many agents at once share a transaction. Engines that
    /// send a statement to where its one client lives are faster without.
    pub together: bool,
    /// How often and how much the message processor gets.
    pub processor: ProcessorOptions,
    /// For tests: makes commits fail.
    pub on_commit: Option<OnCommit>,
}

/// A URL that names no database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{problem}; write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with ?sslmode=verify-full&sslrootcert=FILE for TLS"
)]
pub struct UrlError {
    problem: String,
}

impl UrlError {
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
        }
    }
}

impl PostgresOptions {
    /// Reads a URL: `postgres://USER:PASSWORD@HOST:PORT/DATABASE?NAME=VALUE&…`.
    ///
    /// Besides the parameters of PostgreSQL's own libraries, there are
    /// `pool_size` (a number), `isolation` (`read-committed`, `repeatable-read`,
    /// `serializable`), `statement_cache` (`on`; `off` behind a pooler that lends
    /// connections per transaction, which also turns `listen` off), `listen`
    /// (`on`, `off`) and `together` (`on`, `off`).
    ///
    /// # Errors
    /// With what is wrong; the text never holds the password.
    pub fn from_url(url: &str) -> Result<Self, UrlError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        if !base.starts_with("postgres://") && !base.starts_with("postgresql://") {
            return Err(UrlError::new("it does not begin with postgres://"));
        }
        let mut options = Self {
            config: tokio_postgres::Config::new(),
            tls: TlsMode::Prefer,
            root_certificate: None,
            pool_size: NonZeroU16::new(16).expect("not zero"),
            wait_limit: Duration::from_secs(5),
            call_limit: Duration::from_secs(10),
            isolation: Isolation::default(),
            prepared: true,
            listen: true,
            together: true,
            processor: ProcessorOptions::default(),
            on_commit: None,
        };
        let mut rest = Vec::new();
        let mut listen = None;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let text = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| UrlError::new(format!("parameter `{name}` is not UTF-8")))?;
            match name {
                "sslmode" => options.tls = text.parse()?,
                "sslrootcert" => options.root_certificate = Some(PathBuf::from(text.as_ref())),
                "pool_size" => {
                    options.pool_size = text
                        .parse()
                        .map_err(|_| UrlError::new("pool_size is a number from 1 to 65535"))?;
                }
                "isolation" => options.isolation = text.parse()?,
                "statement_cache" => options.prepared = is_on(name, &text)?,
                "listen" => listen = Some(is_on(name, &text)?),
                "together" => options.together = is_on(name, &text)?,
                _ => rest.push(parameter),
            }
        }
        options.listen = listen.unwrap_or(options.prepared);
        let rest = rest.join("&");
        let driver_url = if rest.is_empty() {
            base.to_owned()
        } else {
            format!("{base}?{rest}")
        };
        options.config = tokio_postgres::Config::from_str(&driver_url)
            .map_err(|error| UrlError::new(problem(&error)))?;
        options.tls.apply(&mut options.config);
        if options.config.get_dbname().is_none_or(str::is_empty) {
            return Err(UrlError::new("it names no database"));
        }
        if options.config.get_hosts().is_empty() {
            return Err(UrlError::new("it names no host"));
        }
        if options.config.get_user().is_none_or(str::is_empty) {
            return Err(UrlError::new("it names no user"));
        }
        Ok(options)
    }

    pub(crate) fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }
}

/// The driver's reason without the driver's repetition of the text.
fn problem(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => cause.to_string(),
        None => "it is no URL of a PostgreSQL database".to_owned(),
    }
}

fn is_on(name: &str, value: &str) -> Result<bool, UrlError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(UrlError::new(format!("{name} is `on` or `off`"))),
    }
}

impl FromStr for Isolation {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        match text {
            "read-committed" => Ok(Self::ReadCommitted),
            "repeatable-read" => Ok(Self::RepeatableRead),
            "serializable" => Ok(Self::Serializable),
            _ => Err(UrlError::new(
                "isolation is `read-committed`, `repeatable-read` or `serializable`",
            )),
        }
    }
}

// The configuration holds the password; its own Debug hides it, ours shows less.
impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("hosts", &self.config.get_hosts())
            .field("ports", &self.config.get_ports())
            .field("database", &self.config.get_dbname())
            .field("user", &self.config.get_user())
            .field("tls", &self.tls)
            .field("root_certificate", &self.root_certificate)
            .field("pool_size", &self.pool_size)
            .field("wait_limit", &self.wait_limit)
            .field("call_limit", &self.call_limit)
            .field("isolation", &self.isolation)
            .field("prepared", &self.prepared)
            .field("listen", &self.listen)
            .field("processor", &self.processor)
            .field("on_commit", &self.on_commit.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_how() {
        let options = PostgresOptions::from_url(
            "postgres://u:secret@db.example.org:5433/fleet?sslmode=require&pool_size=40\
             &isolation=serializable&statement_cache=off&application_name=x",
        )
        .unwrap();
        assert_eq!(options.config().get_ports(), [5433]);
        assert_eq!(options.config().get_dbname(), Some("fleet"));
        assert_eq!(options.config().get_application_name(), Some("x"));
        assert_eq!(options.tls, TlsMode::Require);
        assert_eq!(options.pool_size.get(), 40);
        assert_eq!(options.isolation, Isolation::Serializable);
        assert!(!options.prepared && !options.listen);
        assert!(!format!("{options:?}").contains("secret"));
        let plain = PostgresOptions::from_url("postgresql://u@h/fleet").unwrap();
        assert!(plain.prepared && plain.listen);
        assert_eq!(plain.isolation, Isolation::ReadCommitted);
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_to_write_and_without_the_password() {
        for (url, expected) in [
            ("mysql://u:secret@h/d", "does not begin with"),
            ("postgres://u:secret@h", "no database"),
            ("postgres://u:secret@/d", "no host"),
            ("postgres://h/d", "no user"),
            ("postgres://u:secret@h:port/d", "port"),
            ("postgres://u:secret@h/d?sslmode=maybe", "sslmode"),
            ("postgres://u:secret@h/d?sslmode=verify-ca", "sslmode"),
            ("postgres://u:secret@h/d?pool_size=0", "pool_size"),
            ("postgres://u:secret@h/d?isolation=chaos", "isolation"),
            ("postgres://u:secret@h/d?listen=2", "listen"),
            ("postgres://u:secret@h/d?colour=red", "colour"),
        ] {
            let error = PostgresOptions::from_url(url).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(error.contains("write postgres://USER"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
