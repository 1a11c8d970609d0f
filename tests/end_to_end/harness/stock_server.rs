//! Upstream's server.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use super::process::{Process, append_to};
use super::upstream::fleetspeak_server;
use super::wait_until;

/// A running `fleetspeak-server`.
pub(crate) struct StockServer {
    process: Process,
    dir: PathBuf,
}

impl StockServer {
    /// Starts a server with these files and waits until it takes connections
    /// at all `addresses`. `dir` takes its log.
    pub(crate) fn start(
        dir: &Path,
        components: &Path,
        services: &Path,
        addresses: &[&str],
    ) -> Self {
        fs::create_dir_all(dir).expect("a directory for the server");
        let log = dir.join("stock-server.log");
        let mut process = Process::spawn(
            fleetspeak_server(components, services).stdout(append_to(&log)),
            log,
        );
        wait_until("the stock server to be ready", || {
            if let Some(status) = process.ended() {
                panic!("the stock server ended with {status}");
            }
            let missing = addresses
                .iter()
                .find(|address| TcpStream::connect(address).is_err());
            missing.map_or(Ok(()), Err)
        });
        Self {
            process,
            dir: dir.to_owned(),
        }
    }

    /// Asks the server to stop, and waits until it has.
    pub(crate) fn stop(mut self) {
        self.process.terminate();
        wait_until("the end of the stock server", || {
            self.process.ended().map(drop).ok_or("it still runs")
        });
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.dir.join("stock-server.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}
