//! Child programs of a build: each in a PID and a mount namespace of its own, its output in a log and handed
//! on line by line. When it ends, or a signal or its own silence ends it, or this process is killed, the
//! kernel ends what it started and takes away what it mounted: nothing outlives the build.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::error::{ImageError, cannot};
use crate::interrupt::Interrupts;
use crate::progress::PLAIN_INTERVAL;

/// A program that prints nothing for this long is taken to hang. Linking the kernel is the longest silence
/// that is normal; a download with apt gives up by itself after two minutes.
const SILENCE: Duration = Duration::from_secs(15 * 60);
/// Where programs are looked for: those of Debian's packages only.
pub(crate) const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// How many lines of a failed program's output its error shows.
const TAIL_LINES: usize = 30;

/// Runs the programs that make one artifact, with one log for all of them.
pub(crate) struct Runner<'a> {
    interrupts: &'a Interrupts,
    log: File,
    log_path: PathBuf,
}

impl<'a> Runner<'a> {
    /// Starts the log anew.
    pub(crate) fn new(interrupts: &'a Interrupts, log_path: PathBuf) -> Result<Self, ImageError> {
        let log = File::create(&log_path).map_err(cannot("write", &log_path))?;
        Ok(Self { interrupts, log, log_path })
    }

    /// Runs a program to its end. `on_line` gets each line of output, and an empty one now and then when
    /// there is none. The program sees only the environment that it needs, so that no setting of this
    /// machine's shapes an artifact; proxies are the exception.
    pub(crate) fn run(&mut self, command: Command, mut on_line: impl FnMut(&str)) -> Result<(), ImageError> {
        let program = describe(&command);
        let run_error = |source| ImageError::Run { program: program.clone(), source };
        let _ = writeln!(self.log, "$ {program}");
        let (output, writer) = pipe().map_err(run_error)?;
        let mut command = contained(&command);
        command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(run_error)?).stderr(writer);
        let mut group = Group::spawn(&mut command).map_err(run_error)?;
        // The command holds copies of the pipe's writing end.
        drop(command);
        let mut lines = Lines::default();
        let mut output = Some(output);
        let mut heard = Instant::now();
        loop {
            match self.wait(&group, output.as_ref()).map_err(run_error)? {
                Event::Interrupted => return Err(ImageError::Interrupted),
                Event::Output => {
                    heard = Instant::now();
                    let mut buffer = [0; 8192];
                    let n = output
                        .as_mut()
                        .map_or(Ok(0), |output| output.read(&mut buffer))
                        .map_err(run_error)?;
                    if n == 0 {
                        output = None;
                    }
                    self.log.write_all(&buffer[..n]).map_err(cannot("write", &self.log_path))?;
                    lines.push(&buffer[..n], &mut on_line);
                }
                Event::Exited => break,
                Event::Nothing if heard.elapsed() < SILENCE => on_line(""),
                Event::Nothing => {
                    let (minutes, log) = (SILENCE.as_secs() / 60, self.log_path.clone());
                    return Err(ImageError::Silent { program, minutes, log });
                }
            }
        }
        match group.reap().map_err(run_error)? {
            status if status.success() => Ok(()),
            status => {
                let tail = tail(&self.log_path).map_err(cannot("read", &self.log_path))?;
                Err(ImageError::Failed { program, status, log: self.log_path.clone(), tail })
            }
        }
    }

    /// Output comes before the exit, so that none is lost.
    fn wait(&self, group: &Group, output: Option<&PipeReader>) -> io::Result<Event> {
        let watched: Vec<_> = [
            Some((self.interrupts.as_fd(), Event::Interrupted)),
            output.map(|output| (output.as_fd(), Event::Output)),
            Some((group.pidfd.as_fd(), Event::Exited)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut fds: Vec<_> =
            watched.iter().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timespec(PLAIN_INTERVAL))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().zip(&watched).find(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map_or(Event::Nothing, |(_, (_, event))| *event))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Interrupted,
    Output,
    Exited,
    Nothing,
}

/// A child that leads a process group. Dropped before it is reaped, it is killed: it has nothing to clean up
/// that its namespaces and the scratch directory's owner do not.
struct Group {
    child: Child,
    pidfd: OwnedFd,
    reaped: bool,
}

impl Group {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self { child, pidfd, reaped: false })
    }

    /// What is left of the group goes with the child: the group's number cannot be another's as long as its
    /// leader is not reaped.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.reap();
        }
    }
}

/// Cuts output into lines. Programs that draw their own progress end a line by a carriage return.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8], on_line: &mut impl FnMut(&str)) {
        self.0.extend_from_slice(bytes);
        while let Some(end) = self.0.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            on_line(String::from_utf8_lossy(&line).trim_end());
        }
    }
}

