//! What cannot be used: every reason with what to do, and nothing is changed.

use super::*;

#[test]
fn every_field_that_is_wrong_is_named_with_what_to_write() {
    type Change = fn(&mut Config);
    let changes: [(Change, &str, &str); 19] = [
        (
            |c| c.configuration_name.clear(),
            "`configuration_name` is missing",
            "Lazy Corp",
        ),
        (
            |c| c.configuration_name = "a\nb".into(),
            "control characters",
            "in one line",
        ),
        (
            |c| c.components_config = None,
            "`components_config` is missing",
            "https_config {",
        ),
        (
            |c| c.components_config.as_mut().unwrap().https_config = None,
            "`components_config.https_config` is missing",
            "listen_address",
        ),
        (
            |c| {
                let components = c.components_config.as_mut().unwrap();
                components
                    .https_config
                    .as_mut()
                    .unwrap()
                    .listen_address
                    .clear();
            },
            "https_config.listen_address` is missing",
            "listen_address: \":443\"",
        ),
        (
            |c| {
                let components = c.components_config.as_mut().unwrap();
                components.admin_config.as_mut().unwrap().listen_address = "localhost".into();
            },
            "admin_config.listen_address` has no port",
            "localhost:9000",
        ),
        (
            |c| c.public_host_port.clear(),
            "`public_host_port` is missing",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = "fleet.example".into(),
            "has no port",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = ":443".into(),
            "has no host",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = "a:0".into(),
            "port 0",
            "fleet.example:443",
        ),
        (
            |c| c.public_host_port[0] = "a,b:1".into(),
            "neither a host name",
            "fleet.example:443",
        ),
        (
            |c| c.server_name = "a:1".into(),
            "`server_name` is `a:1`",
            "without a port",
        ),
        (
            |c| c.proxy = "proxy.example".into(),
            "`proxy` is no URL",
            "http://",
        ),
        (
            |c| c.trusted_cert_file.clear(),
            "`trusted_cert_file` is missing",
            "ca.pem",
        ),
        (
            |c| c.server_cert_file.clear(),
            "`server_cert_file` is missing",
            "server.pem",
        ),
        (
            |c| c.server_cert_key_file.clear(),
            "`server_cert_key_file` is missing",
            "server-key.pem",
        ),
        (
            |c| c.server_component_configuration_file.clear(),
            "`server_component_configuration_file` is missing",
            "server.components.config",
        ),
        (
            |c| c.linux_client_configuration_file = "$BED/server.pem".into(),
            "names the same file as `server_cert_file`",
            "a file of its own",
        ),
        (
            |c| c.trusted_cert_file = "$NO_SUCH_THING/ca".into(),
            "`NO_SUCH_THING`",
            "set it",
        ),
    ];
    for (change, problem, hint) in changes {
        let mut bed = Bed::new();
        change(&mut bed.config);
        let refused = bed.init(&[]).failure(2);
        assert!(refused.contains(problem), "{problem}: {refused}");
        assert!(refused.contains(hint), "{hint}: {refused}");
        assert_eq!(bed.contents(), BTreeMap::new(), "{problem}");
    }
}

#[test]
fn everything_that_is_wrong_with_fields_is_said_at_once() {
    let mut bed = Bed::new();
    bed.config.configuration_name.clear();
    bed.config.proxy = "proxy".to_owned();
    bed.config.public_host_port[1] = "b".to_owned();
    let refused = bed.init(&[]).failure(2);
    for field in ["configuration_name", "proxy", "public_host_port"] {
        assert!(refused.contains(field), "{refused}");
    }
}

#[test]
fn text_that_is_no_configuration_is_refused_with_its_place() {
    let bed = Bed::new();
    let init = || finish(bed.command().args(["--config", "configurator"]));
    let refused = init().failure(2);
    assert!(
        refused.contains("cannot read configuration `configurator`"),
        "{refused}"
    );
    fs::write(
        bed.path("configurator"),
        "configuration_name: \"a\"\nconfiguration: \"b\"\n",
    )
    .unwrap();
    let refused = init().failure(2);
    assert!(refused.contains("line 2"), "{refused}");
    assert!(refused.contains("`public_host_port`"), "{refused}");
}

#[test]
fn flags_and_configurator_file_exclude_each_other() {
    let bed = Bed::new();
    let run = |flags: &[&str]| finish(bed.command().args(flags)).failure(2);
    assert!(run(&[]).contains("--public-address"));
    assert!(run(&["--config", "f", "--name", "n"]).contains("cannot be used with"));
    assert!(run(&["--config", "f", "--dir", "n"]).contains("cannot be used with"));
}

