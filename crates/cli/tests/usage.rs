//! Wrong command lines and configurations: what users are told, and the exit status.

mod support;

use std::fs;

use support::run;

#[test]
fn wrong_command_lines_exit_with_2() {
    for (arguments, message) in [
        (&[] as &[&str], "Usage:"),
        (&["fly"], "unrecognized subcommand 'fly'"),
        (&["serve", "--port", "1"], "unexpected argument '--port'"),
        (
            &["serve", "--listen", "localhost"],
            "it has no port; write HOST:PORT",
        ),
        (
            &["serve", "--public-address", ":4443"],
            "it has no host; write HOST:PORT",
        ),
        (
            &["serve", "--public-address", "a:0"],
            "nobody can connect to port 0",
        ),
        (&["serve", "--service", "GRR"], "write NAME=HOST:PORT"),
        (
            &["serve", "--service", "system=a:1"],
            "`system` is reserved",
        ),
        (&["serve", "--store", "fleet.db"], "write sqlite:PATH"),
        (
            &["serve", "--store", "redis://host/db"],
            "there is no store of kind `redis`",
        ),
        (
            &["serve", "--log-format", "xml"],
            "possible values: text, json",
        ),
        (
            &["serve", "--components-config", "f", "--listen", ":1"],
            "cannot be used with",
        ),
        (
            &["client", "list", "123"],
            "a client id is written as exactly 16 hex digits",
        ),
        (&["client", "blacklist"], "required arguments"),
        (
            &["message", "send", "--service", "s", "--type", "t"],
            "--client <ID>",
        ),
        (
            &["message", "status", "0123"],
            "a message id is written as exactly 64 hex digits",
        ),
        (
            &[
                "broadcast",
                "create",
                "--service",
                "s",
                "--type",
                "t",
                "--limit",
                "0",
            ],
            "0 is not in 1..",
        ),
        (
            &[
                "broadcast",
                "create",
                "--service",
                "s",
                "--type",
                "t",
                "--label",
                "linux",
            ],
            "write SERVICE:LABEL",
        ),
        (&["file", "put", "a", "b"], "<PATH>"),
    ] {
        let messages = run(arguments).failure(2);
        assert!(messages.contains(message), "{arguments:?}: {messages}");
    }
}

#[test]
fn wrong_log_levels_exit_with_2() {
    let messages = run(["serve", "--log", "fleethold=loud"]).failure(2);
    assert!(
        messages.starts_with("error: cannot use `fleethold=loud` for --log"),
        "{messages}"
    );
}

#[test]
fn commands_without_a_server_are_temporary_failures() {
    for arguments in [
        &["client", "list"] as &[&str],
        &["message", "pending", "--client", "0123456789abcdef"],
        &["broadcast", "list"],
        &["file", "rm", "service", "name"],
    ] {
        // Nobody listens on port 1.
        let messages = run([arguments, &["--admin", "localhost:1"]].concat()).failure(75);
        let mut lines = messages.lines();
        assert_eq!(
            lines.next(),
            Some("error: cannot reach the server at `localhost:1`")
        );
        assert!(
            messages.contains("\n  cause: Connection refused"),
            "{messages}"
        );
        assert!(
            lines
                .last()
                .is_some_and(|line| line.starts_with("  hint: start it with")),
            "{messages}"
        );
    }
}

#[test]
fn s18_database_that_cannot_be_reached_is_named_without_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let components = dir.path().join("server.components.config");
    fs::write(
        &components,
        "mysql_data_source_name: \"user:secret@tcp(127.0.0.1:1)/fleetspeak\"\n\
         admin_config: < listen_address: \"localhost:0\" >\n",
    )
    .unwrap();
    let path = components.to_str().unwrap();
    let messages = run(["serve", "--components-config", path]).failure(75);
    assert!(messages.contains("`127.0.0.1:1/fleetspeak`"), "{messages}");
    assert!(messages.contains("check host, port"), "{messages}");
    assert!(!messages.contains("secret"), "{messages}");
    for (name, problem) in [
        (
            "mysql:user:secret@tcp(h)/db?sql_mode=ANSI",
            "parameter `sql_mode`",
        ),
        ("mysql://user:secret@h", "names no database"),
        ("mysql:user:secret@pipe(h)/db", "protocol `pipe`"),
    ] {
        let data = dir.path().join("data");
        let data = data.to_str().unwrap();
        let messages = run(["serve", "--data-dir", data, "--store", name]).failure(2);
        assert!(messages.contains(problem), "{messages}");
        assert!(!messages.contains("secret"), "{messages}");
    }
}

#[test]
fn p_211_and_213_wrong_configuration_exits_with_file_place_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let components = dir.path().join("components.config");
    let path = components.to_str().unwrap();
    let store = format!("sqlite:{}", dir.path().join("fleet.db").display());
    let serve = |text: &str| {
        fs::write(&components, text).unwrap();
        run(["serve", "--components-config", path, "--store", &store]).failure(2)
    };

    let messages = serve("admin_config {\n  listen: \"localhost:1\"\n}\n");
    let start = format!(
        "error: `{path}` is not a text-format fleetspeak.components.Config\n  cause: line 2, column 3: "
    );
    assert!(messages.starts_with(&start), "{messages}");
    let hint = "\n  hint: the fields here are `listen_address`\n";
    assert!(messages.ends_with(hint), "{messages}");

    let messages = serve("admin_config: \n");
    let hint =
        "\n  hint: write fields as in `admin_config { listen_address: \"localhost:9000\" }`\n";
    assert!(messages.ends_with(hint), "{messages}");

    let expected = format!(
        "error: `{path}`: field `admin_config.listen_address` is missing\n  \
         hint: write `listen_address: \"localhost:9000\"` in `admin_config`\n"
    );
    assert_eq!(serve("admin_config {}"), expected);

    let messages = serve("spanner_config {}");
    assert!(
        messages.contains("field `spanner_config` is not supported\n  hint: "),
        "{messages}"
    );
    assert!(!dir.path().join("fleet.db").exists());
}

#[test]
fn missing_configuration_files_exit_with_2() {
    for flag in ["--components-config", "--services-config"] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let file = dir.path().join("absent.config");
        let (data, file) = (data.to_str().unwrap(), file.to_str().unwrap());
        let messages = run(["serve", "--data-dir", data, flag, file]).failure(2);
        let start = format!(
            "error: cannot read configuration `{file}`\n  cause: No such file or directory"
        );
        assert!(messages.starts_with(&start), "{messages}");
        assert!(
            messages.ends_with("\n  hint: check the path\n"),
            "{messages}"
        );
    }
}

#[test]
fn errors_in_the_services_of_the_data_directory_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let services = dir.path().join("services.config");
    fs::write(&services, "services { name: \"GRR\" factory: \"CPS\" }\n").unwrap();
    let messages = run(["serve", "--data-dir", dir.path().to_str().unwrap()]).failure(2);
    let start = format!(
        "error: `{}`: field `services[0].factory` is not supported\n  hint: ",
        services.display()
    );
    assert!(messages.starts_with(&start), "{messages}");
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let data = file.join("data");
    let data = data.to_str().unwrap();
    let messages = run(["serve", "--data-dir", data]).failure(1);
    let start = format!("error: cannot create data directory `{data}`\n  cause: Not a directory");
    assert!(messages.starts_with(&start), "{messages}");
}
