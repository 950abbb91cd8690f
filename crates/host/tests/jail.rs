//! What a process in a root of its own sees and can do, tried from inside, with an ordinary shell as the process.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use manta_host::process::{Confinement, Rlimits, SpawnStep};
use manta_host::{Credentials, Jail, JailContents, JailError, Process, ProcessError, Spawn, processes_in};

const UID: u32 = 64_321;
/// Longer than anything takes here; reached only when a test fails.
const TIMEOUT: Duration = Duration::from_secs(20);
const TOOLS: [&str; 7] = ["cat", "ls", "mount", "id", "readlink", "sh", "touch"];

fn tool(name: &str) -> PathBuf {
    Path::new("/bin").join(name).canonicalize().unwrap()
}

fn jail() -> Jail {
    let programs = TOOLS.map(tool).to_vec();
    Jail::make(&JailContents { programs, ..JailContents::default() }).unwrap()
}

/// A directory as a VM's: only its user may look into it.
fn home() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    chown(dir.path(), Some(UID), Some(UID)).unwrap();
    dir
}

fn spawn_with(
    jail: &Jail,
    dir: &Path,
    script: &str,
    fds: Vec<(OwnedFd, i32)>,
    rlimits: Rlimits,
) -> Result<Process, ProcessError> {
    // Tools by their real names: links are not followed there.
    let functions = TOOLS.map(|name| format!("{name}() {{ {} \"$@\"; }}; ", tool(name).display())).concat();
    let args = [OsString::from("-c"), OsString::from(functions + script)];
    Process::spawn(Spawn {
        program: &tool("sh"),
        args: &args,
        dir,
        netns: None,
        credentials: &Credentials { uid: UID, gid: UID, groups: Vec::new() },
        fds,
        confinement: Confinement { jail: Some(jail), rlimits, ..Confinement::default() },
    })
}

fn spawn(jail: &Jail, dir: &Path, script: &str) -> Process {
    spawn_with(jail, dir, script, Vec::new(), Rlimits::default()).unwrap()
}

fn output(process: &Process) -> String {
    let status = process.wait_timeout(TIMEOUT).unwrap().expect("an end in time");
    assert!(status.success(), "{status}: {}", process.output());
    process.output()
}

#[test]
fn it_sees_its_own_directory_and_what_it_runs_and_nothing_else() {
    let (jail, home) = (jail(), home());
    fs::write(home.path().join("mine"), "own").unwrap();
    let printed =
        output(&spawn(&jail, home.path(), "pwd; ls; cat mine; echo; ls /; echo; ls /proc; ls / -A | cat"));
    let (before, rest) = printed.split_once("\n\n").unwrap();
    let lines: Vec<&str> = before.lines().collect();
    assert_eq!(lines[..3], ["/vm", "mine", "own"]);
    let mut roots: Vec<&str> = lines[3..].to_vec();
    roots.retain(|name| !["lib", "lib64", "usr", "etc"].contains(name));
    assert_eq!(roots, ["proc", "vm"], "{printed}");
    let processes = rest.lines().filter(|name| name.parse::<u32>().is_ok()).count();
    assert!((1..=3).contains(&processes) && rest.starts_with("1\n"), "itself and its children: {rest}");
    assert!(
        rest.lines()
            .take_while(|name| *name != "etc")
            .all(|name| { name.parse::<u32>().is_ok() || ["self", "thread-self"].contains(&name) }),
        "{rest}"
    );
    let etc = output(&spawn(&jail, home.path(), "ls -A /etc /dev /sys /home /tmp /run /var /root || :"));
    let there: Vec<&str> = etc.lines().filter(|line| !line.contains("No such file")).collect();
    assert_eq!(there, ["/etc:", "ld.so.cache"], "{etc}");
}

#[test]
fn what_others_have_is_out_of_reach() {
    let (jail, home, other) = (jail(), home(), home());
    fs::write(other.path().join("secret"), "secret").unwrap();
    let (id, other) = (std::process::id(), other.path().display());
    // Each must fail.
    for attempt in [
        format!("cat {other}/secret"),
        format!("ls {other}"),
        "cat /etc/passwd".to_owned(),
        "ls /dev".to_owned(),
        format!("cat /proc/{id}/status"),
        format!("ls /proc/{id}/root"),
        "cat /proc/mounts".to_owned(),
        "cat /proc/sys/kernel/osrelease".to_owned(),
        "cat ../../../../etc/passwd".to_owned(),
        "touch /x".to_owned(),
        "touch /proc/x".to_owned(),
        format!("touch {}", tool("sh").display()),
        "mount -t tmpfs tmpfs /vm".to_owned(),
        "kill -0 2".to_owned(),
        format!("kill -0 {id}"),
        // Nothing is executed from where it can write.
        format!("cat {} > run; chmod 755 run; ./run -c :", tool("sh").display()),
    ] {
        let process = spawn(&jail, home.path(), &format!("{attempt} && echo SUCCEEDED; exit 0"));
        let printed = output(&process);
        assert!(!printed.contains("SUCCEEDED"), "{attempt}: {printed}");
        assert!(!printed.contains("secret\n"), "{attempt}: {printed}");
    }
}

