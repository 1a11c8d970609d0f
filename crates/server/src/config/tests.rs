use std::error::Error;

use super::*;

/// What upstream's configurator writes, with a fresh certificate.
struct Pems {
    certificate: String,
    key: String,
}

impl Pems {
    fn new() -> Self {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Self {
            certificate: pair.cert.pem(),
            key: pair.signing_key.serialize_pem(),
        }
    }

    fn https(&self, listen: &str, more: &str) -> String {
        let escape = |text: &str| text.replace('\n', "\\n");
        format!(
            "https_config {{ listen_address: \"{listen}\" certificates: \"{}\" key: \"{}\" {more} }}",
            escape(&self.certificate),
            escape(&self.key)
        )
    }
}

fn from_components(text: &str) -> Result<Upstream, ConfigError> {
    let path = Path::new("components.config");
    Config::from_upstream(&ConfigText { path, text }, None)
}

fn from_services(text: &str) -> Result<Config, ConfigError> {
    let path = Path::new("services.config");
    let mut config = Config::default();
    config.read_services(&ConfigText { path, text })?;
    Ok(config)
}

/// The message with all its causes.
fn chain(error: &ConfigError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn upstream_files_become_a_configuration() {
    let pems = Pems::new();
    let components = format!(
        "# Written by hand.\n\
         mysql_data_source_name: \"user:pw@tcp(127.0.0.1:3306)/fleetspeak\"\n\
         {}\n\
         required_label: \"blue\"\n\
         admin_config {{ listen_address: \"localhost:9000\" }}\n",
        pems.https(
            ":443",
            "disable_streaming: true enable_file_server_authorization: true"
        )
    );
    let services = ConfigText {
        path: Path::new("services.config"),
        text: r#"services {
                   name: "GRR"
                   factory: "GRPC"
                   max_parallelism: 7
                   config { [type.googleapis.com/fleetspeak.grpcservice.Config] { target: "localhost:11111" insecure: true } }
                 }
                 services { name: "sink" factory: "NOOP" }
                 broadcast_poll_time { seconds: 5 }"#,
    };
    let components = ConfigText {
        path: Path::new("components.config"),
        text: &components,
    };

    let upstream = Config::from_upstream(&components, Some(&services)).unwrap();

    assert_eq!(
        upstream.mysql_data_source_name.as_deref(),
        Some("user:pw@tcp(127.0.0.1:3306)/fleetspeak")
    );
    let config = upstream.config;
    let agents = config.agents.unwrap();
    assert_eq!(agents.listen, ":443");
    assert_eq!(agents.certificates_pem, pems.certificate);
    assert_eq!(agents.key_pem, pems.key);
    assert!(!agents.streaming);
    assert!(agents.authorize_files);
    assert_eq!(config.admin.unwrap().listen, "localhost:9000");
    assert_eq!(config.required_label.as_deref(), Some("blue"));
    let names: Vec<_> = config
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["GRR", "sink"]);
    assert_eq!(config.services[0].max_parallelism, 7);
    assert_eq!(config.broadcast_poll, Duration::from_secs(5));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn p_210_every_dialect_of_the_text_format_is_read() {
    let expected = from_services(
        r#"services { name: "a" factory: "GRPC" config { [type.googleapis.com/fleetspeak.grpcservice.Config] { target: "h:1" insecure: true } } }"#,
    )
    .unwrap()
    .services;
    for text in [
        // Angle brackets, as in deployments with containers.
        r#"services: < name: "a" factory: "GRPC" config: < [type.googleapis.com/fleetspeak.grpcservice.Config]: < target: "h:1" insecure: true > > >"#,
        // One line with uneven spaces, as Go writes it.
        r#"services:{name:"a"  factory:"GRPC"  config:{[type.googleapis.com/fleetspeak.grpcservice.Config]:{target:"h:1"  insecure:true}}}"#,
        // Lists, separators, other quotes, adjacent strings and escapes.
        r#"services: [{ name: '\x61'; factory: "GR" 'PC', config { [type.googleapis.com/fleetspeak.grpcservice.Config] { target: "\150:1" insecure: 1 } } }]"#,
        // An Any as it is.
        r#"services { name: "a" factory: "GRPC" config { type_url: "type.googleapis.com/fleetspeak.grpcservice.Config" value: "\n\003h:1\020\001" } }"#,
    ] {
        assert_eq!(from_services(text).unwrap().services, expected, "{text}");
    }
}

