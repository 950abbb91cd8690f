//! From a request to a process: environment, look-up of the program, pipes. Why a command could not
//! be started is told as a shell would tell it: exit code 127 or 126, and words on standard error.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use manta_agent_proto::{Exec, Program};
use rustix::fs::{FileType, OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use thiserror::Error;

use crate::sys::{Image, Spawner, Step};

/// Working directory of commands that name none.
const HOME: &CStr = c"/root";

/// Environment of every command; a request's own values replace these.
const ENVIRONMENT: [(&str, &str); 7] = [
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("LOGNAME", "root"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("SHELL", "/bin/sh"),
    ("TERM", "dumb"), // no terminal: programs must not send control sequences
    ("USER", "root"),
];

/// A started command and our ends of its pipes, all non-blocking.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: Pid,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) outputs: [OwnedFd; 2],
}

/// Why a command was not started.
#[derive(Debug, Error)]
pub(crate) enum LaunchError {
    #[error("{program}: not found")]
    NotFound { program: String },
    #[error("{program}")]
    NotExecutable { program: String, source: Errno },
    #[error("{program}: its interpreter is missing")]
    NoInterpreter { program: String },
    #[error("cannot enter directory {cwd}")]
    Directory { cwd: String, source: Errno },
    #[error("{what} is empty or contains a NUL byte or an equals sign")]
    Malformed { what: &'static str },
    #[error("cannot make pipes")]
    Pipe { source: Errno },
    #[error("cannot make a process")]
    Process { source: Errno },
}

impl LaunchError {
    pub(crate) fn exit_code(&self) -> i32 {
        if matches!(self, Self::NotFound { .. }) { 127 } else { 126 }
    }
}

/// Starts what `exec` asks for.
pub(crate) fn launch(exec: &Exec, spawner: &mut Spawner) -> Result<Launched, LaunchError> {
    let variables: BTreeMap<&str, &str> = ENVIRONMENT
        .into_iter()
        .chain(exec.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        .collect();
    let mut envp = Vec::with_capacity(variables.len());
    for (name, value) in &variables {
        if name.is_empty() || name.contains('=') {
            return Err(LaunchError::Malformed { what: "an environment variable's name" });
        }
        envp.push(c_string(format!("{name}={value}"), "an environment variable")?);
    }
    let argv = match &exec.program {
        Program::Shell(script) => {
            vec![c"/bin/sh".into(), c"-lc".into(), c_string(script.as_str(), "the command")?]
        }
        Program::Argv(argv) => {
            argv.iter().map(|arg| c_string(arg.as_str(), "an argument")).collect::<Result<Vec<_>, _>>()?
        }
    };
    let name = argv.first().ok_or(LaunchError::Malformed { what: "the argument list" })?;
    let cwd = exec.cwd.as_deref().map(|cwd| c_string(cwd, "the working directory")).transpose()?;
    let path = variables.get("PATH").copied().unwrap_or_default();
    let program = look_up(name, path, cwd.as_deref().unwrap_or(HOME))?;

    // Without it the command inherits ours, which is empty.
    let (stdin, stdin_ours) = exec.stdin.then(pipe).transpose()?.unzip();
    let (stdout_ours, stdout) = pipe()?;
    let (stderr_ours, stderr) = pipe()?;
    for ours in stdin_ours.iter().chain([&stdout_ours, &stderr_ours]) {
        fcntl_setfl(ours, OFlags::NONBLOCK).map_err(|source| LaunchError::Pipe { source })?;
    }
    let image = Image {
        program: &program,
        argv: &argv.iter().map(CString::as_c_str).collect::<Vec<_>>(),
        envp: &envp.iter().map(CString::as_c_str).collect::<Vec<_>>(),
        cwd: cwd.as_deref().unwrap_or(HOME),
        fallback_cwd: cwd.is_none().then_some(c"/"),
        stdio: [stdin.as_ref().map(AsFd::as_fd), Some(stdout.as_fd()), Some(stderr.as_fd())],
    };
    match spawner.spawn(&image) {
        Ok(pid) => Ok(Launched { pid, stdin: stdin_ours, outputs: [stdout_ours, stderr_ours] }),
        Err((step, source)) => Err(explain(step, source, &image)),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|source| LaunchError::Pipe { source })
}

fn c_string(text: impl Into<Vec<u8>>, what: &'static str) -> Result<CString, LaunchError> {
    CString::new(text).map_err(|_| LaunchError::Malformed { what })
}

fn lossy(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

/// The path to execute, relative to `cwd` if relative. A name with a slash is taken as it is.
fn look_up(name: &CStr, path: &str, cwd: &CStr) -> Result<CString, LaunchError> {
    if name.to_bytes().contains(&b'/') {
        return Ok(name.to_owned());
    }
    let mut not_executable = false;
    let name_text = name.to_string_lossy();
    for directory in path.split(':').filter(|_| !name.is_empty()) {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = c_string(format!("{directory}/{name_text}"), "PATH")?;
        match is_executable(cwd, &candidate) {
            Ok(true) => return Ok(candidate),
            Ok(false) => not_executable = true,
            Err(_) => {}
        }
    }
    let program = name_text.into_owned();
    if not_executable {
        return Err(LaunchError::NotExecutable { program, source: Errno::ACCESS });
    }
    Err(LaunchError::NotFound { program })
}

/// Whether the file may be executed; an error if it is no file.
fn is_executable(cwd: &CStr, path: &CStr) -> Result<bool, Errno> {
    let stat = if path.to_bytes().starts_with(b"/") {
        rustix::fs::stat(path)?
    } else {
        rustix::fs::stat([cwd.to_bytes(), b"/", path.to_bytes()].concat())?
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat.st_mode & 0o111 != 0),
        _ => Err(Errno::ISDIR),
    }
}

fn explain(step: Step, source: Errno, image: &Image<'_>) -> LaunchError {
    let program = lossy(image.program);
    match step {
        Step::Directory => LaunchError::Directory { cwd: lossy(image.cwd), source },
        Step::Clone | Step::SetUp => LaunchError::Process { source },
        Step::Exec if source == Errno::NOENT || source == Errno::NOTDIR => {
            match is_executable(image.cwd, image.program) {
                Ok(_) => LaunchError::NoInterpreter { program },
                Err(_) => LaunchError::NotFound { program },
            }
        }
        Step::Exec => LaunchError::NotExecutable { program, source },
    }
}
