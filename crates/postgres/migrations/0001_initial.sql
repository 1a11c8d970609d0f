-- Ids and client-chosen texts are bytes: texts may hold U+0000, and bytes compare
-- the same on every engine. Times carry their unit in the name of the column.
--
-- Every primary key begins with an id that is spread evenly, so no engine gets a
-- hot range; those of tables that grow with the clients hold the client, so they
-- can be distributed by client. No foreign keys: they would lock clients on
-- every message.

CREATE TABLE IF NOT EXISTS clients (
    client_id bytea PRIMARY KEY,
    -- DER SubjectPublicKeyInfo, may be empty
    public_key bytea NOT NULL,
    -- nothing sets it back to false
    blacklisted boolean NOT NULL,
    -- when the client was added, until it makes contact
    last_contact_nanos bigint NOT NULL,
    last_contact_address bytea NOT NULL,
    -- NULL: the last contact was no stream
    last_contact_streaming_to bytea,
    -- both NULL if the client told no valid time
    last_clock_seconds bigint,
    last_clock_nanos integer
);

CREATE TABLE IF NOT EXISTS client_labels (
    client_id bytea NOT NULL,
    service bytea NOT NULL,
    label bytea NOT NULL,
    PRIMARY KEY (client_id, service, label)
);

CREATE TABLE IF NOT EXISTS contacts (
    client_id bytea NOT NULL,
    -- made by the server, 16 bytes in the order of the contacts: time, count, chance
    contact_id bytea NOT NULL,
    time_nanos bigint NOT NULL,
    -- the same 64 bits, read as a signed number
    nonce_sent bigint NOT NULL,
    nonce_received bigint NOT NULL,
    address bytea NOT NULL,
    PRIMARY KEY (client_id, contact_id)
);

CREATE TABLE IF NOT EXISTS usage_records (
    client_id bytea NOT NULL,
    -- made like a contact_id
    record_id bytea NOT NULL,
    server_nanos bigint NOT NULL,
    client_nanos bigint NOT NULL,
    process_start_nanos bigint NOT NULL,
    scope bytea NOT NULL,
    pid bigint NOT NULL,
    process_terminated boolean NOT NULL,
    mean_user_cpu_rate real NOT NULL,
    max_user_cpu_rate real NOT NULL,
    mean_system_cpu_rate real NOT NULL,
    max_system_cpu_rate real NOT NULL,
    mean_resident_memory_mib integer NOT NULL,
    max_resident_memory_mib integer NOT NULL,
    mean_num_fds integer NOT NULL,
    max_num_fds integer NOT NULL,
    PRIMARY KEY (client_id, record_id)
);

-- All messages, whether they wait or not. What a message does is decided by who
-- locks its row here first.
CREATE TABLE IF NOT EXISTS messages (
    -- the destination client; for a message to the server the source client; or empty
    client_id bytea NOT NULL,
    message_id bytea NOT NULL,
    -- NULL: on the server
    source_client bytea,
    source_service bytea NOT NULL,
    source_message_id bytea NOT NULL,
    -- NULL: on the server. The client need not exist.
    destination_client bytea,
    destination_service bytea NOT NULL,
    message_type bytea NOT NULL,
    creation_seconds bigint NOT NULL,
    creation_nanos integer NOT NULL,
    -- serialised protocol buffers
    validation_info bytea,
    annotations bytea,
    -- the contact of the source that brought the message; other links are in
    -- contact_messages
    contact_id bytea,
    -- both NULL while the message is pending
    processed_seconds bigint,
    processed_nanos integer,
    -- why it failed, perhaps empty; NULL: success, or pending
    failure bytea,
    -- the id first: it is spread evenly, and some callers know nothing else
    PRIMARY KEY (message_id, client_id)
);

-- What waits for a client: rows come and go, history is elsewhere.
CREATE TABLE IF NOT EXISTS client_pending (
    client_id bytea NOT NULL,
    message_id bytea NOT NULL,
    service bytea NOT NULL,
    -- when it is handed out next
    due_micros bigint NOT NULL,
    -- how often it was handed out
    claims integer NOT NULL,
    -- the call that handed it out last; such a call finds its messages again
    claim_token bigint NOT NULL,
    -- when it was due before that call
    was_due_micros bigint NOT NULL,
    -- NULL: the message has no data
    type_url bytea,
    -- NULL: no data, or in payload_chunks
    value bytea,
    value_bytes bigint NOT NULL,
    -- 0: value holds it all
    chunks integer NOT NULL,
    PRIMARY KEY (message_id, client_id)
);

