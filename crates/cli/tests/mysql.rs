//! A server on a database of MySQL or MariaDB, named as users name it.

#[path = "support/database.rs"]
mod database;
mod support;

use std::fs;
use std::path::Path;

use database::{database, sql};
use support::{Serving, command, finish, run};

#[test]
fn server_keeps_its_data_in_a_database_named_by_url() {
    let dir = tempfile::tempdir().unwrap();
    let database = database("url");
    let arguments = ["--store", &database.url];
    let server = Serving::start_with(&dir.path().join("data"), &arguments);
    server
        .run(&[
            "file",
            "put",
            "service",
            "name",
            file(dir.path()).to_str().unwrap(),
        ])
        .data();
    server.stop();
    let sizes = run(["store", "stats", "--store", &database.url, "--json"]).json();
    assert_eq!(sizes["tables"]["files"], 1, "{sizes}");
    let checked = run(["store", "check", "--store", &database.url, "--json"]);
    assert_eq!(checked.json(), serde_json::json!([]));
}

fn file(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("content");
    fs::write(&path, "content").unwrap();
    path
}

#[test]
fn database_of_a_stock_server_is_taken_over_when_somebody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let database = database("dsn");
    let data = dir.path().join("data");
    // The same tables without our additions, as a stock server leaves them.
    Serving::start_with(&data, &["--store", &database.url]).stop();
    sql(
        &database.url,
        &[
            "DROP TABLE fleethold_messages, fleethold_broadcast_groups, \
             fleethold_broadcast_messages, fleethold_copies, fleethold_leases, \
             fleethold_locks, fleethold_schema",
            "ALTER TABLE pending_messages DROP INDEX fleethold_queue, DROP COLUMN fleethold_queue",
        ],
    );
    let components = dir.path().join("components.config");
    fs::write(
        &components,
        format!(
            "mysql_data_source_name: \"{}\"\n\
             admin_config: < listen_address: \"localhost:0\" >\n",
            database.dsn
        ),
    )
    .unwrap();
    let serve = |more: &[&str]| {
        let mut command = command();
        command
            .arg("serve")
            .arg("--components-config")
            .arg(&components)
            .args(more);
        command
    };
    let refused = finish(&mut serve(&[])).failure(1);
    assert!(refused.contains("--takeover=check"), "{refused}");
    let report = finish(&mut serve(&["--takeover=check"])).data();
    for part in [
        "was made by a stock server",
        "to be added: column `pending_messages.fleethold_queue`",
        "cannot be promised: contacts after the 2147483647th",
    ] {
        assert!(report.contains(part), "{report}");
    }
    assert!(!report.contains("fleethold:fleethold"), "{report}");
    let server = Serving::spawn(&mut serve(&["--takeover=add"]));
    assert_eq!(server.run(&["client", "list", "--json"]).data(), "[]\n");
    server.stop();
    // Once is enough.
    Serving::spawn(&mut serve(&[])).stop();
}
