//! The server under test, as a child process.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Answer, open, request};
use super::{golden, scaled};

/// A running server; ended, and its log shown if the test failed, when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) work_dir: PathBuf,
    dir: Place,
}

/// Where a server's work directory and log are.
enum Place {
    /// Removed with the server.
    Own(TempDir),
    /// Kept for later runs.
    Kept(PathBuf),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }
}

impl Server {
    /// A server with small pools and a work directory of its own.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A server that a program starts: its words come before the server's. In a work directory of its own, without a
    /// golden snapshot.
    pub(crate) fn under(words: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::try_at(Place::Own(new_dir()), words, settings)
            .unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// The same with more settings.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        let dir = new_dir();
        golden::lend(&dir.path().join("work"));
        Self::in_dir(dir, settings)
    }

    /// A server that makes the golden snapshot in `dir`, or finds it there.
    pub(super) fn making_golden(dir: &Path) -> Self {
        Self::try_at(Place::Kept(dir.to_owned()), &[], &[])
            .unwrap_or_else(|log| panic!("no golden snapshot:\n{log}"))
    }

    /// A server that takes over a directory from another.
    pub(crate) fn in_dir(dir: TempDir, settings: &[(&str, &str)]) -> Self {
        Self::try_in_dir(dir, settings).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// Starts a server that may refuse to; then its log.
    pub(crate) fn try_with(settings: &[(&str, &str)]) -> Result<Self, String> {
        Self::try_in_dir(new_dir(), settings)
    }

    /// The same in a directory taken over from another.
    pub(crate) fn try_in_dir(dir: TempDir, settings: &[(&str, &str)]) -> Result<Self, String> {
        Self::try_at(Place::Own(dir), &[], settings)
    }

    /// A server without a golden snapshot that was only just started: it does not listen yet.
    pub(crate) fn starting() -> Self {
        Self::launch(Place::Own(new_dir()), &[], &[]).0
    }

    /// A server that kills itself, perhaps before it listens; returns the directory for a successor.
    pub(crate) fn doomed(dir: TempDir, settings: &[(&str, &str)], limit: Duration) -> TempDir {
        Self::launch(Place::Own(dir), &[], settings).0.died(limit)
    }

    fn try_at(dir: Place, words: &[&str], settings: &[(&str, &str)]) -> Result<Self, String> {
        let (mut server, lines) = Self::launch(dir, words, settings);
        let address = lines.recv_timeout(scaled(120)).ok().and_then(|line| {
            let url = line.strip_prefix("manta: listening on ")?;
            // Without TCP there is no address.
            if url.starts_with("unix:") {
                Some(server.address)
            } else {
                url.split_once("://")?.1.parse().ok()
            }
        });
        match address {
            Some(address) => {
                server.address = address;
                Ok(server)
            }
            None => {
                let _ = server.child.kill();
                let _ = server.child.wait();
                Err(server.log())
            }
        }
    }

    /// A new process; its address is not known yet, but will come as a line.
    fn launch(dir: Place, words: &[&str], settings: &[(&str, &str)]) -> (Self, mpsc::Receiver<String>) {
        // VMMs run as users of their own and must be able to pass through.
        let passable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), passable).expect("open the temporary directory");
        let work_dir = dir.path().join("work");
        let log_path = dir.path().join("log");
        let log = fs::File::options().create(true).append(true).open(&log_path).expect("a log file");
        let words = words.iter().map(OsString::from).chain([binary(), "server".into()]);
        let words: Vec<_> = words.collect();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env("MANTA_LISTEN_ADDR", "127.0.0.1:0")
            .env("MANTA_WORK_DIR", &work_dir)
            .env("MANTA_VMM", std::env::var("MANTA_TEST_VMM").unwrap_or_else(|_| "qemu".to_owned()))
            .env("MANTA_NETNS_POOL_SIZE", "2")
            // What tests count are sandboxes.
            .env("MANTA_VMM_POOL_SIZE", "0")
            .env("MANTA_WARM_POOL_SIZE", "0")
            // Guests here use little of theirs.
            .env("MANTA_MAX_MEMORY_MIB", "65536")
            .env("MANTA_LOG", "debug")
            .envs(artifacts())
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("start the server");
        let stdout = child.stdout.take().expect("its standard output");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        (Self { child, address: SocketAddr::from(([0; 4], 0)), work_dir, dir }, lines)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw("POST", path, "content-type: application/json\r\n", body.to_string().as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.raw("GET", path, "", b"").ok()
    }