#[test]
fn empty_files_are_valid() {
    let config = from_services("# No service yet.\n").unwrap();
    assert!(config.services.is_empty());
    assert_eq!(config.broadcast_poll, DEFAULT_BROADCAST_POLL);
    let upstream = from_components("").unwrap();
    assert!(upstream.config.agents.is_none());
    assert_eq!(
        upstream.config.warnings.len(),
        1,
        "{:?}",
        upstream.config.warnings
    );
    assert_eq!(upstream.mysql_data_source_name, None);
}

#[test]
fn frontend_and_admin_may_be_in_different_processes() {
    let pems = Pems::new();
    let frontend =
        from_components(&pems.https("[::1]:0", "frontend_config { mtls_config {} }")).unwrap();
    assert!(frontend.config.admin.is_none());
    assert!(frontend.config.agents.unwrap().streaming);
    let admin = from_components("admin_config: < listen_address: ':6061' >").unwrap();
    assert!(admin.config.agents.is_none());
    assert!(admin.config.warnings.is_empty());
}

#[test]
fn p_213_every_frontend_mode_is_read_and_cleartext_needs_no_certificate() {
    let name = http::HeaderName::from_static;
    let header = |tls, checksum: bool| Frontend::Header {
        tls,
        certificate: name("x-cert"),
        checksum: checksum.then(|| name("x-sum")),
    };
    let xfcc = Frontend::Xfcc {
        header: name("x-cert"),
        element: XfccElement::First,
    };
    const CERT: &str = "client_certificate_header: 'X-Cert'";
    const SUM: &str = "client_certificate_checksum_header: 'X-Sum'";
    for (mode, expected) in [
        (
            format!("https_header_config {{ {CERT} }}"),
            header(true, false),
        ),
        (
            format!("https_header_checksum_config {{ {CERT} {SUM} }}"),
            header(true, true),
        ),
        (
            format!("cleartext_header_config {{ {CERT} }}"),
            header(false, false),
        ),
        (
            format!("cleartext_header_checksum_config {{ {CERT} {SUM} }}"),
            header(false, true),
        ),
        (format!("cleartext_xfcc_config {{ {CERT} }}"), xfcc),
    ] {
        let mode = format!("frontend_config {{ {mode} }}");
        let https = match expected.has_tls() {
            true => Pems::new().https(":1", &mode),
            false => format!("https_config {{ listen_address: ':1' {mode} }}"),
        };
        let config = from_components(&format!("{https} proxy_protocol: true"))
            .unwrap()
            .config;
        assert_eq!(config.warnings, Vec::<String>::new());
        let agents = config.agents.unwrap();
        assert_eq!(agents.frontend, expected);
        assert!(agents.proxy_protocol);
        assert_eq!(agents.trusted_proxies, default_trusted_proxies());
    }
}

#[test]
fn p_211_malformed_text_is_refused_with_file_line_and_column() {
    let error = from_components("required_label: \"x\"\nrequired_lable: \"y\"\n").unwrap_err();
    let text = chain(&error);
    assert!(text.starts_with("`components.config` is not a text-format fleetspeak.components.Config: line 2, column 1: "), "{text}");
    let error = from_services("services {").unwrap_err();
    assert!(
        chain(&error).starts_with("`services.config` is not"),
        "{error}"
    );
}

