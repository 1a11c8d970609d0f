//! Another run: what stays, and what is renewed.

use super::*;

#[test]
fn p_216_another_run_changes_nothing() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let before = bed.contents();
    let said = bed.said(&[]);
    assert_eq!(said["kept"], ALL);
    assert_eq!(bed.contents(), before);
}

#[test]
fn p_216_deleted_server_certificate_is_issued_again_by_the_same_ca() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let (ca, before) = (bed.read("ca.pem"), bed.read("server.pem"));
    // As GRR does it: certificate and key move away.
    for name in ["server.pem", "server-key.pem"] {
        fs::rename(bed.path(name), bed.path(&format!("{name}.old"))).unwrap();
    }
    let said = bed.said(&[]);
    assert_eq!(said["made"], ["server-key.pem", "server.pem"]);
    assert_eq!(said["changed"], ["components"]);
    assert_eq!(bed.read("ca.pem"), ca);
    assert_ne!(bed.read("server.pem"), before);
    let components: Components = text::parse(&bed.read("components")).unwrap();
    assert_eq!(
        components.https_config.unwrap().certificates,
        bed.read("server.pem")
    );
}

#[test]
fn renewal_replaces_the_server_certificate_and_nothing_that_agents_know() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let before = bed.read("server.pem");
    let said = bed.said(&["--renew"]);
    assert_eq!(said["changed"], ["server.pem", "components"]);
    assert_eq!(
        said["kept"],
        [
            "ca-key.pem",
            "ca.pem",
            "server-key.pem",
            "linux",
            "darwin",
            "windows"
        ]
    );
    assert_ne!(bed.read("server.pem"), before);
}

#[test]
fn agents_that_look_for_a_server_name_need_no_other_host_in_the_certificate() {
    let mut bed = Bed::new();
    bed.init(&[]).data();
    bed.config.server_name = "name.example".to_owned();
    assert_eq!(bed.said(&[])["changed"][0], "server.pem");
    bed.config
        .public_host_port
        .push("other.example:443".to_owned());
    let said = bed.said(&[]);
    assert_eq!(said["changed"], ["linux", "darwin", "windows"]);
}

#[test]
fn another_public_host_gets_into_the_certificate_and_to_agents() {
    let mut bed = Bed::new();
    bed.init(&[]).data();
    bed.config
        .public_host_port
        .push("other.example:443".to_owned());
    let said = bed.said(&[]);
    assert_eq!(
        said["changed"],
        ["server.pem", "components", "linux", "darwin", "windows"]
    );
    with_certificate(&bed.read("server.pem"), |leaf| {
        let names = &leaf
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names;
        assert!(names.contains(&GeneralName::DNSName("other.example")));
    });
}

#[test]
fn owner_and_mode_that_people_chose_for_a_file_stay() {
    let bed = Bed::new();
    bed.init(&[]).data();
    fs::set_permissions(bed.path("components"), fs::Permissions::from_mode(0o640)).unwrap();
    bed.init(&["--renew"]).data();
    assert_eq!(bed.mode("components"), 0o640);
    fs::set_permissions(
        bed.path("server-key.pem"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let said = bed.init(&[]);
    assert!(
        said.stderr.contains("everybody can read"),
        "{}",
        said.stderr
    );
}

#[test]
fn existing_ca_is_used_and_never_changed() {
    for key in [
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(),
    ] {
        let bed = Bed::new();
        OtherCa::new(key).write(&bed);
        // As `openssl ecparam -genkey` writes keys.
        let parameters =
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let key = format!("{parameters}{}", bed.read("ca-key.pem"));
        fs::write(bed.path("ca-key.pem"), key).unwrap();
        let before = (bed.read("ca.pem"), bed.read("ca-key.pem"));
        let said = bed.said(&[]);
        assert_eq!(said["made"], ALL[2..]);
        assert_eq!((bed.read("ca.pem"), bed.read("ca-key.pem")), before);
        with_certificate(&bed.read("server.pem"), |leaf| {
            assert!(leaf.issuer().to_string().contains("They & Co"));
        });
        // The key may be elsewhere as long as nothing is to be issued.
        fs::remove_file(bed.path("ca-key.pem")).unwrap();
        assert_eq!(bed.said(&[])["kept"], ALL[1..]);
        let refused = bed.init(&["--renew"]).failure(1);
        assert!(refused.contains("without the CA key"), "{refused}");
        assert!(refused.contains("put the key back"), "{refused}");
    }
}

#[test]
fn certificate_that_expires_soon_is_renewed_by_its_ca() {
    for (days, renewed) in [(29, true), (31, false), (-1, true)] {
        let bed = Bed::new();
        let ca = OtherCa::new(KeyPair::generate().unwrap());
        ca.write(&bed);
        ca.issue(&bed, &HOSTS, days);
        let before = bed.read("server.pem");
        bed.init(&[]).data();
        assert_eq!(
            bed.read("server.pem") != before,
            renewed,
            "{days} days left"
        );
    }
}

#[test]
fn certificate_from_elsewhere_is_kept_with_a_warning_until_renewal_is_asked_for() {
    let bed = Bed::new();
    bed.init(&[]).data();
    let elsewhere = OtherCa::new(KeyPair::generate().unwrap());
    elsewhere.issue(&bed, &HOSTS, 100);
    let before = bed.read("server.pem");
    let said = bed.init(&[]);
    assert!(
        said.stderr.contains("would not accept the server"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("--renew"), "{}", said.stderr);
    said.data();
    assert_eq!(bed.read("server.pem"), before);
    let said = bed.init(&["--renew"]);
    assert_eq!(said.stderr, "");
    assert_ne!(bed.read("server.pem"), before);
}

#[test]
fn run_that_was_cut_off_is_completed_by_the_next() {
    let bed = Bed::new();
    bed.init(&[]).data();
    for from in 1..ALL.len() {
        for name in &ALL[from..] {
            fs::remove_file(bed.path(name)).unwrap();
        }
        fs::write(bed.path("server.pem.fleethold.tmp"), "torn").unwrap();
        assert_eq!(bed.said(&[])["made"], ALL[from..], "from {from}");
        assert!(bed.contents().len() <= ALL.len() + 1);
    }
}

#[test]
fn two_runs_at_once_do_not_mix() {
    let bed = Bed::new();
    fs::write(bed.path("configurator"), text::print(&bed.config)).unwrap();
    let start = || {
        let mut command = bed.command();
        command.args(["--config", "configurator"]);
        std::thread::spawn(move || finish(&mut command))
    };
    let runs: Vec<_> = (0..4).map(|_| start()).collect();
    let ended: Vec<_> = runs
        .into_iter()
        .map(|run| run.join().unwrap().status)
        .collect();
    assert!(ended.contains(&Some(0)), "{ended:?}");
    assert!(
        ended
            .iter()
            .all(|status| [Some(0), Some(75)].contains(status)),
        "{ended:?}"
    );
    // Key and certificate are of one run.
    assert_eq!(bed.said(&[])["kept"], ALL);
}
