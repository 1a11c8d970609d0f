//! Files that agents and others download.

use std::fs;

use crate::harness::{Agent, AgentOptions, Bed, ECHO, fleetspeak_admin, text, wait_until};

/// Has stock admin store a list of revoked certificates.
fn revoke(bed: &Bed, serial: &[u8]) {
    let list = bed.path().join("list");
    let length = u8::try_from(serial.len()).expect("a short serial");
    // A RevokedCertificateList has the serials in field 1.
    fs::write(&list, [&[0x0a, length], serial].concat()).expect("a file");
    fleetspeak_admin(
        bed.server.admin(),
        &["storefile", "system", "RevokedCertificates", &text(&list)],
    );
}

#[test]
fn p_184_agent_refuses_a_server_whose_certificate_is_revoked() {
    let bed = Bed::start();
    let pem = fs::read(bed.server.certificate()).expect("the server's certificate");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
    let certificate = pem.parse_x509().expect("a certificate");
    let serial = certificate.tbs_certificate.serial.to_bytes_be();
    revoke(&bed, &serial);

    // It may connect before it has the list.
    let mut agent = bed.start_agent("one", AgentOptions::STREAMING);
    wait_for_revocation(&agent, &serial);
    agent.kill();
    let before = agent.log().len();
    agent.start_again();
    wait_until("the agent's refusal", || {
        let log = agent.log().split_off(before);
        match log.contains("certificate revoked") {
            true => Ok(()),
            false => Err(log),
        }
    });
}

/// Waits until the agent has this serial in its list.
fn wait_for_revocation(agent: &Agent, serial: &[u8]) {
    wait_until("the serial in the agent's state", || {
        let state = fs::read(agent.state()).unwrap_or_default();
        if state.windows(serial.len()).any(|window| window == serial) {
            Ok(())
        } else {
            Err(state.len())
        }
    });
}

#[test]
fn the_agent_downloads_the_revocation_list_that_stock_admin_stored() {
    const SERIAL: [u8; 16] = *b"a revoked serial";
    let bed = Bed::start();
    revoke(&bed, &SERIAL);

    let agent = bed.start_agent("one", AgentOptions::STREAMING);
    wait_for_revocation(&agent, &SERIAL);
}

#[test]
fn a_stored_file_is_served_until_it_is_deleted() {
    // Larger than one frame or buffer, with every byte value.
    let content: Vec<u8> = (0..300_000_u32)
        .map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let bed = Bed::start();
    let path = bed.path().join("content");
    fs::write(&path, &content).expect("a file");
    fleetspeak_admin(
        bed.server.admin(),
        &["storefile", ECHO, "a name/with all", &text(&path)],
    );
    assert!(
        bed.server.download(ECHO, "a name/with all") == Some(content),
        "the file has changed on its way"
    );

    fleetspeak_admin(bed.server.admin(), &["deletefile", ECHO, "a name/with all"]);
    assert_eq!(bed.server.download(ECHO, "a name/with all"), None);
}
