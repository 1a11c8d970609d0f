//! Downloads (protocol specification section 2.11).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fleethold_store::{ErrorKind, StoredFile};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::connection::Connection;
use super::percent;
use super::reply::{Refusal, Reply, nothing, octets};

/// Each label of an agent, in a header line of its own.
const LABELS: HeaderName = HeaderName::from_static("x-fleetspeak-labels");

/// The list every agent asks for, whether there is one or not.
const REVOKED_CERTIFICATES: (&str, &str) = ("system", "RevokedCertificates");

/// Serves a file.
pub(super) async fn serve(
    connection: &Connection,
    request: &Request<Incoming>,
) -> Result<Reply, Refusal> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "the method must be GET or HEAD",
        ));
    }
    let (service, name) = file_of(request.uri().path())
        .ok_or_else(|| Refusal::bad_request("the path must be /files/<service>/<name>"))?;
    let shared = &connection.shared;
    if shared.options.authorize_files {
        let labels: Vec<String> = request
            .headers()
            .get_all(LABELS)
            .iter()
            .map(|label| String::from_utf8_lossy(label.as_bytes()).into_owned())
            .collect();
        if connection.identify(request.headers()).is_err() || !shared.contacts.file_allowed(&labels)
        {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "not authorized"));
        }
    }
    let file = shared.downloads.open(connection, &service, &name).await;
    let (modified, content) = match file {
        Ok(file) => (Some(file.modified), content(file)),
        Err(error) if is_missing(error.kind()) => {
            if (&*service, &*name) != REVOKED_CERTIFICATES {
                return Err(Refusal::new(StatusCode::NOT_FOUND, "no such file"));
            }
            // No list means none revoked; a 404 would fill the agents' logs.
            (None, Bytes::new())
        }
        Err(error) => {
            return Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                crate::chain(&error),
            ));
        }
    };
    Ok(reply(
        request.method(),
        request.headers(),
        modified,
        content,
    ))
}

/// Returns whether there is no file, or can be none with such a name.
fn is_missing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::InvalidArgument)
}

/// The files that are being downloaded: a file is in memory once, however many
/// agents read it and however slowly.
#[derive(Default)]
pub(super) struct Downloads(Mutex<HashMap<(String, String), Weak<StoredFile>>>);

impl Downloads {
    async fn open(
        &self,
        connection: &Connection,
        service: &str,
        name: &str,
    ) -> fleethold_store::Result<Arc<StoredFile>> {
        let store = &connection.shared.contacts.engine.store;
        let key = (service.to_owned(), name.to_owned());
        let known = self.with(|open| open.get(&key).and_then(Weak::upgrade));
        if let Some(file) = known
            && file.modified == store.stat_file(service, name).await?
        {
            return Ok(file);
        }
        let file = Arc::new(store.read_file(service, name).await?);
        self.with(|open| {
            open.retain(|_, file| file.strong_count() > 0);
            open.insert(key, Arc::downgrade(&file));
        });
        Ok(file)
    }

