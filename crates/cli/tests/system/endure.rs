//! Many at once and for long, and whatever can be killed is. A few rounds in every run of the tests; as many as
//! `MANTA_TEST_CHURN` and `MANTA_TEST_RECOVERY` (sandboxes) and `MANTA_TEST_CHAOS` (rounds) say for the figures of
//! docs/benchmark-results.md.
//! `MANTA_TEST_SEED` repeats the choices of a run.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Census, Host, Server, at_once, attempt, census, eventually, kill, on_firecracker, scaled,
};

/// Sandboxes of the churn test; few where all takes ten times as long.
const CHURN: usize = 240;
const CHURN_IN_LAB: usize = 60;
/// After so many the server has all the memory that it needs.
const SETTLED: usize = 100;
const WIDTH: usize = 8;

/// Sandboxes alive when the server is killed.
const RECOVERED: usize = 8;

/// Rounds of the chaos test.
const ROUNDS: usize = 4;
/// Clients at a time, and what each does in a round.
const CLIENTS: usize = 3;
const STEPS: usize = 5;
/// Sandboxes that a client keeps from round to round.
const KEPT: usize = 2;

const POOLS: [(&str, &str); 3] =
    [("MANTA_WARM_POOL_SIZE", "4"), ("MANTA_NETNS_POOL_SIZE", "8"), ("MANTA_MAX_SANDBOXES", "64")];

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

fn full(server: &Server) -> bool {
    ["warm", "slots"].iter().all(|pool| {
        let pool = &server.get("/healthz")["pools"][pool];
        pool["depth"].as_u64() >= pool["target"].as_u64()
    })
}

/// The same sandbox's life, again and again.
fn live(server: &Server, n: usize) {
    let id = server.create();
    assert_eq!(server.stdout(&id, &format!("echo {n}")), n.to_string());
    server.destroy(&id).ok();
}

#[test]
fn a_thousand_short_lives_leave_nothing() {
    let host = Host::enter();
    let server = Server::with(&POOLS);
    let all = setting("MANTA_TEST_CHURN", if on_firecracker() { CHURN_IN_LAB } else { CHURN });
    let first = SETTLED.min(all / 2);
    at_once(WIDTH, first, |n| live(&server, n));
    let settled = || {
        eventually("the pools are full", scaled(60), || full(&server));
        (census(&server, &host), server.status("VmRSS"))
    };
    let (before, memory_before) = settled();
    let (count, began) = (all - first, Instant::now());
    at_once(WIDTH, count, |n| live(&server, n));
    let took = began.elapsed();
    let mut after = Census::new();
    eventually("as much of everything as before", scaled(60), || {
        after = settled().0;
        after.iter().all(|(kind, count)| *count <= before[kind])
    });
    let memory_after = server.status("VmRSS");
    eprintln!("{count} lives, {WIDTH} at once: {took:?}; {memory_before} to {memory_after} KiB; {after:?}");
    // Before that it still grows to what it needs.
    if first == SETTLED {
        assert!(memory_after <= memory_before + memory_before / 10, "{memory_before} to {memory_after} KiB");
    }
}

#[test]
fn all_answer_again_three_seconds_after_the_server_is_back() {
    let _host = Host::enter();
    let settings = [("MANTA_MAX_SANDBOXES", "64"), ("MANTA_NETNS_POOL_SIZE", "4")];
    let server = Server::with(&settings);
    let ids = at_once(WIDTH, setting("MANTA_TEST_RECOVERY", RECOVERED), |_| server.create());
    let ask_all = |server: &Server| {
        let began = Instant::now();
        at_once(WIDTH, ids.len(), |n| assert_eq!(server.stdout(&ids[n], "echo here"), "here"));
        began.elapsed()
    };
    // A guest's first command is a slow one, whoever asks for it.
    let (first, second) = (ask_all(&server), ask_all(&server));
    let dir = server.kill();
    let began = Instant::now();
    let server = Server::in_dir(dir, &settings);
    let started = began.elapsed();
    let again = ask_all(&server);
    let answered = began.elapsed();
    eprintln!(
        "{} sandboxes: all answered in {first:?}, then in {second:?}; after the kill: listening after {started:?}, \
         all have answered {again:?} later",
        ids.len()
    );
    // The figure is that of a machine with nothing else to do; beside other tests it only must not hang.
    let limit = if std::env::var_os("MANTA_TEST_RECOVERY").is_some() { 3 } else { 30 };
    assert!(answered < scaled(limit), "{answered:?}");
}

