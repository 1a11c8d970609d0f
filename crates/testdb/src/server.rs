//! A database server that ends with the tests that use it.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// How one kind of database server is made and run.
pub(crate) trait Kind: Send + Sync {
    /// Starts the names of directories.
    fn name(&self) -> &'static str;

    /// Returns the user the server must run as, if not the own one.
    fn user(&self) -> Option<User>;

    /// Returns the signal that stops the server without waiting for clients.
    fn stop_signal(&self) -> &'static str;

    /// Makes an empty database cluster in `data`.
    fn initialise(&self, data: &Path) -> Result<()>;

    /// Returns the command that serves `data` on loopback's `port`; what it
    /// needs besides lies in `directory`.
    fn serve(&self, directory: &Path, data: &Path, port: u16) -> Command;

    /// Returns whether the server answers those who connect.
    fn is_ready(&self, port: u16) -> bool;
}

/// A user of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// Returns the first of these users that exists, if this process runs as
    /// root: no database server should.
    pub(crate) fn instead_of_root(names: &[&str]) -> Option<Self> {
        if own_uid()? != 0 {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        names.iter().find_map(|name| {
            let line = passwd
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some(Self {
                uid: fields.next()?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
    }
}

fn own_uid() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|own| own.uid())
}

/// A server that belongs to one test; dropping it stops the server and removes its data.
pub struct Server {
    kind: Box<dyn Kind>,
    place: Place,
    port: u16,
    // Dropped last.
    _directory: TempDir,
}

/// A server that several test processes use; it lives while one of them holds this.
#[derive(Debug)]
pub struct Shared {
    port: u16,
    _use: File,
}

/// The time a server has to start or to stop.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// For how many seconds a shared server waits for the next test.
const SHARED_IDLE_SECONDS: u32 = 60;

impl Server {
    pub(crate) fn private(kind: Box<dyn Kind>) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("fleethold-{}-", kind.name()))
            .tempdir()?;
        let place = Place::make(directory.path(), kind.user())?;
        kind.initialise(&place.data())?;
        let mut server = Self {
            kind,
            place,
            port: free_port()?,
            _directory: directory,
        };
        server.start()?;
        Ok(server)
    }

    /// Starts the server after [`stop`](Self::stop) or [`kill`](Self::kill), on
    /// the same port, and returns when it takes connections.
    ///
    /// # Errors
    /// With the end of its log if it does not start.
    pub fn start(&mut self) -> Result<()> {
        self.place.launch(&*self.kind, self.port, 1)
    }

    /// Stops the server as its operator would, and waits for that.
    ///
    /// # Errors
    /// If it does not stop.
    pub fn stop(&self) -> Result<()> {
        self.place.end(self.kind.stop_signal())
    }

    /// Kills the server, as a crash of its machine's kernel would, and waits for that.
    ///
    /// # Errors
    /// If it does not end.
    pub fn kill(&self) -> Result<()> {
        self.place.end("KILL")
    }

    /// Returns the port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the directory of the server, which holds its log.
    pub fn directory(&self) -> &Path {
        &self.place.directory
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The guard stops it anyway as soon as this process has ended.
        let _ = self.place.end("KILL");
    }
}

impl Shared {
    pub(crate) fn start(kind: &dyn Kind) -> Result<Self> {
        let uid = own_uid().context("cannot read /proc/self")?;
        let directory =
            std::env::temp_dir().join(format!("fleethold-shared-{}-{uid}", kind.name()));
        fs::create_dir_all(&directory)?;
        // One process starts the server, the others wait for it.
        let starting = File::create(directory.with_extension("starting"))?;
        starting.lock()?;
        let place = Place::make(&directory, kind.user())?;
        let in_use = File::open(place.lock())?;
        // Waits for a guard that is just ending the server.
        in_use.lock_shared()?;
        let port = match place.answering(kind)? {
            Some(port) => port,
            None => {
                place.clear()?;
                kind.initialise(&place.data())?;
                let port = free_port()?;
                place.launch(kind, port, SHARED_IDLE_SECONDS)?;
                fs::write(place.port(), port.to_string())?;
                port
            }
        };
        Ok(Self { port, _use: in_use })
    }

    /// Returns the port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A server's directory.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    user: Option<User>,
    // Held while the server is needed.
    in_use: Option<File>,
}

