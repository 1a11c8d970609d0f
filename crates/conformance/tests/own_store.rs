//! The example's broken store must not get through the suite.

use std::path::PathBuf;
use std::process::{Command, Output};

#[test]
fn store_that_hands_out_messages_twice_is_reported() {
    let output = example(&["claims::"]);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{report}");
    let case = "own::claims::f_01_concurrent_claims_never_share_a_message";
    assert!(
        report
            .lines()
            .any(|line| line.contains(case) && line.ends_with("FAILED")),
        "{report}"
    );
    let contract = "each due message goes to exactly one of many callers";
    assert!(report.contains(contract), "the report says why: {report}");
}

#[test]
fn store_with_one_fault_passes_the_cases_of_other_subjects() {
    let output = example(&["files::"]);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
}

/// Runs the example, which cargo builds with the tests unless only this one was asked for.
fn example(arguments: &[&str]) -> Output {
    let own = std::env::current_exe().expect("the path of this program");
    let profile = own.ancestors().nth(2).expect("target/debug/deps/program");
    let path: PathBuf = profile
        .join("examples")
        .join(format!("own_store{}", std::env::consts::EXE_SUFFIX));
    let output = Command::new(&path).args(arguments).output();
    output.unwrap_or_else(|error| {
        panic!(
            "{} cannot run: {error}; `cargo build --example own_store` makes it",
            path.display()
        )
    })
}
