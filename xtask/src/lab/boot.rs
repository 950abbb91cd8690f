//! One run of the lab: QEMU with the disks and the ports, the wait for its word that it is ready, and the job's
//! output as it comes. The emulated machine itself now and then hangs on its way up, or its kernel panics under
//! nested guests: then, and only then, it is booted again and the job begins anew. What a job answers counts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::image::Image;
use super::payload::Payload;
use super::terminal;
use crate::place;
use crate::process::{Event, Group, show_lines};
use crate::progress::Step;

/// A boot takes 4–8 s; one that takes this long has hung.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// Boots, in all, before the lab is given up.
const BOOTS: u32 = 3;
/// From the job's end to the end of the machine.
const OFF_LIMIT: Duration = Duration::from_secs(30);
const MEMORY: &str = "6G";
const CONSOLE_LINES: usize = 40;
/// Sparse.
const SCRATCH_BYTES: u64 = 16 << 30;

/// Boots the lab with a payload and waits for its job. Returns the job's exit status.
pub(super) fn run(
    image: &Image,
    payload: &Payload,
    keep: bool,
    processors: u8,
    limit: Duration,
    mut look: impl FnMut(&str) + Send,
) -> Result<u8> {
    for boot in 1..=BOOTS {
        let step = Step::begin("lab", "booting the emulated KVM host");
        let died = match Machine::boot(image, payload, processors)? {
            None => format!("not ready after {} s: the emulated machine hung", READY_LIMIT.as_secs()),
            Some((machine, uptime)) => {
                step.done(format_args!("up, after {uptime} s by its own clock"));
                match machine.run_job(keep, limit, &mut look)? {
                    Some(status) => return Ok(status),
                    None => "the emulated machine died under the job, which had not ended".to_owned(),
                }
            }
        };
        eprintln!("lab: {died}; {}", if boot < BOOTS { "booting it again" } else { "giving up" });
    }
    bail!("the lab broke down {BOOTS} times; the ends of its console are above")
}

/// A lab that is up, on the point of running its job.
struct Machine {
    qemu: Group,
    ports: Ports,
    console: PathBuf,
}

/// The host's ends of the serial ports.
struct Ports {
    status: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
    files: UnixStream,
    shell: UnixStream,
}

