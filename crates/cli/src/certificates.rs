//! Certificates of servers: a CA and a leaf under it, made or judged.
//!
//! Everything here works on PEM texts; files are the business of [`data_dir`](crate::data_dir) and
//! [`init`](crate::init), and which to make that of [`identity`](crate::identity).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der};
use ::aws_lc_rs::error::Unspecified;
use ::aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fleethold_store::Random;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self as pem_file, PemObject};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, SignatureVerificationAlgorithm, UnixTime,
};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{ASN1Time, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(3650 * DAY.as_secs());
const LEAF_LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());

/// A leaf with less than this left is replaced.
pub(crate) const RENEWAL: Duration = Duration::from_secs(30 * DAY.as_secs());

/// Certificates are valid a little earlier, for agents whose clocks are late.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// Makes a P-256 key and returns it as PEM, in the form that the stock tools read.
pub(crate) fn new_key() -> Result<String> {
    let make = || {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
        let der: EcPrivateKeyRfc5915Der<'_> = key.private_key().as_der()?;
        Ok::<_, Unspecified>(Pem::new("EC PRIVATE KEY", der.as_ref()))
    };
    let pem = make().context("cannot make a key")?;
    Ok(pem::encode_config(
        &pem,
        EncodeConfig::new().set_line_ending(LineEnding::LF),
    ))
}

/// Reads a key that can sign.
fn signing_key(key_pem: &str) -> Result<KeyPair> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| match error {
        pem_file::Error::NoItemsFound if key_pem.contains("BEGIN ENCRYPTED PRIVATE KEY") => {
            anyhow!("it is encrypted; decrypt it with `openssl pkey`")
        }
        pem_file::Error::NoItemsFound => anyhow!("there is no private key in PEM"),
        error => anyhow!(error),
    })?;
    Ok(KeyPair::try_from(&key)?)
}

/// Makes the certificate of a CA for its key, and returns it as PEM.
pub(crate) fn new_ca(
    common_name: &str,
    key_pem: &str,
    now: SystemTime,
    random: &Random,
) -> Result<String> {
    let key = signing_key(key_pem).context("cannot read the CA key")?;
    let mut params = params(common_name, now, now + CA_LIFE, random);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    let certificate = params
        .self_signed(&key)
        .context("cannot make the CA certificate")?;
    Ok(lines(&certificate.pem()))
}

/// What has to be known of a CA to use it.
pub(crate) struct Ca {
    pub(crate) not_after: SystemTime,
    not_before: SystemTime,
    may_sign: bool,
    public_key: Vec<u8>,
}

