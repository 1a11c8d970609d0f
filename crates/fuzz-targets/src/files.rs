//! What is read from configuration files, command lines and requests for files.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use fleethold_proto::fleetspeak::{ClientServiceConfig, client, components, server};
use fleethold_proto::{Name, text};
use fleethold_server::Config;
use fleethold_server::config::{ConfigText, split_listen};
use fleethold_server::fuzzing::{file_of, read_target, serve_file};
use fleethold_store::{AllocationId, BroadcastId, ClientId, IdError, MessageId};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, IF_MODIFIED_SINCE, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};

use crate::memory::bounded;
use crate::split_mode;
use crate::store_url::StoreUrl;

/// What reading a configuration takes whatever its length, and how many times
/// more than other input it may take: two characters are a whole message. Only
/// an operator writes it, and 37 times its length is the worst that was found.
const CONFIG_CONSTANT_BYTES: usize = 256 * 1024;
const CONFIG_FACTOR: usize = 8;

/// What reading a name or an address takes whatever its length.
const TEXT_CONSTANT_BYTES: usize = 4 * 1024;

/// Text-format configuration: byte 0 chooses the file, the others are its text.
pub fn config(input: &[u8]) {
    let Some((kind, rest)) = split_mode(input) else {
        return;
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    match kind % 5 {
        0 => server_files(text),
        1 => text_format::<server::ServerConfig>(text),
        2 => text_format::<components::Config>(text),
        3 => text_format::<client::CommunicatorConfig>(text),
        _ => text_format::<ClientServiceConfig>(text),
    }
}

/// Ids as bytes and as text.
pub fn ids(input: &[u8]) {
    id::<ClientId>(input, ClientId::BYTES);
    id::<MessageId>(input, MessageId::BYTES);
    id::<BroadcastId>(input, BroadcastId::BYTES);
    id::<AllocationId>(input, AllocationId::BYTES);
    if let Ok(text) = std::str::from_utf8(input) {
        let optional = ClientId::parse_optional(text);
        match text {
            "" | "nil" => assert_eq!(optional, Ok(None)),
            _ => assert_eq!(optional, text.parse().map(Some)),
        }
    }
    let optional = ClientId::from_optional_bytes(input);
    match input {
        [] => assert_eq!(optional, Ok(None)),
        _ => assert_eq!(optional, ClientId::try_from(input).map(Some)),
    }
}

/// Where to listen, where a service is, and which store to open.
pub fn addresses(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let listen = bounded(text.len(), TEXT_CONSTANT_BYTES, || split_listen(text));
    if let Ok((host, port)) = listen {
        let joined = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        assert_eq!(split_listen(&joined), Ok((host, port)));
    }
    let target = bounded(text.len(), TEXT_CONSTANT_BYTES, || read_target(text));
    if let Ok(target) = target {
        assert_eq!(read_target(&target).as_ref(), Ok(&target));
    }
    let url = bounded(text.len(), TEXT_CONSTANT_BYTES, || text.parse::<StoreUrl>());
    match url {
        Ok(StoreUrl::Sqlite(path)) => {
            let path = path.to_str().expect("it was text");
            assert!(!path.is_empty() && text.starts_with("sqlite:") && text.ends_with(path));
        }
        Ok(StoreUrl::Postgres(url)) => assert_eq!(url.0, text),
        Ok(StoreUrl::Mysql(name)) => {
            assert!(text.ends_with(name.expose()));
            assert!(name.to_string().len() <= text.len());
        }
        // At most the part before the first colon, which holds no password.
        Err(error) => {
            let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
            assert!(error.len() <= scheme.len() + 120, "{error}");
        }
    }
}

/// A download: the path, then the headers `Range`, `If-Modified-Since` and
/// `If-Range`, each on a line of its own.
pub fn download(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let path = lines.next().and_then(|path| std::str::from_utf8(path).ok());
    if let Some(path) = path {
        let file = bounded(path.len(), TEXT_CONSTANT_BYTES, || file_of(path));
        if let Some((service, name)) = file {
            let again = format!("/files/{}/{}", encoded(&service), encoded(&name));
            assert_eq!(file_of(&again), Some((service, name)));
        }
    }
    let mut headers = HeaderMap::new();
    for (name, line) in [RANGE, IF_MODIFIED_SINCE, IF_RANGE].into_iter().zip(lines) {
        match HeaderValue::from_bytes(line) {
            Ok(value) if !line.is_empty() => headers.insert(name, value),
            _ => None,
        };
    }
    let content = Bytes::from_iter((0..1_000_u32).map(|n| n.to_le_bytes()[0]));
    let modified = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let reply = serve_file(&headers, modified, content.clone());
    match reply.status {
        200 => assert_eq!(reply.body, content),
        206 => {
            let range = reply.headers[CONTENT_RANGE].to_str().expect("text");
            let (first, last) = range
                .strip_prefix("bytes ")
                .and_then(|range| range.strip_suffix("/1000"))
                .and_then(|range| range.split_once('-'))
                .expect("a range of the file");
            let number = |text: &str| text.parse::<usize>().expect("a number");
            assert_eq!(reply.body, content[number(first)..=number(last)]);
        }
        304 | 416 => assert!(reply.body.is_empty()),
        status => panic!("status {status}"),
    }
    if let Some(length) = reply.headers.get(CONTENT_LENGTH) {
        assert_eq!(length, &HeaderValue::from(reply.body.len()));
    }
}

/// A components file and, after a zero byte, a services file.
fn server_files(text: &str) {
    let (components, services) = match text.split_once('\0') {
        Some((components, services)) => (components, Some(services)),
        None => (text, None),
    };
    fn file(text: &str) -> ConfigText<'_> {
        ConfigText {
            path: Path::new("file"),
            text,
        }
    }
    match Config::from_upstream(&file(components), services.map(file).as_ref()) {
        Ok(upstream) => {
            let names = || upstream.config.services.iter().map(|service| &service.name);
            for name in names() {
                assert_eq!(names().filter(|other| *other == name).count(), 1);
            }
        }
        Err(error) => assert!(!error.hint().is_empty()),
    }
}

