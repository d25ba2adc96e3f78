//! A machine as the machine process sees it: checked, and free of paths.

use serde::{Deserialize, Serialize};

use crate::disk::{self, DiskSpec};
use crate::id::{MacAddress, VmId};
use crate::name::Name;
use crate::problem::Problems;

/// Most vCPUs of a machine.
pub(crate) const CPUS_MAX: u32 = 64;
/// Least guest memory, bytes: below it no kernel we know unpacks itself.
pub(crate) const MEMORY_MIN: u64 = 16 << 20;
/// Longest kernel command line, bytes, without the terminating zero (x86 `COMMAND_LINE_SIZE`, Linux `asm/setup.h`).
const CMDLINE_MAX: usize = 2047;
/// Most network interfaces of a machine: policy (design §4), not layout.
pub(crate) const NETS_MAX: usize = 4;
/// Most queue pairs of an interface.
pub(crate) const QUEUE_PAIRS_MAX: u16 = 8;

/// vCPUs and how they are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpus {
    /// Packages.
    pub sockets: u32,
    /// Cores in each package.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
}

impl Cpus {
    /// How many there are: 1–64 in a checked machine.
    pub const fn count(self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

/// Size of the pages guest memory is made of, where not the host's base page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

impl HugePages {
    /// Bytes in one page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Mib2 => 2 << 20,
            Self::Gib1 => 1 << 30,
        }
    }
}

/// Guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Bytes, a multiple of the page size.
    pub size_bytes: u64,
    /// Huge pages, if any.
    pub hugepages: Option<HugePages>,
    /// Populate all of it before the first instruction.
    pub prefault: bool,
}

/// A virtio-net interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Its address.
    pub mac: MacAddress,
    /// Pairs of receive and transmit queues.
    pub queue_pairs: u16,
}

/// The fields of a [`MachineSpec`], before they are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineParts {
    /// The machine's id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// vCPUs.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Memory,
    /// Kernel command line.
    pub cmdline: String,
    /// Disks in the order in which the guest finds them; their files are handed over beside.
    pub disks: Vec<DiskSpec>,
    /// Interfaces; interface *n* takes the *n*-th set of tap queues handed over.
    pub nets: Vec<NetSpec>,
    /// A port at which the guest ends the machine with a code; for tests.
    pub debug_exit: bool,
}

/// A machine that was checked: whoever holds one may build it without asking again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "MachineParts", try_from = "MachineParts")]
pub struct MachineSpec(MachineParts);

impl MachineSpec {
    /// The machine's id.
    pub const fn id(&self) -> VmId {
        self.0.id
    }

    /// Its name.
    pub const fn name(&self) -> &Name {
        &self.0.name
    }

    /// 1–64 vCPUs.
    pub const fn cpus(&self) -> Cpus {
        self.0.cpus
    }

    /// At least 16 MiB, in whole pages of the chosen size.
    pub const fn memory(&self) -> Memory {
        self.0.memory
    }

    /// ASCII, no control characters, at most 2047 bytes.
    pub fn cmdline(&self) -> &str {
        &self.0.cmdline
    }

    /// Up to 16 disks, each with 1–16 queues.
    pub fn disks(&self) -> &[DiskSpec] {
        &self.0.disks
    }

    /// Up to 4 interfaces, each with 1–8 pairs of queues.
    pub fn nets(&self) -> &[NetSpec] {
        &self.0.nets
    }

    /// Whether the guest has the debug-exit port.
    pub const fn debug_exit(&self) -> bool {
        self.0.debug_exit
    }
}

impl From<MachineSpec> for MachineParts {
    fn from(spec: MachineSpec) -> Self {
        spec.0
    }
}

impl TryFrom<MachineParts> for MachineSpec {
    type Error = Problems;

    fn try_from(parts: MachineParts) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        check_cpus(parts.cpus, &mut problems);
        check_memory(parts.memory, &mut problems);
        check_cmdline(&parts.cmdline, &mut problems);
        disk::check_all(&parts.disks, &mut problems);
        if parts.nets.len() > NETS_MAX {
            problems.add(
                "networks",
                format_args!("{} interfaces; a machine has at most {NETS_MAX}", parts.nets.len()),
            );
        }
        for (index, net) in parts.nets.iter().enumerate() {
            if !(1..=QUEUE_PAIRS_MAX).contains(&net.queue_pairs) {
                problems.add(
                    format!("networks[{index}].queue_pairs"),
                    format_args!("take 1 to {QUEUE_PAIRS_MAX}"),
                );
            }
        }
        problems.into_result(Self(parts))
    }
}

fn check_cpus(cpus: Cpus, problems: &mut Problems) {
    if !(1..=CPUS_MAX).contains(&cpus.count()) {
        problems.add("cpus", format_args!("take 1 to {CPUS_MAX} vCPUs"));
    }
}

fn check_memory(memory: Memory, problems: &mut Problems) {
    let page = memory.hugepages.map_or(4096, HugePages::bytes);
    if memory.size_bytes < MEMORY_MIN {
        problems.add(
            "memory",
            format_args!("{} bytes; a machine needs at least 16Mi", memory.size_bytes),
        );
    } else if !memory.size_bytes.is_multiple_of(page) {
        problems.add(
            "memory",
            format_args!("{} bytes is no multiple of the page size, {page}", memory.size_bytes),
        );
    }
}

fn check_cmdline(cmdline: &str, problems: &mut Problems) {
    if cmdline.len() > CMDLINE_MAX {
        problems.add(
            "boot.cmdline",
            format_args!("{} bytes; the kernel takes at most {CMDLINE_MAX}", cmdline.len()),
        );
    }
    if !cmdline.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        problems.add("boot.cmdline", "only printable ASCII and spaces");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> MachineParts {
        MachineParts {
            id: VmId::random(),
            name: "web".parse().unwrap(),
            cpus: Cpus {
                sockets: 1,
                cores: 2,
                threads: 1,
            },
            memory: Memory {
                size_bytes: 64 << 20,
                hugepages: None,
                prefault: false,
            },
            cmdline: "console=ttyS0".to_owned(),
            disks: disk::root_disk(disk::DiskBus::Virtio, 2).into_iter().collect(),
            nets: vec![],
            debug_exit: false,
        }
    }

    #[test]
    fn crosses_a_socket_unchanged() {
        let spec = MachineSpec::try_from(parts()).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<MachineSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn what_arrives_is_checked_again_and_all_problems_are_told() {
        let mut bad = parts();
        bad.cpus.sockets = u32::MAX;
        bad.memory.size_bytes = (64 << 20) + 1;
        bad.cmdline = "a\nb".to_owned();
        bad.disks[0].queues = 0;
        bad.disks[0].serial = "s".repeat(21);
        let text = serde_json::to_string(&bad).unwrap();
        let told = serde_json::from_str::<MachineSpec>(&text).unwrap_err().to_string();
        for field in ["cpus", "memory", "boot.cmdline", "disks[0].queues", "disks[0].serial"] {
            assert!(told.contains(field), "{field} missing in {told}");
        }
    }
}
