//! What a snapshot depends on, and how two such machines differ.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Two clocks are alike within one part in this many (0.2 %): the guest counts time by the one it was made
/// under.
const TSC_TOLERANCE: u64 = 500;

/// Everything a snapshot depends on beside its own files. Hashes are SHA-256, hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    /// `qemu` or `firecracker`.
    pub(crate) vmm: String,
    pub(crate) vmm_version: String,
    /// `kvm` or `tcg`.
    pub(crate) accelerator: String,
    /// Hash of the VMM's own description of the virtual machine.
    pub(crate) devices: String,
    /// The host's processor, by its name.
    pub(crate) cpu: String,
    /// Hash of what that processor can do.
    pub(crate) cpu_flags: String,
    /// Frequency of the host's time stamp counter.
    pub(crate) tsc_khz: Option<u64>,
    /// Release of the host's kernel.
    pub(crate) host_kernel: String,
    /// Hash of the guest's kernel.
    pub(crate) guest_kernel: String,
    /// Hash of the root image.
    pub(crate) rootfs: String,
    /// Hash of the agent.
    pub(crate) agent: String,
    /// What the agent speaks.
    pub(crate) agent_protocol: u32,
    pub(crate) vcpus: u8,
    pub(crate) mem_mib: u32,
    pub(crate) disk_mib: u32,
    /// Name servers that the guest was given. A clone is given others if need be, which takes it time.
    pub(crate) dns: Vec<Ipv4Addr>,
}

/// How alike two machines must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// A user's snapshot brings its agent in its memory: it is enough that it speaks our protocol.
    User,
    /// A golden snapshot is made anew for a new agent, and for what a clone would have to be told otherwise.
    Golden,
}

impl Machine {
    /// Why a snapshot made on this machine cannot be restored on `current`, a sentence for each reason; none
    /// when it can.
    pub(crate) fn differences(&self, current: &Self, compare: Compare) -> Vec<String> {
        // All fields by name, so that none is forgotten here.
        let Self {
            vmm,
            vmm_version,
            accelerator,
            devices,
            cpu,
            cpu_flags,
            tsc_khz,
            host_kernel,
            guest_kernel,
            rootfs,
            agent,
            agent_protocol,
            vcpus,
            mem_mib,
            disk_mib,
            dns,
        } = self;
        let golden = compare == Compare::Golden;
        let checks = [
            (*vmm != current.vmm, format!("it was made by {vmm}, this server uses {}", current.vmm)),
            (
                *vmm_version != current.vmm_version,
                format!("it was made by VMM version {vmm_version}, this server's is {}", current.vmm_version),
            ),
            (
                *accelerator != current.accelerator,
                format!("it ran on {accelerator}, this server's sandboxes run on {}", current.accelerator),
            ),
            (*devices != current.devices, "its virtual devices are others".to_owned()),
            (*cpu != current.cpu, format!("its host's processor was {cpu:?}, this one is {:?}", current.cpu)),
            (*cpu_flags != current.cpu_flags, "the processor's features are others".to_owned()),
            (
                !same_clock(*tsc_khz, current.tsc_khz),
                format!(
                    "the processor's time stamp counter ran at {}, this one at {}",
                    clock(*tsc_khz),
                    clock(current.tsc_khz)
                ),
            ),
            (
                *host_kernel != current.host_kernel,
                format!(
                    "it was made under the host kernel {host_kernel}, this one is {}",
                    current.host_kernel
                ),
            ),
            (*guest_kernel != current.guest_kernel, "the guest kernel is another one".to_owned()),
            (*rootfs != current.rootfs, "the root image is another one".to_owned()),
            (golden && *agent != current.agent, "the agent is another one".to_owned()),
            (
                *agent_protocol != current.agent_protocol,
                format!("its agent speaks protocol {agent_protocol}, this server {}", current.agent_protocol),
            ),
            (
                *vcpus != current.vcpus,
                format!("it has {vcpus} vCPUs, this server's sandboxes {}", current.vcpus),
            ),
            (
                *mem_mib != current.mem_mib,
                format!("it has {mem_mib} MiB of memory, this server's sandboxes {}", current.mem_mib),
            ),
            (
                *disk_mib != current.disk_mib,
                format!("it has a disk of {disk_mib} MiB, this server's sandboxes {}", current.disk_mib),
            ),
            (golden && *dns != current.dns, "the name servers are others".to_owned()),
        ];
        checks.into_iter().filter_map(|(differs, sentence)| differs.then_some(sentence)).collect()
    }
}

fn same_clock(one: Option<u64>, other: Option<u64>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.abs_diff(other) <= one.max(other) / TSC_TOLERANCE,
        (None, None) => true,
        _ => false,
    }
}

fn clock(khz: Option<u64>) -> String {
    khz.map_or_else(|| "no known frequency".to_owned(), |khz| format!("{khz} kHz"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::snapshots::testing::machine;

    #[test]
    fn a_machine_is_like_itself() {
        for compare in [Compare::User, Compare::Golden] {
            assert_eq!(machine().differences(&machine(), compare), Vec::<String>::new());
        }
    }

    #[test]
    fn each_field_that_differs_gives_one_sentence() {
        let Value::Object(fields) = serde_json::to_value(machine()).unwrap() else { panic!() };
        for (name, value) in &fields {
            let mut changed = fields.clone();
            changed[name] = match value {
                Value::String(text) => Value::from(format!("{text}x")),
                Value::Number(number) => Value::from(number.as_u64().unwrap() * 2),
                Value::Array(_) => Value::from(vec!["192.0.2.7"]),
                other => panic!("{name}: {other}"),
            };
            let changed: Machine = serde_json::from_value(Value::Object(changed)).unwrap();
            let golden = changed.differences(&machine(), Compare::Golden);
            assert_eq!(golden.len(), 1, "{name}: {golden:?}");
            assert_eq!(machine().differences(&changed, Compare::Golden).len(), 1, "{name}");
            let user = changed.differences(&machine(), Compare::User);
            let matters = !["agent", "dns"].contains(&name.as_str());
            assert_eq!(user.len(), usize::from(matters), "{name}: {user:?}");
        }
    }

    #[test]
    fn clocks_are_alike_within_two_per_mille() {
        let alike = |one, other| {
            let [one, other] = [one, other].map(|tsc_khz| Machine { tsc_khz, ..machine() });
            one.differences(&other, Compare::User).is_empty()
        };
        assert!(alike(Some(2_500_000), Some(2_504_900)));
        assert!(alike(Some(2_504_900), Some(2_500_000)));
        assert!(!alike(Some(2_500_000), Some(2_505_100)));
        assert!(!alike(Some(2_500_000), None));
        assert!(!alike(None, Some(2_500_000)));
        assert!(alike(None, None));
    }
}
