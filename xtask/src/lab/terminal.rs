//! The shell in the lab, on this terminal: bytes to and fro, with the terminal in raw mode meanwhile.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::process::{Event, Group};

/// Rows, columns and kind of this terminal, for the other end.
pub(super) fn description() -> String {
    let size = tcgetwinsize(io::stdout()).ok().map(|size| (size.ws_row, size.ws_col));
    let (rows, columns) = size.filter(|(rows, columns)| *rows > 0 && *columns > 0).unwrap_or((24, 80));
    let kind = std::env::var("TERM").unwrap_or_else(|_| "vt100".into());
    format!("{rows} {columns} {kind}\n")
}

/// Connects this terminal with the shell, until the shell or the lab ends. Without a terminal: waits for
/// the end of the lab or of xtask.
pub(super) fn attach(shell: &UnixStream, qemu: &Group) -> Result<()> {
    if !io::stdin().is_terminal() {
        eprintln!("lab: kept running; Ctrl-C ends it");
        return qemu.await_event(None, None).map(drop);
    }
    eprintln!("lab: a shell in the emulated host; `exit` ends both");
    let _raw = Raw::enter()?;
    let mut keyboard = shell.try_clone()?;
    // Ends with the process: nothing can interrupt a read of the terminal.
    thread::spawn(move || io::copy(&mut io::stdin(), &mut keyboard));
    let mut bytes = [0; 4096];
    let mut shell = shell;
    while qemu.await_event(Some(shell.as_fd()), None)? == Event::Readable {
        let length = shell.read(&mut bytes).context("the lab's shell")?;
        if length == 0 {
            break;
        }
        io::stdout().write_all(&bytes[..length])?;
        io::stdout().flush()?;
    }
    Ok(())
}

/// The terminal in raw mode, for as long as this lives.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw).context("cannot set the terminal up")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
