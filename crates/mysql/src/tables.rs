//! The tables: upstream's, as a stock server of today creates them, and ours beside them.
//!
//! Statements can run twice and by several servers at once. `CHARACTERS` stands
//! for the character set and collation, which only a new table gets.

/// A table of upstream, in an order in which they can be created.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) create: &'static str,
}

pub(crate) const CHARACTERS: &str = "CHARACTERS";

/// Upstream's tables. `pending_messages` has our column and its index from the
/// beginning: see [`ADD_QUEUE`].
pub(crate) const TABLES: &[Table] = &[
    Table {
        name: "clients",
        create: "\
-- create_clients
CREATE TABLE IF NOT EXISTS clients (
    client_id BINARY(8) PRIMARY KEY,
    client_key BLOB,
    blacklisted BOOL NOT NULL,
    last_contact_time BIGINT NOT NULL,
    last_contact_address TEXT(64),
    last_contact_streaming_to TEXT(128),
    last_clock_seconds BIGINT UNSIGNED,
    last_clock_nanos INT UNSIGNED
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "client_labels",
        create: "\
-- create_client_labels
CREATE TABLE IF NOT EXISTS client_labels (
    client_id BINARY(8),
    service_name VARCHAR(128),
    label VARCHAR(128),
    PRIMARY KEY (client_id, service_name, label),
    CONSTRAINT client_labels_fk_1
    FOREIGN KEY (client_id) REFERENCES clients (client_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "client_contacts",
        create: "\
-- create_client_contacts
CREATE TABLE IF NOT EXISTS client_contacts (
    client_contact_id INTEGER AUTO_INCREMENT PRIMARY KEY,
    client_id BINARY(8),
    time BIGINT,
    sent_nonce BINARY(8),
    received_nonce BINARY(8),
    address VARCHAR(64),
    CONSTRAINT client_contacts_fk_1
    FOREIGN KEY (client_id) REFERENCES clients (client_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "client_resource_usage_records",
        create: "\
-- create_client_resource_usage_records
CREATE TABLE IF NOT EXISTS client_resource_usage_records (
    client_id BINARY(8) NOT NULL,
    scope VARCHAR(128) NOT NULL,
    pid BIGINT,
    process_start_time BIGINT,
    client_timestamp BIGINT,
    server_timestamp BIGINT,
    process_terminated BOOL NOT NULL,
    mean_user_cpu_rate REAL,
    max_user_cpu_rate REAL,
    mean_system_cpu_rate REAL,
    max_system_cpu_rate REAL,
    mean_resident_memory_mib INT4,
    max_resident_memory_mib INT4,
    mean_num_fds INT,
    max_num_fds INT,
    CONSTRAINT client_resource_usage_records_fk_1
    FOREIGN KEY (client_id) REFERENCES clients (client_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "messages",
        create: "\
-- create_messages
CREATE TABLE IF NOT EXISTS messages (
    message_id BINARY(32) PRIMARY KEY,
    source_client_id BINARY(8),
    source_service_name VARCHAR(128) NOT NULL,
    source_message_id VARBINARY(16),
    destination_client_id BINARY(8),
    destination_service_name VARCHAR(128) NOT NULL,
    message_type VARCHAR(128),
    creation_time_seconds BIGINT NOT NULL,
    creation_time_nanos INT NOT NULL,
    processed_time_seconds BIGINT,
    processed_time_nanos INT,
    validation_info BLOB,
    failed INT1,
    failed_reason TEXT,
    annotations BLOB,
    INDEX destination_client_id (destination_client_id)
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "pending_messages",
        create: "\
-- create_pending_messages
CREATE TABLE IF NOT EXISTS pending_messages (
    for_server BOOL NOT NULL,
    message_id BINARY(32) NOT NULL,
    retry_count INT NOT NULL,
    scheduled_time BIGINT NOT NULL,
    data_type_url TEXT,
    data_value MEDIUMBLOB,
    fleethold_queue VARBINARY(16),
    PRIMARY KEY (for_server, message_id),
    INDEX scheduled_time (scheduled_time),
    INDEX fleethold_queue (fleethold_queue, scheduled_time, message_id),
    CONSTRAINT pending_messages_fk_1
    FOREIGN KEY (message_id) REFERENCES messages (message_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "client_contact_messages",
        create: "\
-- create_client_contact_messages
CREATE TABLE IF NOT EXISTS client_contact_messages (
    client_contact_id INTEGER,
    message_id BINARY(32),
    PRIMARY KEY (client_contact_id, message_id),
    CONSTRAINT client_contact_messages_fk_1
    FOREIGN KEY (client_contact_id) REFERENCES client_contacts (client_contact_id)
    ON DELETE CASCADE,
    CONSTRAINT client_contact_messages_fk_2
    FOREIGN KEY (message_id) REFERENCES messages (message_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "broadcasts",
        create: "\
-- create_broadcasts
CREATE TABLE IF NOT EXISTS broadcasts (
    broadcast_id BINARY(8) PRIMARY KEY,
    source_service_name VARCHAR(128) NOT NULL,
    destination_service_name VARCHAR(128),
    message_type VARCHAR(128) NOT NULL,
    expiration_time_seconds BIGINT,
    expiration_time_nanos INT,
    data_type_url TEXT,
    data_value MEDIUMBLOB,
    sent BIGINT UNSIGNED,
    allocated BIGINT UNSIGNED,
    message_limit BIGINT UNSIGNED
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "broadcast_labels",
        create: "\
-- create_broadcast_labels
CREATE TABLE IF NOT EXISTS broadcast_labels (
    broadcast_id BINARY(8),
    service_name VARCHAR(128),
    label VARCHAR(128),
    PRIMARY KEY (broadcast_id, service_name, label),
    CONSTRAINT broadcast_labels_fk_1
    FOREIGN KEY (broadcast_id) REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "broadcast_allocations",
        create: "\
-- create_broadcast_allocations
CREATE TABLE IF NOT EXISTS broadcast_allocations (
    broadcast_id BINARY(8),
    allocation_id BINARY(8),
    sent BIGINT UNSIGNED,
    message_limit BIGINT UNSIGNED,
    expiration_time_seconds BIGINT,
    expiration_time_nanos INT,
    PRIMARY KEY (broadcast_id, allocation_id),
    CONSTRAINT broadcast_allocations_fk_1
    FOREIGN KEY (broadcast_id) REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "broadcast_sent",
        create: "\
-- create_broadcast_sent
CREATE TABLE IF NOT EXISTS broadcast_sent (
    broadcast_id BINARY(8),
    client_id BINARY(8),
    PRIMARY KEY (client_id, broadcast_id),
    CONSTRAINT broadcast_sent_fk_1
    FOREIGN KEY (broadcast_id) REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE,
    CONSTRAINT broadcast_sent_fk_2
    FOREIGN KEY (client_id) REFERENCES clients (client_id) ON DELETE CASCADE
) ENGINE = InnoDB CHARACTERS",
    },
    Table {
        name: "files",
        create: "\
-- create_files
CREATE TABLE IF NOT EXISTS files (
    service VARCHAR(128) NOT NULL,
    name VARCHAR(128) NOT NULL,
    modified_time_nanos BIGINT NOT NULL,
    data MEDIUMBLOB,
    PRIMARY KEY (service, name)
) ENGINE = InnoDB CHARACTERS",
    },
];

/// What this database is, and how far its tables have been made: a row with
/// version 0 means that somebody has begun. The first table of ours.
pub(crate) const CREATE_SCHEMA: &str = "\
-- create_fleethold_schema
CREATE TABLE IF NOT EXISTS fleethold_schema (
    id TINYINT PRIMARY KEY,
    version INT NOT NULL
) ENGINE = InnoDB";

pub(crate) const BEGIN_SCHEMA: &str = "\
-- begin_fleethold_schema
INSERT INTO fleethold_schema (id, version) VALUES (1, 0)
ON DUPLICATE KEY UPDATE version = fleethold_schema.version";

pub(crate) const END_SCHEMA: &str = "\
-- end_fleethold_schema
UPDATE fleethold_schema SET version = ? WHERE id = 1 AND version < ?";

/// Our tables, which need upstream's.
pub(crate) const OWN_TABLES: &[&str] = &[
    "\
-- create_fleethold_messages
CREATE TABLE IF NOT EXISTS fleethold_messages (
    message_id BINARY(32) PRIMARY KEY COMMENT 'a message whose source id has more than 16 bytes',
    source_message_id MEDIUMBLOB NOT NULL,
    CONSTRAINT fleethold_messages_fk_1
    FOREIGN KEY (message_id) REFERENCES messages (message_id) ON DELETE CASCADE
) ENGINE = InnoDB",
    "\
-- create_fleethold_broadcast_groups
CREATE TABLE IF NOT EXISTS fleethold_broadcast_groups (
    broadcast_id BINARY(8) PRIMARY KEY,
    group_name VARBINARY(512) NOT NULL COMMENT 'UTF-8, at most 128 characters',
    INDEX group_name (group_name),
    CONSTRAINT fleethold_broadcast_groups_fk_1
    FOREIGN KEY (broadcast_id) REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE
) ENGINE = InnoDB",
    "\
-- create_fleethold_broadcast_messages
CREATE TABLE IF NOT EXISTS fleethold_broadcast_messages (
    broadcast_id BINARY(8),
    client_id BINARY(8),
    message_id BINARY(32) NOT NULL COMMENT 'carried the broadcast to the client',
    PRIMARY KEY (broadcast_id, client_id),
    INDEX message_id (message_id),
    CONSTRAINT fleethold_broadcast_messages_fk_1
    FOREIGN KEY (broadcast_id) REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE,
    CONSTRAINT fleethold_broadcast_messages_fk_2
    FOREIGN KEY (message_id) REFERENCES messages (message_id) ON DELETE CASCADE
) ENGINE = InnoDB",
    "\
-- create_fleethold_locks
CREATE TABLE IF NOT EXISTS fleethold_locks (
    name VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
    taken BIGINT UNSIGNED NOT NULL COMMENT 'counts; whoever changes it has the lock until it commits'
) ENGINE = InnoDB",
    "\
-- create_fleethold_copies
CREATE TABLE IF NOT EXISTS fleethold_copies (
    id TINYINT PRIMARY KEY COMMENT 'always 1: the copy of another store that came into this database',
    source BLOB NOT NULL COMMENT 'UTF-8',
    table_name VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin
    COMMENT 'NULL: the copy is finished',
    place BLOB COMMENT 'NULL: at the beginning of the table',
    row_count BIGINT UNSIGNED NOT NULL
) ENGINE = InnoDB",
    "\
-- create_fleethold_leases
CREATE TABLE IF NOT EXISTS fleethold_leases (
    name VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
    holder BIGINT UNSIGNED NOT NULL,
    fence BIGINT UNSIGNED NOT NULL COMMENT 'grows whenever the holder changes',
    until_micros BIGINT NOT NULL COMMENT 'by the clock of the database',
    steps BIGINT UNSIGNED NOT NULL COMMENT 'counts what was done under the lease'
) ENGINE = InnoDB",
];

/// Leads to a contact by its time, while links are copied.
pub(crate) const ADD_COPY_INDEX: &str = "\
-- import_rows (index)
ALTER TABLE client_contacts ADD INDEX fleethold_copy (time, client_id)";

pub(crate) const DROP_COPY_INDEX: &str = "\
-- import_rows (drop index)
ALTER TABLE client_contacts DROP INDEX fleethold_copy";

/// In whose queue a pending message waits: empty for the server, else the
/// client and a hash of the service; NULL for what a stock server has stored,
/// until one of ours sees it. Upstream's tables have no index that leads to
/// what is due to a client: its polls read the client's whole history.
pub(crate) const ADD_QUEUE: &str = "\
-- add_fleethold_queue
ALTER TABLE pending_messages ADD COLUMN fleethold_queue VARBINARY(16)";

pub(crate) const ADD_QUEUE_INDEX: &str = "\
-- add_fleethold_queue (index)
ALTER TABLE pending_messages
ADD INDEX fleethold_queue (fleethold_queue, scheduled_time, message_id)";

/// Indexes that upstream has had since June 2024, with its names.
pub(crate) const ADD_DESTINATION_INDEX: &str = "\
-- add_destination_client_id
ALTER TABLE messages ADD INDEX destination_client_id (destination_client_id)";

pub(crate) const ADD_SCHEDULED_INDEX: &str = "\
-- add_scheduled_time
ALTER TABLE pending_messages ADD INDEX scheduled_time (scheduled_time)";

/// Before columns of contacts are widened, which a foreign key prevents.
pub(crate) const UNLINK_CONTACTS: &str = "\
-- widen_contacts (unlink)
ALTER TABLE client_contact_messages DROP FOREIGN KEY `?`";

/// Makes room for more than 2,147,483,647 contacts.
pub(crate) const WIDEN_CONTACTS: &[&str] = &[
    "\
-- widen_contacts
ALTER TABLE client_contacts MODIFY client_contact_id BIGINT UNSIGNED AUTO_INCREMENT",
    "\
-- widen_contacts (links)
ALTER TABLE client_contact_messages MODIFY client_contact_id BIGINT UNSIGNED",
    "\
-- widen_contacts (link)
ALTER TABLE client_contact_messages ADD CONSTRAINT client_contact_messages_fk_1
FOREIGN KEY (client_contact_id) REFERENCES client_contacts (client_contact_id)
ON DELETE CASCADE",
];
