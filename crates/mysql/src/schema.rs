//! What a database is, found out without changing anything, and what it lacks.
//!
//! Upstream has no versions and no migrations, so a live database has the shape
//! of the day it was made (specification section 6.2).

use std::collections::{BTreeMap, BTreeSet};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

use crate::tables::TABLES;

/// The version of our additions that this program knows.
pub(crate) const VERSION: u64 = 1;

/// What the store has to know of its database.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Payloads and files have at most so many bytes.
    pub(crate) most_payload_bytes: usize,
    /// What a claim's `SELECT` ends with.
    pub(crate) lock: LockClause,
    /// Whether a commit here competes with those of other servers.
    pub(crate) is_cluster: bool,
}

/// How a claim locks what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockClause {
    /// Rows that others have locked are skipped.
    SkipLocked,
    /// The server knows no `SKIP LOCKED`: claims wait for each other.
    Wait,
}

/// What is known of a database before it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The server, as it names itself.
    pub server: String,
    /// What kind of database it is.
    pub state: DatabaseState,
    /// Why it cannot be used.
    pub obstacles: Vec<String>,
    /// What is going to be added.
    pub additions: Vec<String>,
    /// What cannot be promised on it.
    pub reservations: Vec<String>,
    pub(crate) columns: BTreeMap<(String, String), Column>,
    pub(crate) indexes: BTreeSet<(String, String)>,
    pub(crate) is_mariadb: bool,
    pub(crate) max_allowed_packet: u64,
    pub(crate) is_cluster: bool,
    /// The foreign keys of links to contacts; older databases have other names for it.
    pub(crate) link_keys: Vec<String>,
}

/// What kind of database it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DatabaseState {
    /// There are no tables.
    #[default]
    Empty,
    /// A stock server has made its tables, and no store of ours has used them.
    Stock,
    /// A store of ours has used it; perhaps one did not get to the end of creating it.
    Own,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    data_type: String,
    column_type: String,
    characters: Option<String>,
    collation: Option<String>,
}

impl Inspection {
    /// Looks at everything; changes nothing.
    pub(crate) async fn of(connection: &mut Conn) -> mysql_async::Result<Self> {
        let mut found = Self::default();
        let variables: Vec<(String, String)> = connection.query(READ_VARIABLES).await?;
        let variables: BTreeMap<_, _> = variables.into_iter().collect();
        let variable = |name: &str| variables.get(name).map_or("", String::as_str);
        found.server = format!("{} {}", variable("version_comment"), variable("version"));
        found.is_mariadb = variable("version").to_ascii_lowercase().contains("mariadb");
        found.max_allowed_packet = variable("max_allowed_packet").parse().unwrap_or(0);
        found.is_cluster = variable("wsrep_on") == "ON";
        if found.is_cluster {
            // What another node has made is there to be seen.
            connection
                .query_drop("SET SESSION wsrep_sync_wait = 7")
                .await?;
        }
        if ["read_only", "super_read_only", "innodb_read_only"]
            .iter()
            .any(|name| matches!(variable(name), "ON" | "1"))
        {
            found.obstacles.push(
                "the server is read-only: name the primary server, or end read_only on this one"
                    .to_owned(),
            );
        }
        if found.max_allowed_packet < LEAST_PACKET {
            found.obstacles.push(format!(
                "max_allowed_packet is {}: set it to {ADVISED_PACKET} on the server (at least {LEAST_PACKET})",
                found.max_allowed_packet
            ));
        } else if found.max_allowed_packet < FULL_PACKET {
            found.reservations.push(format!(
                "payloads over {} bytes are refused: max_allowed_packet is {}, set it to {ADVISED_PACKET}",
                found.max_allowed_packet - PACKET_MARGIN,
                found.max_allowed_packet
            ));
        }
        found.read_shape(connection).await?;
        if found.state != DatabaseState::Empty {
            found.check_tables(connection).await?;
        }
        Ok(found)
    }

