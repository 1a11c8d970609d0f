//! A simulated agent and its connections.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use fleethold_proto::fleetspeak::{
    Address, ContactData, Message, MessageAckData, WrappedContactData,
};
use fleethold_proto::pack;
use http::header::{CONTENT_ENCODING, HOST};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::failure::Failure;
use super::identity::Identity;
use super::trust::OnceVerified;

/// The longest an agent waits for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// The longest an agent waits for an answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The service on the agents' side, and the one behind the server that counts.
pub const SERVICE: &str = "bench";
/// What real agents announce for each of their services.
pub(crate) const TOKENS: u64 = 100;

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// The version of HTTP that agents speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1, as stock agents do unless told otherwise.
    One,
    /// HTTP/2.
    Two,
}

/// What all agents of a fleet have in common.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) server: SocketAddr,
    name: ServerName<'static>,
    verifier: Arc<OnceVerified>,
    provider: Arc<CryptoProvider>,
    pub(crate) http: Http,
    pub(crate) deflate: bool,
    /// The service on the agents' side.
    pub(crate) service: &'static str,
}

impl Surroundings {
    /// Trusts the certificates in `ca_pem` for `name`.
    pub(crate) fn new(
        server: SocketAddr,
        name: &str,
        ca_pem: &[u8],
        http: Http,
        deflate: bool,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            let certificate = certificate.context("the file is no PEM")?;
            roots
                .add(certificate)
                .context("one of the certificates cannot be used")?;
        }
        if roots.is_empty() {
            bail!("it holds no certificate");
        }
        let mut provider = aws_lc_rs::default_provider();
        // Stock agents offer it first, and servers take the first they know.
        let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != first);
        let provider = Arc::new(provider);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .context("the certificates cannot be trusted")?;
        let verifier = Arc::new(OnceVerified::new(verifier));
        Ok(Self {
            server,
            name: ServerName::try_from(name.to_owned())
                .with_context(|| format!("`{name}` is no host name"))?,
            verifier,
            provider,
            http,
            deflate,
            service: SERVICE,
        })
    }

    /// Returns how an agent connects.
    fn tls(&self, identity: &Identity) -> Result<ClientConfig> {
        let mut tls = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier) as _)
            .with_client_cert_resolver(identity.resolver());
        tls.alpn_protocols = match self.http {
            Http::One => vec![b"http/1.1".to_vec()],
            Http::Two => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(tls)
    }
}

/// One agent; it enrols with its first contact.
#[derive(Debug)]
pub(crate) struct Agent {
    /// From 0, in the order of making.
    pub(crate) number: u32,
    pub(crate) identity: Arc<Identity>,
    around: Arc<Surroundings>,
    tls: Arc<ClientConfig>,
    state: Arc<State>,
}

/// What an agent remembers.
#[derive(Debug, Default)]
struct State {
    /// The nonce of the last contact.
    nonce: AtomicU64,
    /// Numbers the acknowledgements it sends, which need ids, too.
    acknowledgements: AtomicU32,
}

impl Agent {
    pub(crate) fn new(number: u32, around: &Arc<Surroundings>) -> Result<Self> {
        let identity = Identity::new()?;
        let tls = around.tls(&identity)?;
        Ok(Self {
            number,
            identity: Arc::new(identity),
            around: Arc::clone(around),
            tls: Arc::new(tls),
            state: Arc::default(),
        })
    }

    /// Returns the same agent, which talks to its server in another way.
    pub(crate) fn in_surroundings(
        self: &Arc<Self>,
        around: &Arc<Surroundings>,
    ) -> Result<Arc<Self>> {
        if Arc::ptr_eq(&self.around, around) {
            return Ok(Arc::clone(self));
        }
        Ok(Arc::new(Self {
            number: self.number,
            tls: Arc::new(around.tls(&self.identity)?),
            identity: Arc::clone(&self.identity),
            around: Arc::clone(around),
            state: Arc::clone(&self.state),
        }))
    }

    pub(crate) fn around(&self) -> &Surroundings {
        &self.around
    }

    /// Makes the acknowledgement of these messages, if there are any.
    pub(crate) fn acknowledge(&self, ids: Vec<Bytes>) -> Vec<Message> {
        if ids.is_empty() {
            return Vec::new();
        }
        let number = self.state.acknowledgements.fetch_add(1, Ordering::Relaxed);
        let address = |service: &str| {
            Some(Address {
                service_name: service.to_owned(),
                ..Address::default()
            })
        };
        vec![Message {
            source: address("system"),
            source_message_id: number.to_be_bytes().to_vec().into(),
            destination: address("system"),
            message_type: "MessageAck".to_owned(),
            data: Some(pack(&MessageAckData { message_ids: ids })),
            ..Message::default()
        }]
    }