#[test]
fn nothing_is_changed_when_one_file_cannot_be_written() {
    let mut bed = Bed::new();
    bed.init(&[]).data();
    fs::create_dir(bed.path("taken")).unwrap();
    bed.config.windows_client_configuration_file = "$BED/taken/file".to_owned();
    fs::create_dir(bed.path("taken/file.fleethold.tmp")).unwrap();
    let before: Vec<_> = ALL.map(|name| bed.read(name)).into();
    let refused = bed.init(&["--renew"]).failure(1);
    assert!(refused.contains("taken/file"), "{refused}");
    assert!(refused.contains("nothing was changed"), "{refused}");
    assert_eq!(ALL.map(|name| bed.read(name)).to_vec(), before);
    let leftovers = fs::read_dir(bed.dir.path()).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|extension| extension == "tmp")
    });
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn ca_that_cannot_be_used_is_refused_with_the_reason() {
    let mut bed = Bed::new();
    let ca = OtherCa::new(KeyPair::generate().unwrap());
    ca.write(&bed);
    let good = (bed.read("ca.pem"), bed.read("ca-key.pem"));
    let other = KeyPair::generate().unwrap().serialize_pem();
    let certificate = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = ca.params.clone();
        change(&mut params);
        params.self_signed(&ca.key).unwrap().pem()
    };
    let expired = certificate(&|params| {
        params.not_before = UNIX_EPOCH.into();
        params.not_after = (now() - Duration::from_secs(60)).into();
    });
    let leaf = certificate(&|params| params.is_ca = IsCa::NoCa);
    let early = certificate(&|params| {
        params.not_before = (now() + Duration::from_secs(86_400)).into();
    });
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let both = format!("{}{}", good.0, good.1);
    for (certificate, key, reason) in [
        (&*good.0, &*other, "it is the key of another certificate"),
        (&good.0, encrypted, "it is encrypted"),
        (&good.0, "nonsense", "there is no private key in PEM"),
        (&expired, &good.1, "it has expired"),
        (&early, &good.1, "it is not valid yet"),
        (&leaf, &good.1, "is not the certificate of a CA"),
        ("nonsense", &good.1, "there is no certificate in PEM"),
        (&both, &good.1, "there is a private key in it"),
    ] {
        fs::write(bed.path("ca.pem"), certificate).unwrap();
        fs::write(bed.path("ca-key.pem"), key).unwrap();
        let before = bed.contents();
        let refused = bed.init(&[]).failure(2);
        assert!(refused.contains(reason), "{refused}");
        assert!(refused.contains("hint:"), "{refused}");
        assert!(
            refused.contains("ca.pem") || refused.contains("ca-key.pem"),
            "{refused}"
        );
        assert!(!refused.contains("BEGIN"), "{refused}");
        assert_eq!(bed.contents(), before, "{reason}");
    }
    // Nor without any key.
    bed.config.trusted_cert_key_file.clear();
    fs::write(bed.path("ca.pem"), &good.0).unwrap();
    let refused = bed.init(&[]).failure(2);
    assert!(
        refused.contains("`trusted_cert_key_file` is missing"),
        "{refused}"
    );
}

#[test]
fn parts_that_do_not_belong_together_are_refused_and_kept() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let good: Vec<_> = ALL[..4].iter().map(|name| bed.read(name)).collect();
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    for (name, replacement, reason) in [
        (
            "server-key.pem",
            Some(other_key.as_str()),
            "do not belong together",
        ),
        ("server-key.pem", None, "but not its key"),
        (
            "server.pem",
            Some("nonsense"),
            "there is no certificate in PEM",
        ),
        ("ca.pem", None, "put the CA back"),
    ] {
        match replacement {
            Some(text) => fs::write(bed.path(name), text).unwrap(),
            None => fs::remove_file(bed.path(name)).unwrap(),
        }
        let before = bed.contents();
        let refused = bed.init(&[]).failure(2);
        assert!(refused.contains(reason), "{refused}");
        assert!(refused.contains("hint:"), "{refused}");
        assert_eq!(bed.contents(), before, "{reason}");
        if name == "ca.pem" {
            // Renewal is no way to another CA either.
            assert!(bed.init(&["--renew"]).failure(2).contains(reason));
        }
        for (name, text) in ALL.iter().zip(&good) {
            fs::write(bed.path(name), text).unwrap();
        }
    }
}
