//! Files, each one row.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_store::clock::{epoch_nanos, from_epoch_nanos};
use fleethold_store::limits::check_name;
use fleethold_store::{Error, FileStore, Result, StoredFile, read_content};
use rusqlite::{OptionalExtension, params};
use tokio::io::AsyncRead;

use crate::SqliteStore;

#[async_trait]
impl FileStore for SqliteStore {
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
        let (service, name) = (service.to_owned(), name.to_owned());
        self.shared
            .write(OPERATION, move |tx| {
                let modified_nanos = epoch_nanos(tx.clock().now());
                tx.prepare_cached(STORE_FILE)?.execute(params![
                    service,
                    name,
                    modified_nanos,
                    &content[..]
                ])?;
                Ok(())
            })
            .await
    }

    async fn delete_file(&self, service: &str, name: &str) -> Result<()> {
        let (service, name) = (service.to_owned(), name.to_owned());
        self.shared
            .write("delete_file", move |tx| {
                tx.prepare_cached(DELETE_FILE)?
                    .execute(params![service, name])?;
                Ok(())
            })
            .await
    }

    async fn stat_file(&self, service: &str, name: &str) -> Result<SystemTime> {
        const OPERATION: &str = "stat_file";
        let (service, name) = (service.to_owned(), name.to_owned());
        self.shared
            .read(OPERATION, move |connection| {
                let modified_nanos = connection
                    .prepare_cached(STAT_FILE)?
                    .query_row(params![service, name], |row| row.get(0))
                    .optional()?
                    .ok_or_else(|| missing(OPERATION, &service, &name))?;
                Ok(from_epoch_nanos(modified_nanos))
            })
            .await
    }

    async fn read_file(&self, service: &str, name: &str) -> Result<StoredFile> {
        const OPERATION: &str = "read_file";
        let (service, name) = (service.to_owned(), name.to_owned());
        self.shared
            .read(OPERATION, move |connection| {
                connection
                    .prepare_cached(READ_FILE)?
                    .query_row(params![service, name], |row| {
                        Ok(StoredFile {
                            modified: from_epoch_nanos(row.get(0)?),
                            content: Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?),
                        })
                    })
                    .optional()?
                    .ok_or_else(|| missing(OPERATION, &service, &name).into())
            })
            .await
    }
}

fn missing(operation: &'static str, service: &str, name: &str) -> Error {
    let detail = format!("file {name:?} of service {service:?} does not exist");
    Error::not_found(operation, detail)
}

const STORE_FILE: &str = "\
-- store_file
INSERT INTO files (service, name, modified_nanos, content) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (service, name) DO UPDATE
SET modified_nanos = excluded.modified_nanos, content = excluded.content";

const DELETE_FILE: &str = "\
-- delete_file
DELETE FROM files WHERE service = ?1 AND name = ?2";

const STAT_FILE: &str = "\
-- stat_file
SELECT modified_nanos FROM files WHERE service = ?1 AND name = ?2";

const READ_FILE: &str = "\
-- read_file
SELECT modified_nanos, content FROM files WHERE service = ?1 AND name = ?2";