    async fn read_shape(&mut self, connection: &mut Conn) -> mysql_async::Result<()> {
        let rows: Vec<Row> = connection.query(READ_COLUMNS).await?;
        for row in rows {
            let text = |at: usize| row.get_opt::<String, usize>(at).and_then(Result::ok);
            let required = |at| text(at).unwrap_or_default();
            let found = Column {
                data_type: required(2).to_ascii_lowercase(),
                column_type: required(3).to_ascii_lowercase(),
                characters: text(4),
                collation: text(5),
            };
            self.columns.insert((required(0), required(1)), found);
        }
        let indexes: Vec<(String, String)> = connection.query(READ_INDEXES).await?;
        self.indexes = indexes.into_iter().collect();
        self.state = if self.has_table("fleethold_schema") {
            DatabaseState::Own
        } else if TABLES.iter().any(|table| self.has_table(table.name)) {
            DatabaseState::Stock
        } else {
            DatabaseState::Empty
        };
        Ok(())
    }

    async fn check_tables(&mut self, connection: &mut Conn) -> mysql_async::Result<()> {
        if self.state == DatabaseState::Own {
            let version: Option<u64> = connection.query_first(READ_VERSION).await?;
            if version > Some(VERSION) {
                self.obstacles.push(format!(
                    "its additions have version {}, newer than the supported {VERSION}: install a newer fleethold",
                    version.unwrap_or_default()
                ));
            }
        }
        let engines: Vec<(String, String)> = connection.query(READ_ENGINES).await?;
        for (table, engine) in engines {
            let known = TABLES.iter().any(|known| known.name == table);
            if known && !engine.eq_ignore_ascii_case("innodb") {
                self.obstacles.push(format!(
                    "table `{table}` uses {engine}, which has no transactions: ALTER TABLE {table} ENGINE = InnoDB"
                ));
            }
        }
        self.check_history();
        self.check_characters();
        self.link_keys = connection.query(READ_LINK_KEYS).await?;
        let cascades: BTreeSet<String> =
            connection.query(READ_CASCADES).await?.into_iter().collect();
        let without: Vec<_> = CHILDREN
            .iter()
            .filter(|table| self.has_table(table) && !cascades.contains(**table))
            .copied()
            .collect();
        if !without.is_empty() {
            self.reservations.push(format!(
                "{} have no foreign keys with ON DELETE CASCADE (made before April 2024): whoever deletes clients, messages or broadcasts must delete their rows first",
                without.join(", ")
            ));
        }
        Ok(())
    }

    /// Compares with each shape that upstream's tables have had.
    fn check_history(&mut self) {
        let ids = ["client_id", "message_id"]
            .iter()
            .zip(["clients", "messages"]);
        for (column, table) in ids {
            if self
                .type_of(table, column)
                .is_some_and(|found| found != "binary")
            {
                self.obstacles.push(format!(
                    "`{table}.{column}` is no binary id: the database was made before June 2018, and only an export of its data helps"
                ));
            }
        }
        for (table, column, definition, since) in REQUIRED {
            if self.has_table(table) && self.type_of(table, column).is_none() {
                self.obstacles.push(format!(
                    "column `{table}.{column}` is missing (upstream has had it since {since}; a stock server of today fails, too): ALTER TABLE {table} ADD COLUMN {column} {definition}"
                ));
            }
        }
        for (table, column) in PAYLOADS {
            if self.type_of(table, column) == Some("blob") {
                self.reservations.push(format!(
                    "payloads over 65535 bytes are refused: `{table}.{column}` is a BLOB (made before July 2023); to change that: ALTER TABLE {table} MODIFY {column} MEDIUMBLOB"
                ));
            }
        }
        if self.contacts_are_narrow() {
            self.reservations.push(
                "contacts after the 2147483647th are not recorded (column `client_contacts.client_contact_id`); --takeover=widen changes that"
                    .to_owned(),
            );
        }
        let tables = TABLES.iter().map(|table| table.name);
        let missing: Vec<_> = tables.filter(|table| !self.has_table(table)).collect();
        let missing = missing.into_iter().map(|table| format!("table `{table}`"));
        self.additions.extend(missing);
        let has_queue = self
            .type_of("pending_messages", "fleethold_queue")
            .is_some();
        let lacks = |table: &str, index: &str| {
            self.has_table(table) && !self.indexes.contains(&(table.to_owned(), index.to_owned()))
        };
        let index = [
            (
                !has_queue,
                "column `pending_messages.fleethold_queue`, NULL in rows of stock servers",
            ),
            (
                lacks("pending_messages", "fleethold_queue"),
                "index `fleethold_queue` of `pending_messages`",
            ),
            (
                lacks("messages", "destination_client_id"),
                "index `destination_client_id` of `messages`, which upstream has had since June 2024",
            ),
            (
                lacks("pending_messages", "scheduled_time"),
                "index `scheduled_time` of `pending_messages`, which upstream has had since June 2024",
            ),
            (
                !self.has_table("fleethold_locks"),
                "tables `fleethold_schema`, `fleethold_messages`, `fleethold_broadcast_groups`, `fleethold_broadcast_messages`, `fleethold_locks`",
            ),
        ];
        for (missing, what) in index {
            if missing {
                self.additions.push(what.to_owned());
            }
        }
        // Added after the others: a database may have those without these.
        if ["fleethold_copies", "fleethold_leases"]
            .iter()
            .any(|table| !self.has_table(table))
        {
            let tables = "tables `fleethold_copies`, `fleethold_leases`";
            self.additions.push(tables.to_owned());
        }
    }

