//! The engine's metrics: their names, units and help texts, and what they are told. Recorded through the `metrics`
//! facade, so that without a recorder they cost nothing; who serves them is not the engine's affair.

use std::time::Duration;

use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use manta_api::SandboxState;

use crate::pool::Pools;
use crate::timing::{Operation, Timings};

/// How long a stage of an operation took.
const STAGE_SECONDS: &str = "manta_stage_seconds";
/// How long an operation took, from the request to its outcome.
const OPERATION_SECONDS: &str = "manta_operation_seconds";
/// How many sandboxes there are now.
const SANDBOXES: &str = "manta_sandboxes";
/// Memory of the sandboxes that exist.
const MEMORY_COMMITTED: &str = "manta_memory_committed_bytes";
/// How much that may be.
const MEMORY_LIMIT: &str = "manta_memory_limit_bytes";
/// How many wait in a pool now.
const POOL_DEPTH: &str = "manta_pool_depth";
/// How many are to wait in it.
const POOL_TARGET: &str = "manta_pool_target";
/// What was asked of a pool.
const POOL_CLAIMS: &str = "manta_pool_claims_total";
/// What was made for it.
const POOL_REFILLS: &str = "manta_pool_refills_total";
/// How long that took.
const POOL_REFILL_SECONDS: &str = "manta_pool_refill_seconds";
/// What commands printed.
const EXEC_OUTPUT_BYTES: &str = "manta_exec_output_bytes_total";
/// How often the network's rules were gone.
const NET_RULES_RESTORED: &str = "manta_net_rules_restored_total";

/// Every state a sandbox is counted in.
const STATES: [(SandboxState, &str); 5] = [
    (SandboxState::Creating, "creating"),
    (SandboxState::Running, "running"),
    (SandboxState::Stopping, "stopping"),
    (SandboxState::Stopped, "stopped"),
    (SandboxState::Failed, "failed"),
];

/// Something that waits to be used; a label.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pool {
    /// Network slots.
    Slots,
    /// VMMs that have loaded nothing yet.
    Vmms,
    /// Sandboxes that rest.
    Warm,
}

impl Pool {
    const ALL: [Self; 3] = [Self::Slots, Self::Vmms, Self::Warm];

    fn as_str(self) -> &'static str {
        match self {
            Self::Slots => "slots",
            Self::Vmms => "vmms",
            Self::Warm => "warm",
        }
    }

    /// Somebody asked for one, and one waited, or none did.
    pub(crate) fn claimed(self, hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        counter!(POOL_CLAIMS, "pool" => self.as_str(), "result" => result).increment(1);
    }

    /// One was made ahead of time, or could not be.
    pub(crate) fn refilled(self, took: Duration, ok: bool) {
        counter!(POOL_REFILLS, "pool" => self.as_str(), "result" => outcome(ok)).increment(1);
        histogram!(POOL_REFILL_SECONDS, "pool" => self.as_str()).record(took);
    }
}

/// Tells the recorder the unit and meaning of each metric, and begins counters at zero, so that the first increment
/// is seen as one; once, after it was installed.
pub fn describe() {
    describe_histogram!(
        STAGE_SECONDS,
        Unit::Seconds,
        "Time that one stage of an operation took, in seconds; stages follow each other."
    );
    describe_histogram!(
        OPERATION_SECONDS,
        Unit::Seconds,
        "Time from a request to its outcome, in seconds, by what was found in the pool."
    );
    describe_gauge!(SANDBOXES, Unit::Count, "Sandboxes that exist, by state.");
    describe_gauge!(
        MEMORY_COMMITTED,
        Unit::Bytes,
        "Memory committed to sandboxes that exist, in bytes: each one's whole memory, and its VMM's."
    );
    describe_gauge!(MEMORY_LIMIT, Unit::Bytes, "Memory that may be committed to sandboxes, in bytes.");
    describe_gauge!(POOL_DEPTH, Unit::Count, "What waits in a pool, ready to be claimed.");
    describe_gauge!(POOL_TARGET, Unit::Count, "What is to wait in a pool when nobody claims.");
    describe_counter!(POOL_CLAIMS, Unit::Count, "Claims from a pool: hit when something waited there.");
    describe_counter!(POOL_REFILLS, Unit::Count, "Attempts to make something ahead of time for a pool.");
    describe_histogram!(
        POOL_REFILL_SECONDS,
        Unit::Seconds,
        "Time that an attempt to make something for a pool took, in seconds."
    );
    describe_counter!(
        EXEC_OUTPUT_BYTES,
        Unit::Bytes,
        "Bytes of standard output and standard error kept of commands that ended."
    );
    describe_counter!(
        NET_RULES_RESTORED,
        Unit::Count,
        "Times that somebody else deleted the nftables table of the sandboxes and it was put back."
    );
    exec_output(0);
    counter!(NET_RULES_RESTORED).increment(0);
    for pool in Pool::ALL.map(Pool::as_str) {
        for result in ["hit", "miss"] {
            counter!(POOL_CLAIMS, "pool" => pool, "result" => result).increment(0);
        }
        for result in [true, false].map(outcome) {
            counter!(POOL_REFILLS, "pool" => pool, "result" => result).increment(0);
        }
    }
}

/// An operation ended, after the stages it has.
pub(crate) fn completed(operation: Operation, timings: &Timings, ok: bool) {
    let operation = operation.as_str();
    for (stage, took) in timings.stages() {
        histogram!(STAGE_SECONDS, "operation" => operation, "stage" => *stage).record(*took);
    }
    let pool = timings.pool().map_or("none", |pool| pool.as_str());
    histogram!(OPERATION_SECONDS, "operation" => operation, "outcome" => outcome(ok), "pool" => pool)
        .record(timings.total());
}

/// A command ended, and this much of its output was kept.
pub(crate) fn exec_output(bytes: usize) {
    counter!(EXEC_OUTPUT_BYTES).increment(bytes as u64);
}

/// The network's rules were gone, and are back.
pub(crate) fn net_rules_restored() {
    counter!(NET_RULES_RESTORED).increment(1);
}

/// The sandboxes that exist; states that none is in are zero.
pub(crate) fn sandboxes(states: &[SandboxState]) {
    for (state, name) in STATES {
        let count = states.iter().filter(|&&other| other == state).count();
        gauge!(SANDBOXES, "state" => name).set(float(count));
    }
}

/// Memory committed to the sandboxes that exist, and the limit.
pub(crate) fn memory(committed_mib: u64, limit_mib: u64) {
    let bytes = |mib: u64| mib as f64 * f64::from(1 << 20);
    gauge!(MEMORY_COMMITTED).set(bytes(committed_mib));
    gauge!(MEMORY_LIMIT).set(bytes(limit_mib));
}

/// How many wait in each pool, and how many should.
pub(crate) fn pools(Pools { warm, vmms, slots }: Pools) {
    for (pool, status) in [(Pool::Warm, warm), (Pool::Vmms, vmms), (Pool::Slots, slots)] {
        gauge!(POOL_DEPTH, "pool" => pool.as_str()).set(float(status.depth));
        gauge!(POOL_TARGET, "pool" => pool.as_str()).set(float(status.target));
    }
}

fn outcome(ok: bool) -> &'static str {
    if ok { "ok" } else { "error" }
}

/// Exact: no count here comes near 2⁵³.
fn float(count: usize) -> f64 {
    count as f64
}
