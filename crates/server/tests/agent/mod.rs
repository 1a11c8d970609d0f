//! An agent for tests, made of what stock agents are made of: a key, a
//! certificate of its own making, HTTP over TLS, polls and streams.
//!
//! It shares nothing with the server but the wire types.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses a part of it"
)]

mod fleet;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::{
    Address, ContactData, Message, MessageAckData, WrappedContactData,
};
use fleethold_proto::pack;
use fleethold_store::ClientId;
use http::header::HOST;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    PublicKeyData, date_time_ymd,
};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) use fleet::Fleet;
pub(crate) use stream::{AgentStream, MAGIC, StreamOptions, chunked};

/// The longest anything in a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The body of a request.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Waits, but not for ever.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited too long for {what}"),
    }
}

/// What a server needs to be trusted by agents of the same authority.
pub(crate) struct Authority {
    root: CertificateDer<'static>,
    /// The server's certificate, for `localhost`.
    pub(crate) certificates_pem: String,
    /// Its key.
    pub(crate) key_pem: String,
}

impl Authority {
    /// Makes an authority and a certificate for a server with a P-256 key.
    pub(crate) fn new() -> Self {
        Self::for_key(&KeyPair::generate().unwrap())
    }

    /// Makes an authority that agents trust and that certifies no server.
    pub(crate) fn trusted(root: CertificateDer<'static>) -> Self {
        Self {
            root,
            certificates_pem: String::new(),
            key_pem: String::new(),
        }
    }

    /// Returns the authority's certificate.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Makes an authority and a certificate for a server with the given key.
    pub(crate) fn for_key(server_key: &KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "fleet");
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let server = CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .signed_by(server_key, &issuer)
            .unwrap();
        Self {
            root: root.der().clone(),
            certificates_pem: server.pem(),
            key_pem: server_key.serialize_pem(),
        }
    }
}

/// One agent: a key and where it finds its server.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) id: ClientId,
    pub(crate) labels: Vec<String>,
    /// The certificate the agent has made itself.
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// Added to every request.
    pub(crate) headers: HeaderMap,
    /// Written before anything else.
    preface: Bytes,
    cleartext: bool,
    server: SocketAddr,
    certificates: Option<Arc<dyn ResolvesClientCert>>,
    versions: Vec<&'static SupportedProtocolVersion>,
    roots: Arc<RootCertStore>,
}

impl Agent {
    /// Makes an agent with a new P-256 key.
    pub(crate) fn new(server: SocketAddr, authority: &Authority) -> Self {
        Self::with_key(server, authority, &KeyPair::generate().unwrap())
    }

    /// Makes an agent with the given key.
    pub(crate) fn with_key(server: SocketAddr, authority: &Authority, key: &KeyPair) -> Self {
        let id = ClientId::from_public_key(&key.subject_public_key_info());
        let certificate = self_made_certificate(key);
        Self {
            id,
            certificate: Some(certificate.clone()),
            ..Self::without_certificate(server, authority)
        }
        .presenting(vec![certificate], key)
    }