    /// Texts must be able to hold every character; keys should be compared byte by byte.
    fn check_characters(&mut self) {
        let (mut narrow, mut folding) = (BTreeSet::new(), BTreeSet::new());
        for ((table, name), column) in &self.columns {
            if !TABLES.iter().any(|known| known.name == table) {
                continue;
            }
            if column
                .characters
                .as_deref()
                .is_some_and(|set| set != "utf8mb4")
            {
                narrow.insert(table.clone());
            }
            let is_key = KEYS.contains(&(table.as_str(), name.as_str()));
            if is_key && !column.collation.as_deref().is_some_and(is_bytewise) {
                folding.insert(format!("`{table}.{name}`"));
            }
        }
        for table in narrow {
            self.obstacles.push(format!(
                "texts of table `{table}` cannot hold every character: ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4"
            ));
        }
        if !folding.is_empty() {
            let columns: Vec<_> = folding.into_iter().collect();
            self.reservations.push(format!(
                "labels and file names that differ only in case, accents or trailing spaces cannot be stored beside each other: {} have no binary collation",
                columns.join(", ")
            ));
        }
    }

    pub(crate) fn facts(&self, lock: LockClause) -> Facts {
        let narrow = PAYLOADS
            .iter()
            .any(|(table, column)| self.type_of(table, column) == Some("blob"));
        let packet = self.max_allowed_packet.saturating_sub(PACKET_MARGIN);
        let packet = if self.max_allowed_packet < FULL_PACKET {
            usize::try_from(packet).unwrap_or(usize::MAX)
        } else {
            usize::MAX
        };
        let column = if narrow { 65_535 } else { usize::MAX };
        Facts {
            most_payload_bytes: packet.min(column).min(fleethold_store::MAX_PAYLOAD_BYTES),
            lock,
            is_cluster: self.is_cluster,
        }
    }

    pub(crate) fn has_table(&self, table: &str) -> bool {
        self.columns.keys().any(|(found, _)| found == table)
    }

    pub(crate) fn has_index(&self, table: &str, index: &str) -> bool {
        self.indexes.contains(&(table.to_owned(), index.to_owned()))
    }

    pub(crate) fn type_of(&self, table: &str, column: &str) -> Option<&str> {
        self.columns
            .get(&(table.to_owned(), column.to_owned()))
            .map(|column| column.data_type.as_str())
    }

    /// Whether contacts have a signed number of 32 bits, as upstream's have.
    pub(crate) fn contacts_are_narrow(&self) -> bool {
        self.columns
            .get(&("client_contacts".to_owned(), "client_contact_id".to_owned()))
            .is_some_and(|column| column.column_type.starts_with("int"))
    }

