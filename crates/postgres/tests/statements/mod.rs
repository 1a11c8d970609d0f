//! The statements of the crate, read from its source.
#![allow(dead_code, reason = "each test target uses its part")]

use std::fs;
use std::path::Path;

#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) file: String,
    pub(crate) name: String,
    pub(crate) sql: String,
}

/// Returns the names and texts of all source files.
pub(crate) fn sources() -> Vec<(String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for directory in [source.clone(), source.join("maintenance")] {
        for entry in fs::read_dir(directory).expect("the source is there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                files.push((name, fs::read_to_string(&path).expect("text")));
            }
        }
    }
    files
}

/// Returns all statements that calls send.
pub(crate) fn all() -> Vec<Statement> {
    let mut statements = Vec::new();
    for (file, source) in sources() {
        for text in source.split("\"\\\n-- ").skip(1) {
            let sql = text.split('"').next().expect("a first part");
            let (name, sql) = sql.split_once('\n').expect("a name and a statement");
            statements.push(Statement {
                file: file.clone(),
                name: name.to_owned(),
                sql: sql.to_owned(),
            });
        }
    }
    statements
}

/// Returns the text of a statement.
pub(crate) fn named(name: &str) -> String {
    let mut all = all().into_iter();
    let found = all.find(|statement| statement.name == name);
    found.expect("a statement of this name").sql
}

/// Returns the statements of all migrations.
pub(crate) fn migrations() -> Vec<Statement> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut statements = Vec::new();
    for entry in fs::read_dir(directory).expect("the migrations are there") {
        let path = entry.expect("an entry").path();
        let file = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let sql = fs::read_to_string(&path).expect("text");
        for statement in sql
            .split(";\n")
            .filter(|statement| !statement.trim().is_empty())
        {
            statements.push(Statement {
                file: file.clone(),
                name: "migration".to_owned(),
                sql: statement.trim().to_owned(),
            });
        }
    }
    statements
}