    pub(crate) fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        request(self.address, method, path, headers, body, scaled(120))
    }

    /// Sends a request without waiting for its answer; dropping it hangs up.
    pub(crate) fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let headers = "content-type: application/json\r\n";
        open(self.address, "POST", path, headers, body.to_string().as_bytes(), scaled(120))
    }

    /// A new sandbox's id.
    pub(crate) fn create(&self) -> String {
        let created = self.raw("POST", "/create", "", b"").ok();
        created["sandbox_id"].as_str().expect("a sandbox id").to_owned()
    }

    /// Runs a shell line that must be answered.
    pub(crate) fn sh(&self, id: &str, cmd: &str) -> Value {
        self.post("/exec", &json!({"sandbox_id": id, "cmd": cmd})).ok()
    }

    /// Standard output of a shell line that must succeed, without its last newline.
    pub(crate) fn stdout(&self, id: &str, cmd: &str) -> String {
        let ran = self.sh(id, cmd);
        assert_eq!(ran["exit_code"], 0, "{cmd}: {ran:#}");
        ran["stdout"].as_str().expect("stdout").trim_end_matches('\n').to_owned()
    }

    pub(crate) fn destroy(&self, id: &str) -> Answer {
        self.post("/destroy", &json!({"sandbox_id": id}))
    }

    /// The listed entry of a sandbox.
    pub(crate) fn info(&self, id: &str) -> Option<Value> {
        let listed = self.get("/sandboxes");
        listed["sandboxes"].as_array().expect("a list").iter().find(|info| info["id"] == id).cloned()
    }

    /// The VMM process of a listed sandbox that runs.
    pub(crate) fn vmm_of(&self, id: &str) -> u32 {
        let pid = self.info(id).expect("listed")["pid"].as_u64().expect("a pid");
        u32::try_from(pid).expect("a pid")
    }

    /// The address that stands for a listed sandbox on the host.
    pub(crate) fn address_of(&self, id: &str) -> Ipv4Addr {
        let info = self.info(id).expect("listed");
        info["host_address"].as_str().expect("an address").parse().expect("an address")
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: Signal) {
        super::signal(self.child.id(), signal);
    }

    /// Waits for the server to end by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the server") {
                return status;
            }
            assert!(Instant::now() < end, "the server did not end within {limit:?}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// SIGTERM; it must end well.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(scaled(40));
        assert!(status.success(), "the server ended with {status}:\n{}", self.log());
    }

    /// SIGKILL; returns its directory for a successor.
    pub(crate) fn kill(mut self) -> TempDir {
        self.signal(Signal::KILL);
        self.wait(scaled(10));
        self.hand_over()
    }

    /// Waits until it has killed itself; returns its directory for a successor.
    pub(crate) fn died(mut self, limit: Duration) -> TempDir {
        use std::os::unix::process::ExitStatusExt;
        let status = self.wait(limit);
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "it ended with {status}:\n{}", self.log());
        self.hand_over()
    }

    /// SIGTERM; returns its directory for a successor.
    pub(crate) fn end(mut self) -> TempDir {
        self.stop();
        self.hand_over()
    }

    fn hand_over(mut self) -> TempDir {
        let another = Place::Own(new_dir());
        match std::mem::replace(&mut self.dir, another) {
            Place::Own(dir) => dir,
            Place::Kept(_) => panic!("a kept directory is nobody's"),
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Pids of processes that live below the work directory: its VMMs.
    pub(crate) fn vmms(&self) -> Vec<u32> {
        vmms_in(&self.work_dir)
    }

    /// The server's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Open file descriptors of the server.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("its descriptors").count()
    }

    /// How many connections of clients it has open: of the host's TCP sockets those at its address that somebody
    /// called, up to its own hanging up (`proc_net_tcp` of the kernel's documentation; 8 is CLOSE-WAIT).
    pub(crate) fn connections(&self) -> usize {
        let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", self.child.id())).expect("its sockets");
        let port = format!(":{:04X}", self.address.port());
        let open = |line: &&str| {
            let mut fields = line.split_whitespace().skip(1);
            let (here, state) = (fields.next(), fields.nth(1));
            here.is_some_and(|here| here.ends_with(&port)) && matches!(state, Some("01" | "08"))
        };
        sockets.lines().filter(open).count()
    }

    /// A number of `/proc/PID/status`.
    pub(crate) fn status(&self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a number")
    }

    /// Its tree of cgroups in each hierarchy, and those of its sandboxes below; also when it has ended, and wherever it
    /// found a place for them.
    pub(crate) fn cgroups(&self) -> BTreeSet<PathBuf> {
        let work_dir = fs::metadata(&self.work_dir).expect("its work directory");
        let name = format!("manta-{:x}-{:x}", work_dir.dev(), work_dir.ino());
        let (mut found, mut dirs) = (BTreeSet::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
        while let Some(dir) = dirs.pop() {
            // Others' groups come and go meanwhile. What is a link is another name for a hierarchy.
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            dirs.extend(below.map(|entry| entry.path()).inspect(|dir| {
                if dir.components().any(|part| part.as_os_str() == name.as_str()) {
                    found.insert(dir.clone());
                }
            }));
        }
        found
    }

    /// What is left below the directory of sandboxes.
    pub(crate) fn sandbox_dirs(&self) -> usize {
        fs::read_dir(self.work_dir.join("sandboxes")).map_or(0, Iterator::count)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            let end = Instant::now() + scaled(40);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the server ---\n{}", self.log());
        }
    }
}