    fn with<T>(
        &self,
        use_open: impl FnOnce(&mut HashMap<(String, String), Weak<StoredFile>>) -> T,
    ) -> T {
        use_open(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns a file's content; the file counts as open as long as that exists.
fn content(file: Arc<StoredFile>) -> Bytes {
    struct Open(Arc<StoredFile>);

    impl AsRef<[u8]> for Open {
        fn as_ref(&self) -> &[u8] {
            &self.0.content
        }
    }

    Bytes::from_owner(Open(file))
}

/// Makes the answer for a file that exists: all of it, a part, or nothing new.
pub(super) fn reply(
    method: &Method,
    headers: &HeaderMap,
    modified: Option<SystemTime>,
    content: Bytes,
) -> Reply {
    let modified = modified.and_then(http_date);
    let date_of = |name| {
        let text = headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())?;
        httpdate::parse_http_date(text).ok()
    };
    let unchanged = modified
        .zip(date_of(IF_MODIFIED_SINCE))
        .is_some_and(|(modified, since)| modified <= since);
    // A part is of no use if the client has parts of another version.
    let same_version = !headers.contains_key(IF_RANGE) || date_of(IF_RANGE) == modified;
    let range = match headers.get(RANGE) {
        Some(range) if same_version => requested_range(range.as_bytes(), content.len()),
        _ => Requested::Whole,
    };

    let total = content.len();
    let (status, part) = match range {
        _ if unchanged => (StatusCode::NOT_MODIFIED, 0..0),
        Requested::Whole => (StatusCode::OK, 0..total),
        Requested::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Requested::Outside => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
    };
    let mut reply = octets(Full::new(content.slice(part.clone())));
    *reply.status_mut() = status;
    if *method == Method::HEAD {
        *reply.body_mut() = nothing();
    }
    let headers = reply.headers_mut();
    let text = |text: String| HeaderValue::from_str(&text).expect("digits and ASCII text");
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(modified) = modified {
        headers.insert(LAST_MODIFIED, text(httpdate::fmt_http_date(modified)));
    }
    match status {
        StatusCode::PARTIAL_CONTENT => {
            let range = format!("bytes {}-{}/{total}", part.start, part.end - 1);
            headers.insert(CONTENT_RANGE, text(range));
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            headers.insert(CONTENT_RANGE, text(format!("bytes */{total}")));
        }
        _ => {}
    }
    if status != StatusCode::NOT_MODIFIED {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(part.len()));
    }
    reply
}

/// Returns a time in whole seconds, if HTTP can express it.
fn http_date(time: SystemTime) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    (seconds < YEAR_10000).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Requested {
    Whole,
    Part(Range<usize>),
    Outside,
}

/// Reads a `Range` header; what is malformed or asks for several parts gets
/// the whole file, which HTTP allows.
fn requested_range(header: &[u8], total: usize) -> Requested {
    let bounds = std::str::from_utf8(header)
        .ok()
        .and_then(|text| text.strip_prefix("bytes="))
        .and_then(|range| range.trim().split_once('-'));
    let Some((first, last)) = bounds else {
        return Requested::Whole;
    };
    let number = |text: &str| -> Option<usize> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than fit mean more bytes than there are.
        digits.then(|| text.parse().unwrap_or(usize::MAX))
    };
    let part = match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => first..total,
        (None, Some(count)) if first.is_empty() => total.saturating_sub(count)..total,
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(total),
        _ => return Requested::Whole,
    };
    if part.start < part.end {
        Requested::Part(part)
    } else {
        Requested::Outside
    }
}

/// Reads service and name from a path; agents encode both twice.
pub(super) fn file_of(path: &str) -> Option<(String, String)> {
    let path = percent::decoded(path)?;
    let mut parts = path.strip_prefix('/')?.split('/');
    let (Some("files"), Some(service), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    Some((percent::decoded(service)?, percent::decoded(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_180_names_are_decoded_twice() {
        for (path, service, name) in [
            (
                "/files/system/RevokedCertificates",
                "system",
                "RevokedCertificates",
            ),
            ("/files/a%2520b/c%252Fd", "a b", "c/d"),
            ("/files/my%20svc/x", "my svc", "x"),
            ("/files/s/100%2525", "s", "100%"),
            ("/files/s/a+b", "s", "a+b"),
            ("/files/s/%25C3%25A4", "s", "ä"),
            ("/files/s/%C3%A4", "s", "ä"),
            ("/files/s/..%252F..", "s", "../.."),
            ("/files/s/", "s", ""),
            ("/files//x", "", "x"),
        ] {
            let expected = Some((service.to_owned(), name.to_owned()));
            assert_eq!(file_of(path), expected, "{path}");
        }
    }

    #[test]
    fn p_181_other_shapes_and_bad_escapes_name_no_file() {
        for path in [
            "/files/",
            "/files/a",
            "/files/a/b/c",
            "/files/a%2Fb/c",
            "/files/a/%",
            "/files/a/%4",
            "/files/a/%zz",
            "/files/a/%25zz",
            "/files/a/%25F",
            "/files/a/%FF",
            "/files/a/%25FF",
            "/files/a/%+1",
        ] {
            assert_eq!(file_of(path), None, "{path}");
        }
    }

    #[test]
    fn p_182_ranges_are_cut_to_the_file() {
        use Requested::{Outside, Part, Whole};
        for (header, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=2-4", Part(2..5)),
            ("bytes=2-", Part(2..10)),
            ("bytes=-3", Part(7..10)),
            ("bytes=-30", Part(0..10)),
            ("bytes=9-99999999999999999999", Part(9..10)),
            ("bytes=10-", Outside),
            ("bytes=10-12", Outside),
            ("bytes=-0", Outside),
            ("bytes=4-2", Whole),
            ("bytes=0-1,4-5", Whole),
            ("bytes=-", Whole),
            ("bytes=+1-2", Whole),
            ("lines=1-2", Whole),
        ] {
            assert_eq!(requested_range(header.as_bytes(), 10), expected, "{header}");
        }
        assert_eq!(requested_range(b"bytes=0-", 0), Outside);
    }
}
