//! Files (P-163).

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::{DeleteFileRequest, StoreFileRequest};
use fleethold_store::{Clock, FileStore};
use tonic::Code;

use super::{Bed, refused};

#[tokio::test]
async fn p_163_files_are_stored_replaced_and_removed_by_both_names() {
    let mut bed = Bed::new().await;
    for (seconds, content) in [(1_000, "old"), (1_001, "new")] {
        bed.clock.set(seconds);
        let request = StoreFileRequest {
            service_name: "shell".to_owned(),
            file_name: "../tool".to_owned(),
            data: Bytes::from_static(content.as_bytes()),
        };
        bed.admin.store_file(request).await.unwrap();
        let file = bed.store.read_file("shell", "../tool").await.unwrap();
        assert_eq!(file.content, content);
        assert_eq!(file.modified, bed.clock.now());
    }
    for (service, name) in [("", "tool"), ("shell", "")] {
        let request = StoreFileRequest {
            service_name: service.to_owned(),
            file_name: name.to_owned(),
            data: Bytes::new(),
        };
        refused(bed.admin.store_file(request).await, Code::InvalidArgument);
        let request = DeleteFileRequest {
            service_name: service.to_owned(),
            file_name: name.to_owned(),
        };
        refused(bed.admin.delete_file(request).await, Code::InvalidArgument);
    }
    let request = DeleteFileRequest {
        service_name: "shell".to_owned(),
        file_name: "../tool".to_owned(),
    };
    for _ in 0..2 {
        bed.admin.delete_file(request.clone()).await.unwrap();
    }
    assert!(bed.store.stat_file("shell", "../tool").await.is_err());
}