/// What is read is printed as text that is read alike.
fn text_format<M: prost::Message + Name + Default>(text: &str) {
    static DESCRIPTORS: LazyLock<()> = LazyLock::new(|| {
        let empty = text::parse::<client::CommunicatorConfig>("");
        empty.map(drop).expect("no field is required");
    });
    LazyLock::force(&DESCRIPTORS);
    let message = bounded(CONFIG_FACTOR * text.len(), CONFIG_CONSTANT_BYTES, || {
        text::parse::<M>(text)
    });
    match message {
        Ok(message) => {
            let printed = text::print(&message);
            let again = text::parse::<M>(&printed);
            let again = again.unwrap_or_else(|error| panic!("{error} in:\n{printed}"));
            // Not the messages themselves: NaN differs from NaN.
            assert_eq!(again.encode_to_vec(), message.encode_to_vec(), "{printed}");
        }
        Err(error) => {
            assert!(
                (1..=text.split('\n').count()).contains(&error.line()),
                "{error}"
            );
            assert!(
                (1..=text.chars().count() + 1).contains(&error.column()),
                "{error}"
            );
        }
    }
}

fn id<I>(input: &[u8], bytes: usize)
where
    I: for<'a> TryFrom<&'a [u8], Error = IdError>
        + FromStr<Err = IdError>
        + Display
        + Debug
        + PartialEq
        + AsRef<[u8]>,
{
    match bounded(0, TEXT_CONSTANT_BYTES, || I::try_from(input)) {
        Ok(id) => {
            assert_eq!(id.as_ref(), input);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        Err(error) => assert!(input.len() != bytes && !error.to_string().is_empty()),
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let is_hex = text.len() == 2 * bytes && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match bounded(0, TEXT_CONSTANT_BYTES, || text.parse::<I>()) {
        Ok(id) => assert!(is_hex && id.to_string() == text.to_ascii_lowercase()),
        Err(_) => assert!(!is_hex),
    }
}

/// Encodes every byte twice, as agents do with those that need it.
fn encoded(name: &str) -> String {
    name.bytes().map(|byte| format!("%25{byte:02X}")).collect()
}