#[test]
fn malformed_text_comes_with_what_to_write() {
    let error = |text: &str| from_components(text).unwrap_err().hint().to_owned();
    assert_eq!(
        error("admin_config { listen: 'a:1' }"),
        "the fields here are `listen_address`"
    );
    let known = error("required_lable: 'y'");
    assert!(known.starts_with("the fields here are `"), "{known}");
    assert!(known.contains("`required_label`, "), "{known}");
    assert_eq!(
        error("https_config { frontend_config { mtls_config { on: true } } }"),
        "remove it, fleetspeak.components.MTlsConfig has no fields"
    );
    assert_eq!(
        error("required_label: 'a' required_label: 'b'"),
        "write `required_label` only once"
    );
    for text in ["admin_config", "= 3", "required_label: blue", "'"] {
        let expected = format!("write fields as in `{}`", syntax::COMPONENTS_EXAMPLE);
        assert_eq!(error(text), expected, "{text}");
    }
    let in_services = from_services("services {").unwrap_err();
    let expected = format!("write fields as in `{}`", syntax::SERVICES_EXAMPLE);
    assert_eq!(in_services.hint(), expected);

    // What is advised works.
    from_components(syntax::COMPONENTS_EXAMPLE).unwrap();
    from_services(syntax::SERVICES_EXAMPLE).unwrap();
}

#[test]
fn p_213_wrong_fields_are_refused_with_file_field_and_advice() {
    let pems = Pems::new();
    let other = Pems::new();
    let https = |listen: &str| pems.https(listen, "");
    let mixed = Pems {
        certificate: pems.certificate.clone(),
        key: other.key,
    };
    let no_pem = Pems {
        certificate: "ca.pem".to_owned(),
        key: pems.key.clone(),
    };
    let no_key = Pems {
        certificate: pems.certificate.clone(),
        key: pems.certificate.clone(),
    };
    let damaged = Pems {
        certificate: pems.certificate.replace("MII", "AII"),
        key: pems.key.clone(),
    };
    let with_key = |kind: &str| Pems {
        certificate: pems.certificate.clone(),
        key: format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n"),
    };
    let encrypted = with_key("ENCRYPTED PRIVATE KEY");
    let broken = with_key("PRIVATE KEY");
    for (text, expected) in [
        (https(""), "field `https_config.listen_address` is missing"),
        (
            https("localhost"),
            "field `https_config.listen_address` `localhost` has no port",
        ),
        (
            "https_config { listen_address: ':1' }".into(),
            "field `https_config.certificates` is missing",
        ),
        (
            "https_config { listen_address: ':1' certificates: 'x' }".into(),
            "field `https_config.key` is missing",
        ),
        (
            no_pem.https(":1", ""),
            "field `https_config.certificates` holds no certificate",
        ),
        (
            no_key.https(":1", ""),
            "field `https_config.key` holds no private key",
        ),
        (
            damaged.https(":1", ""),
            "field `https_config.certificates` is damaged in certificate 1",
        ),
        (
            encrypted.https(":1", ""),
            "field `https_config.key` is encrypted",
        ),
        (
            broken.https(":1", ""),
            "field `https_config.key` cannot be used",
        ),
        (
            mixed.https(":1", ""),
            "field `https_config.key` does not belong to the first certificate",
        ),
        (
            "admin_config {}".into(),
            "field `admin_config.listen_address` is missing",
        ),
        (
            "admin_config { listen_address: 'a:b' }".into(),
            "field `admin_config.listen_address` `a:b` has no number as port",
        ),
        (
            "spanner_config { project_id: 'p' }".into(),
            "field `spanner_config` is not supported",
        ),
        (
            "https_config { listen_address: ':1' frontend_config { cleartext_xfcc_config {} } }".into(),
            "field `https_config.frontend_config.cleartext_xfcc_config.client_certificate_header` is missing",
        ),
        (
            pems.https(
                ":1",
                "frontend_config { https_header_checksum_config { client_certificate_header: 'x' } }",
            ),
            "field `https_config.frontend_config.https_header_checksum_config.client_certificate_checksum_header` is missing",
        ),
        (
            pems.https(
                ":1",
                "frontend_config { https_header_config { client_certificate_header: 'a b' } }",
            ),
            "field `https_config.frontend_config.https_header_config.client_certificate_header` `a b` is not the name of a header",
        ),
        (
            "https_config { listen_address: ':1' frontend_config { https_header_config { client_certificate_header: 'x' } } }".into(),
            "field `https_config.certificates` is missing",
        ),
        (
            "https_config { frontend_config { cleartext_header_config { client_certificate_header: 'x' } } }".into(),
            "field `https_config.listen_address` is missing",
        ),
    ] {
        let error = from_components(&text).unwrap_err();
        let message = error.to_string();
        let expected = format!("`components.config`: {expected}");
        assert!(
            message.starts_with(&expected),
            "expected: {expected}\n   found: {message}"
        );
        assert!(!error.hint().is_empty(), "{message}");
    }
}

