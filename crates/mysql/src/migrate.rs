//! Opening a database: what it is, whether it may be used, and what is added.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use tokio::time::{sleep, timeout};

use crate::dsn::{DataSource, Tls};
use crate::error::{Source, code};
use crate::schema::{DatabaseState, Facts, Inspection, LockClause, VERSION};
use crate::tables::{
    ADD_DESTINATION_INDEX, ADD_QUEUE, ADD_QUEUE_INDEX, ADD_SCHEDULED_INDEX, BEGIN_SCHEMA,
    CHARACTERS, CREATE_SCHEMA, END_SCHEMA, OWN_TABLES, TABLES, UNLINK_CONTACTS, WIDEN_CONTACTS,
};

/// What may be done to a database that a stock server has made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Takeover {
    /// Nothing: it is refused until somebody has decided.
    #[default]
    No,
    /// Tables, a column and indexes are added; a stock server goes on working.
    Add,
    /// As `Add`, and the numbers of contacts get 64 bits.
    Widen,
}

/// Why a database could not be opened. Nothing in it was changed, or, when a
/// right was missing or a table was busy half way, only additions were made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no way to the server.
    #[error("cannot reach the database server of `{place}`; check host, port, and whether it runs")]
    Unreachable {
        /// Host, port and database.
        place: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Both ends do not agree on TLS.
    #[error(
        "no TLS connection to the database server of `{place}`; check tls, tls-ca=FILE (the authority of its certificate) and the server's certificate"
    )]
    Tls {
        /// Host, port and database.
        place: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A node of a cluster takes no statements.
    #[error(
        "the node of a cluster at `{place}` takes no statements: it has lost the others or is joining them; wait, or name another node"
    )]
    NotReady {
        /// Host, port and database.
        place: String,
    },
    /// The server lets this user not in.
    #[error(
        "the database server of `{place}` refuses user `{user}`; check name, password and the host it may come from"
    )]
    Denied {
        /// Host, port and database.
        place: String,
        /// The name of the user.
        user: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not exist.
    #[error(
        "database `{database}` does not exist, or user `{user}` may not see it; CREATE DATABASE `{database}` CHARACTER SET utf8mb4, and GRANT the user all on it"
    )]
    NoDatabase {
        /// Its name.
        database: String,
        /// The name of the user.
        user: String,
    },
    /// Something stands in the way.
    #[error("database `{place}` cannot be used: {}", .obstacles.join("; "))]
    Unfit {
        /// Host, port and database.
        place: String,
        /// What to do about it.
        obstacles: Vec<String>,
    },
    /// A stock server has made the database and nobody has said to take it over.
    #[error("database `{place}` was made by a stock server and lacks {}; `--takeover=check` says more and changes nothing, `--takeover=add` adds it, and stock servers go on working", .additions.join(", "))]
    NotTakenOver {
        /// Host, port and database.
        place: String,
        /// What is going to be added.
        additions: Vec<String>,
    },
    /// The user may not do something.
    #[error(
        "user `{user}` may not {action} in database `{database}`; GRANT it SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX and REFERENCES there"
    )]
    Forbidden {
        /// The name of the user.
        user: String,
        /// The database.
        database: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Others keep the tables locked.
    #[error(
        "tables of database `{place}` are locked by transactions or queries that do not end (SHOW FULL PROCESSLIST names them); end them, or start again at a quieter time"
    )]
    Busy {
        /// Host, port and database.
        place: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused.
    #[error("failed to {action} in database `{place}`")]
    Database {
        /// Host, port and database.
        place: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl OpenError {
    /// Returns whether the same may succeed later, without anybody doing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::NotReady { .. } | Self::Busy { .. }
        )
    }

    fn of(source: &DataSource, action: &'static str, error: &mysql_async::Error) -> Self {
        let (place, user) = (source.place(), source.user().to_owned());
        let database = source.database().to_owned();
        let cause = Box::new(Source::of(error));
        match error {
            mysql_async::Error::Server(server) => match server.code {
                1045 | 1698 | 1130 | 1251 => Self::Denied {
                    place,
                    user,
                    source: cause,
                },
                1049 | 1044 => Self::NoDatabase { database, user },
                1142 | 1143 | 1227 | 1370 => Self::Forbidden {
                    user,
                    database,
                    action,
                    source: cause,
                },
                code::LOCK_WAIT_TIMEOUT => Self::Busy {
                    place,
                    source: cause,
                },
                code::NODE_NOT_READY => Self::NotReady { place },
                // The server or the user's account requires it.
                3159 => Self::Tls {
                    place,
                    source: cause,
                },
                1290 | 1792 | 1836 => Self::Unfit {
                    place,
                    obstacles: vec!["the server is read-only: name the primary server".to_owned()],
                },
                _ => Self::Database {
                    place,
                    action,
                    source: cause,
                },
            },
            error if is_about_tls(error) => Self::Tls {
                place,
                source: cause,
            },
            mysql_async::Error::Io(_) => Self::Unreachable {
                place,
                source: cause,
            },
            _ => Self::Database {
                place,
                action,
                source: cause,
            },
        }
    }
}

