//! The certificates of a server that was started without configuration: a CA of its own and a leaf under it.
//!
//! Everything here works on PEM texts; files are the business of [`data_dir`](crate::data_dir).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use fleethold_store::Random;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(3650 * DAY.as_secs());
const LEAF_LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());

/// A leaf with less than this left is replaced.
pub(crate) const RENEWAL: Duration = Duration::from_secs(30 * DAY.as_secs());

/// Certificates are valid a little earlier, for agents whose clocks are late.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// Makes a P-256 key and returns it as PEM.
pub(crate) fn new_key() -> Result<String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    Ok(key.serialize_pem())
}

/// Makes the certificate of a CA for its key, and returns it as PEM.
pub(crate) fn new_ca(key_pem: &str, now: SystemTime, random: &Random) -> Result<String> {
    let key = KeyPair::from_pem(key_pem).context("cannot read the CA key")?;
    let mut params = params("fleethold CA", CA_LIFE, now, random);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    let certificate = params
        .self_signed(&key)
        .context("cannot make the CA certificate")?;
    Ok(certificate.pem())
}

/// Makes a server certificate for `key_pem` that is valid for `names`, and returns it as PEM.
pub(crate) fn new_leaf(
    ca_pem: &str,
    ca_key_pem: &str,
    key_pem: &str,
    names: &[ServerName<'_>],
    now: SystemTime,
    random: &Random,
) -> Result<String> {
    let ca_key = KeyPair::from_pem(ca_key_pem).context("cannot read the CA key")?;
    let issuer =
        Issuer::from_ca_cert_pem(ca_pem, ca_key).context("cannot read the CA certificate")?;
    let key = KeyPair::from_pem(key_pem).context("cannot read the server key")?;
    let mut params = params("fleethold server", LEAF_LIFE, now, random);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = names.iter().map(alt_name).collect::<Result<_>>()?;
    let certificate = params
        .signed_by(&key, &issuer)
        .context("cannot make the server certificate")?;
    Ok(certificate.pem())
}

/// Fails unless agents that trust the CA accept the server under all `names`, now and at `until`.
pub(crate) fn check_leaf(
    ca_pem: &str,
    leaf_pem: &str,
    key_pem: &str,
    names: &[ServerName<'_>],
    now: SystemTime,
    until: SystemTime,
) -> Result<()> {
    let leaf = CertificateDer::from_pem_slice(leaf_pem.as_bytes())
        .context("cannot read the server certificate")?;
    let key =
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("cannot read the server key")?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    CertifiedKey::from_der(vec![leaf.clone()], key, &provider)
        .context("the server certificate and its key do not belong together")?;

    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots
            .add(root.context("cannot read the CA certificate")?)
            .context("cannot use the CA certificate")?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .context("cannot use the CA certificate")?;
    for time in [now, until] {
        let time = UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default());
        for name in names {
            verifier
                .verify_server_cert(&leaf, &[], name, &[], time)
                .with_context(|| {
                    format!("agents would not accept the server as `{}`", name.to_str())
                })?;
        }
    }
    Ok(())
}

fn params(
    common_name: &str,
    life: Duration,
    now: SystemTime,
    random: &Random,
) -> CertificateParams {
    let mut serial = [0; 16];
    random.fill(&mut serial);
    // Positive and never empty: the first bit is 0, the last 1.
    serial[0] &= 0x7f;
    serial[15] |= 1;

    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);

    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = name;
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
    params
}

fn alt_name(name: &ServerName<'_>) -> Result<SanType> {
    match name {
        ServerName::DnsName(name) => {
            let name = name
                .as_ref()
                .try_into()
                .context("a host name is not plain ASCII")?;
            Ok(SanType::DnsName(name))
        }
        ServerName::IpAddress(address) => Ok(SanType::IpAddress(IpAddr::from(*address))),
        other => anyhow::bail!("`{}` is neither a host name nor an address", other.to_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    struct Fixture {
        random: Random,
        now: SystemTime,
        ca: String,
        ca_key: String,
        key: String,
    }

    impl Fixture {
        fn new() -> Self {
            let random = Random::seeded(1);
            let now = UNIX_EPOCH + Duration::from_secs(NOW);
            let ca_key = new_key().unwrap();
            Self {
                ca: new_ca(&ca_key, now, &random).unwrap(),
                ca_key,
                key: new_key().unwrap(),
                random,
                now,
            }
        }

        fn leaf(&self, names: &[ServerName<'_>]) -> String {
            new_leaf(
                &self.ca,
                &self.ca_key,
                &self.key,
                names,
                self.now,
                &self.random,
            )
            .unwrap()
        }

        fn check(&self, leaf: &str, names: &[ServerName<'_>], at: SystemTime) -> Result<()> {
            check_leaf(&self.ca, leaf, &self.key, names, at, at)
        }
    }

    fn names(names: &[&'static str]) -> Vec<ServerName<'static>> {
        names
            .iter()
            .map(|name| ServerName::try_from(*name).unwrap())
            .collect()
    }

    #[test]
    fn agents_accept_the_leaf_under_all_its_names_and_no_other() {
        let fixture = Fixture::new();
        let good = names(&["fleet.example", "localhost", "127.0.0.1", "::1"]);
        let leaf = fixture.leaf(&good);
        fixture.check(&leaf, &good, fixture.now).unwrap();
        for other in ["other.example", "127.0.0.2"] {
            let error = fixture
                .check(&leaf, &names(&[other]), fixture.now)
                .unwrap_err();
            assert!(error.to_string().contains(other), "{error:#}");
        }
    }

    #[test]
    fn a_leaf_is_valid_for_a_year_and_for_late_clocks() {
        let fixture = Fixture::new();
        let names = names(&["localhost"]);
        let leaf = fixture.leaf(&names);
        let check = |at| fixture.check(&leaf, &names, at);
        assert!(check(fixture.now - CLOCK_SKEW).is_ok());
        assert!(check(fixture.now + LEAF_LIFE).is_ok());
        assert!(check(fixture.now - CLOCK_SKEW - DAY).is_err());
        assert!(check(fixture.now + LEAF_LIFE + DAY).is_err());
    }

    #[test]
    fn a_leaf_of_another_ca_or_key_is_refused() {
        let fixture = Fixture::new();
        let mut other = Fixture::new();
        let names = names(&["localhost"]);
        let leaf = fixture.leaf(&names);
        assert!(other.check(&leaf, &names, other.now).is_err());
        other.ca.clone_from(&fixture.ca);
        let error = other.check(&leaf, &names, other.now).unwrap_err();
        assert!(
            error.to_string().contains("do not belong together"),
            "{error:#}"
        );
    }

    #[test]
    fn a_ca_outlives_its_leaves() {
        let fixture = Fixture::new();
        let names = names(&["localhost"]);
        let later = fixture.now + CA_LIFE - LEAF_LIFE;
        let leaf = new_leaf(
            &fixture.ca,
            &fixture.ca_key,
            &fixture.key,
            &names,
            later,
            &fixture.random,
        )
        .unwrap();
        fixture.check(&leaf, &names, later + LEAF_LIFE).unwrap();
    }
}
