//! Agents that reach their server through a real proxy, HAProxy. Each test
//! starts one of its own on free ports of the loopback interface.

#[path = "../agent/mod.rs"]
mod agent;
#[path = "../https/bed.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod bed;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleethold_proto::fleetspeak::ContactData;
use fleethold_server::config::{Frontend, XfccElement};
use http::{HeaderName, StatusCode, Version};
use tempfile::TempDir;
use tokio::net::TcpStream;

use self::agent::{Agent, Authority, StreamOptions, get, post, soon};
use self::bed::Bed;

const CERTIFICATE: HeaderName = HeaderName::from_static("x-client-cert");
const CHECKSUM: HeaderName = HeaderName::from_static("x-client-cert-hash");

/// How HAProxy writes the client's certificate as percent-encoded PEM.
const PEM: &str =
    "-----BEGIN%%20CERTIFICATE-----%%0A%[ssl_c_der,base64]%%0A-----END%%20CERTIFICATE-----";

/// A running HAProxy; killed when dropped.
struct Proxy {
    child: Child,
    addr: SocketAddr,
    _dir: TempDir,
}

impl Proxy {
    /// Starts a proxy before `server`; `tls` makes it end TLS itself.
    async fn start(tls: Option<&Authority>, frontend: &str, server: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let (mode, bind) = match tls {
            None => ("tcp", String::new()),
            Some(authority) => {
                let pem = dir.path().join("server.pem");
                let content = format!("{}{}", authority.certificates_pem, authority.key_pem);
                fs::write(&pem, content).unwrap();
                let ca = dir.path().join("ca.pem");
                fs::write(&ca, &authority.certificates_pem).unwrap();
                // Agents make their certificates themselves: every one is right.
                let bind = format!(
                    "ssl crt {} ca-file {} verify optional crt-ignore-err all ca-ignore-err all alpn h2,http/1.1",
                    pem.display(),
                    ca.display()
                );
                ("http", bind)
            }
        };
        let config = format!(
            "global\n  maxconn 100\n  tune.ssl.default-dh-param 2048\n\
             defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend agents\n  bind {addr} {bind}\n{frontend}\n  default_backend fleet\n\
             backend fleet\n  server fleet {server}\n"
        );
        let file = dir.path().join("haproxy.cfg");
        fs::write(&file, &config).unwrap();
        let program = ["/usr/sbin/haproxy", "/usr/bin/haproxy", "/usr/local/sbin/haproxy"]
            .into_iter()
            .find(|path| fs::exists(path).unwrap_or(false))
            .expect("HAProxy is missing; run scripts/test as root, or install it with: apt-get install haproxy");
        let child = Command::new(program)
            .args(["-db", "-q", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut proxy = Self {
            child,
            addr,
            _dir: dir,
        };
        let ready = async {
            while TcpStream::connect(addr).await.is_err() {
                let ended = proxy.child.try_wait().unwrap();
                assert!(
                    ended.is_none(),
                    "HAProxy refuses its configuration:\n{config}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the proxy", ready).await;
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

async fn behind(frontend: Frontend, authority: Authority, proxy_protocol: bool) -> Bed {
    Bed::with(authority, |config| {
        let agents = config.agents.as_mut().unwrap();
        agents.frontend = frontend;
        agents.proxy_protocol = proxy_protocol;
    })
    .await
}

/// Lets an agent poll, keep streams open and download through a proxy.
async fn use_everything(bed: &Bed, agent: &Agent) {
    agent.poll(&ContactData::default()).await;
    assert!(bed.client(agent.id).await.is_some());
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for deflate in [false, true] {
            let options = StreamOptions {
                version,
                deflate,
                ..StreamOptions::default()
            };
            let mut stream = Box::pin(agent.stream(options)).await;
            for _ in 0..3 {
                stream.send_contact(&ContactData::default());
            }
            assert_eq!(stream.acks(3).await, [1, 2, 3]);
        }
    }
    let file = agent
        .request(get("/files/system/RevokedCertificates"))
        .await;
    assert_eq!(file.status(), StatusCode::OK);
}

#[tokio::test]
async fn p_194_tls_passes_through_with_both_versions_of_the_proxy_protocol() {
    for send in ["send-proxy", "send-proxy-v2"] {
        let bed = behind(Frontend::MutualTls, Authority::new(), true).await;
        let server = format!("{} {send}", bed.addr);
        // The proxy comes from another address than the agent.
        let proxy = Proxy::start(None, "", &format!("{server} source 127.0.0.9")).await;
        let agent = Agent::new(proxy.addr, &bed.authority);
        use_everything(&bed, &agent).await;
        for contact in bed.contacts(agent.id).await {
            let address = contact.observed_address;
            assert!(address.starts_with("127.0.0.1:"), "{address}");
        }
    }
}

#[tokio::test]
async fn p_190_and_191_proxy_ends_tls_and_names_the_agent_in_headers() {
    for encrypted in [false, true] {
        let frontend = Frontend::Header {
            tls: encrypted,
            certificate: CERTIFICATE,
            checksum: Some(CHECKSUM),
        };
        let bed = behind(frontend, Authority::new(), true).await;
        let to_server = match encrypted {
            true => "ssl verify none",
            false => "",
        };
        let headers = format!(
            "  http-request set-header {CERTIFICATE} \"{PEM}\"\n\
             \x20 http-request set-header {CHECKSUM} \"%[ssl_c_der,sha2(256),base64,regsub(=,,g)]\""
        );
        let server = format!("{} {to_server} send-proxy-v2 source 127.0.0.9", bed.addr);
        let proxy = Proxy::start(Some(&bed.authority), &headers, &server).await;
        let agent = Agent::new(proxy.addr, &bed.authority);
        use_everything(&bed, &agent).await;
        let contacts = bed.contacts(agent.id).await;
        assert!(contacts[0].observed_address.starts_with("127.0.0.1:"));

        // What an agent writes itself is replaced.
        let mut forger = Agent::new(proxy.addr, &bed.authority);
        let stranger = Agent::new(proxy.addr, &bed.authority);
        forger
            .headers
            .insert(CERTIFICATE, "rubbish".parse().unwrap());
        forger.poll(&ContactData::default()).await;
        assert!(bed.client(forger.id).await.is_some());
        let nobody = stranger.presenting_none();
        let poll = post("/message", nobody.wrap(&ContactData::default()));
        assert_eq!(nobody.request(poll).await.status(), StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn p_190_proxy_ends_tls_and_agents_send_their_certificate_themselves() {
    let frontend = Frontend::Header {
        tls: false,
        certificate: CERTIFICATE,
        checksum: None,
    };
    let bed = behind(frontend, Authority::new(), false).await;
    let proxy = Proxy::start(Some(&bed.authority), "", &bed.addr.to_string()).await;
    let mut agent = Agent::new(proxy.addr, &bed.authority).presenting_none();
    let certificate = base64::Engine::encode(
        &base64::prelude::BASE64_STANDARD,
        agent.certificate.as_ref().unwrap(),
    );
    let escaped =
        format!("-----BEGIN%20CERTIFICATE-----%0A{certificate}%0A-----END%20CERTIFICATE-----%0A");
    agent.headers.insert(CERTIFICATE, escaped.parse().unwrap());
    use_everything(&bed, &agent).await;
}

#[tokio::test]
async fn p_193_and_s7_element_that_a_proxy_appends_to_xfcc_counts() {
    let frontend = Frontend::Xfcc {
        header: HeaderName::from_static("x-forwarded-client-cert"),
        element: XfccElement::Last,
    };
    let bed = behind(frontend, Authority::new(), false).await;
    let append = format!(
        "  http-request add-header x-forwarded-client-cert \"By=http://proxy;Cert=\\\"{PEM}\\\"\""
    );
    let proxy = Proxy::start(Some(&bed.authority), &append, &bed.addr.to_string()).await;
    let victim = Agent::new(proxy.addr, &bed.authority);
    let mut forger = Agent::new(proxy.addr, &bed.authority);
    let certificate = base64::Engine::encode(
        &base64::prelude::BASE64_STANDARD,
        victim.certificate.as_ref().unwrap(),
    );
    let forged =
        format!("Cert=-----BEGIN%20CERTIFICATE-----%0A{certificate}%0A-----END%20CERTIFICATE-----");
    forger
        .headers
        .insert("x-forwarded-client-cert", forged.parse().unwrap());
    use_everything(&bed, &forger).await;
    assert!(bed.client(victim.id).await.is_none());
}

#[tokio::test]
async fn p_080_streams_behind_a_proxy_are_told_that_the_server_stops() {
    let bed = behind(Frontend::MutualTls, Authority::new(), true).await;
    let proxy = Proxy::start(None, "", &format!("{} send-proxy-v2", bed.addr)).await;
    let agent = Agent::new(proxy.addr, &bed.authority);
    agent.poll(&ContactData::default()).await;
    let mut stream = Box::pin(agent.stream(StreamOptions::default())).await;
    let stopping = tokio::spawn(bed.server.stop());
    while let Some(frame) = stream.frame().await {
        if frame.done_sending {
            drop(stream);
            soon("the stop", stopping).await.unwrap();
            return;
        }
    }
    panic!("the stream ended without a word");
}
