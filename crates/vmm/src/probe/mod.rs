//! Tells KVM that uses the processor's virtualization from KVM that only exists. `/dev/kvm` says nothing: in some
//! clouds it opens, makes VMs, and then emulates the guest's kernel instruction by instruction, hundreds of
//! times slower than QEMU's translator. So a tiny guest counts down a register, and the time is taken.

mod guest;
mod sys;

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use serde::Serialize;

use sys::{Kvm, Stop, Vcpu};

/// Iterations a second (two instructions each) from which KVM counts as usable. Measured: 0.5–0.9 million by
/// the instruction emulator of `kvm_pvm`; 300–550 million by virtualization that is itself emulated
/// by QEMU's translator, and no less is to be expected of hardware.
const USABLE_PER_SECOND: u64 = 10_000_000;

/// A run this long is long enough to judge by.
const ENOUGH: Duration = Duration::from_millis(5);
const FIRST_ITERATIONS: u64 = 1 << 10;
const LAST_ITERATIONS: u64 = 1 << 24;
/// The best of so many runs counts: any one may have lost the processor to another process.
const RUNS: usize = 3;

/// For all of it. Where KVM itself runs in a cold emulator, the first VM alone takes some 100 ms.
const DEADLINE: Duration = Duration::from_secs(2);
/// What a vCPU takes to notice that it shall stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// What KVM is good for here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmVerdict {
    /// It runs guests on the processor.
    Usable,
    /// It is there, and fails or emulates.
    Unusable,
    /// There is no `/dev/kvm`.
    #[default]
    Absent,
}

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct KvmProbe {
    /// The conclusion.
    pub verdict: KvmVerdict,
    /// Why, in a sentence for people.
    pub reason: String,
    /// Time to create a VM, microseconds; as far as the probe came.
    pub create_vm_us: Option<u64>,
    /// Time to create a vCPU, microseconds.
    pub create_vcpu_us: Option<u64>,
    /// Length of the run that decided, iterations of the loop.
    pub loop_iterations: Option<u64>,
    /// Its time, nanoseconds.
    pub loop_ns: Option<u64>,
    /// Time the whole probe took, microseconds.
    pub probe_us: u64,
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usable => "usable",
            Self::Unusable => "unusable",
            Self::Absent => "absent",
        })
    }
}

/// Why the probe came to no figure.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("there is no /dev/kvm ({0})")]
    Absent(Errno),
    #[error("/dev/kvm cannot be opened ({0})")]
    Open(Errno),
    #[error("KVM cannot {step} ({source})")]
    Step { step: &'static str, source: Errno },
    #[error("a guest of nine bytes stopped with KVM's exit reason {0} instead of running")]
    Stopped(u32),
    #[error("a guest of nine bytes did not come back within {DEADLINE:?}")]
    Hung,
}

/// Probes KVM. Blocks for 10 to 200 ms, also where KVM emulates; where it hangs, for 2.5 s at most.
#[must_use]
pub fn probe_kvm() -> KvmProbe {
    let start = Instant::now();
    let (send, findings) = mpsc::channel();
    // On a thread of its own, which can be stopped from here by a signal.
    let thread = std::thread::spawn(move || {
        sys::block_signals();
        let mut probe = KvmProbe::default();
        let measured = measure(&mut probe);
        // Nobody listens any more if it took too long.
        let _ = send.send((probe, measured));
    });
    let (mut probe, measured) = match findings.recv_timeout(DEADLINE) {
        Ok(found) => found,
        Err(RecvTimeoutError::Timeout) => {
            sys::stop_vcpu(&thread);
            let late = findings.recv_timeout(STOP_TIMEOUT).map(|(probe, _)| probe);
            (late.unwrap_or_default(), Err(Failure::Hung))
        }
        Err(RecvTimeoutError::Disconnected) => (KvmProbe::default(), Err(Failure::Hung)),
    };
    (probe.verdict, probe.reason) = judge(&measured);
    probe.probe_us = micros(start.elapsed());
    probe
}

/// A loop and the time it took.
#[derive(Debug, Clone, Copy)]
struct Run {
    iterations: u64,
    time: Duration,
}

impl Run {
    fn per_second(self) -> u64 {
        let per_second = u128::from(self.iterations) * 1_000_000_000 / self.time.as_nanos().max(1);
        u64::try_from(per_second).unwrap_or(u64::MAX)
    }
}

fn judge(measured: &Result<Run, Failure>) -> (KvmVerdict, String) {
    let run = match measured {
        Ok(run) => *run,
        Err(failure @ Failure::Absent(_)) => return (KvmVerdict::Absent, failure.to_string()),
        Err(failure) => return (KvmVerdict::Unusable, format!("KVM is not usable: {failure}")),
    };
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let millions = run.per_second() as f64 / 1e6;
    if run.per_second() >= USABLE_PER_SECOND {
        return (KvmVerdict::Usable, format!("KVM runs guest code at {millions:.0} million loops a second"));
    }
    let least = USABLE_PER_SECOND / 1_000_000;
    let reason = format!(
        "KVM is not usable: it runs guest kernel code at {millions:.1} million loops a second, where a processor \
         does over {least} million: it emulates instead of using the processor's virtualization"
    );
    (KvmVerdict::Unusable, reason)
}

