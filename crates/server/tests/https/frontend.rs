//! Servers behind proxies: who a client is then, and where it connects from.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use fleethold_proto::fleetspeak::ContactData;
use fleethold_server::AgentsConfig;
use fleethold_server::config::{Frontend, XfccElement};
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, Authority, StreamOptions, get, post, soon};
use crate::bed::Bed;

const CERTIFICATE: HeaderName = HeaderName::from_static("x-client-cert");
const CHECKSUM: HeaderName = HeaderName::from_static("x-client-cert-hash");

fn header_mode(tls: bool, checksum: bool) -> Frontend {
    Frontend::Header {
        tls,
        certificate: CERTIFICATE,
        checksum: checksum.then_some(CHECKSUM),
    }
}

fn xfcc_mode(element: XfccElement) -> Frontend {
    Frontend::Xfcc {
        header: CERTIFICATE,
        element,
    }
}

async fn behind(frontend: &Frontend) -> Bed {
    with(|agents| agents.frontend = frontend.clone()).await
}

async fn with(change: impl FnOnce(&mut AgentsConfig)) -> Bed {
    Bed::with(Authority::new(), |config| {
        let agents = config.agents.as_mut().unwrap();
        change(agents);
        if !agents.frontend.has_tls() {
            agents.certificates_pem.clear();
            agents.key_pem.clear();
        }
    })
    .await
}

/// Returns an agent's certificate as a proxy writes it into a header.
fn escaped(agent: &Agent) -> String {
    let certificate = BASE64_STANDARD.encode(agent.certificate.as_ref().unwrap());
    format!("-----BEGIN%20CERTIFICATE-----%0A{certificate}%0A-----END%20CERTIFICATE-----%0A")
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap()
}

/// Makes an agent that comes as a proxy in this mode would bring it.
fn proxied(bed: &Bed, frontend: &Frontend) -> Agent {
    let mut agent = bed.agent().presenting_none();
    if !frontend.has_tls() {
        agent = agent.in_cleartext();
    }
    let cert = escaped(&agent);
    let sum = digest(&SHA256, agent.certificate.as_ref().unwrap());
    let header = match frontend {
        Frontend::Xfcc { .. } => format!("By=http://proxy;Hash=ab12;Cert=\"{cert}\""),
        _ => cert,
    };
    agent.headers.insert(CERTIFICATE, value(&header));
    if let Frontend::Header {
        checksum: Some(name),
        ..
    } = frontend
    {
        let sum = BASE64_STANDARD_NO_PAD.encode(sum);
        agent.headers.insert(name, value(&sum));
    }
    agent
}

async fn status(agent: &Agent) -> StatusCode {
    let poll = post("/message", agent.wrap(&ContactData::default()));
    agent.request(poll).await.status()
}

#[tokio::test]
async fn p_190_each_mode_identifies_the_agent_in_polls_and_streams() {
    for frontend in [
        header_mode(true, false),
        header_mode(true, true),
        header_mode(false, false),
        header_mode(false, true),
        xfcc_mode(XfccElement::First),
        xfcc_mode(XfccElement::Last),
    ] {
        let bed = behind(&frontend).await;
        let agent = proxied(&bed, &frontend);
        agent.poll(&ContactData::default()).await;
        assert!(bed.client(agent.id).await.is_some(), "{frontend:?}");
        assert_eq!(bed.client_count().await, 1);

        let mut stream = agent.stream(StreamOptions::default()).await;
        stream.send_contact(&ContactData::default());
        assert_eq!(stream.acks(1).await, [1]);
    }
}

#[tokio::test]
async fn p_190_certificate_of_the_proxy_itself_does_not_count() {
    let frontend = header_mode(true, false);
    let bed = behind(&frontend).await;
    let behind_proxy = proxied(&bed, &frontend);
    let mut with_tls_certificate = bed.agent();
    assert_eq!(status(&with_tls_certificate).await, StatusCode::BAD_REQUEST);
    with_tls_certificate.headers = behind_proxy.headers.clone();
    assert_eq!(status(&with_tls_certificate).await, StatusCode::OK);
    assert!(bed.client(behind_proxy.id).await.is_some());
    assert_eq!(bed.client_count().await, 1);
}

