//! Which server the agents trust.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

/// Verifies a certificate once for all agents of a fleet: the machines of a real
/// one do that each for themselves, these take the time from the server.
///
/// That the server has the certificate's key is verified in each handshake.
#[derive(Debug)]
pub(crate) struct OnceVerified {
    inner: Arc<WebPkiServerVerifier>,
    verified: Mutex<Option<CertificateDer<'static>>>,
}

impl OnceVerified {
    /// Serves agents that connect to one name.
    pub(crate) fn new(inner: Arc<WebPkiServerVerifier>) -> Self {
        Self {
            inner,
            verified: Mutex::default(),
        }
    }
}

impl ServerCertVerifier for OnceVerified {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified().as_ref() == Some(certificate) {
            return Ok(ServerCertVerified::assertion());
        }
        let answer = self
            .inner
            .verify_server_cert(certificate, intermediates, name, ocsp, now)?;
        *verified() = Some(certificate.clone().into_owned());
        Ok(answer)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