    /// Whether contacts, or what links messages to them, have not got 64 bits
    /// yet, or somebody was interrupted while giving them.
    pub(crate) fn can_be_widened(&self) -> bool {
        let links = ("client_contact_messages", "client_contact_id");
        let links = self.columns.get(&(links.0.to_owned(), links.1.to_owned()));
        self.contacts_are_narrow()
            || links.is_none_or(|column| column.column_type.starts_with("int"))
            || self.link_keys.is_empty()
    }

    /// The character set and collation of new tables: comparisons byte by byte,
    /// trailing spaces included.
    pub(crate) fn characters(&self) -> &'static str {
        if self.is_mariadb {
            "DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
        } else {
            "DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin"
        }
    }
}

fn is_bytewise(collation: &str) -> bool {
    matches!(
        collation,
        "utf8mb4_nopad_bin" | "utf8mb4_0900_bin" | "binary"
    )
}

/// Below this not even a packet of many small messages fits.
const LEAST_PACKET: u64 = 4 * 1024 * 1024;
/// From here on the largest payload fits.
const FULL_PACKET: u64 = 16 * 1024 * 1024 + PACKET_MARGIN;
const ADVISED_PACKET: u64 = 64 * 1024 * 1024;
/// What a statement has besides its payload.
const PACKET_MARGIN: u64 = 256 * 1024;

/// Columns without which neither server works, and since when upstream has them.
const REQUIRED: [(&str, &str, &str, &str); 4] = [
    ("messages", "annotations", "BLOB", "August 2019"),
    (
        "client_resource_usage_records",
        "mean_num_fds",
        "INT",
        "October 2020",
    ),
    (
        "client_resource_usage_records",
        "max_num_fds",
        "INT",
        "October 2020",
    ),
    (
        "broadcasts",
        "destination_service_name",
        "VARCHAR(128) AFTER source_service_name",
        "December 2025",
    ),
];

const PAYLOADS: [(&str, &str); 3] = [
    ("pending_messages", "data_value"),
    ("broadcasts", "data_value"),
    ("files", "data"),
];

const KEYS: [(&str, &str); 6] = [
    ("client_labels", "service_name"),
    ("client_labels", "label"),
    ("broadcast_labels", "service_name"),
    ("broadcast_labels", "label"),
    ("files", "service"),
    ("files", "name"),
];

/// Tables whose rows belong to those of others.
const CHILDREN: [&str; 8] = [
    "client_labels",
    "client_contacts",
    "client_resource_usage_records",
    "pending_messages",
    "client_contact_messages",
    "broadcast_labels",
    "broadcast_allocations",
    "broadcast_sent",
];

const READ_VARIABLES: &str = "\
-- inspect (variables)
SHOW VARIABLES WHERE Variable_name IN (
    'version', 'version_comment', 'read_only', 'super_read_only', 'innodb_read_only',
    'max_allowed_packet', 'wsrep_on'
)";

const READ_COLUMNS: &str = "\
-- inspect (columns)
SELECT table_name, column_name, data_type, column_type, character_set_name, collation_name
FROM information_schema.columns WHERE table_schema = DATABASE()";

const READ_INDEXES: &str = "\
-- inspect (indexes)
SELECT table_name, index_name FROM information_schema.statistics
WHERE table_schema = DATABASE() AND seq_in_index = 1";

const READ_ENGINES: &str = "\
-- inspect (engines)
SELECT table_name, COALESCE(engine, 'no engine') FROM information_schema.tables
WHERE table_schema = DATABASE()";

const READ_LINK_KEYS: &str = "\
-- inspect (links of contacts)
SELECT constraint_name FROM information_schema.key_column_usage
WHERE table_schema = DATABASE() AND table_name = 'client_contact_messages'
AND column_name = 'client_contact_id' AND referenced_table_name = 'client_contacts'";

const READ_CASCADES: &str = "\
-- inspect (foreign keys)
SELECT DISTINCT table_name FROM information_schema.referential_constraints
WHERE constraint_schema = DATABASE() AND delete_rule = 'CASCADE'";

const READ_VERSION: &str = "\
-- inspect (version)
SELECT version FROM fleethold_schema WHERE id = 1";
