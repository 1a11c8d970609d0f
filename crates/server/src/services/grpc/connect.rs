//! Connections to services: TCP or Unix, plain or with TLS.
//!
//! tonic's own connector refuses the self-signed certificates that stock
//! set-ups commonly use, see [`Verifier`].

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::target::Target;

/// How long one address of a host may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the service may take for its part of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes connections to one service.
#[derive(Clone)]
pub(super) struct Connector {
    target: Target,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    server_name: ServerName<'static>,
}

impl Connector {
    /// Makes unencrypted connections.
    pub(super) fn plain(target: Target) -> Self {
        Self { target, tls: None }
    }

    /// Makes TLS connections to a service that has one of the certificates in
    /// a PEM file, or one that was signed with them.
    pub(super) fn tls(target: Target, cert_file: &Path) -> Result<Self, String> {
        let path = cert_file.display();
        let pem = fs::read(cert_file).map_err(|error| format!("cannot read `{path}`: {error}"))?;
        let trusted = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("`{path}` is not PEM: {error}"))?;
        let verifier = Verifier::new(trusted)
            .map_err(|error| format!("cannot trust the certificates in `{path}`: {error}"))?;
        let server_name = ServerName::try_from(target.server_name().to_owned())
            .map_err(|_| format!("`{}` cannot be in a certificate", target.server_name()))?;
        Ok(Self {
            target,
            tls: Some(Tls {
                connector: TlsConnector::from(Arc::new(verifier.into_config())),
                server_name,
            }),
        })
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    async fn connect(self) -> io::Result<TokioIo<Box<dyn Io>>> {
        let plain: Box<dyn Io> = match &self.target {
            Target::Tcp { host, port } => Box::new(connect_tcp(host, *port).await?),
            Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        let Some(tls) = self.tls else {
            return Ok(TokioIo::new(plain));
        };
        let handshake = tls.connector.connect(tls.server_name, plain);
        let encrypted = timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long"))?;
        Ok(TokioIo::new(Box::new(encrypted?)))
    }
}

impl tonic::codegen::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _placeholder: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// A connection of any kind.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Tries the addresses of a host one after the other.
async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in lookup_host((host, port)).await? {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::Error::new(io::ErrorKind::TimedOut, "no connection in time"),
        }
    }
    Err(failure)
}

/// Trusts the given certificates, also as the service's own.
///
/// A self-signed certificate is usually marked as a CA's. Upstream accepts such
/// a service; rustls alone does not, as the standard for the web forbids it.
#[derive(Debug)]
struct Verifier {
    trusted: Vec<CertificateDer<'static>>,
    web: Arc<WebPkiServerVerifier>,
}

impl Verifier {
    fn new(trusted: Vec<CertificateDer<'static>>) -> Result<Self, Box<dyn std::error::Error>> {
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            roots.add(certificate.clone())?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let web = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { trusted, web })
    }

    fn into_config(self) -> ClientConfig {
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("the provider has TLS 1.2 and 1.3")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(self))
                .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.trusted.contains(end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            check_dates(end_entity, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.web
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}

fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs())
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok())
        .ok_or(CertificateError::Expired)?;
    if now < certificate.validity().not_before {
        return Err(CertificateError::NotValidYet);
    }
    if now > certificate.validity().not_after {
        return Err(CertificateError::Expired);
    }
    Ok(())
}