/// A directory for a server, where those of the tests are to be.
pub(crate) fn new_dir() -> TempDir {
    match std::env::var_os("MANTA_TEST_WORK_DIR") {
        Some(parent) => TempDir::new_in(parent),
        None => TempDir::new(),
    }
    .expect("a temporary directory")
}

/// Pids of processes that work in a sandbox's directory below `dir`, by whatever path; or below `dir`, by its own.
pub(crate) fn vmms_in(dir: &Path) -> Vec<u32> {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let sandboxes = fs::read_dir(dir.join("sandboxes")).into_iter().flatten().flatten();
    let sandboxes: Vec<_> = sandboxes.filter_map(|entry| identity(&entry.path()).ok()).collect();
    let works_there = |cwd: &Path| {
        identity(cwd).is_ok_and(|place| sandboxes.contains(&place))
            || fs::read_link(cwd).is_ok_and(|path| path.starts_with(dir))
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter(|entry| works_there(&entry.path().join("cwd")))
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect()
}

/// The binary under test.
pub(crate) fn binary() -> OsString {
    std::env::var_os("MANTA_TEST_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_manta").into())
}

/// Settings that name the guest artifacts.
pub(crate) fn artifacts() -> Vec<(&'static str, OsString)> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-artifacts");
    [
        ("MANTA_KERNEL_PATH", "vmlinux"),
        ("MANTA_ROOTFS_PATH", "rootfs.ext4"),
        ("MANTA_AGENT_PATH", "manta-agent"),
    ]
    .map(|(name, file)| (name, std::env::var_os(name).unwrap_or_else(|| built.join(file).into())))
    .to_vec()
}
