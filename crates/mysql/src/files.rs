//! Files, each one row.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_store::clock::{epoch_nanos, from_epoch_nanos};
use fleethold_store::limits::check_name;
use fleethold_store::{Error, FileStore, Result, StoredFile, read_content};
use futures::FutureExt;
use tokio::io::AsyncRead;

use crate::MysqlStore;
use crate::messages::check_fits;
use crate::rows::take;
use crate::sql::{Batch, Value};
use crate::transaction::Replay;

#[async_trait]
impl FileStore for MysqlStore {
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
        check_fits(OPERATION, content.len(), &self.shared.context)?;
        let modified_nanos = epoch_nanos(self.shared.context.clock.now());
        let arguments = (File::new(service, name), modified_nanos, content);
        self.shared
            .write(
                OPERATION,
                Replay::Safe,
                arguments,
                |(file, modified_nanos, content), tx| {
                    async move {
                        let [service, name] = file.names();
                        let mut batch = Batch::of(
                            STORE_FILE,
                            &[
                                service,
                                name,
                                Value::Int(*modified_nanos),
                                Value::Bytes(content),
                            ],
                        );
                        batch.add(STAT_FILE, &file.key());
                        let replies = tx.commit(batch).await?;
                        if replies.iter().all(|reply| reply.rows.is_empty()) {
                            let detail = format!(
                                "{file} has the name of another file by this database's collation"
                            );
                            return Err(Error::invalid(OPERATION, detail).into());
                        }
                        Ok(())
                    }
                    .boxed()
                },
            )
            .await
    }

    async fn delete_file(&self, service: &str, name: &str) -> Result<()> {
        self.shared
            .write(
                "delete_file",
                Replay::Safe,
                File::new(service, name),
                |file, tx| {
                    async move {
                        tx.only(Batch::of(DELETE_FILE, &file.key())).await?;
                        Ok(())
                    }
                    .boxed()
                },
            )
            .await
    }

    async fn stat_file(&self, service: &str, name: &str) -> Result<SystemTime> {
        const OPERATION: &str = "stat_file";
        let file = File::new(service, name);
        let found = self
            .shared
            .read(OPERATION, file.clone(), |file, tx| {
                async move {
                    let replies = tx.only(Batch::of(STAT_FILE, &file.key())).await?;
                    let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
                    rows.next().map(|mut row| take(&mut row, 0)).transpose()
                }
                .boxed()
            })
            .await?;
        found
            .map(from_epoch_nanos)
            .ok_or_else(|| file.missing(OPERATION))
    }

    async fn read_file(&self, service: &str, name: &str) -> Result<StoredFile> {
        const OPERATION: &str = "read_file";
        let file = File::new(service, name);
        let found = self
            .shared
            .read(OPERATION, file.clone(), |file, tx| {
                async move {
                    let replies = tx.only(Batch::of(READ_FILE, &file.key())).await?;
                    let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
                    let Some(mut row) = rows.next() else {
                        return Ok(None);
                    };
                    let content: Option<Vec<u8>> = take(&mut row, 1)?;
                    Ok(Some(StoredFile {
                        modified: from_epoch_nanos(take(&mut row, 0)?),
                        content: Bytes::from(content.unwrap_or_default()),
                    }))
                }
                .boxed()
            })
            .await?;
        found.ok_or_else(|| file.missing(OPERATION))
    }
}

/// The key of a file.
#[derive(Clone)]
struct File {
    service: String,
    name: String,
}

impl File {
    fn new(service: &str, name: &str) -> Self {
        Self {
            service: service.to_owned(),
            name: name.to_owned(),
        }
    }

    fn names(&self) -> [Value<'_>; 2] {
        [Value::Text(&self.service), Value::Text(&self.name)]
    }

    /// Twice: to be found through the key, and to be compared byte by byte.
    fn key(&self) -> [Value<'_>; 4] {
        let [service, name] = self.names();
        [
            service,
            name,
            Value::Bytes(self.service.as_bytes()),
            Value::Bytes(self.name.as_bytes()),
        ]
    }

    fn missing(&self, operation: &'static str) -> Error {
        Error::not_found(operation, format!("{self} does not exist"))
    }
}

impl std::fmt::Display for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file {:?} of service {:?}", self.name, self.service)
    }
}

// A collation may take another file for this one, which must not lose its content.
const STORE_FILE: &str = "\
-- store_file
INSERT INTO files (service, name, modified_time_nanos, data) VALUES (?, ?, ?, ?)
ON DUPLICATE KEY UPDATE
    data = IF(
        CAST(files.service AS BINARY) = CAST(VALUES(service) AS BINARY)
        AND CAST(files.name AS BINARY) = CAST(VALUES(name) AS BINARY),
        VALUES(data), data
    ),
    modified_time_nanos = IF(
        CAST(files.service AS BINARY) = CAST(VALUES(service) AS BINARY)
        AND CAST(files.name AS BINARY) = CAST(VALUES(name) AS BINARY),
        VALUES(modified_time_nanos), modified_time_nanos
    )";

const DELETE_FILE: &str = "\
-- delete_file
DELETE FROM files WHERE service = ? AND name = ?
AND CAST(service AS BINARY) = ? AND CAST(name AS BINARY) = ?";

const STAT_FILE: &str = "\
-- stat_file
SELECT modified_time_nanos FROM files WHERE service = ? AND name = ?
AND CAST(service AS BINARY) = ? AND CAST(name AS BINARY) = ?";

const READ_FILE: &str = "\
-- read_file
SELECT modified_time_nanos, data FROM files WHERE service = ? AND name = ?
AND CAST(service AS BINARY) = ? AND CAST(name AS BINARY) = ?";