impl Machine {
    /// Starts QEMU and waits until the lab is ready; none when it hangs on its way. Also returns the time
    /// that it took, by the lab's own clock.
    fn boot(image: &Image, payload: &Payload, processors: u8) -> Result<Option<(Self, String)>> {
        let dir = payload.dir();
        let console = dir.join("console.log");
        let log = dir.join("qemu.log");
        File::create(dir.join("scratch"))?.set_len(SCRATCH_BYTES).context("cannot make the scratch disk")?;
        let listen = |name: &str| {
            let path = dir.join(name);
            let _ = fs::remove_file(&path);
            UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
        };
        let (status, stdout, stderr) = (listen("status")?, listen("stdout")?, listen("stderr")?);
        let (files, shell) = (listen("files")?, listen("shell")?);

        let deadline = Instant::now() + READY_LIMIT;
        let output = File::create(&log)?;
        let mut command = qemu(image, payload, processors, &console);
        let qemu = Group::spawn(command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output))?;
        let accept =
            |listener: UnixListener| match qemu.await_event(Some(listener.as_fd()), Some(deadline))? {
                Event::Readable => Ok(listener.accept()?.0),
                _ => bail!("QEMU did not start: {}", fs::read_to_string(&log)?.trim()),
            };
        let ports = Ports {
            status: accept(status)?,
            stdout: accept(stdout)?,
            stderr: accept(stderr)?,
            files: accept(files)?,
            shell: accept(shell)?,
        };
        let mut machine = Self { qemu, ports, console };
        match machine.status_line("ready ", deadline)? {
            Some(uptime) => Ok(Some((machine, uptime))),
            None => {
                machine.show_console();
                Ok(None)
            }
        }
    }

    /// Runs the job to its end, and the shell after it. None when the machine ended before its job.
    fn run_job(
        mut self,
        keep: bool,
        limit: Duration,
        look: &mut (impl FnMut(&str) + Send),
    ) -> Result<Option<u8>> {
        let (stdout, mut stderr) = (self.ports.stdout.try_clone()?, self.ports.stderr.try_clone()?);
        thread::scope(|scope| {
            scope.spawn(|| show_lines(stdout, look));
            scope.spawn(move || io::copy(&mut stderr, &mut io::stderr()));
            let status = self.await_job(keep, limit);
            // The ports' other ends close with it, and so end the threads.
            drop(self);
            status
        })
    }

    fn await_job(&mut self, keep: bool, limit: Duration) -> Result<Option<u8>> {
        let out = place::ensure_dir(place::target().join("lab/out"))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--no-same-owner", "--file=-", "--directory"]).arg(&out);
        let mut tar =
            Group::spawn(tar.stdin(OwnedFd::from(self.ports.files.try_clone()?)).stderr(Stdio::null()))?;

        let deadline = Instant::now() + limit;
        let Some(status) = self.status_line("exit ", deadline)? else {
            self.show_console();
            if Instant::now() < deadline {
                return Ok(None);
            }
            bail!("the job took longer than {} s (see --limit-s)", limit.as_secs());
        };
        let status = status.parse().context("the lab's exit status")?;
        if !tar.wait()?.success() {
            bail!("the job's files did not come back whole into target/lab/out");
        }
        if keep {
            terminal::attach(&self.ports.shell, &self.qemu)?;
        }
        if self.qemu.await_event(None, Some(Instant::now() + OFF_LIMIT))? == Event::TimedOut {
            eprintln!("lab: the emulated machine did not switch itself off; it is killed");
        }
        Ok(Some(status))
    }

    /// What follows `mark` on the next line of the status port; none when the machine ends, says something
    /// else or the deadline passes.
    fn status_line(&mut self, mark: &str, deadline: Instant) -> Result<Option<String>> {
        let mut line = Vec::new();
        while self.qemu.await_event(Some(self.ports.status.as_fd()), Some(deadline))? == Event::Readable {
            let mut byte = [0];
            match self.ports.status.read(&mut byte).context("the lab's status port")? {
                0 => break,
                _ if byte == *b"\n" => {
                    return Ok(String::from_utf8_lossy(&line).strip_prefix(mark).map(str::to_owned));
                }
                _ => line.push(byte[0]),
            }
        }
        Ok(None)
    }

    fn show_console(&self) {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        eprintln!("lab: the end of its console:");
        for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
            eprintln!("  {line}");
        }
    }
}

fn qemu(image: &Image, payload: &Payload, processors: u8, console: &Path) -> Command {
    let dir = payload.dir();
    // A lab must not outlive an xtask that was killed and could not end it.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-nographic"]);
    qemu.args(["-no-reboot", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"]);
    qemu.args([
        "-smp",
        &processors.to_string(),
        "-m",
        MEMORY,
        "-append",
        "console=ttyS0 panic=-1 quiet mitigations=off",
    ]);
    qemu.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.initramfs());
    qemu.arg("-serial").arg(prefixed("file:", console));
    // Their order gives them their names, vda and vdb; the others are found by their serial numbers.
    let disks = [
        ("root", image.root(), "snapshot=on"),
        ("payload", payload.disk(), "snapshot=on"),
        ("rootfs", place::artifact("rootfs.ext4"), "readonly=on,file.locking=off"),
        ("scratch", dir.join("scratch"), "cache=unsafe,discard=unmap"),
    ];
    for (name, path, options) in disks {
        qemu.arg("-drive").arg(prefixed(&format!("if=none,id={name},format=raw,{options},file="), &path));
        qemu.args(["-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
    }
    qemu.args(["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="]);
    qemu.args(["-device", "virtio-serial-pci"]);
    for name in ["status", "stdout", "stderr", "files", "shell"] {
        qemu.arg("-chardev").arg(prefixed(&format!("socket,id={name},path="), &dir.join(name)));
        let device = if name == "shell" { "virtconsole" } else { "virtserialport" };
        qemu.args(["-device", &format!("{device},chardev={name},name={name}")]);
    }
    // What is written to disks with snapshot=on.
    qemu.env("TMPDIR", dir);
    qemu
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}