impl Ca {
    /// Reads the first certificate of a file that agents are to trust.
    pub(crate) fn read(ca_pem: &str) -> Result<Self> {
        if ca_pem.contains("PRIVATE KEY-----") {
            bail!("there is a private key in it, which would be given to all agents");
        }
        let der = first_certificate(ca_pem)?;
        let ca = parse(&der)?;
        let constraints = ca.basic_constraints().context("it is damaged")?;
        let usage = ca.key_usage().context("it is damaged")?;
        Ok(Self {
            not_after: time(ca.validity().not_after),
            not_before: time(ca.validity().not_before),
            may_sign: constraints.is_some_and(|constraints| constraints.value.ca)
                && usage.is_none_or(|usage| usage.value.key_cert_sign()),
            public_key: ca.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// Fails unless agents accept it now.
    pub(crate) fn check_time(&self, now: SystemTime) -> Result<()> {
        if now > self.not_after {
            bail!("it has expired");
        }
        if now < self.not_before {
            bail!("it is not valid yet; the clock of this machine may be wrong");
        }
        Ok(())
    }

    /// Fails unless it may issue certificates with this key.
    pub(crate) fn check_key(&self, key_pem: &str) -> Result<()> {
        let key = signing_key(key_pem)?;
        if key.der_bytes() != self.public_key {
            bail!("it is the key of another certificate");
        }
        Ok(())
    }

    pub(crate) fn may_sign(&self) -> bool {
        self.may_sign
    }
}

/// Makes a server certificate for `key_pem` that is valid for `names`, and returns it as PEM.
pub(crate) fn new_leaf(
    common_name: &str,
    ca_pem: &str,
    ca_key_pem: &str,
    key_pem: &str,
    names: &[ServerName<'_>],
    now: SystemTime,
    random: &Random,
) -> Result<String> {
    let ca_key = signing_key(ca_key_pem).context("cannot read the CA key")?;
    let issuer = Issuer::from_ca_cert_der(&first_certificate(ca_pem)?, ca_key)
        .context("cannot read the CA certificate")?;
    let key = signing_key(key_pem).context("cannot read the server key")?;
    // Nobody accepts it for longer than its CA.
    let not_after = (now + LEAF_LIFE).min(Ca::read(ca_pem)?.not_after);
    let mut params = params(common_name, now, not_after, random);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = names.iter().map(alt_name).collect::<Result<_>>()?;
    let certificate = params
        .signed_by(&key, &issuer)
        .context("cannot make the server certificate")?;
    Ok(lines(&certificate.pem()))
}

/// Fails unless a server certificate, the first of a chain, and a key belong together.
pub(crate) fn check_pair(chain_pem: &str, key_pem: &str) -> Result<()> {
    let leaf = first_certificate(chain_pem).context("cannot read the server certificate")?;
    let key =
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("cannot read the server key")?;
    CertifiedKey::from_der(vec![leaf], key, &aws_lc_rs::default_provider())
        .context("the server certificate and its key do not belong together")?;
    Ok(())
}

/// Fails unless agents that trust the CA accept the server under all `names`, now and at `until`.
pub(crate) fn check_leaf(
    ca_pem: &str,
    chain_pem: &str,
    key_pem: &str,
    names: &[ServerName<'_>],
    now: SystemTime,
    until: SystemTime,
) -> Result<()> {
    check_pair(chain_pem, key_pem)?;
    let mut chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("cannot read the server certificate")?;
    let leaf = chain.remove(0);

    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots
            .add(root.context("cannot read the CA certificate")?)
            .context("cannot use the CA certificate")?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .context("cannot use the CA certificate")?;
    for time in [now, until] {
        let unix_time =
            UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default());
        for name in names {
            let verified = verifier
                .verify_server_cert(&leaf, &chain, name, &[], unix_time)
                .map(|_| ());
            verified
                .or_else(|error| check_stock_leaf(ca_pem, &leaf, name, time).map_err(|_| error))
                .with_context(|| {
                    format!("agents would not accept the server as `{}`", name.to_str())
                })?;
        }
    }
    Ok(())
}

/// Fails unless agents accept a leaf as the stock tool makes it: marked as a CA, directly below the real one.
fn check_stock_leaf(
    ca_pem: &str,
    leaf: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: SystemTime,
) -> Result<()> {
    let parsed = parse(leaf)?;
    let constraints = parsed.basic_constraints()?;
    let usage = parsed.extended_key_usage()?;
    let validity = parsed.validity();
    ensure!(constraints.is_some_and(|constraints| constraints.value.ca));
    ensure!(usage.is_none_or(|usage| usage.value.server_auth || usage.value.any));
    ensure!((time(validity.not_before)..=time(validity.not_after)).contains(&now));
    ensure!(is_issued_by(ca_pem, leaf)?);
    verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
    Ok(())
}

/// Returns whether a server certificate, the first of a chain, was issued by the CA itself.
pub(crate) fn is_issued_by_ca(ca_pem: &str, chain_pem: &str) -> Result<bool> {
    is_issued_by(ca_pem, &first_certificate(chain_pem)?)
}

fn is_issued_by(ca_pem: &str, leaf: &CertificateDer<'_>) -> Result<bool> {
    let leaf = parse(leaf)?;
    let ca = first_certificate(ca_pem)?;
    let ca = parse(&ca)?;
    let key = &ca.public_key().subject_public_key.data;
    let (signed, signature) = (leaf.tbs_certificate.as_ref(), &leaf.signature_value.data);
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    // Those of other keys and other kinds of signature just fail.
    let is_signed = |algorithm: &&dyn SignatureVerificationAlgorithm| {
        algorithm.verify_signature(key, signed, signature).is_ok()
    };
    Ok(leaf.issuer().as_raw() == ca.subject().as_raw() && algorithms.all.iter().any(is_signed))
}

/// Returns when the first certificate of a PEM text expires.
pub(crate) fn expiry(chain_pem: &str) -> Result<SystemTime> {
    let leaf = first_certificate(chain_pem)?;
    Ok(time(parse(&leaf)?.validity().not_after))
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| match error {
        pem_file::Error::NoItemsFound => anyhow!("there is no certificate in PEM"),
        error => anyhow!(error),
    })
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|_| anyhow!("it is damaged"))?;
    Ok(certificate)
}

fn time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Returns PEM with the line ends of this system.
fn lines(pem: &str) -> String {
    pem.replace("\r\n", "\n")
}

fn params(
    common_name: &str,
    now: SystemTime,
    not_after: SystemTime,
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
    params.not_after = not_after.into();
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
                ca: new_ca("a CA", &ca_key, now, &random).unwrap(),
                ca_key,
                key: new_key().unwrap(),
                random,
                now,
            }
        }

        fn leaf(&self, names: &[ServerName<'_>]) -> String {
            new_leaf(
                "a server",
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
            "a server",
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
