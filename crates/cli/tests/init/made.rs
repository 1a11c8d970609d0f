//! What is made, and what is in it.

use super::*;

#[test]
fn p_217_files_have_their_modes_and_nothing_else_is_left() {
    let bed = Bed::new();
    assert_eq!(bed.said(&[])["made"], ALL);
    assert_eq!(bed.contents().len(), ALL.len());
    for (name, mode) in ALL
        .iter()
        .zip([0o600, 0o644, 0o600, 0o644, 0o600, 0o644, 0o644, 0o644])
    {
        assert_eq!(bed.mode(name), mode, "{name}");
    }
}

#[test]
fn directories_that_are_made_for_secrets_are_their_owners() {
    let mut bed = Bed::new();
    bed.config.server_component_configuration_file = "secret/deep/components".to_owned();
    bed.config.linux_client_configuration_file = "public/linux".to_owned();
    bed.init(&[]).data();
    assert_eq!(bed.mode("secret"), 0o700);
    assert_eq!(bed.mode("secret/deep"), 0o700);
    assert_eq!(bed.mode("public"), 0o755);
}

#[test]
fn p_215_ca_has_the_extensions_of_the_stock_one() {
    let bed = Bed::new();
    bed.init(&[]).data();
    with_certificate(&bed.read("ca.pem"), |ca| {
        assert_eq!(ca.subject().to_string(), "CN=Lazy Corp Fleetspeak CA");
        assert_eq!(ca.issuer(), ca.subject());
        let constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        let usage = ca.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.digital_signature());
        assert!(ca.extensions().iter().any(|extension| {
            matches!(
                extension.parsed_extension(),
                ParsedExtension::SubjectKeyIdentifier(_)
            )
        }));
        let days = ca.validity().time_to_expiration().unwrap().whole_days();
        assert!((3648..=3650).contains(&days), "{days}");
    });
    assert!(
        bed.read("ca-key.pem")
            .starts_with("-----BEGIN EC PRIVATE KEY-----\n")
    );
    assert!(
        bed.read("server-key.pem")
            .starts_with("-----BEGIN EC PRIVATE KEY-----\n")
    );
}

#[test]
fn p_215_server_certificate_is_a_leaf_for_every_public_host_and_the_server_name() {
    let mut bed = Bed::new();
    bed.config.server_name = "name.example".to_owned();
    bed.init(&[]).data();
    let issuer_key = with_certificate(&bed.read("ca.pem"), key_identifier);
    with_certificate(&bed.read("server.pem"), |leaf| {
        assert_eq!(leaf.subject().to_string(), "CN=Lazy Corp Fleetspeak Server");
        assert_eq!(leaf.issuer().to_string(), "CN=Lazy Corp Fleetspeak CA");
        let constraints = leaf.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature());
        assert!(!usage.value.key_cert_sign());
        assert!(
            leaf.extended_key_usage()
                .unwrap()
                .unwrap()
                .value
                .server_auth
        );
        assert!(!key_identifier(leaf).is_empty());
        let authority =
            leaf.extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
                    _ => None,
                });
        assert_eq!(authority.unwrap().0, issuer_key);
        let names = &leaf
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names;
        assert_eq!(
            names,
            &[
                GeneralName::DNSName("name.example"),
                GeneralName::DNSName("fleet.example"),
                GeneralName::IPAddress(&[127, 0, 0, 1]),
            ]
        );
        let days = leaf.validity().time_to_expiration().unwrap().whole_days();
        assert!((363..=365).contains(&days), "{days}");
    });
}

fn key_identifier(certificate: &X509Certificate<'_>) -> Vec<u8> {
    let mut extensions = certificate.extensions().iter();
    let found = extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    found.unwrap_or_default()
}