fn is_about_tls(error: &mysql_async::Error) -> bool {
    match error {
        mysql_async::Error::Driver(error) => {
            matches!(error, mysql_async::DriverError::NoClientSslFlagFromServer)
        }
        mysql_async::Error::Io(mysql_async::IoError::Tls(_)) => true,
        // What the handshake refuses, a certificate for instance.
        mysql_async::Error::Io(mysql_async::IoError::Io(error)) => {
            error.kind() == std::io::ErrorKind::InvalidData
        }
        _ => false,
    }
}

/// Connects to the first address that takes statements; returns the options for
/// all addresses, and which of them worked.
pub(crate) async fn connect(
    source: &DataSource,
    limit: Duration,
) -> Result<(Conn, (Vec<Opts>, usize)), OpenError> {
    let tries: &[Tls] = match source.tls() {
        Tls::Preferred => &[Tls::Unverified, Tls::No],
        Tls::No => &[Tls::No],
        Tls::Unverified => &[Tls::Unverified],
        Tls::Verified => &[Tls::Verified],
    };
    let mut last = None;
    for tls in tries {
        let ways = source.opts(*tls);
        let mut no_tls = false;
        for (way, opts) in ways.iter().enumerate() {
            let error = match timeout(limit, connect_to(opts)).await {
                Ok(Ok(connection)) => return Ok((connection, (ways, way))),
                Ok(Err(error)) => {
                    no_tls |= matches!(
                        &error,
                        mysql_async::Error::Driver(
                            mysql_async::DriverError::NoClientSslFlagFromServer
                        )
                    );
                    OpenError::of(source, "connect", &error)
                }
                Err(_) => OpenError::Unreachable {
                    place: source.place(),
                    source: format!("no answer within {limit:?}").into(),
                },
            };
            // What somebody has to do something about is worth more.
            if last.as_ref().is_none_or(OpenError::is_temporary) {
                last = Some(error);
            }
        }
        if !no_tls {
            break;
        }
    }
    Err(last.expect("there is a way to try"))
}

async fn connect_to(opts: &Opts) -> mysql_async::Result<Conn> {
    let mut connection = Conn::new(opts.clone()).await?;
    // A node of a cluster that has lost the others takes connections all the same.
    connection.query_drop(PROBE_READY).await?;
    Ok(connection)
}

/// Fails at once at a node of a cluster that takes no statements.
const PROBE_READY: &str = "\
-- probe_ready
DO 1";

/// Says what a database is; changes nothing.
///
/// # Errors
/// If it cannot be reached or read.
pub async fn inspect(source: &DataSource, limit: Duration) -> Result<Inspection, OpenError> {
    let (mut connection, _) = connect(source, limit).await?;
    let found = Inspection::of(&mut connection)
        .await
        .map_err(|error| OpenError::of(source, "read the schema", &error))?;
    // The server closes what is not closed in order, too.
    let _ = connection.disconnect().await;
    Ok(found)
}

