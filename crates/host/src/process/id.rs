//! Which process it is, in a form that can be written down and understood by another server: its number, and
//! when it was started, since numbers are used again. Does not watch it.

use std::fs;
use std::io;

/// A process of this boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks (hundredths of a second) since the machine was: `starttime` of
    /// `proc_pid_stat(5)`.
    pub start_ticks: u64,
}

impl ProcessId {
    /// Whether it has not ended, as far as can be seen; it may have when this returns.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(Stat::of(self.pid), Ok(Some(stat)) if stat.id == *self && !stat.zombie)
    }
}

/// What `/proc/PID/stat` tells here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) id: ProcessId,
    /// It has ended, and its parent has not asked how.
    pub(super) zombie: bool,
}

impl Stat {
    /// The process that has this number now; `None` if none has.
    pub(super) fn of(pid: u32) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => match Self::parse(pid, &stat) {
                Some(stat) => Ok(Some(stat)),
                None => Err(io::ErrorKind::InvalidData.into()),
            },
            // The second, when it ends between open and read.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        // The name, in parentheses, is the process's choice and may hold anything, these too. Behind it are numbers.
        let name_end = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = str::from_utf8(&stat[name_end + 1..]).ok()?.split_ascii_whitespace();
        // Field 3, then field 22.
        let state = fields.next()?;
        let start_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self { id: ProcessId { pid, start_ticks }, zombie: matches!(state, "Z" | "X" | "x") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, state: char) -> Vec<u8> {
        let numbers = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        format!("42 ({name}) {state} {numbers}\n").into_bytes()
    }

    #[test]
    fn a_name_cannot_pass_for_other_fields() {
        let id = ProcessId { pid: 42, start_ticks: 777 };
        for name in
            ["qemu", "a b", ") Z 1", "x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1 (", "", "\n"]
        {
            assert_eq!(Stat::parse(42, &line(name, 'S')), Some(Stat { id, zombie: false }), "{name:?}");
        }
        let mut odd = line("?", 'R');
        odd[4] = 0xff;
        assert_eq!(Stat::parse(42, &odd), Some(Stat { id, zombie: false }));
        assert_eq!(Stat::parse(42, &line("gone", 'Z')), Some(Stat { id, zombie: true }));
    }

    #[test]
    fn what_is_cut_off_is_nobody() {
        let whole = line("qemu", 'S');
        let end = whole.iter().position(|byte| *byte == b'7').unwrap();
        assert!((0..end).all(|len| Stat::parse(42, &whole[..len.min(20)]).is_none()));
    }

    #[test]
    fn this_process_is_found_and_number_0_is_not() {
        let stat = Stat::of(std::process::id()).unwrap().unwrap();
        assert!(!stat.zombie && stat.id.start_ticks > 0, "{stat:?}");
        assert_eq!(Stat::of(0).unwrap(), None);
    }
}
