//! Databases of MariaDB for single tests.

/// A database on the server that tests share; the test's process ends it.
pub(crate) struct Database {
    pub(crate) url: String,
    /// The same, as Go programs write it.
    pub(crate) dsn: String,
}

pub(crate) fn database(name: &str) -> Database {
    let server = fleethold_testdb::mariadb::shared().expect("a database server");
    let server = Box::leak(Box::new(server));
    let port = server.url.rsplit_once(':').expect("a port").1;
    let name = format!("fleethold_cli_{}_{name}", std::process::id());
    sql(
        &server.url,
        &[&format!("CREATE DATABASE {name} CHARACTER SET utf8mb4")],
    );
    Database {
        url: format!("{}/{name}", server.url),
        dsn: format!("fleethold:fleethold@tcp(127.0.0.1:{port})/{name}"),
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = self.url.rsplit_once('/').expect("a database");
        sql(server, &[&format!("DROP DATABASE {name}")]);
    }
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn sql(url: &str, statements: &[&str]) {
    use mysql_async::prelude::Queryable;
    let mut connection = connect(url).await;
    for statement in statements {
        connection.query_drop(*statement).await.unwrap();
    }
    connection.disconnect().await.unwrap();
}

/// Returns the first column of what a statement finds, as text.
#[allow(dead_code, reason = "not every test program asks")]
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn rows(url: &str, statement: &str) -> Vec<String> {
    use mysql_async::prelude::Queryable;
    let mut connection = connect(url).await;
    let rows = connection.query(statement).await.unwrap();
    connection.disconnect().await.unwrap();
    rows
}

async fn connect(url: &str) -> mysql_async::Conn {
    let url = if url.matches('/').count() < 3 {
        format!("{url}/")
    } else {
        url.to_owned()
    };
    let opts = mysql_async::OptsBuilder::from_opts(mysql_async::Opts::from_url(&url).unwrap());
    mysql_async::Conn::new(opts.prefer_socket(false))
        .await
        .unwrap()
}
