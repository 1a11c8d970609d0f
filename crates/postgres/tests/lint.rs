//! The statements keep to what every engine with PostgreSQL's protocol can do.

mod statements;

use statements::{Statement, all, migrations};

/// What the statements of calls never use, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    (
        "ADVISORY",
        "some engines lock nothing, others only one node",
    ),
    ("SAVEPOINT", "not every engine has them"),
    ("TEMP ", "temporary tables belong to a session"),
    ("TEMPORARY", "temporary tables belong to a session"),
    ("NOW(", "time comes from the server's clock"),
    ("CURRENT_TIMESTAMP", "time comes from the server's clock"),
    ("TIMESTAMP ", "times are numbers with their unit"),
    ("RANDOM(", "chance comes from the server's generator"),
    ("NEXTVAL", "ids are made by the server"),
    ("SERIAL", "ids are made by the server"),
    ("IDENTITY", "ids are made by the server"),
    ("SELECT *", "columns are listed"),
    (".*", "columns are listed"),
    ("TRIGGER", "not every engine has them"),
    ("FUNCTION", "no stored code"),
    ("LOCK TABLE", "rows are locked, not tables"),
    ("REFERENCES", "foreign keys lock clients on every message"),
    ("CASCADE", "deletes are written out"),
    ("TRUNCATE", "deletes name rows"),
    ("CTID", "only one engine has it"),
    ("XMAX", "only one engine has it"),
];

fn problems(statement: &Statement) -> Vec<String> {
    let sql = statement.sql.to_uppercase();
    let code: String = sql
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .flat_map(|line| [line.trim(), " "])
        .collect();
    let mut problems: Vec<String> = FORBIDDEN
        .iter()
        .filter(|(word, _)| code.contains(word))
        .map(|(word, why)| format!("{word}: {why}"))
        .collect();
    let mut only = |word: &str, file: &str| {
        if code.contains(word) && statement.file != file {
            problems.push(format!("{word} outside of {file}"));
        }
    };
    only("SKIP LOCKED", "claims.rs");
    only("LISTEN", "notify.rs");
    only("NOTIFY", "notify.rs");
    only("SET ENABLE", "pool.rs");
    only("BEGIN", "migrate.rs");
    only("OFFSET", "messages.rs");
    // All other time comes from the server's clock.
    only("CLOCK_TIMESTAMP", "leases.rs");
    if code.contains("CREATE INDEX") && code.contains(" WHERE ") {
        problems.push("a partial index: not every engine has them".to_owned());
    }
    for change in ["UPDATE ", "DELETE FROM "] {
        if code.trim_start().starts_with(change) && !code.contains("WHERE") {
            problems.push(format!("{change}of all rows"));
        }
    }
    if code.contains("FOR UPDATE SKIP LOCKED") {
        let locking = code
            .split("FOR UPDATE SKIP LOCKED")
            .next()
            .unwrap_or_default();
        let select = locking.rsplit("SELECT").next().unwrap_or_default();
        if select.contains(" JOIN ") {
            problems.push("SKIP LOCKED with a join".to_owned());
        }
    }
    problems
}

#[test]
fn all_statements_keep_to_the_common_subset() {
    let statements = all();
    assert!(
        statements.len() > 60,
        "{} statements are found",
        statements.len()
    );
    for statement in statements.iter().chain(&migrations()) {
        let problems = problems(statement);
        assert!(
            problems.is_empty(),
            "{}, {}: {problems:?}",
            statement.file,
            statement.name
        );
    }
}

#[test]
fn every_statement_begins_with_a_name_of_its_own() {
    let mut names: Vec<_> = all().into_iter().map(|statement| statement.name).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn text_that_is_sent_is_a_named_statement() {
    for (file, source) in statements::sources() {
        let mut rest = &source[..];
        while let Some(at) = rest.find("sql: \"") {
            rest = &rest[at + 6..];
            assert!(rest.starts_with("\\\n-- "), "{file}: {}", &rest[..40]);
        }
        // Verbs are sent as constants, and statements of migrations.
        for call in ["batch_execute(", "simple_query("] {
            for part in source.split(call).skip(1) {
                let argument = part.split(')').next().unwrap_or_default();
                let known = [
                    "COMMIT",
                    "ROLLBACK",
                    "\"ROLLBACK\"",
                    "last",
                    "begin",
                    "PLANS",
                    "PREPARE",
                    "LOCK",
                    "LISTEN",
                    "OWN",
                    "statement",
                    "\"\"",
                ];
                assert!(known.contains(&argument), "{file}: {call}{argument})");
            }
        }
    }
}

#[test]
fn every_table_has_a_key_of_ours() {
    for statement in migrations()
        .iter()
        .filter(|statement| statement.sql.contains("CREATE TABLE"))
    {
        assert!(statement.sql.contains("PRIMARY KEY"), "{}", statement.sql);
    }
}

#[test]
fn the_lint_finds_what_it_looks_for() {
    for (sql, expected) in [
        ("SELECT pg_advisory_lock(1)", "ADVISORY"),
        ("SELECT * FROM clients", "SELECT *"),
        ("UPDATE clients SET blacklisted = true", "all rows"),
        (
            "CREATE INDEX i ON messages (failure) WHERE failure IS NOT NULL",
            "partial",
        ),
        (
            "SELECT a FROM b JOIN c USING (d) FOR UPDATE SKIP LOCKED",
            "join",
        ),
        ("SELECT extract(epoch FROM now())", "NOW("),
        ("SELECT clock_timestamp()", "outside of leases.rs"),
    ] {
        let statement = Statement {
            file: "claims.rs".to_owned(),
            name: "x".to_owned(),
            sql: sql.to_owned(),
        };
        let problems = problems(&statement).join("; ");
        assert!(problems.contains(expected), "{sql}: {problems}");
    }
}
