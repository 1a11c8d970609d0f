-- One row at most: the copy of another store that came into this database.
CREATE TABLE copies (
    source TEXT PRIMARY KEY,
    -- NULL: the copy is finished
    table_name TEXT,
    -- NULL: at the beginning of the table
    place BLOB,
    row_count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
