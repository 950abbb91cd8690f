//! Child processes. Each runs in a process group of its own; Ctrl-C (or SIGTERM, or a closed terminal)
//! ends every wait with [`Interrupted`], and a child that goes out of scope is ended and reaped with its
//! group. So nothing outlives xtask, whichever way it leaves.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// How long a child may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(30);
/// How much of a failed program's output an error shows.
const TAIL_BYTES: u64 = 4000;

/// Readable from the first signal on, and never drained: every later wait ends at once, too.
static SIGNALLED: OnceLock<UnixStream> = OnceLock::new();

/// A signal asked xtask to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From here on signals end waits instead of the process. To be called once, first thing.
pub(crate) fn catch_signals() -> Result<()> {
    let (read, write) = UnixStream::pair().context("cannot make a socket pair")?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        pipe::register(signal, write.try_clone()?).context("cannot catch signals")?;
    }
    SIGNALLED.set(read).ok().context("signals are caught already")
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The awaited descriptor has something to read.
    Readable,
    /// The process has exited.
    Exited,
    /// The deadline has passed.
    TimedOut,
}

/// A running child, leader of its own process group.
pub(crate) struct Group {
    child: Child,
    pidfd: OwnedFd,
    reaped: Option<ExitStatus>,
    /// From SIGTERM to SIGKILL, when this is dropped.
    grace: Duration,
}

impl Group {
    /// Starts a program, without standard input unless `command` has one.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("pidfd_open")?;
        Ok(Self { child, pidfd, reaped: None, grace: GRACE })
    }

    /// The child's process id.
    pub(crate) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// The child's standard output, when it was piped; once.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the process to exit.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.await_event(None, None)?;
        self.reap()
    }

    /// Waits for the process to exit or `fd` to become readable, until `deadline`.
    pub(crate) fn await_event(&self, fd: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> Result<Event> {
        let signalled = SIGNALLED.get().context("signals are not caught")?;
        wait_for(Some(signalled.as_fd()), fd, self.pidfd.as_fd(), deadline)
    }

    /// Asks the process alone (not its group) to end by SIGTERM, and gives it `grace` to do so.
    pub(crate) fn stop(mut self, grace: Duration) -> Result<ExitStatus> {
        self.grace = Duration::ZERO;
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("cannot send SIGTERM")?;
        match wait_for(None, None, self.pidfd.as_fd(), Some(Instant::now() + grace))? {
            Event::TimedOut => bail!("the process did not end within {} s of SIGTERM", grace.as_secs()),
            _ => self.reap(),
        }
    }

    /// The exit status of a process that has exited. What is left of its group goes with it; the group's
    /// number cannot have been taken by another one as long as its leader is not reaped.
    fn reap(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.reaped {
            return Ok(status);
        }
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let status = self.child.wait().context("cannot wait for a child")?;
        self.reaped = Some(status);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.reaped.is_none() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
            let _ = wait_for(None, None, self.pidfd.as_fd(), Some(Instant::now() + self.grace));
            let _ = self.reap();
        }
    }
}

/// Between steps that wait for no child: an error once a signal has come.
pub(crate) fn check_interrupted() -> Result<()> {
    let signalled = SIGNALLED.get().context("signals are not caught")?;
    let mut fds = [PollFd::new(signalled, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) => Ok(()),
        Ok(_) => bail!(Interrupted),
        Err(error) => bail!(error),
    }
}

/// Runs a program that may print to the terminal; its failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = Group::spawn(command.stdin(Stdio::null()))?.wait()?;
    succeeded(command, status, "")
}

/// Runs a program whose output matters only when it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let mut log = tempfile::tempfile().context("cannot make a temporary file")?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let status = Group::spawn(command)?.wait()?;
    succeeded(command, status, &tail(&mut log)?)
}

/// Runs a program whose standard output is a file's content; its standard input is `command`'s affair.
pub(crate) fn run_into(command: &mut Command, target: File) -> Result<()> {
    let mut log = tempfile::tempfile().context("cannot make a temporary file")?;
    let status = Group::spawn(command.stdout(target).stderr(log.try_clone()?))?.wait()?;
    succeeded(command, status, &tail(&mut log)?)
}

/// The same with a limit: a program that runs for longer is ended, and that is an error.
pub(crate) fn run_into_within(command: &mut Command, target: File, limit: Duration) -> Result<()> {
    let mut log = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut group = Group::spawn(command.stdin(Stdio::null()).stdout(target).stderr(log.try_clone()?))?;
    if group.await_event(None, Some(Instant::now() + limit))? == Event::TimedOut {
        bail!("`{}` took more than {} s", describe(command), limit.as_secs());
    }
    let status = group.wait()?;
    succeeded(command, status, &tail(&mut log)?)
}