#[test]
fn it_has_no_capabilities_and_never_will_and_namespaces_of_its_own() {
    let (jail, home) = (jail(), home());
    let names = ["mnt", "pid", "ipc", "uts"];
    let links = names.map(|name| format!("/proc/self/ns/{name}")).join(" ");
    let script = format!("umask; cat /proc/self/status; readlink {links}; echo $$");
    let printed = output(&spawn(&jail, home.path(), &script));
    assert!(printed.starts_with("0077\n"), "{printed}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(printed.contains(&format!("{set}:\t0000000000000000\n")), "{printed}");
    }
    assert!(printed.contains("NoNewPrivs:\t1\n"), "{printed}");
    assert!(printed.contains(&format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n")), "{printed}");
    assert!(printed.ends_with("\n1\n"), "process 1: {printed}");
    for name in names {
        let here = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(!printed.contains(here.to_str().unwrap()), "the host's {name}: {printed}");
    }
}

#[test]
fn its_limits_are_in_force() {
    let (jail, home) = (jail(), home());
    let limits = Rlimits {
        address_space: Some(1 << 30),
        file_size: Some(1 << 20),
        locked_memory: Some(0),
        open_files: Some(64),
        processes: Some(1000),
    };
    let script = "cat /proc/self/limits; i=0; while [ $i -lt 40000 ]; do echo 0123456789abcdef0123456789abcdef; \
        i=$((i + 1)); done > big; exit 0";
    let process = spawn_with(&jail, home.path(), script, Vec::new(), limits).unwrap();
    let printed = output(&process);
    for (name, limit) in [
        ("Max core file size", 0),
        ("Max address space", 1 << 30),
        ("Max file size", 1 << 20),
        ("Max locked memory", 0),
        ("Max open files", 64),
        ("Max processes", 1000),
    ] {
        let line = printed.lines().find(|line| line.starts_with(name)).unwrap();
        let values: Vec<&str> = line[name.len()..].split_whitespace().collect();
        assert_eq!(values[..2], [limit.to_string(), limit.to_string()], "{line}");
    }
    assert_eq!(fs::metadata(home.path().join("big")).unwrap().len(), 1 << 20);
}

#[test]
fn the_host_sees_none_of_its_mounts_finds_it_by_its_directory_and_ends_it() {
    let (jail, home) = (jail(), home());
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let process = spawn(&jail, home.path(), "while :; do :; done");
    assert_eq!(mounts(), before);
    let cwd = fs::metadata(format!("/proc/{}/cwd", process.pid())).unwrap();
    assert_eq!(cwd.ino(), fs::metadata(home.path()).unwrap().ino());
    let strays = processes_in(home.path().parent().unwrap()).unwrap();
    let mine = strays.into_iter().find(|stray| stray.pid() == process.pid()).expect("found");
    assert_eq!(mine.dir(), home.path().canonicalize().unwrap());
    mine.kill_and_wait(TIMEOUT).unwrap();
    assert_eq!(process.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
}

#[test]
fn descriptors_are_opened_anew_by_way_of_proc() {
    let (jail, home) = (jail(), home());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "image").unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let fds = vec![(OwnedFd::from(fs::File::open(file.path()).unwrap()), 10)];
    let process = spawn_with(&jail, home.path(), "cat /proc/self/fd/10", fds, Rlimits::default()).unwrap();
    assert_eq!(output(&process), "image");
}

#[test]
fn what_cannot_be_is_said() {
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(script.path(), "#!/bin/sh\n").unwrap();
    let contents = |path: &Path| JailContents { programs: vec![path.to_owned()], ..JailContents::default() };
    assert!(matches!(Jail::make(&contents(script.path())), Err(JailError::NoProgram { .. })));
    assert!(matches!(Jail::make(&contents(Path::new("/none"))), Err(JailError::Content { .. })));
    let home = home();
    let (jail, gone) = (jail(), home.path().join("gone"));
    let failed = spawn_with(&jail, &gone, ":", Vec::new(), Rlimits::default()).unwrap_err();
    assert!(matches!(failed, ProcessError::Prepare { .. }), "{failed}");
    let args = [];
    let credentials = Credentials { uid: UID, gid: UID, groups: Vec::new() };
    let outside = Process::spawn(Spawn {
        program: Path::new("/bin/true"),
        args: &args,
        dir: home.path(),
        netns: None,
        credentials: &credentials,
        fds: Vec::new(),
        confinement: Confinement { jail: Some(&jail), ..Confinement::default() },
    });
    assert!(matches!(outside, Err(ProcessError::Spawn { step: SpawnStep::Exec, .. })), "{outside:?}");
}
