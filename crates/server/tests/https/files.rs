//! Downloads.

use std::time::Duration;

use fleethold_proto::fleetspeak::server::StoreFileRequest;
use fleethold_store::FileStore;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, IF_MODIFIED_SINCE,
    IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tonic::Code;

use crate::agent::{Agent, Authority, RequestBody, get, over_http2, request};
use crate::bed::{Bed, NOW};

async fn store(bed: &Bed, service: &str, name: &str, content: &str) {
    bed.store
        .store_file(service, name, &mut content.as_bytes())
        .await
        .unwrap();
}

fn with(mut request: Request<RequestBody>, name: HeaderName, value: &str) -> Request<RequestBody> {
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

async fn parts(response: Response<Incoming>) -> (StatusCode, HeaderMap, String) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (
        head.status,
        head.headers,
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

#[tokio::test]
async fn p_180_names_of_all_kinds_are_found() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    for (service, name, path) in [
        ("a b", "c/d", "/files/a%2520b/c%252Fd"),
        ("s", "100%", "/files/s/100%2525"),
        ("s", "a+b", "/files/s/a+b"),
        ("s", "ä", "/files/s/%25C3%25A4"),
        ("my svc", "x", "/files/my%20svc/x"),
        ("s", "../../etc", "/files/s/..%252F..%252Fetc"),
    ] {
        store(&bed, service, name, path).await;
        let (status, body) = agent.fetch(get(path)).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, path.as_bytes()));
    }
}

#[tokio::test]
async fn p_181_missing_files_and_wrong_requests_are_refused() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let long = format!("/files/s/{}", "x".repeat(129));
    for (path, expected) in [
        ("/files/s/missing", StatusCode::NOT_FOUND),
        ("/files/s/", StatusCode::NOT_FOUND),
        (&long, StatusCode::NOT_FOUND),
        ("/files/a%2Fb/c", StatusCode::BAD_REQUEST),
        ("/files/a", StatusCode::BAD_REQUEST),
        ("/files/s/%25zz", StatusCode::BAD_REQUEST),
    ] {
        let (status, _) = agent.fetch(get(path)).await;
        assert_eq!(status, expected, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        let (status, _) = agent.fetch(request(method, "/files/s/x", "")).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    store(&bed, "s", "x", "content").await;
    let good = agent.fetch(get("/files/s/x")).await;
    assert_eq!(good, (StatusCode::OK, "content".into()));
}

#[tokio::test]
async fn p_182_headers_tell_when_a_file_changed() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    store(&bed, "s", "f", "0123456789").await;
    let (status, headers, body) = parts(agent.request(get("/files/s/f")).await).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "0123456789"));
    assert_eq!(headers[LAST_MODIFIED], "Tue, 14 Nov 2023 22:13:20 GMT");
    assert_eq!(headers[CONTENT_TYPE], "application/octet-stream");
    assert_eq!(headers[ACCEPT_RANGES], "bytes");
    assert_eq!(headers[CONTENT_LENGTH], "10");

    for (date, expected) in [
        ("Tue, 14 Nov 2023 22:13:20 GMT", StatusCode::NOT_MODIFIED),
        ("Tue, 14 Nov 2023 22:13:21 GMT", StatusCode::NOT_MODIFIED),
        ("Tue, 14 Nov 2023 22:13:19 GMT", StatusCode::OK),
        ("yesterday", StatusCode::OK),
    ] {
        let request = with(get("/files/s/f"), IF_MODIFIED_SINCE, date);
        assert_eq!(agent.fetch(request).await.0, expected, "{date}");
    }

    // A new version is served at once, also while the old one is known.
    bed.clock.set(NOW + 1);
    bed.clock.advance(Duration::from_nanos(1));
    store(&bed, "s", "f", "new").await;
    let request = with(
        get("/files/s/f"),
        IF_MODIFIED_SINCE,
        "Tue, 14 Nov 2023 22:13:20 GMT",
    );
    assert_eq!(agent.fetch(request).await, (StatusCode::OK, "new".into()));
}

#[tokio::test]
async fn p_182_head_has_the_headers_of_get() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    store(&bed, "s", "f", "0123456789").await;
    let head = request("HEAD", "/files/s/f", "");
    for request in [head, over_http2(request("HEAD", "/files/s/f", ""))] {
        let (status, headers, body) = parts(agent.request(request).await).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
        assert_eq!(headers[CONTENT_LENGTH], "10");
    }
}

