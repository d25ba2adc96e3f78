//! What an image's properties mean for a machine made from it.
//!
//! [`machine_hints`] turns checked properties into typed wishes that Karat's machine can fulfil, and into one named
//! [`Condition`] for each that it can not. Nothing is dropped in silence: every property that speaks of machines ends up in one
//! of the two. What users wrote in the machine itself wins over all of this.

mod condition;
mod resolve;
#[cfg(test)]
mod tests;

pub use condition::{Condition, ConditionKind, Severity};
pub use resolve::machine_hints;

use spec::DiskBus;

use crate::architecture::Architecture;
use crate::format::{ImageId, words};

words! {
    /// What a watchdog does when the guest hangs. A machine without one has `None` of these.
    WatchdogAction {
        /// Power-cycle the machine.
        Reset = "reset",
        /// End the machine.
        PowerOff = "poweroff",
        /// Stop its vCPUs.
        Pause = "pause",
        /// Tell of it, and nothing else.
        Nothing = "none",
    }
}

words! {
    /// Family of the guest's operating system.
    OsType {
        /// Linux.
        Linux = "linux",
        /// Windows.
        Windows = "windows",
    }
}

words! {
    /// Program the machine begins with when no kernel is named.
    Firmware {
        /// BIOS calls.
        Bios = "bios",
        /// UEFI.
        Uefi = "uefi",
    }
}

words! {
    /// Pages behind guest memory.
    PageSize {
        /// The host's base pages.
        Small = "small",
        /// Huge pages of any size.
        Large = "large",
        /// Whatever there is.
        Any = "any",
        /// 2 MiB.
        Mib2 = "2MB",
        /// 1 GiB.
        Gib1 = "1GB",
    }
}

/// What the machines of this host can be given, as far as images ask for it. The daemon states it once; each part that is
/// added to the machine turns one of these on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
    /// Processor of the host.
    pub architecture: Architecture,
    /// Disks can be logical units of a SCSI controller.
    pub scsi: bool,
    /// Network cards have a pair of queues per vCPU when asked.
    pub multiqueue: bool,
    /// There is a source of randomness.
    pub rng: bool,
    /// There is a watchdog.
    pub watchdog: bool,
    /// A channel to the guest's agent exists.
    pub guest_agent: bool,
    /// NUMA nodes can be shown to the guest.
    pub numa: bool,
    /// Sockets, cores and threads can be chosen.
    pub topology: bool,
    /// Guest memory can be made of huge pages.
    pub hugepages: bool,
    /// vCPUs can be pinned to host processors.
    pub pinning: bool,
    /// Firmware that machines can begin with.
    pub firmware: Vec<Firmware>,
    /// The firmware checks signatures of what it boots.
    pub secure_boot: bool,
    /// The machine shows itself to Windows as it expects, and its clock can run in local time.
    pub windows: bool,
}

impl Abilities {
    /// What every machine of Karat has on an x86 host: virtio disks and network cards, SCSI, randomness, topology, huge pages.
    pub const fn x86_64() -> Self {
        Self {
            architecture: Architecture::X86_64,
            scsi: true,
            multiqueue: true,
            rng: true,
            watchdog: false,
            guest_agent: false,
            numa: false,
            topology: true,
            hugepages: true,
            pinning: false,
            firmware: Vec::new(),
            secure_boot: false,
            windows: false,
        }
    }
}

/// How vCPUs should be laid out; what is `None` is not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopologyHint {
    /// Packages.
    pub sockets: Option<u32>,
    /// Cores per package.
    pub cores: Option<u32>,
    /// Threads per core.
    pub threads: Option<u32>,
    /// Most packages the guest supports.
    pub max_sockets: Option<u32>,
    /// Most cores per package the guest supports.
    pub max_cores: Option<u32>,
    /// Most threads per core the guest supports.
    pub max_threads: Option<u32>,
}

impl TopologyHint {
    /// Sockets, cores and threads for `cpus` vCPUs: what is preferred as far as it divides them and stays within the most the
    /// guest supports. `None` where no layout does that; then the machine's own default holds.
    pub fn for_cpus(&self, cpus: u32) -> Option<spec::Topology> {
        let most = |limit: Option<u32>| limit.unwrap_or(cpus).min(cpus);
        let fits = |wish: Option<u32>, value: u32| wish.is_none_or(|wish| wish == value);
        let within = |value: u32, limit: Option<u32>| (1..=most(limit)).contains(&value);
        let divisors = || (1..=cpus).filter(|n| cpus.is_multiple_of(*n));
        // Threads first: one per core unless asked for more; then one socket unless the guest or the wish says otherwise.
        for threads in divisors().filter(|n| fits(self.threads, *n) && within(*n, self.max_threads)) {
            let rest = cpus / threads;
            for sockets in (1..=rest).filter(|n| rest.is_multiple_of(*n)) {
                let cores = rest / sockets;
                let sockets_fit = fits(self.sockets, sockets) && within(sockets, self.max_sockets);
                if sockets_fit && fits(self.cores, cores) && within(cores, self.max_cores) {
                    return Some(spec::Topology {
                        sockets,
                        cores,
                        threads,
                    });
                }
            }
        }
        None
    }
}

/// One NUMA node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its vCPUs, one bit each; 0 where they are not said.
    pub cpus: u64,
    /// Its memory, MiB; `None` where it is not said.
    pub memory_mib: Option<u32>,
}

/// What a machine made from the image should be like. `None` and `false`: nothing is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineHints {
    /// Processor it is made for.
    pub architecture: Option<Architecture>,
    /// Controller of the disks, the root disk first of all.
    pub disk_bus: Option<DiskBus>,
    /// Controller of CD-ROM drives.
    pub cdrom_bus: Option<DiskBus>,
    /// The network card is said to be virtio, which it always is.
    pub virtio_net: bool,
    /// A pair of queues per vCPU on each network card.
    pub multiqueue: Option<bool>,
    /// The image asks for a source of randomness.
    pub rng: bool,
    /// What the watchdog does; `None` is no watchdog.
    pub watchdog: Option<WatchdogAction>,
    /// Whether the guest runs the agent.
    pub guest_agent: Option<bool>,
    /// Whether a snapshot must quiesce the guest or fail.
    pub require_quiesce: Option<bool>,
    /// Family of the operating system.
    pub os_type: Option<OsType>,
    /// Distribution, as written.
    pub os_distro: Option<String>,
    /// Image that is the kernel.
    pub kernel: Option<ImageId>,
    /// Image that is the ramdisk.
    pub ramdisk: Option<ImageId>,
    /// Kernel command line.
    pub command_line: Option<String>,
    /// Firmware to begin with.
    pub firmware: Option<Firmware>,
    /// Whether what boots must be signed.
    pub secure_boot: Option<bool>,
    /// Layout of vCPUs.
    pub topology: TopologyHint,
    /// NUMA nodes, in order.
    pub numa: Vec<NumaNode>,
    /// Pages behind guest memory.
    pub page_size: Option<PageSize>,
    /// vCPUs on host processors of their own.
    pub pinned: Option<bool>,
    /// The clock runs in local time and the machine shows itself as Windows expects.
    pub windows_tuning: bool,
    /// Longest host name the guest takes, bytes.
    pub hostname_max: Option<usize>,
    /// Fully virtualised is said, which it always is.
    pub hvm: bool,
    /// KVM is said, which it always is.
    pub kvm: bool,
    /// No video card is said, and there is none.
    pub headless: bool,
}
