//! Which client a request is from: by the TLS handshake, or by what a proxy
//! writes into a header (protocol specification section 5.1).

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bytes::Bytes;
use fleethold_store::ClientId;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{percent, xfcc};
use crate::config::{Frontend, XfccElement};
use crate::tls;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why a request is from nobody known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unidentified {
    #[error("the client must present exactly one certificate")]
    NoCertificate,
    #[error("the header with the client's certificate is missing")]
    NoHeader,
    #[error("the header with the client's certificate is not percent-encoded text")]
    Encoding,
    #[error("the header must hold one PEM block of a certificate and nothing else")]
    Pem,
    #[error("the certificate in the header cannot be read")]
    Certificate,
    #[error("the header with the certificate's checksum is missing")]
    NoChecksum,
    #[error("the checksum does not fit the certificate")]
    Checksum,
}

/// Returns the client and its key; `handshake` is who TLS has shown.
pub(super) fn identify(
    frontend: &Frontend,
    handshake: Option<&(ClientId, Bytes)>,
    headers: &HeaderMap,
) -> Result<(ClientId, Bytes), Unidentified> {
    let certificate = match frontend {
        Frontend::MutualTls => return handshake.cloned().ok_or(Unidentified::NoCertificate),
        Frontend::Header {
            certificate,
            checksum,
            ..
        } => {
            let der = certificate_in(&text(headers, certificate)?)?;
            if let Some(checksum) = checksum {
                let value = headers.get(checksum).ok_or(Unidentified::NoChecksum)?;
                check_sum(&der, value)?;
            }
            der
        }
        Frontend::Xfcc { header, element } => certificate_in_xfcc(headers, header, *element)?,
    };
    tls::identity(&certificate).ok_or(Unidentified::Certificate)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Result<String, Unidentified> {
    let value = headers.get(name).ok_or(Unidentified::NoHeader)?;
    let text = value.to_str().map_err(|_| Unidentified::Encoding)?;
    Ok(text.to_owned())
}

fn certificate_in_xfcc(
    headers: &HeaderMap,
    name: &HeaderName,
    element: XfccElement,
) -> Result<CertificateDer<'static>, Unidentified> {
    // A proxy may append its element as a header line of its own.
    let line = match element {
        XfccElement::First => headers.get(name),
        XfccElement::Last => headers.get_all(name).iter().next_back(),
    };
    let line = line.ok_or(Unidentified::NoHeader)?;
    let line = line.to_str().map_err(|_| Unidentified::Encoding)?;
    match xfcc::find(line, "Cert", element) {
        Some(value) => certificate_in(&value),
        None => certificate_in(line),
    }
}

/// Reads a percent-encoded PEM block.
fn certificate_in(text: &str) -> Result<CertificateDer<'static>, Unidentified> {
    let pem = percent::decoded(text).ok_or(Unidentified::Encoding)?;
    let end = pem.find(END).ok_or(Unidentified::Pem)? + END.len();
    let (block, after) = pem.split_at(end);
    let line_end = after.trim_start_matches([' ', '\t', '\r']);
    if !block.starts_with(BEGIN) || !matches!(line_end, "" | "\n") {
        return Err(Unidentified::Pem);
    }
    CertificateDer::from_pem_slice(block.as_bytes()).map_err(|_| Unidentified::Pem)
}

