//! Files, each one row and its content in pieces.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_store::clock::{epoch_nanos, from_epoch_nanos};
use fleethold_store::limits::check_name;
use fleethold_store::{Error, FileStore, Result, StoredFile, read_content};
use tokio::io::AsyncRead;

use crate::PostgresStore;
use crate::incoming::CHUNK_BYTES;
use crate::query::{BYTES, BYTES_LIST, INT_LIST, LONG, Query, Values};

#[async_trait]
impl FileStore for PostgresStore {
    async fn store_file(
        &self,
        service: &str,
        name: &str,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<()> {
        const OPERATION: &str = "store_file";
        check_name(OPERATION, "file service", service)?;
        check_name(OPERATION, "file name", name)?;
        self.shared.check_open(OPERATION)?;
        let content = read_content(OPERATION, content).await?;
        let mut version = [0; 16];
        self.shared.random.fill(&mut version);
        let modified_nanos = epoch_nanos(self.shared.clock.now());
        let chunks: Vec<&[u8]> = content.chunks(CHUNK_BYTES).collect();
        let numbers: Vec<i32> = (0..).take(chunks.len()).collect();
        self.shared
            .write(OPERATION, |tx| {
                let (chunks, numbers) = (&chunks, &numbers);
                async move {
                    let (service, name) = (service.as_bytes(), name.as_bytes());
                    let version = version.as_slice();
                    let file: Values<'_> = &[&service, &name, &modified_nanos, &version];
                    let content: Values<'_> = &[&service, &name, &version, numbers, chunks];
                    // Of two who store a file, the second removes what the first
                    // stored: the lock of the file's row lets it see that.
                    tx.finish(&[
                        (&STORE_CHUNKS, content),
                        (&STORE_FILE, file),
                        (&DELETE_OTHERS, &[&service, &name, &version]),
                    ])
                    .await
                    .map(drop)
                }
            })
            .await
    }

    async fn delete_file(&self, service: &str, name: &str) -> Result<()> {
        self.shared
            .write("delete_file", |tx| async move {
                let values: Values<'_> = &[&service.as_bytes(), &name.as_bytes()];
                tx.last(&DELETE_FILE, values).await.map(drop)
            })
            .await
    }

    async fn stat_file(&self, service: &str, name: &str) -> Result<SystemTime> {
        const OPERATION: &str = "stat_file";
        let values: Values<'_> = &[&service.as_bytes(), &name.as_bytes()];
        let rows = self.shared.read(OPERATION, &STAT_FILE, values).await?;
        let row = rows
            .first()
            .ok_or_else(|| missing(OPERATION, service, name))?;
        Ok(from_epoch_nanos(row.get(0)))
    }

    async fn read_file(&self, service: &str, name: &str) -> Result<StoredFile> {
        const OPERATION: &str = "read_file";
        let values: Values<'_> = &[&service.as_bytes(), &name.as_bytes()];
        let rows = self.shared.read(OPERATION, &READ_FILE, values).await?;
        let row = rows
            .first()
            .ok_or_else(|| missing(OPERATION, service, name))?;
        Ok(StoredFile {
            modified: from_epoch_nanos(row.get(0)),
            content: Bytes::copy_from_slice(row.get(1)),
        })
    }
}

fn missing(operation: &'static str, service: &str, name: &str) -> Error {
    let detail = format!("file {name:?} of service {service:?} does not exist");
    Error::not_found(operation, detail)
}

const STORE_CHUNKS: Query = Query {
    sql: "\
-- store_file (chunks)
INSERT INTO file_chunks (service, name, version, chunk, value)
SELECT $1, $2, $3, given.chunk, given.value
FROM unnest($4::integer[], $5::bytea[]) AS given (chunk, value)
ON CONFLICT DO NOTHING",
    types: &[BYTES, BYTES, BYTES, INT_LIST, BYTES_LIST],
};

const STORE_FILE: Query = Query {
    sql: "\
-- store_file
INSERT INTO files (service, name, modified_nanos, version) VALUES ($1, $2, $3, $4)
ON CONFLICT (service, name) DO UPDATE
SET modified_nanos = excluded.modified_nanos, version = excluded.version",
    types: &[BYTES, BYTES, LONG, BYTES],
};

const DELETE_OTHERS: Query = Query {
    sql: "\
-- store_file (delete)
DELETE FROM file_chunks WHERE service = $1 AND name = $2 AND version <> $3",
    types: &[BYTES, BYTES, BYTES],
};

const DELETE_FILE: Query = Query {
    sql: "\
-- delete_file
WITH removed AS (
    DELETE FROM files WHERE service = $1 AND name = $2 RETURNING version
)
DELETE FROM file_chunks AS chunk USING removed
WHERE chunk.service = $1 AND chunk.name = $2 AND chunk.version = removed.version",
    types: &[BYTES, BYTES],
};

const STAT_FILE: Query = Query {
    sql: "\
-- stat_file
SELECT modified_nanos FROM files WHERE service = $1 AND name = $2",
    types: &[BYTES, BYTES],
};

const READ_FILE: Query = Query {
    sql: "\
-- read_file
SELECT modified_nanos, coalesce((
    SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM file_chunks AS chunk
    WHERE chunk.service = files.service AND chunk.name = files.name
    AND chunk.version = files.version
), ''::bytea)
FROM files WHERE service = $1 AND name = $2",
    types: &[BYTES, BYTES],
};
