//! The floor of every server for agents: TLS with certificates on both sides,
//! HTTP of the same library, and nothing behind.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::systems::Authority;

/// Serves until it is killed, and answers everything with `status`; prints its
/// address. `directory` holds the certificate and its key.
///
/// # Errors
/// If the files are missing, the status is none, or loopback has no free port.
#[expect(clippy::print_stdout, reason = "tells the process that started it")]
pub async fn serve(directory: &Path, status: u16) -> Result<()> {
    let status = StatusCode::from_u16(status)?;
    let read = |name: &str| std::fs::read(directory.join(name));
    let certificate =
        CertificateDer::from_pem_slice(&read("certificate.pem")?).context("no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&read("key.pem")?).context("no key")?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AnyKey(provider)))
        .with_single_cert(vec![certificate], key)?;
    tls.send_tls13_tickets = 0;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (tcp, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let _no_delay = tcp.set_nodelay(true);
            let Ok(tls) = acceptor.accept(tcp).await else {
                return;
            };
            let service = service_fn(async |request: http::Request<hyper::body::Incoming>| {
                let _read = request.into_body().collect().await;
                let mut answer = Response::new(Full::new(Bytes::new()));
                *answer.status_mut() = status;
                Ok::<_, Infallible>(answer)
            });
            let serving = http1::Builder::new().serve_connection(TokioIo::new(tls), service);
            let _ended = serving.await;
        });
    }
}

/// The echo in a process of its own; killed when dropped.
pub(crate) struct Echo {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: String,
}

impl Echo {
    /// Starts this program with the hidden command that calls [`serve`].
    pub(crate) fn start(program: &Path, directory: &Path) -> Result<Self> {
        let authority = Authority::make()?;
        std::fs::write(
            directory.join("certificate.pem"),
            &authority.certificate_pem,
        )?;
        std::fs::write(directory.join("key.pem"), &authority.key_pem)?;
        let directory: PathBuf = directory.to_owned();
        let mut child = Command::new(program)
            .args(["bench", "echo", "--directory"])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the echo")?;
        let mut line = String::new();
        let output = child.stdout.take().context("the echo has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().context("the echo did not start");
        Ok(Self {
            child,
            address: address?,
            ca_pem: authority.ca_pem,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Accepts whoever holds the key of the certificate they present.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