/// Sees to it that a database has all tables, and returns what is true of it.
pub(crate) async fn prepare(
    source: &DataSource,
    connection: &mut Conn,
    takeover: Takeover,
    lock_wait: Duration,
) -> Result<(Facts, Inspection), OpenError> {
    let failed = |action| move |error: mysql_async::Error| OpenError::of(source, action, &error);
    let found = Inspection::of(connection)
        .await
        .map_err(failed("read the schema"))?;
    if !found.obstacles.is_empty() {
        return Err(OpenError::Unfit {
            place: source.place(),
            obstacles: found.obstacles,
        });
    }
    if found.state == DatabaseState::Stock && takeover == Takeover::No {
        return Err(OpenError::NotTakenOver {
            place: source.place(),
            additions: found.additions,
        });
    }
    let is_complete = found.state == DatabaseState::Own && found.additions.is_empty();
    let widens = takeover == Takeover::Widen && found.can_be_widened();
    if !is_complete || widens {
        add(connection, &found, widens, lock_wait)
            .await
            .map_err(failed("create or alter tables"))?;
    }
    let found = Inspection::of(connection)
        .await
        .map_err(failed("read the schema"))?;
    let lock = match connection.query_drop(PROBE_SKIP_LOCKED).await {
        Ok(()) => LockClause::SkipLocked,
        Err(mysql_async::Error::Server(error)) if error.code == code::SYNTAX => LockClause::Wait,
        Err(error) => return Err(OpenError::of(source, "read pending messages", &error)),
    };
    Ok((found.facts(lock), found))
}

const PROBE_SKIP_LOCKED: &str = "\
-- probe_skip_locked
SELECT message_id FROM pending_messages WHERE for_server = 2 LIMIT 1 FOR UPDATE SKIP LOCKED";

/// How often a change of a table is tried that others have locked, and after
/// what pause. A change that waits lets nobody else at the table, so it waits
/// for a short time only, and those who queued behind it go on.
const MOST_TRIES: usize = 10;
const PAUSE: Duration = Duration::from_secs(1);

async fn add(
    connection: &mut Conn,
    found: &Inspection,
    widens: bool,
    lock_wait: Duration,
) -> mysql_async::Result<()> {
    let lock_wait_seconds = lock_wait.as_secs().max(1);
    let limits = format!(
        "SET SESSION lock_wait_timeout = {lock_wait_seconds}, \
         SESSION innodb_lock_wait_timeout = {lock_wait_seconds}"
    );
    connection.query_drop(limits).await?;
    alter(connection, CREATE_SCHEMA).await?;
    alter(connection, BEGIN_SCHEMA).await?;
    for table in TABLES {
        if !found.has_table(table.name) {
            let create = table.create.replace(CHARACTERS, found.characters());
            alter(connection, &create).await?;
        }
    }
    let altered = found.has_table("pending_messages");
    for (missing, statement) in [
        (
            altered
                && found
                    .type_of("pending_messages", "fleethold_queue")
                    .is_none(),
            ADD_QUEUE,
        ),
        (
            altered && !found.has_index("pending_messages", "fleethold_queue"),
            ADD_QUEUE_INDEX,
        ),
        (
            altered && !found.has_index("pending_messages", "scheduled_time"),
            ADD_SCHEDULED_INDEX,
        ),
        (
            found.has_table("messages") && !found.has_index("messages", "destination_client_id"),
            ADD_DESTINATION_INDEX,
        ),
    ] {
        if missing {
            alter(connection, statement).await?;
        }
    }
    for create in OWN_TABLES {
        alter(connection, create).await?;
    }
    if widens {
        let link_keys = match found.state {
            DatabaseState::Empty => &["client_contact_messages_fk_1".to_owned()][..],
            DatabaseState::Stock | DatabaseState::Own => &found.link_keys,
        };
        for name in link_keys {
            let unlink = UNLINK_CONTACTS.replace('?', &name.replace('`', "``"));
            alter(connection, &unlink).await?;
        }
        for statement in WIDEN_CONTACTS {
            alter(connection, statement).await?;
        }
    }
    let end = END_SCHEMA.replace('?', &VERSION.to_string());
    alter(connection, &end).await
}

/// Runs a statement that changes tables, between those of busy servers.
async fn alter(connection: &mut Conn, statement: &str) -> mysql_async::Result<()> {
    for _ in 1..MOST_TRIES {
        match connection.query_drop(statement).await {
            Err(mysql_async::Error::Server(error)) if error.code == code::LOCK_WAIT_TIMEOUT => {
                sleep(PAUSE).await;
            }
            outcome => return unless_done(outcome),
        }
    }
    unless_done(connection.query_drop(statement).await)
}

/// Accepts that another server was faster.
fn unless_done(outcome: mysql_async::Result<()>) -> mysql_async::Result<()> {
    /// Duplicate column, duplicate index, nothing to drop, duplicate constraint.
    const DONE: [u16; 5] = [1060, 1061, 1091, 1826, 121];
    match outcome {
        Err(mysql_async::Error::Server(error)) if DONE.contains(&error.code) => Ok(()),
        outcome => outcome,
    }
}
