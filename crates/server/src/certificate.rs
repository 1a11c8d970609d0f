//! Takes the key out of a certificate that a stranger presents.
//!
//! Only what lies around the key is read, in place: a parser for all of a
//! certificate takes 40 times the memory of one that is full of empty names.

use x509_parser::asn1_rs::{Any, Class, FromDer, Tag};
use x509_parser::x509::SubjectPublicKeyInfo;

/// Returns the public key, DER SubjectPublicKeyInfo, whatever name and dates
/// stand beside it; `None` if the bytes are no certificate.
pub(crate) fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let mut rest = all_of_sequence(certificate)?;
    let signed = sequence(&mut rest)?;
    let mut signed = all_of_sequence(signed)?;
    sequence(&mut rest)?; // signature algorithm
    expect(&mut rest, Tag::BitString)?; // signature
    if !rest.is_empty() {
        return None;
    }

    let (after_version, first) = Any::from_der(signed).ok()?;
    if first.class() == Class::ContextSpecific && first.tag() == Tag(0) {
        signed = after_version;
    }
    expect(&mut signed, Tag::Integer)?; // serial number
    for _what in ["signature algorithm", "issuer", "validity", "subject"] {
        sequence(&mut signed)?;
    }
    let key = sequence(&mut signed)?;
    let (trailing, _) = SubjectPublicKeyInfo::from_der(key).ok()?;
    trailing.is_empty().then_some(key)
}

/// Returns what is in a sequence that nothing follows.
fn all_of_sequence(bytes: &[u8]) -> Option<&[u8]> {
    let (trailing, any) = Any::from_der(bytes).ok()?;
    (trailing.is_empty() && is(&any, Tag::Sequence)).then_some(any.data)
}

/// Takes a sequence from the start of `rest` and returns its bytes.
fn sequence<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    expect(rest, Tag::Sequence)
}

/// Takes an element from the start of `rest` and returns its bytes.
fn expect<'a>(rest: &mut &'a [u8], tag: Tag) -> Option<&'a [u8]> {
    let (after, any) = Any::from_der(rest).ok()?;
    if !is(&any, tag) {
        return None;
    }
    let (element, after) = rest.split_at(rest.len() - after.len());
    *rest = after;
    Some(element)
}

fn is(any: &Any<'_>, tag: Tag) -> bool {
    any.class() == Class::Universal && any.tag() == tag
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

    use super::*;

    fn certificate() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["agent".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn key_is_what_a_whole_parser_finds() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::new(vec!["agent".to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
            let expected = parsed.tbs_certificate.subject_pki.raw;
            assert_eq!(public_key(certificate.der()), Some(expected));
        }
    }

    #[test]
    fn cut_and_trailed_certificates_have_no_key() {
        let whole = certificate();
        assert!(public_key(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(public_key(&whole[..length]), None, "{length}");
        }
        assert_eq!(public_key(&[&whole[..], b"\0"].concat()), None);
    }

    #[test]
    fn no_changed_byte_is_a_panic() {
        let whole = certificate();
        for place in 0..whole.len() {
            for change in [1, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[place] ^= change;
                if let Some(key) = public_key(&changed) {
                    assert!(changed.windows(key.len()).any(|part| part == key));
                }
            }
        }
    }
}
