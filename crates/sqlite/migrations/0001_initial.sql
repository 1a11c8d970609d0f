-- The layout has three aims, in this order: finished messages stay out of every
-- hot path, writes go where the previous ones went, and rows are short.
-- Ids are bytes. Times carry their unit in the name of the column.

CREATE TABLE clients (
    client_id BLOB PRIMARY KEY,
    -- DER SubjectPublicKeyInfo, may be empty
    public_key BLOB NOT NULL,
    -- 0 or 1; nothing sets it back to 0
    blacklisted INTEGER NOT NULL,
    -- when the client was added, until it makes contact
    last_contact_nanos INTEGER NOT NULL,
    last_contact_address TEXT NOT NULL,
    -- NULL: the last contact was no stream
    last_contact_streaming_to TEXT,
    -- both NULL if the client told no valid time
    last_clock_seconds INTEGER,
    last_clock_nanos INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE client_labels (
    client_id BLOB NOT NULL REFERENCES clients ON DELETE CASCADE,
    service TEXT NOT NULL,
    label TEXT NOT NULL,
    PRIMARY KEY (client_id, service, label)
) STRICT, WITHOUT ROWID;

CREATE TABLE contacts (
    -- the contact id, which the outside sees in hex
    contact INTEGER PRIMARY KEY,
    client_id BLOB NOT NULL REFERENCES clients ON DELETE CASCADE,
    time_nanos INTEGER NOT NULL,
    -- the same 64 bits, read as a signed number
    nonce_sent INTEGER NOT NULL,
    nonce_received INTEGER NOT NULL,
    address TEXT NOT NULL
) STRICT;

CREATE INDEX contacts_of_client ON contacts (client_id, time_nanos);

CREATE TABLE usage_records (
    record INTEGER PRIMARY KEY,
    client_id BLOB NOT NULL REFERENCES clients ON DELETE CASCADE,
    server_nanos INTEGER NOT NULL,
    client_nanos INTEGER NOT NULL,
    process_start_nanos INTEGER NOT NULL,
    scope TEXT NOT NULL,
    pid INTEGER NOT NULL,
    process_terminated INTEGER NOT NULL,
    mean_user_cpu_rate REAL NOT NULL,
    max_user_cpu_rate REAL NOT NULL,
    mean_system_cpu_rate REAL NOT NULL,
    max_system_cpu_rate REAL NOT NULL,
    mean_resident_memory_mib INTEGER NOT NULL,
    max_resident_memory_mib INTEGER NOT NULL,
    mean_num_fds INTEGER NOT NULL,
    max_num_fds INTEGER NOT NULL
) STRICT;

CREATE INDEX usage_of_client ON usage_records (client_id, server_nanos);

-- All messages, in the order of their arrival: a random key would dirty a page
-- per message.
CREATE TABLE messages (
    message INTEGER PRIMARY KEY,
    -- unique; found through message_ids
    message_id BLOB NOT NULL,
    -- NULL: on the server
    source_client BLOB,
    source_service TEXT NOT NULL,
    source_message_id BLOB NOT NULL,
    -- NULL: on the server. The client need not exist.
    destination_client BLOB,
    destination_service TEXT NOT NULL,
    message_type TEXT NOT NULL,
    creation_seconds INTEGER NOT NULL,
    creation_nanos INTEGER NOT NULL,
    -- serialised protocol buffers
    validation_info BLOB,
    annotations BLOB,
    -- the contact that brought the message. Links to later contacts are in
    -- contact_messages; no constraint, because nothing on the way reads links.
    contact INTEGER,
    -- both NULL while the message is pending
    processed_seconds INTEGER,
    processed_nanos INTEGER,
    -- why it failed, perhaps empty; NULL: success, or pending
    failure TEXT,
    -- when it is handed out next; NULL once it has a result
    due_micros INTEGER,
    -- how often it was handed out
    claims INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What is pending for a client. The service comes before the time, so that a
-- claim never walks over messages of a service that accepts none; a claim
-- without limits merges the services of the client, which are few and chosen on
-- the server. The id makes the index answer the order of a claim by itself.
CREATE INDEX pending_for_client
ON messages (destination_client, destination_service, due_micros, message_id)
WHERE due_micros IS NOT NULL AND destination_client IS NOT NULL;

-- Due times of server messages are spread by chance and rarely equal: sorting
-- those that are is cheaper than an id of 32 bytes in each entry.
CREATE INDEX pending_for_server ON messages (due_micros)
WHERE due_micros IS NOT NULL AND destination_client IS NULL;

-- The payloads of pending messages. Apart from their messages, so that a result
-- frees whole pages and a claim does not write a payload again.
CREATE TABLE payloads (
    message INTEGER PRIMARY KEY REFERENCES messages ON DELETE CASCADE,
    type_url TEXT NOT NULL,
    value BLOB NOT NULL
) STRICT;

-- Leads from the 48-bit hash of a message id to the messages that may have it.
-- Rows are added in bulk and in order, because one by one each costs a page;
-- until then the writer keeps them in memory (src/ids.rs).
CREATE TABLE message_ids (
    hash INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (hash, message)
) STRICT, WITHOUT ROWID;

-- One row: messages up to this number are in message_ids.
CREATE TABLE message_ids_complete (
    up_to INTEGER NOT NULL
) STRICT;

INSERT INTO message_ids_complete VALUES (0);

-- Links of messages to contacts that did not bring them. New contacts have the
-- highest numbers, so rows are appended.
CREATE TABLE contact_messages (
    contact INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (contact, message)
) STRICT, WITHOUT ROWID;

CREATE TABLE broadcasts (
    broadcast INTEGER PRIMARY KEY,
    broadcast_id BLOB NOT NULL UNIQUE,
    source_service TEXT NOT NULL,
    -- NULL: that of the source
    destination_service TEXT,
    message_type TEXT NOT NULL,
    -- both NULL: never
    expiration_seconds INTEGER,
    expiration_nanos INTEGER,
    -- empty: no group
    group_name TEXT NOT NULL,
    -- messages sent under finished allocations
    sent INTEGER NOT NULL,
    -- the sum of the limits of live allocations
    allocated INTEGER NOT NULL,
    message_limit INTEGER NOT NULL,
    -- both NULL: no data. Last, because counters change and data does not.
    type_url TEXT,
    value BLOB
) STRICT;

-- Whatever can be active; few, whatever the number of old broadcasts.
CREATE INDEX broadcasts_with_room ON broadcasts (broadcast_id) WHERE sent < message_limit;

CREATE TABLE broadcast_labels (
    broadcast_id BLOB NOT NULL REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE,
    service TEXT NOT NULL,
    label TEXT NOT NULL,
    PRIMARY KEY (broadcast_id, service, label)
) STRICT, WITHOUT ROWID;

CREATE TABLE allocations (
    broadcast_id BLOB NOT NULL REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE,
    allocation_id BLOB NOT NULL,
    sent INTEGER NOT NULL,
    message_limit INTEGER NOT NULL,
    expiry_nanos INTEGER NOT NULL,
    PRIMARY KEY (broadcast_id, allocation_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE broadcasts_sent (
    client_id BLOB NOT NULL REFERENCES clients ON DELETE CASCADE,
    broadcast_id BLOB NOT NULL REFERENCES broadcasts (broadcast_id) ON DELETE CASCADE,
    -- carries the broadcast; no constraint, because messages may be removed before
    message INTEGER NOT NULL,
    PRIMARY KEY (client_id, broadcast_id)
) STRICT, WITHOUT ROWID;

-- For the progress of a broadcast; messages have the highest numbers, so rows
-- of one broadcast are appended.
CREATE INDEX messages_of_broadcast ON broadcasts_sent (broadcast_id, message);

CREATE TABLE files (
    file INTEGER PRIMARY KEY,
    service TEXT NOT NULL,
    name TEXT NOT NULL,
    modified_nanos INTEGER NOT NULL,
    -- last, so that the time is read without it
    content BLOB NOT NULL,
    UNIQUE (service, name)
) STRICT;