/// Random enough, and the same again for the same seed (an LCG: Knuth, MMIX).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Who uses a server, and knows what must be there.
struct Client {
    dice: Dice,
    /// Each has its own id in a file.
    sandboxes: Vec<String>,
    /// Those that were asked to go, without an answer.
    going: BTreeSet<String>,
}

/// What all clients know.
#[derive(Default)]
struct Known {
    handed_out: Mutex<HashSet<String>>,
    steps: AtomicUsize,
}

impl Client {
    /// Something or other that a client would do; the server may die meanwhile.
    fn step(&mut self, server: SocketAddr, known: &Known) {
        match self.dice.roll(8) {
            0..4 => self.create(server, known),
            4 => self.destroy(server),
            5 => drop(crate::harness::begin(server, "/create", &json!({}))),
            6 => {
                if let Some(id) = self.sandboxes.first() {
                    let hang_up = json!({"sandbox_id": id, "cmd": "sleep 5"});
                    drop(crate::harness::begin(server, "/exec", &hang_up));
                }
            }
            _ => {
                for id in &self.sandboxes {
                    marker(server, id);
                }
            }
        }
        known.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn create(&mut self, server: SocketAddr, known: &Known) {
        let Some(created) = attempt(server, "/create", &json!({})).filter(|answer| answer.status == 200)
        else {
            return;
        };
        let id = created.body["sandbox_id"].as_str().expect("an id").to_owned();
        assert!(known.handed_out.lock().expect("no panic").insert(id.clone()), "{id} was handed out twice");
        // Written and on the disk, or the sandbox is of no use to a test that asks for it later.
        let write = format!("echo {id} > /root/me && sync");
        let wrote = attempt(server, "/exec", &json!({"sandbox_id": id, "cmd": write}));
        match wrote {
            Some(answer) if answer.status == 200 && answer.body["exit_code"] == 0 => self.sandboxes.push(id),
            _ => drop(self.going.insert(id)),
        }
    }

    fn destroy(&mut self, server: SocketAddr) {
        let Some(id) = self.sandboxes.pop() else { return };
        let destroyed = attempt(server, "/destroy", &json!({"sandbox_id": id}));
        if destroyed.is_none_or(|answer| answer.status != 200) {
            self.going.insert(id);
        }
    }
}

/// What a sandbox says that it is.
fn marker(server: SocketAddr, id: &str) -> Option<Answer> {
    attempt(server, "/exec", &json!({"sandbox_id": id, "cmd": "cat /root/me"}))
}

/// What is done to them all.
#[derive(Debug)]
enum Strike {
    KillServer,
    TermServer,
    KillVmm,
    KillAgent,
    Nothing,
}

impl Strike {
    fn roll(dice: &mut Dice) -> Self {
        match dice.roll(10) {
            0..5 => Self::KillServer,
            5 => Self::TermServer,
            6 | 7 => Self::KillVmm,
            8 => Self::KillAgent,
            _ => Self::Nothing,
        }
    }
}

/// Ends PID 1 of a guest, which no signal does.
const END_AGENT: &str = "python3 -c 'import re
start, end = (int(x, 16) for x in re.search(r\"(?m)^(\\w+)-(\\w+) r-xp .*/\", open(\"/proc/1/maps\").read()).groups())
memory = open(\"/proc/1/mem\", \"r+b\", 0)
memory.seek(start)
memory.write(b\"\\xcc\" * (end - start))'";

#[test]
fn nothing_is_lost_or_left_whatever_is_killed() {
    let host = Host::enter();
    let links = host.links();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
    let seed = setting("MANTA_TEST_SEED", now as usize);
    let rounds = setting("MANTA_TEST_CHAOS", ROUNDS);
    eprintln!("MANTA_TEST_SEED={seed}");
    let mut dice = Dice(seed as u64);
    let known = Known::default();
    let client =
        |n: usize| Client { dice: Dice((seed + n) as u64), sandboxes: vec![], going: BTreeSet::new() };
    let mut clients: Vec<_> = (1..=CLIENTS).map(client).collect();
    let mut server = Server::with(&POOLS);
    let (mut orphans, mut recovered) = (0, Vec::new());
    for round in 0..rounds {
        let strike = Strike::roll(&mut dice);
        let at = known.steps.load(Ordering::Relaxed) + 1 + dice.roll(CLIENTS * STEPS - 1);
        // Struck at: one that a client of ours has had since an earlier round.
        let victim = clients.iter().find_map(|client| client.sandboxes.first().cloned());
        let pid = victim.as_deref().and_then(|id| server.info(id)).and_then(|info| info["pid"].as_u64());
        let address = server.address;
        let mut struck = None;
        std::thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| (0..STEPS).for_each(|_| client.step(address, &known)));
            }
            eventually("the clients are at work", scaled(120), || known.steps.load(Ordering::Relaxed) >= at);
            match (&strike, victim, pid) {
                (Strike::KillServer, ..) => server.signal(Signal::KILL),
                (Strike::TermServer, ..) => server.signal(Signal::TERM),
                (Strike::KillVmm, Some(id), Some(pid))
                    if server.info(&id).is_some_and(|now| now["pid"] == pid) =>
                {
                    kill(u32::try_from(pid).expect("a pid"));
                    struck = Some(id);
                }
                (Strike::KillAgent, Some(id), _) => {
                    drop(attempt(address, "/exec", &json!({"sandbox_id": id, "cmd": END_AGENT})));
                    struck = Some(id);
                }
                _ => {}
            }
        });
        match strike {
            Strike::KillServer => {
                let began = Instant::now();
                server = Server::in_dir(server.kill(), &POOLS);
                recovered.push(began.elapsed());
            }
            Strike::TermServer => {
                server = Server::in_dir(server.end(), &POOLS);
                // An orderly end destroys all.
                clients.iter_mut().for_each(|client| client.sandboxes.clear());
            }
            _ => {}
        }
        eprintln!("round {round}: {strike:?}, {struck:?}");
        for client in &mut clients {
            client.sandboxes.retain(|id| Some(id) != struck.as_ref());
            for id in &client.sandboxes {
                let said = marker(server.address, id).map(|answer| answer.body);
                let said = said.as_ref().map(|body| &body["stdout"]);
                assert_eq!(said, Some(&json!(format!("{id}\n"))), "round {round}, {strike:?}: {id}");
            }
            let surplus = client.sandboxes.len().saturating_sub(KEPT);
            client.going.extend(client.sandboxes.drain(..surplus));
        }
        orphans += tidy(&server, &mut clients, struck.as_deref());
    }
    eprintln!(
        "{} sandboxes in {rounds} rounds; {orphans} that nobody was told of",
        known.handed_out.lock().expect("no panic").len()
    );
    eprintln!("from a server's death to its successor's first answer: {recovered:?}");
    server.stop();
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
    assert_eq!(server.cgroups(), BTreeSet::new());
    assert_eq!(host.links(), links);
    assert_eq!(host.ruleset().trim(), "");
}

/// Destroys all but what clients know to be theirs; says how many nobody knew of.
fn tidy(server: &Server, clients: &mut [Client], struck: Option<&str>) -> usize {
    let kept: HashSet<_> = clients.iter().flat_map(|client| client.sandboxes.clone()).collect();
    let going: HashSet<_> = clients.iter_mut().flat_map(|client| std::mem::take(&mut client.going)).collect();
    let listed = server.get("/sandboxes");
    let mut orphans = 0;
    for info in listed["sandboxes"].as_array().expect("a list") {
        let id = info["id"].as_str().expect("an id");
        if kept.contains(id) {
            assert_eq!(info["state"], "running", "{info}");
            continue;
        }
        orphans += usize::from(!going.contains(id) && Some(id) != struck);
        server.destroy(id);
    }
    eventually("only those that are kept are there", scaled(30), || {
        let listed: Value = server.get("/sandboxes");
        listed["sandboxes"].as_array().is_some_and(|all| all.len() <= kept.len())
    });
    orphans
}