#[test]
fn agents_of_the_three_systems_get_what_they_need() {
    let mut bed = Bed::new();
    bed.config.server_name = "name.example".to_owned();
    bed.config.proxy = "http://proxy.example:3128".to_owned();
    let components = bed.config.components_config.as_mut().unwrap();
    components.required_label = "lazy".to_owned();
    components.https_config.as_mut().unwrap().disable_streaming = true;
    bed.init(&[]).data();
    for name in ["linux", "darwin", "windows"] {
        let mut config: AgentConfig = text::parse(&bed.read(name)).unwrap();
        let persistence = config.persistence_handler.take().unwrap();
        let expected = AgentConfig {
            trusted_certs: bed.read("ca.pem"),
            server: bed.config.public_host_port.clone(),
            client_label: vec!["lazy".to_owned()],
            proxy: "http://proxy.example:3128".to_owned(),
            server_name: "name.example".to_owned(),
            streaming: false,
            ..AgentConfig::default()
        };
        assert_eq!(config, expected);
        match (name, persistence) {
            ("windows", PersistenceHandler::RegistryHandler(registry)) => assert_eq!(
                registry.configuration_key,
                r"HKEY_LOCAL_MACHINE\SOFTWARE\FleetspeakClient"
            ),
            (_, PersistenceHandler::FilesystemHandler(files)) => {
                assert_eq!(files.configuration_directory, "/etc/fleetspeak-client");
            }
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn components_file_is_the_given_one_with_certificate_and_key_and_starts_the_server() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let made: Components = text::parse(&bed.read("components")).unwrap();
    let mut expected = bed.config.components_config.clone().unwrap();
    let https = expected.https_config.as_mut().unwrap();
    https.certificates = bed.read("server.pem");
    https.key = bed.read("server-key.pem");
    assert_eq!(made, expected);
    let mut serve = command();
    serve.current_dir(bed.dir.path());
    serve.args(["serve", "--components-config", "components"]);
    serve.args(["--store", "sqlite:fleet.db"]);
    Serving::spawn(&mut serve).stop();
}

#[test]
fn flags_do_without_a_configurator_file() {
    let bed = Bed::new();
    let flags = [
        "--name",
        "Lazy Corp",
        "--public-address",
        "fleet.example:443",
    ];
    let made = finish(bed.command().args(flags).args(["--dir", "new/dir"])).data();
    assert!(
        made.contains("start    fleethold serve --components-config "),
        "{made}"
    );
    let components: Components =
        text::parse(&bed.read("new/dir/server.components.config")).unwrap();
    assert_eq!(components.https_config.unwrap().listen_address, ":443");
    assert_eq!(
        components.admin_config.unwrap().listen_address,
        "127.0.0.1:6061"
    );
    for system in ["linux", "darwin", "windows"] {
        let config = bed.read(&format!("new/dir/{system}.client.configuration"));
        let config: AgentConfig = text::parse(&config).unwrap();
        assert_eq!(config.server, ["fleet.example:443"]);
        assert!(config.streaming);
    }
    assert_eq!(bed.mode("new/dir"), 0o700);

    // A CA that is there, and one that is not.
    let ca = OtherCa::new(KeyPair::generate().unwrap());
    ca.write(&bed);
    let more = ["--ca-certificate", "ca.pem", "--ca-key"];
    let run = |key: &str| {
        finish(
            bed.command()
                .args(flags)
                .args(["--dir", "other"])
                .args(more)
                .arg(key),
        )
    };
    let refused = run("missing.pem").failure(2);
    assert!(refused.contains("missing.pem"), "{refused}");
    run("ca-key.pem").data();
    let config = bed.read("other/linux.client.configuration");
    let config: AgentConfig = text::parse(&config).unwrap();
    assert_eq!(config.trusted_certs, bed.read("ca.pem"));
    assert!(!bed.path("other/ca.pem").exists());
}

#[test]
fn debian_package_is_one_that_dpkg_reads() {
    let bed = Bed::new();
    bed.init(&["--debian-package", "agent.deb"]).data();
    let linux = bed.read("linux");
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new("dpkg-deb");
        command.current_dir(bed.dir.path()).args(arguments);
        finish(&mut command).data()
    };
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        // Not a Debian; the unit tests have read the package by its description.
        return;
    }
    let info = dpkg(&["--info", "agent.deb"]);
    for line in [
        " Package: fleetspeak-client-config\n",
        " Architecture: all\n",
        "agent for Lazy Corp\n",
        "conffiles",
        "postinst",
    ] {
        assert!(info.contains(line), "{line} in {info}");
    }
    let contents = dpkg(&["--contents", "agent.deb"]);
    let files: Vec<_> = contents
        .lines()
        .map(|line| (&line[..10], line.rsplit(' ').next().unwrap()))
        .collect();
    assert_eq!(
        files,
        [
            ("drwxr-xr-x", "./"),
            ("drwxr-xr-x", "./etc/"),
            ("drwxr-xr-x", "./etc/fleetspeak-client/"),
            ("-rw-r--r--", "./etc/fleetspeak-client/client.config"),
            ("drwxr-xr-x", "./etc/fleetspeak-client/textservices/"),
        ]
    );
    assert_eq!(contents.matches("root/root").count(), files.len());
    dpkg(&["--raw-extract", "agent.deb", "unpacked"]);
    assert_eq!(
        bed.read("unpacked/etc/fleetspeak-client/client.config"),
        linux
    );
    assert_eq!(
        bed.read("unpacked/DEBIAN/conffiles"),
        "/etc/fleetspeak-client/client.config\n"
    );
    assert_eq!(bed.mode("unpacked/DEBIAN/postinst"), 0o755);
    let checked = Command::new("sh")
        .arg("-n")
        .arg(bed.path("unpacked/DEBIAN/postinst"))
        .status();
    assert!(checked.unwrap().success());
}