impl Place {
    fn make(directory: &Path, user: Option<User>) -> Result<Self> {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        let mut place = Self {
            directory: directory.to_owned(),
            user,
            in_use: None,
        };
        if !place.lock().exists() {
            File::create(place.lock())?;
        }
        if let Some(user) = user {
            for path in [&place.directory, &place.lock()] {
                chown(path, Some(user.uid), Some(user.gid))?;
            }
        }
        let in_use = File::open(place.lock())?;
        in_use.lock_shared()?;
        place.in_use = Some(in_use);
        Ok(place)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn lock(&self) -> PathBuf {
        self.directory.join("in-use")
    }

    fn pid(&self) -> PathBuf {
        self.directory.join("pid")
    }

    fn port(&self) -> PathBuf {
        self.directory.join("port")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Removes what an ended server left.
    fn clear(&self) -> Result<()> {
        if self.data().exists() {
            fs::remove_dir_all(self.data())?;
        }
        for file in [self.pid(), self.port(), self.log()] {
            remove_if_present(&file)?;
        }
        Ok(())
    }

    fn launch(&self, kind: &dyn Kind, port: u16, idle_seconds: u32) -> Result<()> {
        let command = kind.serve(&self.directory, &self.data(), port);
        // Left by an earlier start, it would name a process that has ended.
        remove_if_present(&self.pid())?;
        let mut guard = Command::new("sh");
        guard
            .args(["-c", GUARD, "guard", &idle_seconds.to_string()])
            .arg(&self.directory)
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Survives the test process and what is sent to its group.
            .process_group(0);
        if let Some(user) = self.user {
            guard.uid(user.uid).gid(user.gid);
        }
        let mut guard = guard.spawn().context("cannot start sh")?;
        let deadline = Instant::now() + LIMIT;
        while self.process().is_none() || !kind.is_ready(port) {
            if guard.try_wait()?.is_some() || Instant::now() > deadline {
                bail!(
                    "{} did not start; its log ends:\n{}",
                    kind.name(),
                    self.log_end()
                );
            }
            sleep(LOOK_EVERY);
        }
        // Nobody waits for the guard: a thread of its own takes its end.
        std::thread::spawn(move || guard.wait());
        Ok(())
    }

    fn end(&self, signal: &str) -> Result<()> {
        let Some(pid) = self.process() else {
            return Ok(());
        };
        // A server of several processes holds its memory until the last has
        // ended, and does not start again before.
        let mut processes = children(pid);
        processes.push(pid);
        // Fails if the server has ended already.
        Command::new("kill")
            .args([format!("-{signal}"), pid.to_string()])
            .stderr(Stdio::null())
            .status()?;
        let deadline = Instant::now() + LIMIT;
        for process in processes {
            while Path::new(&format!("/proc/{process}")).exists() {
                ensure!(Instant::now() < deadline, "process {process} did not end");
                sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    /// Returns the process of the server that was started last.
    fn process(&self) -> Option<u32> {
        fs::read_to_string(self.pid()).ok()?.trim().parse().ok()
    }

    /// Returns the port of a server that was started before and still runs. On
    /// a busy machine it may answer late: nobody removes its data meanwhile.
    fn answering(&self, kind: &dyn Kind) -> Result<Option<u16>> {
        let port = fs::read_to_string(self.port()).ok();
        let Some(port) = port.and_then(|port| port.trim().parse().ok()) else {
            return Ok(None);
        };
        let deadline = Instant::now() + LIMIT;
        while !kind.is_ready(port) {
            let Some(process) = self.process().filter(|process| self.owns(*process)) else {
                return Ok(None);
            };
            ensure!(
                Instant::now() < deadline,
                "{} runs as process {process} and does not answer on port {port}",
                kind.name()
            );
            sleep(LOOK_EVERY);
        }
        Ok(Some(port))
    }

    /// Returns whether a process serves this directory; numbers are used again.
    fn owns(&self, process: u32) -> bool {
        let arguments = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let directory = self.directory.as_os_str().as_encoded_bytes();
        arguments
            .windows(directory.len())
            .any(|part| part == directory)
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let numbers = children.split_whitespace();
    numbers.filter_map(|child| child.parse().ok()).collect()
}

fn remove_if_present(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs a server, and ends it when nobody has held the lock for some seconds.
const GUARD: &str = r#"
idle_limit=$1; directory=$2; shift 2
"$@" >>"$directory/log" 2>&1 &
server=$!
echo "$server" >"$directory/pid"
idle=0
while kill -0 "$server" 2>/dev/null; do
    sleep 1
    if flock -n -x "$directory/in-use" true; then idle=$((idle + 1)); else idle=0; fi
    [ "$idle" -ge "$idle_limit" ] || continue
    # Whoever needs the server now waits until it has ended, and starts another.
    flock -n -x "$directory/in-use" sh -c '
        rm -f "$2/port"
        kill -KILL "$1"
        while kill -0 "$1" 2>/dev/null && [ "$(cut -d " " -f 3 "/proc/$1/stat")" != Z ]; do sleep 0.1; done
        rm -rf "$2/data"
    ' end "$server" "$directory"
done
"#;

/// Connects to a port on loopback.
pub(crate) fn connect(port: u16) -> Option<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Runs a command as `user` to its end.
pub(crate) fn run(mut command: Command, user: Option<User>) -> Result<()> {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{:?} failed: {}{}",
        command.get_program(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Returns the first of these programs that exists.
pub(crate) fn find(program: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(directories.iter().cloned())
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}
