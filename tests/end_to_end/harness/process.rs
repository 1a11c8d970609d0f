//! Child processes that never outlive the case.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

/// How much of a log a failing case shows.
const TAIL_LINES: usize = 40;

/// A running child; dropping it kills it.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// Returns a command for `program` that the kernel kills should the test die
/// without having cleaned up.
///
/// The kernel looks at the thread that spawns, so spawn from the case's own.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program.as_ref());
    command
}

impl Process {
    /// Spawns `command` with its stderr appended to the file `log`, and its
    /// stdout too, unless the caller has piped it.
    pub(crate) fn spawn(command: &mut Command, log: PathBuf) -> Self {
        let file = append_to(&log);
        let child = command
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Self { child, log }
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Asks the process to stop.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Stops the process where it is, until it is killed.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .args(["-c", "kill -\"$0\" \"$1\"", name])
            .arg(self.child.id().to_string())
            .status();
        assert!(
            sent.expect("sh runs").success(),
            "cannot signal process {}",
            self.child.id()
        );
    }

    /// Kills the process without a warning, and waits for its end.
    pub(crate) fn kill(&mut self) {
        // An error means that it ended by itself.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// Returns how the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    #[expect(clippy::print_stderr, reason = "for whoever reads the failure")]
    fn show_log(&self) {
        eprintln!("--- end of {}:\n{}", self.log.display(), tail(&self.log));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            self.show_log();
        }
    }
}

/// Opens a file for output that is to be kept, also over restarts.
pub(crate) fn append_to(path: &Path) -> Stdio {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()))
        .into()
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
