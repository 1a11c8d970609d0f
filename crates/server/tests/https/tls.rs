//! Who may connect, and who it is then.

use std::sync::{Arc, Mutex};

use fleethold_proto::fleetspeak::ContactData;
use http::{StatusCode, Version};
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_RSA_SHA256, RsaKeySize};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ProtocolVersion, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use x509_parser::asn1_rs::{Any, FromDer};

use crate::agent::{Agent, Authority, get, post, self_made_certificate, soon};
use crate::bed::Bed;

#[tokio::test]
async fn p_002_certificate_of_year_1_is_accepted_over_both_versions() {
    let bed = Bed::start().await;
    for (version, expected) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let agent = bed.agent().speaking(version);
        let tls = agent.tls(&[]).await.unwrap();
        assert_eq!(tls.get_ref().1.protocol_version(), Some(expected));
        agent.poll(&ContactData::default()).await;
        assert!(bed.client(agent.id).await.is_some());
    }
}

#[tokio::test]
async fn p_003_signature_of_another_key_fails_the_handshake() {
    let bed = Bed::start().await;
    let key = KeyPair::generate().unwrap();
    let stranger = KeyPair::generate().unwrap();
    for version in [&TLS12, &TLS13] {
        let agent = bed
            .agent()
            .presenting(vec![self_made_certificate(&key)], &stranger)
            .speaking(version);
        let Ok(mut tls) = agent.tls(&[]).await else {
            continue;
        };
        // With TLS 1.3 the client hears of it after its own part is done.
        let read = soon("the alert", tls.read_u8()).await;
        let error = read.unwrap_err().to_string();
        assert!(error.contains("alert"), "{error}");
    }
    assert_eq!(bed.client_count().await, 0);
}

#[tokio::test]
async fn p_004_tls_1_1_is_refused() {
    let bed = Bed::start().await;
    let mut tcp = TcpStream::connect(bed.addr).await.unwrap();
    // A record with a ClientHello of version 3.2 and two ancient cipher suites.
    let hello = [
        &[3, 2][..],
        &[7; 32],
        &[0],
        &[0, 4, 0xc0, 0x09, 0xc0, 0x13],
        &[1, 0],
    ]
    .concat();
    let length = u8::try_from(hello.len()).unwrap();
    let record = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], &hello[..]].concat();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    soon("the alert", tcp.read_to_end(&mut answer))
        .await
        .unwrap();
    let (alert, fatal) = (21, 2);
    assert_eq!((answer[0], answer[5]), (alert, fatal), "{answer:?}");
}

#[tokio::test]
async fn p_005_connection_without_certificate_may_read_files_only() {
    let bed = Bed::start().await;
    let stranger = Agent::without_certificate(bed.addr, &bed.authority);
    let (status, _) = stranger.fetch(post("/message", "")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = stranger
        .fetch(get("/files/system/RevokedCertificates"))
        .await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn p_006_two_certificates_are_refused() {
    let bed = Bed::start().await;
    let key = KeyPair::generate().unwrap();
    let certificate = self_made_certificate(&key);
    let agent = bed
        .agent()
        .presenting(vec![certificate.clone(), certificate], &key);
    let (status, _) = agent.fetch(post("/message", "")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn p_007_protocol_follows_from_what_is_offered() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    for (offered, expected) in [
        (&["http/1.1"][..], Some(&b"http/1.1"[..])),
        (&["h2", "http/1.1"], Some(b"h2")),
        (&["foo", "http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let tls = agent.tls(offered).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), expected);
    }
    let error = agent.tls(&["foo"]).await.unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");

    let mut tls = agent.tls(&[]).await.unwrap();
    let request = "GET /files/system/RevokedCertificates HTTP/1.1\r\nHost: x\r\n\r\n";
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    soon("an answer", tls.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn p_008_certificate_request_names_no_authority() {
    #[derive(Debug, Default)]
    struct Asked(Mutex<Vec<usize>>);

    impl ResolvesClientCert for Asked {
        fn resolve(
            &self,
            authorities: &[&[u8]],
            _: &[SignatureScheme],
        ) -> Option<Arc<CertifiedKey>> {
            self.0.lock().unwrap().push(authorities.len());
            None
        }

        fn has_certs(&self) -> bool {
            true
        }
    }

    let bed = Bed::start().await;
    let asked = Arc::new(Asked::default());
    for version in [&TLS12, &TLS13] {
        let agent = bed.agent().speaking(version);
        let resolver = Arc::<Asked>::clone(&asked);
        agent.resolving(resolver).tls(&[]).await.unwrap();
    }
    assert_eq!(*asked.0.lock().unwrap(), [0, 0]);
}

#[tokio::test]
async fn p_009_other_kinds_of_keys_identify_clients_too() {
    let bed = Bed::start().await;
    for key in [
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap(),
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ] {
        let agent = Agent::with_key(bed.addr, &bed.authority, &key);
        for version in [&TLS12, &TLS13] {
            agent
                .clone()
                .speaking(version)
                .poll(&ContactData::default())
                .await;
        }
        assert!(bed.client(agent.id).await.is_some());
    }
}

#[tokio::test]
async fn p_010_server_keys_of_all_forms_are_read() {
    let ecdsa = KeyPair::generate().unwrap();
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    for (key, old_form) in [(ecdsa, "EC PRIVATE KEY"), (rsa, "RSA PRIVATE KEY")] {
        let authority = Authority::for_key(&key);
        let mut old = Authority::for_key(&key);
        old.key_pem = pem(old_form, inner_key(&key.serialize_der()));
        for authority in [authority, old] {
            let bed = Bed::with(authority, |_| {}).await;
            for version in [&TLS12, &TLS13] {
                bed.agent()
                    .speaking(version)
                    .poll(&ContactData::default())
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn connection_serves_several_requests() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut connection = agent.connect(version).await;
        for _ in 0..3 {
            let mut request = get("/files/system/RevokedCertificates");
            if version == Version::HTTP_2 {
                request = crate::agent::over_http2(request);
            }
            let answer = connection.send(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            drop(answer);
        }
    }
}

/// Returns the key in the form from before PKCS#8, which wraps it:
/// `SEQUENCE { version, algorithm, OCTET STRING { key } }`.
fn inner_key(pkcs8: &[u8]) -> &[u8] {
    let (_, sequence) = Any::from_der(pkcs8).unwrap();
    let (rest, _version) = Any::from_der(sequence.data).unwrap();
    let (rest, _algorithm) = Any::from_der(rest).unwrap();
    let (_, key) = Any::from_der(rest).unwrap();
    key.data
}

/// Writes DER as PEM.
fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for (index, group) in der.chunks(3).enumerate() {
        if index % 16 == 0 {
            text.push('\n');
        }
        let bytes = [0, 1, 2].map(|n| u32::from(group.get(n).copied().unwrap_or(0)));
        let bits = bytes[0] << 16 | bytes[1] << 8 | bytes[2];
        for digit in 0..4 {
            let value = usize::try_from(bits >> (18 - 6 * digit) & 63).unwrap();
            text.push(if digit > group.len() {
                '='
            } else {
                char::from(DIGITS[value])
            });
        }
    }
    format!("-----BEGIN {label}-----{text}\n-----END {label}-----\n")
}
