-- What only one of all servers does.
CREATE TABLE IF NOT EXISTS leases (
    name text PRIMARY KEY,
    holder bigint NOT NULL,
    -- grows whenever the holder changes
    fence bigint NOT NULL,
    -- by the clock of the database
    until_micros bigint NOT NULL,
    -- counts what was done under the lease
    steps bigint NOT NULL
);
