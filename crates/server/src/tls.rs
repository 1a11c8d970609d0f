//! TLS towards agents: whoever proves possession of a key is the client with
//! that key; who has signed the certificate does not matter.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fleethold_store::ClientId;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig, ServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

use crate::certificate;

/// A server certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The field with the certificates holds none.
    #[error(
        "no certificate in `certificates`; write the PEM text itself, beginning with \
         `-----BEGIN CERTIFICATE-----`, not the name of a file"
    )]
    NoCertificate,
    /// A certificate is damaged.
    #[error("certificate {number} in `certificates` is damaged; paste the whole PEM text again")]
    BadCertificate {
        /// Which of them, from 1.
        number: usize,
    },
    /// The field with the key holds none.
    #[error(
        "no private key in `key`; write the PEM text itself, beginning with \
         `-----BEGIN PRIVATE KEY-----`, `-----BEGIN EC PRIVATE KEY-----` or \
         `-----BEGIN RSA PRIVATE KEY-----`, not the name of a file"
    )]
    NoKey,
    /// The key needs a password.
    #[error("the private key in `key` is encrypted; write it without a password")]
    EncryptedKey,
    /// The key is damaged or of an unknown kind.
    #[error("the private key in `key` cannot be used; write an ECDSA, Ed25519 or RSA key")]
    BadKey(#[source] rustls::Error),
    /// The key belongs to another certificate.
    #[error(
        "the private key in `key` does not belong to the first certificate in `certificates`; \
         write the server's own certificate first, then its chain"
    )]
    OtherKey,
    /// The library refuses the settings.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// The certificate of a listener, which can be replaced while it serves.
#[derive(Clone, Debug)]
pub(crate) struct LiveCertificate(Arc<RwLock<Arc<CertifiedKey>>>);

impl LiveCertificate {
    /// Uses another certificate from the next handshake on.
    pub(crate) fn replace(&self, certificates_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        let certified = certified_key(&provider(), certificates_pem, key_pem)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
        Ok(())
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certified = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&certified))
    }
}

/// Returns the TLS settings for the agents' port.
pub(crate) fn server_config(
    certificates_pem: &str,
    key_pem: &str,
) -> Result<(ServerConfig, LiveCertificate), TlsError> {
    let provider = Arc::new(provider());
    let certified = certified_key(&provider, certificates_pem, key_pem)?;
    let certificate = LiveCertificate(Arc::new(RwLock::new(Arc::new(certified))));
    let verifier = Arc::new(AnyCertificate {
        provider: Arc::clone(&provider),
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certificate.clone()));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Agents never resume, and a resumed session would not prove the key again.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok((config, certificate))
}

/// Refuses a certificate or key that [`server_config`] could not use.
pub(crate) fn check(certificates_pem: &str, key_pem: &str) -> Result<(), TlsError> {
    certified_key(&provider(), certificates_pem, key_pem).map(|_| ())
}

/// Returns when the first of these certificates expires.
pub fn expiry(certificates_pem: &str) -> Option<SystemTime> {
    let leaf = CertificateDer::from_pem_slice(certificates_pem.as_bytes()).ok()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    let seconds = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Returns the client at the other end and its key (DER SubjectPublicKeyInfo),
/// if it presented exactly one certificate.
pub(crate) fn peer_identity(connection: &ServerConnection) -> Option<(ClientId, Bytes)> {
    match connection.peer_certificates()? {
        [certificate] => identity(certificate),
        _ => None,
    }
}

/// Returns the client that a certificate names by its key.
pub(crate) fn identity(certificate: &[u8]) -> Option<(ClientId, Bytes)> {
    let key = certificate::public_key(certificate)?;
    Some((ClientId::from_public_key(key), Bytes::copy_from_slice(key)))
}

/// Takes the key out of one of the server's own certificates and checks all of it.
fn own_public_key(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.tbs_certificate.subject_pki.raw)
}

/// The algorithms: TLS 1.3 as it comes, of TLS 1.2 what the stock server offers.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        ..default_provider()
    }
}