-- The service comes before the time, so that a claim never walks over messages
-- of a service that accepts none.
CREATE INDEX IF NOT EXISTS client_pending_due
ON client_pending (client_id, service, due_micros, message_id);

-- What waits for services of the server; columns as in client_pending.
CREATE TABLE IF NOT EXISTS server_pending (
    client_id bytea NOT NULL,
    message_id bytea NOT NULL,
    service bytea NOT NULL,
    due_micros bigint NOT NULL,
    claims integer NOT NULL,
    claim_token bigint NOT NULL,
    was_due_micros bigint NOT NULL,
    type_url bytea,
    value bytea,
    value_bytes bigint NOT NULL,
    chunks integer NOT NULL,
    PRIMARY KEY (message_id, client_id)
);

CREATE INDEX IF NOT EXISTS server_pending_due ON server_pending (due_micros, message_id);

-- Large payloads of pending messages: some engines want rows below a megabyte.
CREATE TABLE IF NOT EXISTS payload_chunks (
    client_id bytea NOT NULL,
    message_id bytea NOT NULL,
    chunk integer NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (message_id, client_id, chunk)
);

-- Links of messages to contacts that did not bring them.
CREATE TABLE IF NOT EXISTS contact_messages (
    -- of the contact
    client_id bytea NOT NULL,
    contact_id bytea NOT NULL,
    message_id bytea NOT NULL,
    PRIMARY KEY (client_id, contact_id, message_id)
);

CREATE TABLE IF NOT EXISTS broadcasts (
    broadcast_id bytea PRIMARY KEY,
    source_service bytea NOT NULL,
    -- NULL: that of the source
    destination_service bytea,
    message_type bytea NOT NULL,
    -- both NULL: never
    expiration_seconds bigint,
    expiration_nanos integer,
    -- empty: no group
    group_name bytea NOT NULL,
    -- messages sent under finished allocations
    sent bigint NOT NULL,
    -- the sum of the limits of live allocations
    allocated bigint NOT NULL,
    message_limit bigint NOT NULL,
    -- the call that made it; such a call knows its broadcast again
    creation_token bigint NOT NULL,
    -- NULL: no data
    type_url bytea,
    chunks integer NOT NULL
);

-- Data of broadcasts.
CREATE TABLE IF NOT EXISTS broadcast_chunks (
    broadcast_id bytea NOT NULL,
    chunk integer NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (broadcast_id, chunk)
);

CREATE TABLE IF NOT EXISTS broadcast_labels (
    broadcast_id bytea NOT NULL,
    service bytea NOT NULL,
    label bytea NOT NULL,
    PRIMARY KEY (broadcast_id, service, label)
);

-- Who creates a broadcast of a group changes its row first: so they come one by one.
CREATE TABLE IF NOT EXISTS broadcast_groups (
    group_name bytea PRIMARY KEY,
    changes bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS allocations (
    broadcast_id bytea NOT NULL,
    allocation_id bytea NOT NULL,
    sent bigint NOT NULL,
    message_limit bigint NOT NULL,
    expiry_nanos bigint NOT NULL,
    PRIMARY KEY (broadcast_id, allocation_id)
);

CREATE TABLE IF NOT EXISTS broadcasts_sent (
    client_id bytea NOT NULL,
    broadcast_id bytea NOT NULL,
    -- carries the broadcast; NULL: unknown, in a copy of another store
    message_id bytea,
    PRIMARY KEY (client_id, broadcast_id)
);

-- For the progress of a broadcast.
CREATE INDEX IF NOT EXISTS broadcasts_sent_by_broadcast
ON broadcasts_sent (broadcast_id, message_id);

CREATE TABLE IF NOT EXISTS files (
    service bytea NOT NULL,
    name bytea NOT NULL,
    modified_nanos bigint NOT NULL,
    -- names the chunks of this content
    version bytea NOT NULL,
    PRIMARY KEY (service, name)
);

CREATE TABLE IF NOT EXISTS file_chunks (
    service bytea NOT NULL,
    name bytea NOT NULL,
    version bytea NOT NULL,
    chunk integer NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (service, name, version, chunk)
);

-- One row at most: the copy of another store that came into this database.
CREATE TABLE IF NOT EXISTS copies (
    source bytea PRIMARY KEY,
    -- NULL: the copy is finished
    table_name text,
    -- NULL: at the beginning of the table
    place bytea,
    row_count bigint NOT NULL
);
