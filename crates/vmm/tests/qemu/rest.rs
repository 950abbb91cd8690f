//! VMs that wait: what they use, and how soon they are back.

use std::fs;
use std::time::{Duration, Instant};

use manta_vmm::{MicroVm, Origin, SnapshotFiles, VmmError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::ground::Ground;
use crate::guest::{Then, kernel};
use crate::{spawn, within};

/// How long a resting guest is watched. A busy one takes 50 jiffies.
const WATCH: Duration = Duration::from_millis(500);

/// Processor time the VMM has used, in jiffies of 10 ms (`proc_pid_stat(5)`).
fn jiffies(vm: &dyn MicroVm) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|jiffies| jiffies.parse::<u64>().unwrap()).sum()
}

async fn echoed(agent: &mut UnixStream, text: &[u8]) {
    let mut echo = vec![0; text.len()];
    within(agent.read_exact(&mut echo)).await.unwrap();
    assert_eq!(echo, text);
}

async fn assert_at_rest(vm: &dyn MicroVm) {
    let before = jiffies(vm);
    tokio::time::sleep(WATCH).await;
    let used = jiffies(vm) - before;
    assert!(used <= 1, "{used} jiffies");
}

/// Sends a request to a guest at rest, wakes it, and waits for the answer.
async fn assert_wakes(vm: &dyn MicroVm, agent: &mut UnixStream) {
    let mut times: Vec<(Duration, Duration)> = Vec::new();
    for _ in 0..50 {
        within(vm.rest()).await.unwrap();
        agent.write_all(b"request").await.unwrap();
        let start = Instant::now();
        within(vm.wake()).await.unwrap();
        let awake = start.elapsed();
        echoed(agent, b"request").await;
        times.push((awake, start.elapsed()));
    }
    times.sort_unstable();
    println!("wake, and answer to what was sent before: {:?}", times[times.len() / 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_at_rest_uses_no_processor_and_hears_later_what_it_was_sent() {
    let Some(kernel) = kernel() else { return };
    let ground = Ground::new();
    let vm = spawn(&ground, &kernel, Then::Echo, &Origin::Boot).await.unwrap();
    within(vm.start()).await.unwrap();
    let mut agent = within(vm.connect_agent()).await.unwrap();
    agent.write_all(b"hello").await.unwrap();
    echoed(&mut agent, b"hello").await;
    // Without a connection it is busy.
    drop(agent);
    let busy = jiffies(&*vm);
    tokio::time::sleep(WATCH).await;
    assert!(jiffies(&*vm) > busy + 1);

    within(vm.rest()).await.unwrap();
    within(vm.rest()).await.unwrap();
    assert_at_rest(&*vm).await;
    let mut agent = within(vm.connect_agent()).await.unwrap();
    agent.write_all(b"request").await.unwrap();
    assert!(timeout(WATCH, agent.read_u8()).await.is_err(), "it is at rest");
    within(vm.wake()).await.unwrap();
    within(vm.wake()).await.unwrap();
    echoed(&mut agent, b"request").await;
    assert_wakes(&*vm, &mut agent).await;

    // At rest it can be saved, which wakes it; and so can its clone be at rest.
    within(vm.rest()).await.unwrap();
    let files = SnapshotFiles { state: ground.path("state"), memory: ground.path("memory") };
    within(vm.snapshot(&files, Box::pin(async { Ok(()) }))).await.unwrap();
    agent.write_all(b"saved").await.unwrap();
    echoed(&mut agent, b"saved").await;

    let clone_ground = Ground::new();
    let clone = spawn(&clone_ground, &kernel, Then::Echo, &Origin::Snapshot(files)).await.unwrap();
    within(clone.start()).await.unwrap();
    within(clone.rest()).await.unwrap();
    assert_at_rest(&*clone).await;
    let mut agent_of_clone = within(clone.connect_agent()).await.unwrap();
    assert_wakes(&*clone, &mut agent_of_clone).await;
    within(clone.kill()).await.unwrap();
    clone_ground.finish();

    within(vm.rest()).await.unwrap();
    let (exit, killed) = within(async { tokio::join!(vm.exited(), vm.kill()) }).await;
    killed.unwrap();
    assert!(exit.status.contains("SIGKILL"), "{exit:?}");
    assert!(matches!(within(vm.wake()).await, Err(VmmError::Ended(_))));
    assert!(matches!(within(vm.rest()).await, Err(VmmError::Ended(_))));
    ground.finish();
}
