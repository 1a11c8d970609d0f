//! How stores are named on the command line. `crates/fuzz-targets` compiles this
//! file, too, so it stands alone.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a server keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    /// A database file of the embedded store.
    Sqlite(PathBuf),
    /// A database of a PostgreSQL server.
    Postgres(ServerUrl),
    /// A database on a MySQL or MariaDB server.
    Mysql(DataSourceName),
}

/// The URL of a database server, which may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl(pub(crate) String);

/// Shows scheme, user, host and database.
impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (url, query) = self.0.split_once('?').unwrap_or((&self.0, ""));
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        if query.contains('@') {
            // Perhaps a `?` in a password that was not escaped: who knows where it ends.
            return write!(f, "{scheme}://…");
        }
        // A password may hold any sign that stands for itself elsewhere.
        match rest.rsplit_once('@') {
            Some((login, place)) => {
                let user = login.split_once(':').map_or(login, |(user, _)| user);
                write!(f, "{scheme}://{user}@{place}")
            }
            None => write!(f, "{scheme}://{rest}"),
        }
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a driver needs to connect, passwords included; never shows them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct DataSourceName(String);

impl DataSourceName {
    pub(crate) fn new(name: String) -> Self {
        Self(name)
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DataSourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What precedes the last @ is user and password, and what follows a
        // question mark is nobody's name.
        let place = self.0.rsplit_once('@').map_or_else(
            || {
                self.0
                    .split_once("//")
                    .map_or(self.0.as_str(), |(_, place)| place)
            },
            |(_, place)| place,
        );
        f.write_str(place.split('?').next().unwrap_or_default())
    }
}

impl fmt::Debug for DataSourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(WRITE.to_owned());
        };
        match scheme {
            "sqlite" => {}
            "postgres" | "postgresql" => return Ok(Self::Postgres(ServerUrl(url.to_owned()))),
            "mysql" | "mariadb" => {
                // The stock server's form stands behind the scheme, too.
                let name = if rest.starts_with("//") { url } else { rest };
                return Ok(Self::Mysql(DataSourceName::new(name.to_owned())));
            }
            _ => {
                return Err(format!("there is no store of kind `{scheme}`; {WRITE}"));
            }
        }
        match rest.strip_prefix("//").unwrap_or(rest) {
            "" => Err("it has no path; write sqlite:PATH".to_owned()),
            path if path.contains(":memory:") => Err(
                "a database in memory would lose acknowledged messages; write sqlite:PATH"
                    .to_owned(),
            ),
            path => Ok(Self::Sqlite(PathBuf::from(path))),
        }
    }
}

const WRITE: &str = "write sqlite:PATH, postgres://USER:PASSWORD@HOST/DATABASE or mysql://…";

/// Never shows a password.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => write!(f, "{url}"),
            Self::Mysql(name) => write!(f, "mysql:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_urls_name_a_file() {
        for (url, path) in [
            ("sqlite:fleet.db", "fleet.db"),
            ("sqlite:/var/lib/fleet.db", "/var/lib/fleet.db"),
            ("sqlite:///var/lib/fleet.db", "/var/lib/fleet.db"),
            ("sqlite://data/fleet.db", "data/fleet.db"),
        ] {
            assert_eq!(url.parse(), Ok(StoreUrl::Sqlite(path.into())), "{url}");
        }
    }

    #[test]
    fn urls_of_servers_are_shown_without_their_passwords() {
        for (url, shown) in [
            (
                "postgres://u:p@ss@h:5432/db?sslmode=require&password=p",
                "postgres://u@h:5432/db",
            ),
            ("postgresql://u@h/db", "postgresql://u@h/db"),
            ("postgres://u:p?ss@h/db", "postgres://…"),
            ("postgres://u@h/db?password=p@ss", "postgres://…"),
        ] {
            let url = url.parse::<StoreUrl>().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("Postgres({shown})"));
        }
    }

    #[test]
    fn databases_are_named_in_both_forms_and_never_shown_with_their_passwords() {
        for (url, name, shown) in [
            (
                "mysql://u:p@h/db?tls=true",
                "mysql://u:p@h/db?tls=true",
                "mysql:h/db",
            ),
            ("mariadb://h/db", "mariadb://h/db", "mysql:h/db"),
            (
                "mysql:u:p@tcp(h:3306)/db",
                "u:p@tcp(h:3306)/db",
                "mysql:tcp(h:3306)/db",
            ),
        ] {
            let parsed: StoreUrl = url.parse().unwrap();
            assert_eq!(
                parsed,
                StoreUrl::Mysql(DataSourceName::new(name.into())),
                "{url}"
            );
            assert_eq!(parsed.to_string(), shown, "{url}");
            assert!(!format!("{parsed:?}").contains("u:p"), "{url}");
        }
    }

    #[test]
    fn other_stores_are_refused_with_what_to_write() {
        for (url, problem) in [
            ("fleet.db", "write"),
            ("sqlite:", "has no path"),
            ("sqlite://", "has no path"),
            ("sqlite::memory:", "would lose"),
            ("redis://h", "no store of kind `redis`"),
        ] {
            let error = url.parse::<StoreUrl>().unwrap_err();
            assert!(
                error.contains(problem) && error.contains("sqlite:PATH"),
                "{url}: {error}"
            );
            // Its place for a password.
            assert!(!error.contains("u:p"), "{error}");
        }
    }
}
