//! Files that agents may download.

use fleethold_proto::fleetspeak::server::{DeleteFileRequest, StoreFileRequest};
use tonic::Status;

use super::Admin;
use super::status::status;

impl Admin {
    /// Stores or replaces a file.
    pub(super) async fn store_file(&self, file: &StoreFileRequest) -> Result<(), Status> {
        require_names(&file.service_name, &file.file_name)?;
        self.engine
            .store
            .store_file(&file.service_name, &file.file_name, &mut &file.data[..])
            .await
            .map_err(status)?;
        let (service, name) = (&file.service_name, &file.file_name);
        tracing::info!(service, name, size_bytes = file.data.len(), "stored a file");
        Ok(())
    }

    /// Removes a file; a missing one is no error.
    pub(super) async fn delete_file(&self, file: &DeleteFileRequest) -> Result<(), Status> {
        require_names(&file.service_name, &file.file_name)?;
        let (service, name) = (&file.service_name, &file.file_name);
        let deleted = self.engine.store.delete_file(service, name);
        deleted.await.map_err(status)?;
        tracing::info!(service, name, "removed a file");
        Ok(())
    }
}

fn require_names(service: &str, name: &str) -> Result<(), Status> {
    for (field, value) in [("service_name", service), ("file_name", name)] {
        if value.is_empty() {
            return Err(Status::invalid_argument(format!("`{field}` is missing")));
        }
    }
    Ok(())
}
