//! Files that agents and others download.

use std::fs;

use crate::harness::{AgentOptions, Bed, ECHO, fleetspeak_admin, text, wait_until};

#[test]
fn the_agent_downloads_the_revocation_list_that_stock_admin_stored() {
    const SERIAL: [u8; 16] = *b"a revoked serial";
    let bed = Bed::start();
    let list = bed.path().join("list");
    // A RevokedCertificateList: field 1, sixteen bytes.
    fs::write(&list, [&[0x0a, 16], SERIAL.as_slice()].concat()).expect("a file");
    fleetspeak_admin(
        bed.server.admin(),
        &["storefile", "system", "RevokedCertificates", &text(&list)],
    );

    let agent = bed.start_agent("one", AgentOptions::STREAMING);
    wait_until("the serial in the agent's state", || {
        let state = fs::read(agent.state()).unwrap_or_default();
        if state.windows(SERIAL.len()).any(|window| window == SERIAL) {
            Ok(())
        } else {
            Err(state.len())
        }
    });
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
