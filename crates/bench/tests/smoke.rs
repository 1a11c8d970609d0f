//! The measurement still runs. Times are never asserted.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_smallest_run_measures_every_group_and_loses_nothing() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let json = directory.path().join("raw.json");
    let disk = directory.path().join("disk");
    // Fails by itself if a message that was acknowledged is missing.
    let output = Command::new(env!("CARGO_BIN_EXE_store-bench"))
        .arg("--smoke")
        .arg("--json")
        .arg(&json)
        .arg("--dir")
        .arg(&disk)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert_eq!(error, "", "progress is for terminals");

    let raw: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = raw["rows"].as_array().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    for group in fleethold_bench::embedded::GROUPS.iter().chain(&["floors"]) {
        let of_group: Vec<_> = rows.iter().filter(|row| row["group"] == *group).collect();
        assert!(!of_group.is_empty(), "{group}");
        for row in of_group {
            assert!(row["median"].as_f64().unwrap() >= 0.0, "{row}");
            assert!(printed.contains(row["name"].as_str().unwrap()), "{row}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(&disk).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
