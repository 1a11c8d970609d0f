//! Files that every client may download.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_PAYLOAD_BYTES;

/// A stored file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// When the file was stored.
    pub modified: SystemTime,
    /// What it contains.
    pub content: Bytes,
}

/// Stores files under (service, name); names are compared byte by byte and
/// mean nothing else: `../x` is just a name. Specification section 3.5.
///
/// Every method is atomic, and durable when it returns success.
#[async_trait]
pub trait FileStore: Send + Sync {
    /// Reads `content` to its end, then stores or replaces the file;
    /// it was modified now.
    ///
    /// # Errors
    /// `InvalidArgument` for a service or name over 128 characters; `TooLarge`
    /// above [`MAX_PAYLOAD_BYTES`]; an error of the reader as source. Nothing is
    /// stored then.
    async fn store_file(
        &self,
        service: &str,
        name: &str,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<()>;

    /// Removes a file; a missing one is no error.
    async fn delete_file(&self, service: &str, name: &str) -> Result<()>;

    /// Returns when the file was modified.
    ///
    /// # Errors
    /// `NotFound` for a missing file.
    async fn stat_file(&self, service: &str, name: &str) -> Result<SystemTime>;

    /// Returns a file; memory for it is taken once per call.
    ///
    /// # Errors
    /// `NotFound` for a missing file.
    async fn read_file(&self, service: &str, name: &str) -> Result<StoredFile>;
}

/// Reads the content of a file to store; for implementers of [`FileStore`].
///
/// # Errors
/// `TooLarge` above [`MAX_PAYLOAD_BYTES`]; `InvalidArgument` with the reader's
/// error as source.
pub async fn read_content(
    operation: &'static str,
    content: &mut (dyn AsyncRead + Send + Unpin),
) -> Result<Bytes> {
    let mut buffer = BytesMut::new();
    let limit = u64::try_from(MAX_PAYLOAD_BYTES).expect("fits") + 1;
    let mut limited = content.take(limit);
    while limited
        .read_buf(&mut buffer)
        .await
        .map_err(|error| Error::invalid(operation, "content cannot be read").with_source(error))?
        > 0
    {}
    if buffer.len() > MAX_PAYLOAD_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            operation,
            format!("a file has at most {MAX_PAYLOAD_BYTES} bytes"),
        ));
    }
    Ok(buffer.freeze())
}