/// Runs a program for its standard output.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let mut out = tempfile::tempfile().context("cannot make a temporary file")?;
    run_into(command.stdin(Stdio::null()), out.try_clone()?)?;
    let mut text = String::new();
    out.seek(SeekFrom::Start(0))?;
    out.read_to_string(&mut text).with_context(|| format!("{} did not print text", describe(command)))?;
    Ok(text)
}

/// Runs a program, showing its standard output line by line and handing each line to `look`.
pub(crate) fn run_watching(command: &mut Command, look: impl FnMut(&str) + Send) -> Result<ExitStatus> {
    let mut group = Group::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let out = group.stdout().context("no standard output")?;
    thread::scope(|scope| {
        scope.spawn(|| show_lines(out, look));
        let status = group.wait();
        // Ends what may still hold the pipe open.
        drop(group);
        status
    })
}

/// Copies what comes from `from` to standard output and hands each line to `look`, to the end.
pub(crate) fn show_lines(from: impl Read, mut look: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let _ = io::stdout().write_all(&line);
        look(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

/// Whether a program can be found and answers `--version`.
pub(crate) fn answers(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn succeeded(command: &Command, status: ExitStatus, output: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let gap = if output.is_empty() { "" } else { "; its last words:\n" };
    bail!("`{}` failed ({status}){gap}{output}", describe(command));
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    words.join(" ")
}

fn tail(log: &mut File) -> Result<String> {
    let length = log.seek(SeekFrom::End(0))?;
    log.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Polls until something happens; a signal, when it is watched, is an error.
fn wait_for(
    signalled: Option<BorrowedFd<'_>>,
    fd: Option<BorrowedFd<'_>>,
    pidfd: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> Result<Event> {
    // In the order of their importance: what a process wrote before it exited is reported first.
    let watched: Vec<_> =
        [(signalled, None), (fd, Some(Event::Readable)), (Some(pidfd), Some(Event::Exited))]
            .into_iter()
            .filter_map(|(fd, event)| Some((fd?, event)))
            .collect();
    let mut fds: Vec<_> =
        watched.iter().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(Timespec::try_from).transpose().context("deadline too far")?;
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
    match fds.iter().zip(&watched).find(|(fd, _)| !fd.revents().is_empty()) {
        Some((_, (_, Some(event)))) => Ok(*event),
        Some((_, (_, None))) => bail!(Interrupted),
        None => Ok(Event::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Once;

    use super::*;

    fn catch_once() {
        static CAUGHT: Once = Once::new();
        CAUGHT.call_once(|| catch_signals().unwrap());
    }

    fn sh(script: &str) -> Command {
        let mut sh = Command::new("sh");
        sh.args(["-c", script]);
        sh
    }

    #[test]
    fn a_failure_shows_the_last_words_and_a_success_says_nothing() {
        catch_once();
        let error = run_quietly(&mut sh("echo out; echo err >&2; exit 3")).unwrap_err().to_string();
        assert!(error.contains("out\nerr") && error.contains("exit status: 3"), "{error}");
        assert_eq!(capture(&mut sh("echo out; echo err >&2")).unwrap(), "out\n");
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        catch_once();
        let target = tempfile::tempfile().unwrap();
        let mut sleep = sh("exec sleep 1000");
        let error = run_into_within(&mut sleep, target, Duration::from_millis(10)).unwrap_err().to_string();
        assert!(error.contains("took more than"), "{error}");
    }

    #[test]
    fn dropping_a_group_ends_it_with_its_children() {
        catch_once();
        let mut group = Group::spawn(sh("sleep 1000 & echo $!; wait").stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(group.stdout().unwrap()).read_line(&mut line).unwrap();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let pidfd = pidfd_open(grandchild, PidfdFlags::empty()).unwrap();
        drop(group);
        let deadline = Some(Instant::now() + Duration::from_secs(10));
        assert_eq!(wait_for(None, None, pidfd.as_fd(), deadline).unwrap(), Event::Exited);
    }

    #[test]
    fn a_wait_ends_at_its_deadline_at_the_exit_or_with_output() {
        catch_once();
        let soon = || Some(Instant::now() + Duration::from_millis(1));
        let group = Group::spawn(sh("exec sleep 1000").stdin(Stdio::null())).unwrap();
        assert_eq!(group.await_event(None, soon()).unwrap(), Event::TimedOut);
        drop(group);
        let mut group = Group::spawn(sh("echo words").stdout(Stdio::piped())).unwrap();
        let stdout = group.stdout().unwrap();
        assert_eq!(group.await_event(Some(stdout.as_fd()), None).unwrap(), Event::Readable);
        assert!(group.wait().unwrap().success());
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_reported_and_still_ended() {
        catch_once();
        let mut group =
            Group::spawn(sh("trap '' TERM; echo; exec sleep 1000").stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(group.stdout().unwrap()).read_line(&mut line).unwrap();
        let pid = group.child.id();
        let error = group.stop(Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
