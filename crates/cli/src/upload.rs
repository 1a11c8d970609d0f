//! Files that go to the server in a request.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use fleethold_proto::Name;
use fleethold_server::config::MAX_ADMIN_REQUEST_BYTES;

use crate::output::Failure;

/// What a field needs besides a content of this size: a tag and a length.
const FIELD_BYTES: usize = 5;

/// Reads a file that is to be a field of `request`, unless the request were too large with it.
pub(crate) fn read(path: &Path, request: &impl Name) -> Result<Vec<u8>, Failure> {
    let room = MAX_ADMIN_REQUEST_BYTES.saturating_sub(request.encoded_len() + FIELD_BYTES) as u64;
    let too_large = |size: String| {
        let path = path.display();
        let error = format!(
            "`{path}` has {size} bytes, with it the request exceeds the {MAX_ADMIN_REQUEST_BYTES}-byte limit"
        );
        Err(Failure::failed(error).hint("compress the file or split it into smaller ones"))
    };
    let cannot_read = || format!("cannot read `{}`", path.display());
    let file = File::open(path).with_context(cannot_read)?;
    let size = file.metadata().with_context(cannot_read)?.len();
    if size > room {
        return too_large(size.to_string());
    }
    // A pipe does not tell its size.
    let mut content = Vec::new();
    file.take(room + 1)
        .read_to_end(&mut content)
        .with_context(cannot_read)?;
    if content.len() as u64 > room {
        return too_large(format!("more than {room}"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use fleethold_proto::fleetspeak::server::StoreFileRequest;

    use super::*;

    #[test]
    fn the_largest_file_fills_the_request() {
        fn length(request: &impl Name) -> usize {
            request.encoded_len()
        }
        let mut request = StoreFileRequest {
            service_name: "echo".to_owned(),
            file_name: "a".to_owned(),
            ..StoreFileRequest::default()
        };
        let room = MAX_ADMIN_REQUEST_BYTES - length(&request) - FIELD_BYTES;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; room + 1]).unwrap();
        assert!(read(&path, &request).is_err());
        std::fs::write(&path, vec![7; room]).unwrap();
        request.data = read(&path, &request).unwrap().into();
        assert_eq!(length(&request), MAX_ADMIN_REQUEST_BYTES);
    }
}
