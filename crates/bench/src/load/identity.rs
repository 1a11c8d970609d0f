//! Who an agent is: a key, and a certificate it has made itself.

use std::sync::Arc;

use anyhow::{Context, Result};
use fleethold_store::ClientId;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

/// A P-256 key with a certificate as stock agents make it.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) id: ClientId,
    certified: Arc<CertifiedKey>,
}

impl Identity {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let id = ClientId::from_public_key(&rcgen::PublicKeyData::subject_public_key_info(&key));
        let mut params = CertificateParams::default();
        // Stock agents leave the times at the beginning of the calendar.
        params.not_before = date_time_ymd(1, 1, 1);
        params.not_after = date_time_ymd(1, 1, 1);
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, id.to_string());
        let certificate = params.self_signed(&key).context("cannot sign")?;
        let signing = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|problem| anyhow::anyhow!("cannot use a new key: {problem}"))?;
        let signing = aws_lc_rs::sign::any_ecdsa_type(&signing)?;
        Ok(Self {
            id,
            certified: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing)),
        })
    }

    /// Returns what answers a server that asks who connects.
    pub(crate) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(Presents(Arc::clone(&self.certified)))
    }
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