    /// Makes an agent that presents no certificate.
    pub(crate) fn without_certificate(server: SocketAddr, authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.root.clone()).unwrap();
        Self {
            id: ClientId::new([0; 8]),
            labels: vec!["linux".to_owned()],
            certificate: None,
            headers: HeaderMap::new(),
            preface: Bytes::new(),
            cleartext: false,
            server,
            certificates: None,
            versions: rustls::DEFAULT_VERSIONS.to_vec(),
            roots: Arc::new(roots),
        }
    }

    /// Presents these certificates and signs with this key, whether they belong
    /// together or not.
    pub(crate) fn presenting(self, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let certified = Arc::new(CertifiedKey::new(chain, key));
        self.resolving(Arc::new(Presents(certified)))
    }

    /// Lets `resolver` choose the certificate.
    pub(crate) fn resolving(mut self, resolver: Arc<dyn ResolvesClientCert>) -> Self {
        self.certificates = Some(resolver);
        self
    }

    /// Speaks only this version of TLS.
    pub(crate) fn speaking(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
    }

    /// Presents no certificate.
    pub(crate) fn presenting_none(mut self) -> Self {
        self.certificates = None;
        self
    }

    /// Connects without TLS, as a proxy does in the cleartext modes.
    pub(crate) fn in_cleartext(mut self) -> Self {
        self.cleartext = true;
        self
    }

    /// Writes this before TLS, as a proxy does.
    pub(crate) fn behind(mut self, preface: impl Into<Bytes>) -> Self {
        self.preface = preface.into();
        self
    }

    /// Opens a TCP connection.
    async fn tcp(&self) -> io::Result<TcpStream> {
        let mut tcp = TcpStream::connect(self.server).await?;
        tcp.set_nodelay(true)?;
        tcp.write_all(&self.preface).await?;
        Ok(tcp)
    }

    /// Opens a TLS connection that offers these protocols.
    pub(crate) async fn tls(&self, protocols: &[&str]) -> io::Result<TlsStream<TcpStream>> {
        let tcp = self.tcp().await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(self.tls_config(protocols)))
            .connect(name, tcp)
            .await
    }

    /// Returns what the agent sends first.
    pub(crate) fn client_hello(&self) -> Vec<u8> {
        let config = Arc::new(self.tls_config(&["http/1.1"]));
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = rustls::ClientConnection::new(config, name).unwrap();
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).unwrap();
        hello
    }

    fn tls_config(&self, protocols: &[&str]) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(Arc::clone(&self.roots));
        let mut config = match &self.certificates {
            Some(resolver) => builder.with_client_cert_resolver(Arc::clone(resolver)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config
    }

    /// Opens an HTTP connection.
    pub(crate) async fn connect(&self, version: Version) -> Connection {
        soon("a connection", self.try_connect(version))
            .await
            .unwrap()
    }

    /// Opens an HTTP connection, if the server lets it.
    pub(crate) async fn try_connect(&self, version: Version) -> io::Result<Connection> {
        if version == Version::HTTP_2 {
            let tls = TokioIo::new(self.tls(&["h2", "http/1.1"]).await?);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), tls)
                .await
                .map_err(io::Error::other)?;
            return Ok(Connection {
                sender: Sender::Http2(sender),
                task: tokio::spawn(async { drop(connection.await) }),
            });
        }
        if self.cleartext {
            return over_http1(self.tcp().await?).await;
        }
        over_http1(self.tls(&["http/1.1"]).await?).await
    }

    /// Sends one request over a connection of its own.
    pub(crate) async fn request(&self, mut request: Request<RequestBody>) -> Response<Incoming> {
        request.headers_mut().extend(self.headers.clone());
        let mut connection = self.connect(request.version()).await;
        soon("an answer", connection.send(request)).await.unwrap()
    }

    /// Sends one request and returns status and body.
    pub(crate) async fn fetch(&self, request: Request<RequestBody>) -> (StatusCode, Bytes) {
        let response = self.request(request).await;
        let status = response.status();
        let body = soon("the rest of an answer", response.into_body().collect()).await;
        (status, body.unwrap().to_bytes())
    }

    /// Polls with this contact; panics unless the server accepts it.
    pub(crate) async fn poll(&self, contact: &ContactData) -> ContactData {
        let (status, body) = self.fetch(post("/message", self.wrap(contact))).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        ContactData::decode(body).unwrap()
    }

    /// Opens a stream; panics unless the server accepts it.
    pub(crate) async fn stream(&self, options: StreamOptions) -> AgentStream {
        let first = self.wrapped(&ContactData::default());
        AgentStream::open(self, options, &first)
            .await
            .unwrap_or_else(|status| panic!("the server answered {status}"))
    }

    /// Opens a stream with this first record, or returns the server's refusal.
    pub(crate) async fn try_stream(
        &self,
        options: StreamOptions,
        first: &WrappedContactData,
    ) -> Result<AgentStream, StatusCode> {
        AgentStream::open(self, options, first).await
    }

    /// Wraps contact data as the body of a poll.
    pub(crate) fn wrap(&self, contact: &ContactData) -> Vec<u8> {
        self.wrapped(contact).encode_to_vec()
    }

    /// Wraps contact data with the agent's labels.
    pub(crate) fn wrapped(&self, contact: &ContactData) -> WrappedContactData {
        WrappedContactData {
            contact_data: contact.encode_to_vec().into(),
            client_labels: self.labels.clone(),
            ..WrappedContactData::default()
        }
    }
}

async fn over_http1<T>(io: T) -> io::Result<Connection>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(io::Error::other)?;
    Ok(Connection {
        sender: Sender::Http1(sender),
        task: tokio::spawn(async { drop(connection.await) }),
    })
}

/// Makes a certificate as a stock agent does: no extensions, valid in year 1.
pub(crate) fn self_made_certificate(key: &KeyPair) -> CertificateDer<'static> {
    let id = ClientId::from_public_key(&key.subject_public_key_info());
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1, 1, 1);
    params.not_after = date_time_ymd(1, 1, 1);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, id.to_string());
    params.self_signed(key).unwrap().der().clone()
}

/// Presents one certified key to whoever asks.
#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// An HTTP connection of either version.
pub(crate) struct Connection {
    sender: Sender,
    task: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

impl Connection {
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Returns when the server has closed the connection.
    pub(crate) async fn closed(&mut self) {
        let ended = soon("the end of a connection", &mut self.task).await;
        ended.expect("the connection's task does not panic");
    }
}

/// Makes a request over HTTP/1.1.
pub(crate) fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<RequestBody> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .body(full(body))
        .unwrap()
}

/// Makes a GET request over HTTP/1.1.
pub(crate) fn get(path: &str) -> Request<RequestBody> {
    request("GET", path, Bytes::new())
}

/// Makes a POST request over HTTP/1.1.
pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<RequestBody> {
    request("POST", path, body)
}

/// Makes a request one over HTTP/2.
pub(crate) fn over_http2(mut request: Request<RequestBody>) -> Request<RequestBody> {
    *request.version_mut() = Version::HTTP_2;
    let uri = format!("https://localhost{}", request.uri());
    *request.uri_mut() = uri.parse().unwrap();
    request.headers_mut().remove(HOST);
    request
}

/// Makes a body of known length.
pub(crate) fn full(body: impl Into<Bytes>) -> RequestBody {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Makes a message from a service of an agent to a service of the server.
pub(crate) fn message(to: &str, number: u32) -> Message {
    Message {
        source: Some(Address {
            service_name: "hello".to_owned(),
            ..Address::default()
        }),
        source_message_id: number.to_be_bytes().to_vec().into(),
        destination: Some(Address {
            service_name: to.to_owned(),
            ..Address::default()
        }),
        message_type: "greeting".to_owned(),
        ..Message::default()
    }
}

/// Makes an agent's acknowledgement of the message with this id.
pub(crate) fn acknowledgement(of: &Bytes) -> Message {
    Message {
        source_message_id: of.clone(),
        message_type: "MessageAck".to_owned(),
        data: Some(pack(&MessageAckData {
            message_ids: vec![of.clone()],
        })),
        ..message("system", 0)
    }
}