/// Checks the SHA-256 of a certificate in base64 without padding.
fn check_sum(certificate: &[u8], value: &HeaderValue) -> Result<(), Unidentified> {
    let expected = BASE64_STANDARD_NO_PAD.encode(digest(&SHA256, certificate));
    match value.as_bytes() == expected.as_bytes() {
        true => Ok(()),
        false => Err(Unidentified::Checksum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stock agent's certificate: protocol specification, vector C.1.
    const CERTIFICATE: &str = "MIIBJzCBzaADAgECAgEBMAoGCCqGSM49BAMCMBsxGTAXBgNVBAoTEDdiYTc1ZGNmYTQ2YzVlZGIwIhgPMDAwMTAxMDEwMDAwMDBaGA8wMDAxMDEwMTAwMDAwMFowGzEZMBcGA1UEChMQN2JhNzVkY2ZhNDZjNWVkYjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCyO5yxk3qeEYzoDcHnUu/HWq3Ev+rPwn9hWLb5i5p9erJ/vebuu3kLxGiRLpFBniwi5+NNcqDb9D81ehbtZjecwCgYIKoZIzj0EAwIDSQAwRgIhAMMni/L1hLxDEJvlHiGV20jm3EHUCG9no3Ay/gWkUsZ8AiEA49gd0sAhC6IT9KiAzeeWIgc3oUTbCiDVOsUPoiS5L3M=";
    /// Vector C.4.
    const CHECKSUM: &str = "+PTujSgbg+x4QUTaXXnnEL7oTXTm5kks1j4z8dJpt9s";
    const CLIENT: &str = "7ba75dcfa46c5edb";

    /// The header of an agent: lines of 64 characters, percent-encoded as
    /// stock agents do it.
    fn escaped() -> String {
        let lines: Vec<&str> = CERTIFICATE
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
            .replace(' ', "%20")
            .replace('/', "%2F")
            .replace('\n', "%0A")
    }

    fn header_mode(checksum: bool) -> Frontend {
        Frontend::Header {
            tls: true,
            certificate: HeaderName::from_static("x-cert"),
            checksum: checksum.then(|| HeaderName::from_static("x-sum")),
        }
    }

    fn xfcc_mode(element: XfccElement) -> Frontend {
        Frontend::Xfcc {
            header: HeaderName::from_static("x-cert"),
            element,
        }
    }

    fn client(frontend: &Frontend, lines: &[(&'static str, &str)]) -> Result<String, Unidentified> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        identify(frontend, None, &headers).map(|(client, _)| client.to_string())
    }

    #[test]
    fn p_190_certificate_of_a_stock_agent_is_read_from_a_header() {
        let escaped = escaped();
        assert_eq!(escaped.len(), 491, "vector C.4");
        assert!(escaped.starts_with("-----BEGIN%20CERTIFICATE-----%0AMIIBJzCB"));
        let one = client(&header_mode(false), &[("x-cert", &escaped)]);
        assert_eq!(one.unwrap(), CLIENT);
        // The first line counts.
        let two = client(
            &header_mode(false),
            &[("x-cert", &escaped), ("x-cert", "rubbish")],
        );
        assert_eq!(two.unwrap(), CLIENT);
        let none = client(&header_mode(false), &[]);
        assert_eq!(none.unwrap_err(), Unidentified::NoHeader);
    }

    #[test]
    fn p_191_checksum_must_fit() {
        let escaped = escaped();
        let with = |sum| client(&header_mode(true), &[("x-cert", &escaped), ("x-sum", sum)]);
        assert_eq!(with(CHECKSUM).unwrap(), CLIENT);
        for wrong in [
            "",
            &format!("{CHECKSUM}="),
            &CHECKSUM.replace('+', "-"),
            &CHECKSUM.to_lowercase(),
        ] {
            assert_eq!(with(wrong).unwrap_err(), Unidentified::Checksum, "{wrong}");
        }
        let missing = client(&header_mode(true), &[("x-cert", &escaped)]);
        assert_eq!(missing.unwrap_err(), Unidentified::NoChecksum);
    }

    #[test]
    fn p_192_only_one_pem_block_is_accepted() {
        let good = escaped();
        let key = "-----BEGIN%20PRIVATE%20KEY-----%0AAAAA%0A-----END%20PRIVATE%20KEY-----%0A";
        for accepted in [
            good.clone(),
            good.replace("%0A", "%0D%0A"),
            good.trim_end_matches("%0A").to_owned(),
            // `+` is no space, escaped or not.
            good.replace('+', "%2B"),
            // One line, as some proxies write it.
            format!("-----BEGIN%20CERTIFICATE-----%0A{CERTIFICATE}%0A-----END%20CERTIFICATE-----"),
        ] {
            let found = client(&header_mode(false), &[("x-cert", &accepted)]);
            assert_eq!(found.as_deref(), Ok(CLIENT), "{accepted}");
        }
        for (refused, expected) in [
            (format!("{good}x"), Unidentified::Pem),
            (format!("{good}%0A"), Unidentified::Pem),
            (format!("{good}{good}"), Unidentified::Pem),
            (format!("{good}{key}"), Unidentified::Pem),
            (format!("{key}{good}"), Unidentified::Pem),
            (key.to_owned(), Unidentified::Pem),
            (CERTIFICATE.to_owned(), Unidentified::Pem),
            (String::new(), Unidentified::Pem),
            (good.replace("MII", "%20%20"), Unidentified::Pem),
            (good.replace("%0A", "%0"), Unidentified::Encoding),
            (good.replace("MII", "%FF"), Unidentified::Encoding),
            (good.replace("MIIB", "AIIB"), Unidentified::Certificate),
        ] {
            let found = client(&header_mode(false), &[("x-cert", &refused)]);
            assert_eq!(found, Err(expected), "{refused}");
        }
    }

    #[test]
    fn p_193_certificate_is_read_from_xfcc() {
        let cert = escaped();
        let mine = xfcc_mode(XfccElement::First);
        for header in [
            format!("Cert={cert}"),
            format!("By=http://a;Hash=ab12;Cert=\"{cert}\";Subject=\"/C=US/CN=x, y\""),
            format!("By=http://a,Cert={cert},Cert=rubbish"),
            // Not XFCC at all.
            cert.clone(),
        ] {
            assert_eq!(client(&mine, &[("x-cert", &header)]).unwrap(), CLIENT);
        }
        for header in ["By=http://a;Hash=ab12", "", "Cert=rubbish", "Cert=\"\\"] {
            let found = client(&mine, &[("x-cert", header)]);
            assert_eq!(found, Err(Unidentified::Pem), "{header}");
        }
    }

    #[test]
    fn s7_identity_an_agent_forges_before_an_appending_proxy_is_not_taken() {
        let cert = escaped();
        let mine = xfcc_mode(XfccElement::Last);
        let appended = format!("Cert=rubbish,By=p;Cert=\"{cert}\"");
        assert_eq!(client(&mine, &[("x-cert", &appended)]).unwrap(), CLIENT);
        let lines = [
            ("x-cert", "Cert=rubbish"),
            ("x-cert", &format!("By=p;Cert={cert}")),
        ];
        assert_eq!(client(&mine, &lines).unwrap(), CLIENT);
        for forged in [
            format!("Cert={cert},By=p"),
            format!("Cert={cert};Pad=\",By=p;Cert=\"other\""),
            format!("{cert},By=p;Hash=x"),
        ] {
            assert!(client(&mine, &[("x-cert", &forged)]).is_err(), "{forged}");
        }
    }
}
