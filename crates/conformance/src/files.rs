//! Files (specification section 3.5).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fleethold_store::{Clock, ErrorKind, MAX_PAYLOAD_BYTES, Result, StoredFile};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::checks::{assert_refused, assert_same};
use crate::samples::{C1, at};
use crate::{Bed, cases};

const FILE: (&str, &str) = ("TestService", "testFile");

cases![
    b_111_to_119_file_is_stored_read_and_deleted,
    stored_file_replaces_the_one_before,
    empty_file_is_a_file,
    names_are_compared_byte_by_byte_and_mean_nothing,
    overlong_names_are_refused,
    file_over_the_limit_is_too_large,
    failing_reader_stores_nothing,
    slow_upload_holds_up_nobody,
];

async fn b_111_to_119_file_is_stored_read_and_deleted(bed: Bed) {
    bed.clock.set(84);
    store(&bed, FILE, b"Test file contents").await.unwrap();
    bed.clock.set(85);
    let (service, name) = FILE;
    let modified = bed.store.stat_file(service, name).await.unwrap();
    assert_same("a file was modified when it was stored", &modified, &at(84));
    let found = bed.store.read_file(service, name).await.unwrap();
    let expected = StoredFile {
        modified: at(84),
        content: Bytes::from_static(b"Test file contents"),
    };
    assert_same("a file is read with the same time", &found, &expected);

    assert_missing(&bed, (service, "missing")).await;
    for _ in 0..2 {
        bed.store.delete_file(service, name).await.unwrap();
        assert_missing(&bed, FILE).await;
    }
    let deleted = bed.store.delete_file(service, "never stored").await;
    deleted.expect("a missing file is no error");
}

async fn stored_file_replaces_the_one_before(bed: Bed) {
    store(&bed, FILE, b"a longer first content").await.unwrap();
    bed.clock.advance(Duration::from_nanos(1));
    store(&bed, FILE, b"second").await.unwrap();
    let found = bed.store.read_file(FILE.0, FILE.1).await.unwrap();
    let expected = StoredFile {
        modified: bed.clock.now(),
        content: Bytes::from_static(b"second"),
    };
    assert_same(
        "content and time are replaced, to the nanosecond",
        &found,
        &expected,
    );
}

async fn empty_file_is_a_file(bed: Bed) {
    store(&bed, FILE, b"").await.unwrap();
    let found = bed.store.read_file(FILE.0, FILE.1).await.unwrap();
    assert_same("a file may be empty", &found.content, &Bytes::new());
}

async fn names_are_compared_byte_by_byte_and_mean_nothing(bed: Bed) {
    let keys = [
        ("service", "name"),
        ("service", "Name"),
        ("Service", "name"),
        ("service", "name "),
        ("service", "../name"),
        ("service/..", "name"),
        ("servic", "ename"),
        ("service", ""),
        ("", "name"),
        ("service", "n\u{e4}me"),
        ("service", "na\u{308}me"),
        ("service", "\u{1F980}"),
    ];
    for (service, name) in keys {
        let content = format!("{service}|{name}");
        store(&bed, (service, name), content.as_bytes())
            .await
            .unwrap();
    }
    for (service, name) in keys {
        let found = bed.store.read_file(service, name).await.unwrap();
        assert_same(
            "names are compared byte by byte",
            &found.content,
            &format!("{service}|{name}").into_bytes(),
        );
    }
    bed.store.delete_file("SERVICE", "NAME").await.unwrap();
    bed.store.delete_file("service", "name").await.unwrap();
    for key in keys {
        match bed.store.stat_file(key.0, key.1).await {
            Ok(_) => assert_ne!(key, ("service", "name"), "the file was deleted"),
            Err(_) => assert_eq!(key, ("service", "name"), "only this file was deleted"),
        }
    }
}

async fn overlong_names_are_refused(bed: Bed) {
    let longest = "ä".repeat(128);
    let longer = "ä".repeat(129);
    store(&bed, (&longest, &longest), b"x").await.unwrap();
    for key in [("service", longer.as_str()), (&longer, "name")] {
        assert_refused(
            "`InvalidArgument` for a service or name over 128 characters",
            store(&bed, key, b"x").await,
            ErrorKind::InvalidArgument,
        );
        assert_missing(&bed, key).await;
    }
    assert_missing(&bed, ("service", &longest)).await;
}

async fn file_over_the_limit_is_too_large(bed: Bed) {
    let bytes = |count: usize| tokio::io::repeat(7).take(count as u64);
    let (service, name) = FILE;
    let mut largest = bytes(MAX_PAYLOAD_BYTES);
    let stored = bed.store.store_file(service, name, &mut largest).await;
    stored.expect("a file of the largest size");
    let mut larger = bytes(MAX_PAYLOAD_BYTES + 1);
    assert_refused(
        "`TooLarge` above the limit",
        bed.store.store_file(service, name, &mut larger).await,
        ErrorKind::TooLarge,
    );
    let found = bed.store.read_file(service, name).await.unwrap();
    assert_eq!(
        found.content.len(),
        MAX_PAYLOAD_BYTES,
        "the file before stays"
    );
}

async fn failing_reader_stores_nothing(bed: Bed) {
    let (service, name) = FILE;
    for _ in 0..2 {
        let mut content = b"the first half".chain(Failing);
        let stored = bed.store.store_file(service, name, &mut content).await;
        let error = stored.expect_err("the reader fails");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
        let source = std::error::Error::source(&error).expect("the reader's error is the source");
        assert_eq!(source.to_string(), Failing::TEXT);
    }
    assert_missing(&bed, FILE).await;

    store(&bed, FILE, b"whole").await.unwrap();
    let mut content = b"half".chain(Failing);
    let stored = bed.store.store_file(service, name, &mut content).await;
    stored.expect_err("the reader fails");
    let found = bed.store.read_file(service, name).await.unwrap();
    assert_same(
        "the file before stays",
        &found.content,
        &b"whole".as_slice(),
    );
}

async fn slow_upload_holds_up_nobody(bed: Bed) {
    let (mut sender, mut receiver) = tokio::io::duplex(16);
    let store = Arc::clone(&bed.store);
    let upload = tokio::spawn(async move { store.store_file(FILE.0, FILE.1, &mut receiver).await });
    // More than the pipe holds: the store has begun to read.
    sender.write_all(&[7; 64]).await.unwrap();
    bed.add_client(C1).await;
    assert_missing(&bed, FILE).await;
    sender.write_all(&[7; 36]).await.unwrap();
    bed.clock.advance(Duration::from_secs(9));
    drop(sender);
    upload.await.unwrap().unwrap();
    let found = bed.store.read_file(FILE.0, FILE.1).await.unwrap();
    assert_same(
        "the reader is read to its end",
        &found.content,
        &[7; 100].as_slice(),
    );
    assert_same(
        "the file was modified when it was stored",
        &found.modified,
        &bed.clock.now(),
    );
}

/// A reader that always fails.
struct Failing;

impl Failing {
    const TEXT: &str = "connection lost";
}

impl AsyncRead for Failing {
    fn poll_read(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other(Self::TEXT)))
    }
}

async fn store(bed: &Bed, (service, name): (&str, &str), mut content: &[u8]) -> Result<()> {
    bed.store.store_file(service, name, &mut content).await
}

async fn assert_missing(bed: &Bed, (service, name): (&str, &str)) {
    let contract = "`NotFound` for a missing file";
    let stat = bed.store.stat_file(service, name).await;
    assert_refused(contract, stat, ErrorKind::NotFound);
    let read = bed.store.read_file(service, name).await;
    assert_refused(contract, read, ErrorKind::NotFound);
}
