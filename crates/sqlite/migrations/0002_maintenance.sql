-- One row at most: the copy of another store that came into this database.
CREATE TABLE copies (
    source TEXT PRIMARY KEY,
    -- NULL: the copy is finished
    table_name TEXT,
    -- NULL: at the beginning of the table
    place BLOB,
    row_count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What only one process does. This database has one process, so a lease is
-- always free or its own; the table is there for what other stores need it for.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder INTEGER NOT NULL,
    -- grows whenever the holder changes
    fence INTEGER NOT NULL,
    until_micros INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
