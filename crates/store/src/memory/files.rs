//! Files in memory.

use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::io::AsyncRead;

use super::MemoryStore;
use crate::error::{Error, Result};
use crate::files::{FileStore, StoredFile, read_content};
use crate::limits::check_name;

/// All files, by (service, name).
pub(super) type Files = BTreeMap<(String, String), StoredFile>;

#[async_trait]
impl FileStore for MemoryStore {
    async fn store_file(
        &self,
        service: &str,
        name: &str,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<()> {
        const OPERATION: &str = "store_file";
        check_name(OPERATION, "file service", service)?;
        check_name(OPERATION, "file name", name)?;
        let content = read_content(OPERATION, content).await?;
        self.shared.with(OPERATION, |state| {
            let modified = self.shared.clock.now();
            let file = StoredFile { modified, content };
            state.files.insert(key(service, name), file);
            Ok(())
        })
    }

    async fn delete_file(&self, service: &str, name: &str) -> Result<()> {
        self.shared.with("delete_file", |state| {
            state.files.remove(&key(service, name));
            Ok(())
        })
    }

    async fn stat_file(&self, service: &str, name: &str) -> Result<SystemTime> {
        const OPERATION: &str = "stat_file";
        self.shared.with(OPERATION, |state| {
            Ok(find(OPERATION, &state.files, service, name)?.modified)
        })
    }

    async fn read_file(&self, service: &str, name: &str) -> Result<StoredFile> {
        const OPERATION: &str = "read_file";
        self.shared.with(OPERATION, |state| {
            find(OPERATION, &state.files, service, name).cloned()
        })
    }
}

fn find<'a>(
    operation: &'static str,
    files: &'a Files,
    service: &str,
    name: &str,
) -> Result<&'a StoredFile> {
    files.get(&key(service, name)).ok_or_else(|| {
        let detail = format!("file {name:?} of service {service:?} does not exist");
        Error::not_found(operation, detail)
    })
}

fn key(service: &str, name: &str) -> (String, String) {
    (service.to_owned(), name.to_owned())
}