#[test]
fn p_213_wrong_services_are_refused_with_file_field_and_advice() {
    let good = r#"services { name: "good" factory: "NOOP" }"#;
    for (service, expected) in [
        (r#"factory: "NOOP""#, "field `services[1].name` is missing"),
        (
            r#"name: "system" factory: "NOOP""#,
            "field `services[1].name` `system` is reserved",
        ),
        (
            r#"name: "client" factory: "NOOP""#,
            "field `services[1].name` `client` is reserved",
        ),
        (
            r#"name: "a""#,
            "field `services[1].factory` of service `a` is missing",
        ),
        (
            r#"name: "a" factory: "grpc""#,
            "field `services[1].factory` of service `a` is `grpc`, which does not exist",
        ),
        (
            r#"name: "a" factory: "CPS""#,
            "field `services[1].factory` is not supported",
        ),
        (
            r#"name: "a" factory: "GRPC""#,
            "field `services[1].config` of service `a` is missing",
        ),
        (
            r#"name: "a" factory: "GRPC" config { [type.googleapis.com/fleetspeak.DieRequest] { force: true } }"#,
            "field `services[1].config` of service `a` cannot be used: expected fleetspeak.grpcservice.Config",
        ),
        (
            r#"name: "a" factory: "GRPC" config { type_url: "fleetspeak.grpcservice.Config" value: "\010" }"#,
            "field `services[1].config` of service `a` cannot be used",
        ),
        (
            r#"name: "a" factory: "GRPC" config { [type.googleapis.com/fleetspeak.grpcservice.Config] { insecure: true } }"#,
            "field `services[1].config.target` of service `a` is missing",
        ),
        (
            r#"name: "a" factory: "GRPC" config { [type.googleapis.com/fleetspeak.grpcservice.Config] { target: "h:1" } }"#,
            "field `services[1].config` of service `a` says neither",
        ),
        (
            r#"name: "a" factory: "GRPC" config { [type.googleapis.com/fleethold.service.v1.BatchConfig] { max_messages: 7 } }"#,
            "field `services[1].config.target` of service `a` is missing",
        ),
        (
            r#"name: "a" factory: "GRPC" config { [type.googleapis.com/fleethold.service.v1.BatchConfig] { connection { target: "h:1" insecure: true } max_calls: 101 } }"#,
            "field `services[1].config` of service `a` cannot be used: `max_calls` is 101; write at most 100",
        ),
    ] {
        let error = from_services(&format!("{good} services {{ {service} }}")).unwrap_err();
        let message = error.to_string();
        let expected = format!("`services.config`: {expected}");
        assert!(
            message.starts_with(&expected),
            "expected: {expected}\n   found: {message}"
        );
        assert!(!error.hint().is_empty(), "{message}");
    }
    let error = from_services("broadcast_poll_time { seconds: -1 }").unwrap_err();
    assert!(
        error.to_string().contains("field `broadcast_poll_time`"),
        "{error}"
    );
}

#[test]
fn p_213_ports_for_metrics_and_health_are_taken_over() {
    let config = from_components(
        "admin_config { listen_address: ':1' }\n\
         stats_config { address: ':2' } health_check_config { listen_address: ':3' }",
    )
    .unwrap()
    .config;
    assert_eq!(config.stats_listen.as_deref(), Some(":2"));
    assert_eq!(config.health_check_listen.as_deref(), Some(":3"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let config = from_components("stats_config {}").unwrap().config;
    assert_eq!(config.stats_listen, None);
    for text in ["stats_config { address: 'nine' }", "health_check_config {}"] {
        assert!(from_components(text).is_err(), "{text}");
    }
}

#[test]
fn p_214_notifications_are_read_and_addresses_checked() {
    let read = |text: &str| {
        let upstream = from_components(&format!("admin_config {{ listen_address: ':1' }} {text}"));
        upstream.map(|upstream| upstream.config)
    };
    let config = read(
        "notification_listen_address: ':1' notification_public_address: 'b:1' notification_use_http_notifier: true",
    );
    let config = config.unwrap();
    assert_eq!(config.notifications.listen.as_deref(), Some(":1"));
    assert_eq!(config.notifications.public_address.as_deref(), Some("b:1"));
    assert!(config.notifications.send);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let config = read("").unwrap().notifications;
    assert_eq!((config.listen, config.public_address), (None, None));
    assert!(!config.send && config.secret.is_none());

    let config = read("notification_public_address: 'b:1'").unwrap();
    assert!(config.warnings[0].contains("is ignored without"));
    let too_long = format!("{}:1", "b".repeat(127));
    for (field, value) in [
        ("notification_listen_address", "nine"),
        ("notification_public_address", "b"),
        ("notification_public_address", ":1"),
        ("notification_public_address", "b:0"),
        ("notification_public_address", &too_long),
    ] {
        let error = read(&format!("{field}: '{value}'")).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn broadcasts_are_read_at_most_once_a_second() {
    for text in ["broadcast_poll_time {}", "broadcast_poll_time { nanos: 5 }"] {
        let config = from_services(text).unwrap();
        assert_eq!(config.broadcast_poll, MIN_BROADCAST_POLL, "{text}");
        assert_eq!(config.warnings.len(), 1, "{text}");
    }
}

#[test]
fn a_later_service_takes_the_place_of_an_earlier_one() {
    let config = from_services(
        r#"services { name: "a" factory: "NOOP" }
           services { name: "b" factory: "NOOP" }
           services { name: "a" factory: "NOOP" max_parallelism: 3 }"#,
    )
    .unwrap();
    let services: Vec<_> = config
        .services
        .iter()
        .map(|s| (s.name.as_str(), s.max_parallelism))
        .collect();
    assert_eq!(services, [("a", 3), ("b", 0)]);
    assert_eq!(config.warnings.len(), 1);
}

#[test]
fn listen_addresses_are_split_into_host_and_port() {
    for (listen, expected) in [
        ("localhost:443", Ok(("localhost", 443))),
        (":0", Ok(("", 0))),
        ("127.0.0.1:6061", Ok(("127.0.0.1", 6061))),
        ("[::1]:4443", Ok(("::1", 4443))),
        ("", Err("is missing")),
        ("host", Err("has no port")),
        ("host:", Err("has no number as port")),
        ("host:https", Err("has no number as port")),
        ("host:+1", Err("has no number as port")),
        ("host:65536", Err("has a port above 65535")),
        ("::1:80", Err("has an IPv6 address without brackets")),
        ("[::1]", Err("has no port")),
        ("[::1:80", Err("has a `[` without `]`")),
        ("[host]:80", Err("has no IPv6 address between its brackets")),
        ("https://host:80", Err("is not of the form `host:port`")),
        ("a b:80", Err("is not of the form `host:port`")),
    ] {
        assert_eq!(split_listen(listen), expected, "{listen}");
    }
}

#[test]
fn s18_debug_output_holds_no_secrets() {
    let pems = Pems::new();
    let text = format!(
        "mysql_data_source_name: 'user:hunter2@/db' {}",
        pems.https(":1", "")
    );
    let debug = format!("{:?}", from_components(&text).unwrap());
    assert!(
        !debug.contains("hunter2") && !debug.contains("PRIVATE"),
        "{debug}"
    );
}