/// The end of a log, in whole lines.
fn tail(log: &Path) -> io::Result<String> {
    let text = fs::read(log)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

/// The command in namespaces of its own, killed with this process, with only the environment it needs. (The
/// programs are util-linux's, essential in Debian. The death signal would not pass the fork that a new PID
/// namespace takes; `--kill-child` sends it on.)
fn contained(command: &Command) -> Command {
    const KEPT: [&str; 7] =
        ["HOME", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
    let mut contained = Command::new("setpriv");
    contained
        .args(["--pdeathsig", "KILL", "unshare", "--mount-proc", "--pid", "--fork", "--kill-child", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept)))
        .envs([("PATH", SYSTEM_PATH), ("LC_ALL", "C.UTF-8")])
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(dir) = command.get_current_dir() {
        contained.current_dir(dir);
    }
    contained
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    words.join(" ")
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::net::UnixStream;

    use rustix::fs::{CWD, Mode, OFlags, mkfifoat};

    use super::*;

    struct Fixture {
        interrupts: Interrupts,
        interrupt: UnixStream,
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let (interrupts, interrupt) = Interrupts::pair().unwrap();
            Self { interrupts, interrupt, dir: tempfile::tempdir().unwrap() }
        }

        /// The reading end of a named pipe in the working directory of [`run`](Self::run).
        fn lifeline(&self) -> File {
            let path = self.dir.path().join("lifeline");
            mkfifoat(CWD, &path, Mode::RWXU).unwrap();
            File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path).unwrap()
        }

        /// A line `interrupt` in the output interrupts the build.
        fn run(&self, script: &str) -> (Result<(), ImageError>, Vec<String>) {
            let mut runner = Runner::new(&self.interrupts, self.dir.path().join("log")).unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", script]).current_dir(self.dir.path());
            let mut lines = Vec::new();
            let outcome = runner.run(command, |line| {
                if line == "interrupt" {
                    (&self.interrupt).write_all(&[0]).unwrap();
                }
                lines.push(line.to_owned());
            });
            (outcome, lines)
        }
    }

    #[test]
    fn every_line_of_both_streams_arrives() {
        let (outcome, lines) = Fixture::new().run("seq 20000; echo problem >&2");
        outcome.unwrap();
        assert_eq!(lines.len(), 20_001);
        assert_eq!(lines[19_999..], ["20000", "problem"]);
    }

    #[test]
    fn a_failure_shows_the_last_lines_and_the_log() {
        let fixture = Fixture::new();
        let (outcome, _) = fixture.run("seq 100; exit 3");
        let Err(ImageError::Failed { status, log, tail, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(status.code(), Some(3));
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.starts_with("71\n") && tail.ends_with("\n100"), "{tail}");
        assert!(fs::read_to_string(log).unwrap().contains("\n1\n"));
    }

    #[test]
    fn a_child_left_behind_does_not_hold_the_build_and_dies() {
        let fixture = Fixture::new();
        let lifeline = fixture.lifeline();
        fixture.run("exec 3> lifeline; setsid sleep 1000 &").0.unwrap();
        assert_closed(&lifeline);
    }

    #[test]
    fn an_interrupt_ends_a_program_with_all_its_children() {
        let fixture = Fixture::new();
        let lifeline = fixture.lifeline();
        let (outcome, _) = fixture.run("exec 3> lifeline; setsid sleep 1000 & echo interrupt; wait");
        assert!(matches!(outcome, Err(ImageError::Interrupted)), "{outcome:?}");
        assert!(matches!(fixture.interrupts.check(), Err(ImageError::Interrupted)));
        assert_closed(&lifeline);
    }

    #[test]
    fn a_program_mounts_for_itself_only() {
        let (outcome, lines) =
            Fixture::new().run("mount -t tmpfs of-the-build /mnt && cat /proc/self/mountinfo");
        outcome.unwrap();
        assert!(lines.iter().any(|line| line.contains("of-the-build")));
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("of-the-build"));
    }

    #[test]
    fn programs_see_no_setting_of_this_machine() {
        let (outcome, lines) = Fixture::new().run("env | cut -d= -f1 | sort");
        outcome.unwrap();
        assert!(lines.contains(&"LC_ALL".into()), "{lines:?}");
        assert!(!lines.iter().any(|name| name.starts_with("CARGO")), "{lines:?}");
    }

    /// Waits until no process has the pipe open for writing.
    fn assert_closed(lifeline: &File) {
        let ended =
            poll(&mut [PollFd::new(lifeline, PollFlags::IN)], Some(&timespec(Duration::from_secs(10))));
        assert_eq!(ended, Ok(1), "the child lives on");
    }
}