#[tokio::test]
async fn p_182_parts_of_a_file_are_served() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    store(&bed, "s", "f", "0123456789").await;
    for (range, content_range, expected) in [
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=8-", "bytes 8-9/10", "89"),
        ("bytes=-1", "bytes 9-9/10", "9"),
    ] {
        let request = with(get("/files/s/f"), RANGE, range);
        let (status, headers, body) = parts(agent.request(request).await).await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::PARTIAL_CONTENT, expected)
        );
        assert_eq!(headers[CONTENT_RANGE], content_range);
    }
    let request = with(get("/files/s/f"), RANGE, "bytes=10-");
    let (status, headers, _) = parts(agent.request(request).await).await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(headers[CONTENT_RANGE], "bytes */10");

    for (since, expected) in [
        ("Tue, 14 Nov 2023 22:13:20 GMT", StatusCode::PARTIAL_CONTENT),
        ("Tue, 14 Nov 2023 22:13:19 GMT", StatusCode::OK),
        ("\"tag\"", StatusCode::OK),
    ] {
        let request = with(get("/files/s/f"), RANGE, "bytes=2-4");
        let request = with(request, IF_RANGE, since);
        assert_eq!(agent.fetch(request).await.0, expected, "{since}");
    }
}

#[tokio::test]
async fn p_183_authorization_needs_a_certificate_and_the_label() {
    let labels = HeaderName::from_static("x-fleetspeak-labels");
    let bed = Bed::with(Authority::new(), |config| {
        config.required_label = Some("alpha".to_owned());
        config.agents.as_mut().unwrap().authorize_files = true;
    })
    .await;
    store(&bed, "s", "f", "content").await;
    let labelled = || {
        let request = with(get("/files/s/f"), labels.clone(), "linux");
        with(request, labels.clone(), "alpha")
    };
    let stranger = Agent::without_certificate(bed.addr, &bed.authority);
    assert_eq!(stranger.fetch(labelled()).await.0, StatusCode::UNAUTHORIZED);
    let agent = bed.agent();
    let unlabelled = with(get("/files/s/f"), labels.clone(), "linux");
    assert_eq!(agent.fetch(unlabelled).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        agent.fetch(labelled()).await,
        (StatusCode::OK, "content".into())
    );
}

#[tokio::test]
async fn list_of_revoked_certificates_is_empty_until_there_is_one() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let path = "/files/system/RevokedCertificates";
    assert_eq!(agent.fetch(get(path)).await, (StatusCode::OK, "".into()));
    store(&bed, "system", "RevokedCertificates", "list").await;
    assert_eq!(
        agent.fetch(get(path)).await,
        (StatusCode::OK, "list".into())
    );
}

/// Writes every byte of a name in the doubly escaped form.
fn escaped(name: &str) -> String {
    name.bytes().map(|byte| format!("%25{byte:02X}")).collect()
}

#[tokio::test]
async fn s14_name_means_exactly_its_bytes_and_no_other_file() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    store(&bed, "svc", "name", "the real one").await;
    // Names that some system would take for the same.
    let tricks = [
        "Name",
        "NAME",
        "name ",
        " name",
        "name.",
        "name/",
        "./name",
        "/name",
        "name\0",
        "name%00",
        "../svc/name",
        "..",
        ".",
        "%2e%2e/svc/name",
        "n\u{e4}me",
        "na\u{308}me",
        "name;",
        "name?",
    ];
    for trick in tricks {
        let path = format!("/files/svc/{}", escaped(trick));
        let (status, _) = agent.fetch(get(&path)).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{trick:?}");
    }
    for path in [
        "/files/svc/../svc/name",
        "/files/./svc/name",
        "/files//svc/name",
        "/files/svc//name",
        "/files/SVC/name",
        "/files/svc/name/",
        "/files/svc/name%00",
        "/files/svc/%252e%252e%252fname",
        &format!("/files/svc/{}", "x".repeat(1024)),
    ] {
        let (status, _) = agent.fetch(get(path)).await;
        let refused = [StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST];
        assert!(refused.contains(&status), "{path}: {status}");
    }
    // Each is a file of its own, or no name at all.
    let mut admin = bed.admin().await;
    let mut stored = 0;
    for trick in tricks.into_iter().chain(["x".repeat(1024).as_str()]) {
        let request = StoreFileRequest {
            service_name: "svc".to_owned(),
            file_name: trick.to_owned(),
            data: trick.to_owned().into(),
        };
        match admin.store_file(request).await {
            Ok(_) => {
                let path = format!("/files/svc/{}", escaped(trick));
                let found = agent.fetch(get(&path)).await;
                assert_eq!(found, (StatusCode::OK, trick.to_owned().into()));
                stored += 1;
            }
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{trick:?}"),
        }
    }
    assert!(stored >= 16, "{stored}");
    let real = agent.fetch(get("/files/svc/name")).await;
    assert_eq!(real, (StatusCode::OK, "the real one".into()));
}