fn certified_key(
    provider: &CryptoProvider,
    certificates_pem: &str,
    key_pem: &str,
) -> Result<CertifiedKey, TlsError> {
    let chain = CertificateDer::pem_slice_iter(certificates_pem.as_bytes())
        .enumerate()
        .map(|(index, certificate)| {
            let damaged = TlsError::BadCertificate { number: index + 1 };
            match certificate {
                Ok(certificate) if own_public_key(&certificate).is_some() => Ok(certificate),
                _ => Err(damaged),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let leaf = chain.first().ok_or(TlsError::NoCertificate)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| match error {
        pem::Error::NoItemsFound if key_pem.contains("BEGIN ENCRYPTED PRIVATE KEY") => {
            TlsError::EncryptedKey
        }
        pem::Error::NoItemsFound => TlsError::NoKey,
        error => TlsError::BadKey(rustls::Error::General(error.to_string())),
    })?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(TlsError::BadKey)?;
    if let Some(public) = key.public_key()
        && own_public_key(leaf) != Some(&*public)
    {
        return Err(TlsError::OtherKey);
    }
    Ok(CertifiedKey::new(chain, key))
}

/// Accepts every certificate, but only with a valid signature made by its key.
///
/// Agents make their certificates themselves, with dates in year 1; the usual
/// verifiers refuse them.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        // Files may be downloaded without a certificate.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// The certificate of a stock agent: protocol specification, vector C.1.
    const AGENT_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBJzCBzaADAgECAgEBMAoGCCqGSM49BAMCMBsxGTAXBgNVBAoTEDdiYTc1ZGNm
YTQ2YzVlZGIwIhgPMDAwMTAxMDEwMDAwMDBaGA8wMDAxMDEwMTAwMDAwMFowGzEZ
MBcGA1UEChMQN2JhNzVkY2ZhNDZjNWVkYjBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABCyO5yxk3qeEYzoDcHnUu/HWq3Ev+rPwn9hWLb5i5p9erJ/vebuu3kLxGiRL
pFBniwi5+NNcqDb9D81ehbtZjecwCgYIKoZIzj0EAwIDSQAwRgIhAMMni/L1hLxD
EJvlHiGV20jm3EHUCG9no3Ay/gWkUsZ8AiEA49gd0sAhC6IT9KiAzeeWIgc3oUTb
CiDVOsUPoiS5L3M=
-----END CERTIFICATE-----
";

    fn certificate(key: &KeyPair) -> String {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.self_signed(key).unwrap().pem()
    }

    #[test]
    fn p_001_client_id_follows_from_the_key_of_a_stock_agent() {
        let certificate = CertificateDer::from_pem_slice(AGENT_CERTIFICATE.as_bytes()).unwrap();
        let (client, key) = identity(&certificate).unwrap();
        assert_eq!(client.to_string(), "7ba75dcfa46c5edb");
        assert_eq!(client, ClientId::from_public_key(&key));
    }

    #[test]
    fn unreadable_certificate_names_no_client() {
        assert_eq!(identity(b"no certificate"), None);
    }

    #[test]
    fn errors_name_the_field_and_what_to_write() {
        let key = KeyPair::generate().unwrap();
        let good = certificate(&key);
        let damaged = good.replace("MII", "AII");
        let other = KeyPair::generate().unwrap().serialize_pem();
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let broken_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let key = key.serialize_pem();
        for (certificates, key, expected) in [
            (
                "/etc/server.pem",
                key.as_str(),
                "no certificate in `certificates`",
            ),
            (
                damaged.as_str(),
                &key,
                "certificate 1 in `certificates` is damaged",
            ),
            (&good, "/etc/key.pem", "no private key in `key`"),
            (&good, encrypted, "is encrypted"),
            (&good, broken_key, "cannot be used"),
            (&good, &other, "does not belong to the first certificate"),
        ] {
            let error = server_config(certificates, key).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(server_config(&good, &key).is_ok());
    }
}