    /// Opens a TLS connection.
    pub(crate) async fn tls(&self) -> Result<TlsStream<TcpStream>, Failure> {
        let connect = async {
            let tcp = TcpStream::connect(self.around.server)
                .await
                .map_err(|error| Failure::connection("TCP", &error))?;
            // Small requests must not wait for acknowledgements.
            tcp.set_nodelay(true)
                .map_err(|error| Failure::connection("TCP", &error))?;
            TlsConnector::from(Arc::clone(&self.tls))
                .connect(self.around.name.clone(), tcp)
                .await
                .map_err(|error| Failure::connection("TLS", &error))
        };
        Failure::within(CONNECT_LIMIT, "a connection", connect).await
    }

    /// Opens an HTTP connection.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let io = TokioIo::new(self.tls().await?);
        let http = |error: hyper::Error| Failure::connection("HTTP", &error);
        Ok(match self.around.http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await.map_err(http)?;
                Connection {
                    sender: Sender::One(sender),
                    _task: AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) })),
                }
            }
            Http::Two => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                    .await
                    .map_err(http)?;
                Connection {
                    sender: Sender::Two(sender),
                    _task: AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) })),
                }
            }
        })
    }

    /// Polls once over an open connection.
    pub(crate) async fn poll(
        &self,
        connection: &mut Connection,
        messages: Vec<Message>,
    ) -> Result<ContactData, Failure> {
        let body = self.wrap(self.contact(messages, true)).encode_to_vec();
        let exchange = async {
            let request = self.poll_request(body)?;
            let response = connection.send(request).await?;
            let status = response.status();
            let body = response
                .into_body()
                .collect()
                .await
                .map_err(|error| Failure::connection("HTTP", &error))?
                .to_bytes();
            if status != StatusCode::OK {
                return Err(Failure::Refused(status.as_u16()));
            }
            ContactData::decode(body).map_err(|_| Failure::Nonsense("an answer"))
        };
        let answer = Failure::within(ANSWER_LIMIT, "an answer", exchange).await?;
        self.state
            .nonce
            .store(answer.sequencing_nonce, Ordering::Relaxed);
        Ok(answer)
    }

    /// Makes contact data; `absolute` announces what the agent can take, as
    /// polls and the first records of streams do.
    pub(crate) fn contact(&self, messages: Vec<Message>, absolute: bool) -> ContactData {
        let mut contact = ContactData {
            sequencing_nonce: self.state.nonce.load(Ordering::Relaxed),
            messages,
            ..ContactData::default()
        };
        if absolute {
            for service in [self.around.service, "system"] {
                contact.allowed_messages.insert(service.to_owned(), TOKENS);
            }
        }
        contact
    }

    /// Remembers the nonce of a stream's first frame.
    pub(crate) fn note_nonce(&self, first: &ContactData) {
        self.state
            .nonce
            .store(first.sequencing_nonce, Ordering::Relaxed);
    }

    /// Wraps contact data with the agent's labels.
    pub(crate) fn wrap(&self, contact: ContactData) -> WrappedContactData {
        let parity = if self.number.is_multiple_of(2) {
            "even"
        } else {
            "odd"
        };
        WrappedContactData {
            contact_data: contact.encode_to_vec().into(),
            client_labels: ["linux", "bench", parity].map(str::to_owned).to_vec(),
            ..WrappedContactData::default()
        }
    }

    fn poll_request(&self, body: Vec<u8>) -> Result<Request<RequestBody>, Failure> {
        let body = match self.around.deflate {
            false => body,
            true => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                let written = encoder.write_all(&body).and_then(|()| encoder.finish());
                written.map_err(|_| Failure::Nonsense("own compression"))?
            }
        };
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
        Ok(self.request("/message", body.boxed_unsync()))
    }

    /// Makes a POST request for the agent's version of HTTP.
    pub(crate) fn request(&self, path: &str, body: RequestBody) -> Request<RequestBody> {
        let request = match self.around.http {
            Http::One => Request::post(path).header(HOST, "fleet"),
            Http::Two => Request::post(format!("https://fleet{path}")),
        };
        let request = match self.around.deflate {
            true => request.header(CONTENT_ENCODING, "deflate"),
            false => request,
        };
        request
            .body(body)
            .expect("method, path and headers are plain")
    }
}

/// An HTTP connection of either version; dropping it closes it.
pub(crate) struct Connection {
    sender: Sender,
    _task: AbortOnDropHandle<()>,
}

enum Sender {
    One(http1::SendRequest<RequestBody>),
    Two(http2::SendRequest<RequestBody>),
}

impl Connection {
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Failure> {
        let response = match &mut self.sender {
            Sender::One(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(request).await,
                Err(error) => Err(error),
            },
            Sender::Two(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(request).await,
                Err(error) => Err(error),
            },
        };
        response.map_err(|error| Failure::connection("HTTP", &error))
    }
}