fn measure(probe: &mut KvmProbe) -> Result<Run, Failure> {
    let device =
        open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| match error {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => Failure::Absent(error),
            _ => Failure::Open(error),
        })?;
    let step = |step| move |source| Failure::Step { step, source };
    let start = Instant::now();
    let kvm = Kvm::new(device).map_err(step("create a VM"))?;
    probe.create_vm_us = Some(micros(start.elapsed()));
    let mut memory = sys::Memory::new(guest::MEMORY_SIZE).map_err(step("have memory for a VM"))?;
    guest::load(memory.bytes());
    let start = Instant::now();
    let mut vcpu = kvm.into_vcpu(memory).map_err(step("create a vCPU"))?;
    probe.create_vcpu_us = Some(micros(start.elapsed()));
    let mut sregs = vcpu.sregs().map_err(step("show a vCPU's registers"))?;
    guest::enter_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(step("set a vCPU to 64-bit mode"))?;
    let run = judged_run(|iterations| timed(&mut vcpu, iterations))?;
    probe.loop_iterations = Some(run.iterations);
    probe.loop_ns = Some(u64::try_from(run.time.as_nanos()).unwrap_or(u64::MAX));
    Ok(run)
}

/// Lengthens the loop until it takes long enough to judge by.
fn judged_run(mut run: impl FnMut(u64) -> Result<Duration, Failure>) -> Result<Run, Failure> {
    let mut iterations = FIRST_ITERATIONS;
    loop {
        let mut time = run(iterations)?;
        let last = iterations >= LAST_ITERATIONS;
        if time >= ENOUGH || last {
            for _ in 1..RUNS {
                time = time.min(run(iterations)?);
            }
            if time >= ENOUGH || last {
                return Ok(Run { iterations, time });
            }
        }
        iterations *= 4;
    }
}

fn timed(vcpu: &mut Vcpu, iterations: u64) -> Result<Duration, Failure> {
    vcpu.set_regs(&guest::regs(iterations))
        .map_err(|source| Failure::Step { step: "set a vCPU's registers", source })?;
    let start = Instant::now();
    let stop = vcpu.run().map_err(|source| match source {
        Errno::INTR => Failure::Hung,
        source => Failure::Step { step: "run a vCPU", source },
    })?;
    let time = start.elapsed();
    match stop {
        Stop::Port => Ok(time),
        Stop::Other(reason) => Err(Failure::Stopped(reason)),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(per_second: u64) -> Result<Run, Failure> {
        judged_run(|iterations| Ok(Duration::from_nanos(iterations * 1_000_000_000 / per_second)))
    }

    #[test]
    fn emulators_are_told_from_processors() {
        for (per_second, verdict) in [
            (600_000, KvmVerdict::Unusable),
            (2_000_000, KvmVerdict::Unusable),
            (50_000_000, KvmVerdict::Usable),
            (2_000_000_000, KvmVerdict::Usable),
        ] {
            let (found, reason) = judge(&speed(per_second));
            assert_eq!(found, verdict, "{per_second}: {reason}");
        }
    }

    #[test]
    fn an_emulator_is_not_run_for_long() {
        let mut total = Duration::ZERO;
        let run = judged_run(|iterations| {
            let time = Duration::from_nanos(iterations * 2_000);
            total += time;
            Ok(time)
        });
        assert!(run.unwrap().time >= ENOUGH);
        assert!(total < Duration::from_millis(100), "{total:?}");
    }

    #[test]
    fn one_run_without_the_processor_does_not_decide() {
        let mut runs = 0;
        let run = judged_run(|iterations| {
            runs += 1;
            let lost = if runs == 2 { Duration::from_millis(40) } else { Duration::ZERO };
            Ok(Duration::from_nanos(iterations) + lost)
        });
        assert_eq!(judge(&run).0, KvmVerdict::Usable);
    }

    #[test]
    fn failures_are_explained() {
        let (verdict, reason) = judge(&Err(Failure::Absent(Errno::NOENT)));
        assert_eq!(verdict, KvmVerdict::Absent);
        assert!(reason.starts_with("there is no /dev/kvm"), "{reason}");
        for failure in [Failure::Open(Errno::ACCESS), Failure::Stopped(17), Failure::Hung] {
            let (verdict, reason) = judge(&Err(failure));
            assert_eq!(verdict, KvmVerdict::Unusable);
            assert!(reason.starts_with("KVM is not usable: "), "{reason}");
        }
    }

    /// Whatever this machine is, the probe comes to an end in time with a reason and figures that agree.
    #[test]
    fn this_machine_is_probed_in_time() {
        let probe = probe_kvm();
        println!("{probe:?}");
        assert!(!probe.reason.is_empty());
        if let (Some(iterations), Some(ns)) = (probe.loop_iterations, probe.loop_ns) {
            let run = Run { iterations, time: Duration::from_nanos(ns) };
            assert_eq!(judge(&Ok(run)).0, probe.verdict);
        } else {
            assert_ne!(probe.verdict, KvmVerdict::Usable);
        }
        assert!(probe.probe_us < 3_000_000);
    }

    #[test]
    fn an_endless_guest_is_stopped() {
        let Ok(device) = open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
            println!("skipped: no /dev/kvm here");
            return;
        };
        let (send, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            sys::block_signals();
            let mut memory = sys::Memory::new(guest::MEMORY_SIZE).unwrap();
            guest::load(memory.bytes());
            let mut vcpu = Kvm::new(device).unwrap().into_vcpu(memory).unwrap();
            let mut sregs = vcpu.sregs().unwrap();
            guest::enter_long_mode(&mut sregs);
            vcpu.set_sregs(&sregs).unwrap();
            send.send(None).unwrap();
            send.send(Some(timed(&mut vcpu, u64::MAX))).unwrap();
        });
        assert!(stopped.recv_timeout(Duration::from_secs(10)).unwrap().is_none());
        sys::stop_vcpu(&thread);
        let end = stopped.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(end, Some(Err(Failure::Hung))), "{end:?}");
        thread.join().unwrap();
    }
}