#[tokio::test]
async fn p_191_and_192_what_is_wrong_in_headers_gets_400_and_the_next_request_works() {
    for tls in [true, false] {
        let frontend = header_mode(tls, true);
        let bed = behind(&frontend).await;
        let good = proxied(&bed, &frontend);
        let other = proxied(&bed, &frontend);
        let mut wrong = Vec::new();
        for name in [CERTIFICATE, CHECKSUM] {
            let mut agent = good.clone();
            agent.headers.remove(&name);
            wrong.push(agent.clone());
            for text in ["", "%", "rubbish"] {
                agent.headers.insert(&name, value(text));
                wrong.push(agent.clone());
            }
            agent.headers.insert(&name, other.headers[&name].clone());
            wrong.push(agent);
        }
        let mut agent = good.clone();
        let twice = format!("{0}{0}", escaped(&good));
        agent.headers.insert(CERTIFICATE, value(&twice));
        wrong.push(agent);
        for agent in wrong {
            assert_eq!(status(&agent).await, StatusCode::BAD_REQUEST);
            let first = agent.wrapped(&ContactData::default());
            let stream = agent.try_stream(StreamOptions::default(), &first);
            assert_eq!(Box::pin(stream).await.err(), Some(StatusCode::BAD_REQUEST));
        }
        assert_eq!(bed.client_count().await, 0);
        assert_eq!(status(&good).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn p_183_file_needs_a_certificate_header_only_where_files_are_authorized() {
    for authorize in [true, false] {
        let frontend = header_mode(false, false);
        let bed = with(|agents| {
            agents.frontend = frontend.clone();
            agents.authorize_files = authorize;
        })
        .await;
        let path = "/files/system/RevokedCertificates";
        let agent = proxied(&bed, &frontend);
        assert_eq!(agent.request(get(path)).await.status(), StatusCode::OK);
        let nobody = bed.agent().presenting_none().in_cleartext();
        let expected = match authorize {
            true => StatusCode::UNAUTHORIZED,
            false => StatusCode::OK,
        };
        assert_eq!(nobody.request(get(path)).await.status(), expected);
    }
}

#[tokio::test]
async fn s7_identity_header_means_nothing_without_a_header_mode() {
    let bed = Bed::start().await;
    let victim = bed.agent();
    let mut forger = bed.agent();
    forger.headers.insert(CERTIFICATE, value(&escaped(&victim)));
    forger.poll(&ContactData::default()).await;
    assert!(bed.client(victim.id).await.is_none());
    assert!(bed.client(forger.id).await.is_some());
    forger = forger.presenting_none();
    assert_eq!(status(&forger).await, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn s7_identity_header_of_a_peer_that_is_no_proxy_closes_the_connection() {
    for frontend in [
        header_mode(true, false),
        header_mode(false, false),
        xfcc_mode(XfccElement::First),
    ] {
        let bed = with(|agents| {
            agents.frontend = frontend.clone();
            agents.trusted_proxies = vec!["192.0.2.0/24".parse().unwrap()];
        })
        .await;
        let mut tcp = TcpStream::connect(bed.addr).await.unwrap();
        let mut answer = Vec::new();
        // Nothing is read, nothing is answered.
        let _may_be_reset = soon("the end", tcp.read_to_end(&mut answer)).await;
        assert!(answer.is_empty());
        assert_eq!(bed.client_count().await, 0);
    }
}

#[tokio::test]
async fn p_194_proxy_header_sets_the_observed_address() {
    let binary: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\xd4\x31\x01\xbb";
    let bed = with(|agents| agents.proxy_protocol = true).await;
    for (header, expected) in [
        (
            &b"PROXY TCP4 192.0.2.7 127.0.0.1 54321 443\r\n"[..],
            "192.0.2.7:54321",
        ),
        (
            b"PROXY TCP6 2001:db8::7 ::1 54321 443\r\n",
            "[2001:db8::7]:54321",
        ),
        (binary, "192.0.2.7:54321"),
    ] {
        let agent = bed.agent().behind(header);
        agent.poll(&ContactData::default()).await;
        agent.stream(StreamOptions::default()).await;
        let contacts = bed.contacts(agent.id).await;
        assert_eq!(contacts.len(), 2);
        for contact in contacts {
            assert_eq!(contact.observed_address, expected);
        }
    }
}

#[tokio::test]
async fn p_195_own_address_counts_without_header_and_for_local_connections() {
    let bed = with(|agents| agents.proxy_protocol = true).await;
    for header in [
        &b""[..],
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\x00",
    ] {
        let agent = bed.agent().behind(header);
        agent.poll(&ContactData::default()).await;
        let contacts = bed.contacts(agent.id).await;
        assert!(contacts[0].observed_address.starts_with("127.0.0.1:"));
    }
}

#[tokio::test]
async fn p_196_malformed_proxy_header_closes_only_its_connection() {
    let bed = with(|agents| agents.proxy_protocol = true).await;
    for header in [
        &b"PROXY TCP4 nowhere\r\n"[..],
        &[b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat(),
        b"\r\n\r\n\0\r\nQUIT\n\x99\x99\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ] {
        let mut tcp = TcpStream::connect(bed.addr).await.unwrap();
        tcp.write_all(header).await.unwrap();
        let mut answer = Vec::new();
        let _may_be_reset = soon("the end", tcp.read_to_end(&mut answer)).await;
        assert!(answer.is_empty());
        bed.agent().poll(&ContactData::default()).await;
    }
    assert!(
        bed.agent()
            .behind("PROXY TCP4 1\r\n")
            .tls(&[])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn p_197_connection_that_is_silent_in_its_header_delays_nobody_and_ends() {
    let bed = Bed::with(Authority::new(), |config| {
        config.agents.as_mut().unwrap().proxy_protocol = true;
        config.limits.handshake_timeout = std::time::Duration::from_secs(2);
    })
    .await;
    let mut silent = TcpStream::connect(bed.addr).await.unwrap();
    let mut halfway = TcpStream::connect(bed.addr).await.unwrap();
    halfway.write_all(b"PROXY TCP4 192.").await.unwrap();
    bed.agent().poll(&ContactData::default()).await;
    for tcp in [&mut silent, &mut halfway] {
        let mut answer = Vec::new();
        let _may_be_reset = soon("the end", tcp.read_to_end(&mut answer)).await;
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn s7_proxy_header_of_a_peer_that_is_no_proxy_closes_the_connection() {
    let bed = with(|agents| {
        agents.proxy_protocol = true;
        agents.trusted_proxies.clear();
    })
    .await;
    let forged = bed
        .agent()
        .behind("PROXY TCP4 192.0.2.7 127.0.0.1 1 443\r\n");
    assert!(forged.tls(&[]).await.is_err());
    // Without a header there is nothing to believe.
    let honest = bed.agent();
    honest.poll(&ContactData::default()).await;
    let contacts = bed.contacts(honest.id).await;
    assert!(contacts[0].observed_address.starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn p_190_and_194_headers_and_proxy_protocol_work_together() {
    let frontend = header_mode(false, true);
    let bed = with(|agents| {
        agents.frontend = frontend.clone();
        agents.proxy_protocol = true;
    })
    .await;
    let header = "PROXY TCP4 192.0.2.7 127.0.0.1 54321 443\r\n";
    let agent = proxied(&bed, &frontend).behind(header);
    agent.poll(&ContactData::default()).await;
    let contacts = bed.contacts(agent.id).await;
    assert_eq!(contacts[0].observed_address, "192.0.2.7:54321");
}
