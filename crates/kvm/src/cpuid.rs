//! What the guest's `CPUID` instruction answers: what the host and KVM support, made consistent with the machine.
//!
//! Leaves by Intel SDM vol. 2A "CPUID" and AMD APM vol. 3 appendix E; the hypervisor's by the KVM documentation
//! (`virt/kvm/x86/cpuid.rst`) and the convention of leaf 0x4000_0010 ("timing information", first used by VMware).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Most vCPUs a machine has here.
const MAX_VCPUS: u32 = 64;

/// Greatest APIC id an 8-bit IOAPIC destination names; 255 is "all".
const MAX_APIC_ID: u32 = 254;

/// Rate of KVM's local APIC timer, kHz: its bus cycle is one nanosecond.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Why a topology is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TopologyError {
    /// A count is zero, or all together are too many.
    #[error(
        "a machine has 1 to {MAX_VCPUS} vcpus; {sockets} sockets x {cores} cores x {threads} threads is outside of that"
    )]
    BadCount {
        /// Sockets.
        sockets: u32,
        /// Cores per socket.
        cores: u32,
        /// Threads per core.
        threads: u32,
    },
    /// Odd counts leave gaps in the ids, here too large ones.
    #[error(
        "{sockets} sockets x {cores} cores x {threads} threads needs apic ids above {MAX_APIC_ID}; use powers of two"
    )]
    SparseIds {
        /// Sockets.
        sockets: u32,
        /// Cores per socket.
        cores: u32,
        /// Threads per core.
        threads: u32,
    },
}

/// How the vCPUs make up sockets, cores and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

impl Topology {
    /// `sockets` times `cores` per socket times `threads` per core; 1 to 64 vCPUs in all.
    pub fn new(sockets: u32, cores: u32, threads: u32) -> Result<Self, TopologyError> {
        let this = Self {
            sockets,
            cores,
            threads,
        };
        let all = sockets.checked_mul(cores).and_then(|n| n.checked_mul(threads));
        if !all.is_some_and(|n| (1..=MAX_VCPUS).contains(&n)) {
            return Err(TopologyError::BadCount {
                sockets,
                cores,
                threads,
            });
        }
        if this.apic_id(this.vcpus() - 1) > MAX_APIC_ID {
            return Err(TopologyError::SparseIds {
                sockets,
                cores,
                threads,
            });
        }
        Ok(this)
    }

    /// One socket of `vcpus` cores with one thread each.
    pub fn flat(vcpus: u32) -> Result<Self, TopologyError> {
        Self::new(1, vcpus, 1)
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }

    /// Threads per core.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Cores per socket.
    pub fn cores(&self) -> u32 {
        self.cores
    }

    /// Sockets.
    pub fn sockets(&self) -> u32 {
        self.sockets
    }

    /// The (x2)APIC id of vCPU `index`, which the MADT must name. Fields for thread and core are whole numbers of bits, so ids
    /// have gaps when a count is no power of two.
    pub fn apic_id(&self, index: u32) -> u32 {
        let thread = index % self.threads;
        let core = index / self.threads % self.cores;
        let socket = index / (self.threads * self.cores);
        socket << self.socket_shift() | core << self.core_shift() | thread
    }

    fn core_shift(&self) -> u32 {
        bits_for(self.threads)
    }

    fn socket_shift(&self) -> u32 {
        bits_for(self.cores) + self.core_shift()
    }
}

/// Bits that number `count` things.
fn bits_for(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// What the host contributes beyond the table of supported features.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    /// Rate of the guest's TSC, when known.
    pub(crate) tsc_khz: Option<u32>,
    /// KVM's local APIC has the TSC-deadline mode.
    pub(crate) tsc_deadline: bool,
}

/// `supported` (`KVM_GET_SUPPORTED_CPUID`) as vCPU `index` shall see it.
pub(crate) fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    topology: &Topology,
    index: u32,
    host: Host,
) -> Vec<kvm_cpuid_entry2> {
    let apic_id = topology.apic_id(index);
    let max_leaf = supported.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    let amd = is_amd(supported);
    let mut table: Vec<_> = supported
        .iter()
        .filter(|e| !matches!(e.function, 0xb | 0x1f | 0x4000_0010 | 0x8000_0026))
        .copied()
        .collect();
    for entry in &mut table {
        patch(entry, topology, apic_id, host, amd);
    }
    for leaf in [0xb, 0x1f] {
        if max_leaf >= leaf {
            table.extend(extended_topology(leaf, topology, apic_id));
        }
    }
    if let Some(tsc_khz) = host.tsc_khz {
        table.push(kvm_cpuid_entry2 {
            function: 0x4000_0010,
            eax: tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    table
}

/// AMD, or Hygon, which follows it.
fn is_amd(table: &[kvm_cpuid_entry2]) -> bool {
    const AUTH: u32 = u32::from_le_bytes(*b"Auth");
    const HYGO: u32 = u32::from_le_bytes(*b"Hygo");
    table.iter().any(|e| e.function == 0 && [AUTH, HYGO].contains(&e.ebx))
}

fn patch(entry: &mut kvm_cpuid_entry2, topology: &Topology, apic_id: u32, host: Host, amd: bool) {
    let per_socket = 1 << topology.socket_shift();
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xffff | per_socket << 16 | apic_id << 24;
            set_bit(&mut entry.edx, 28, per_socket > 1); // HTT: more than one id per package
            set_bit(&mut entry.ecx, 5, false); // VMX: no nested machines
            set_bit(&mut entry.ecx, 21, true); // x2APIC, by the in-kernel chip
            set_bit(&mut entry.ecx, 24, host.tsc_deadline);
            set_bit(&mut entry.ecx, 31, true); // a hypervisor is there
        }
        4 => patch_cache(entry, topology, true),
        0x4000_0000 if host.tsc_khz.is_some() => entry.eax = entry.eax.max(0x4000_0010),
        0x8000_0001 => {
            set_bit(&mut entry.ecx, 2, false); // SVM: no nested machines
            if amd {
                set_bit(&mut entry.ecx, 1, per_socket > 1); // CmpLegacy: HTT means cores
            }
        }
        0x8000_0008 if amd => {
            // NC: threads per package less one; ApicIdSize: bits of the id inside of the package.
            entry.ecx = entry.ecx & !0xf0ff | (per_socket - 1) & 0xff | topology.socket_shift() << 12;
        }
        // SVM's own leaf goes with SVM.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_001d => patch_cache(entry, topology, false),
        0x8000_001e if amd => {
            let core = apic_id >> topology.core_shift() & ((1 << bits_for(topology.cores)) - 1);
            entry.eax = apic_id;
            entry.ebx = core & 0xff | (topology.threads - 1) << 8;
            entry.ecx = apic_id >> topology.socket_shift() & 0xff; // node = socket, one node per socket
            entry.edx = 0;
        }
        _ => {}
    }
}

/// Deterministic cache parameters: who shares a cache. Level 3 belongs to a socket, the others to a core.
fn patch_cache(entry: &mut kvm_cpuid_entry2, topology: &Topology, counts_cores: bool) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 7;
    let shift = if level >= 3 {
        topology.socket_shift()
    } else {
        topology.core_shift()
    };
    entry.eax = entry.eax & 0x3fff | ((1 << shift) - 1) << 14;
    if counts_cores {
        entry.eax |= ((1 << bits_for(topology.cores)) - 1).min(0x3f) << 26;
    }
}

/// Leaves 0xB and 0x1F: threads, cores, and the end of the list.
fn extended_topology(function: u32, topology: &Topology, apic_id: u32) -> [kvm_cpuid_entry2; 3] {
    let per_socket = topology.cores * topology.threads;
    // (shift to the next level's id, vCPUs in it, level type)
    let levels = [
        (topology.core_shift(), topology.threads, 1),
        (topology.socket_shift(), per_socket, 2),
        (0, 0, 0),
    ];
    let mut index = 0;
    levels.map(|(eax, ebx, kind)| {
        let entry = kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax,
            ebx,
            ecx: kind << 8 | index,
            edx: apic_id,
            ..Default::default()
        };
        index += 1;
        entry
    })
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= 1 << bit;
    } else {
        *register &= !(1 << bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn get(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = table.iter().filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} is there twice");
        entry
    }

    fn amd_host() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, [0x1f, u32::from_le_bytes(*b"Auth"), 0, 0]),
            leaf(1, [0x00a2_0f12, 0x0910_0800, 1 << 5, 1 << 28]),
            leaf(0xb, [0x99, 0x99, 0x99, 0x99]),
            leaf(0x4000_0000, [0x4000_0001, 0, 0, 0]),
            leaf(0x8000_0001, [0, 0, 1 << 2 | 1 << 22, 0]),
            leaf(0x8000_0008, [0, 0, 0x1_70ff, 0]),
            leaf(0x8000_000a, [1, 2, 3, 4]),
            leaf(0x8000_001d, [0x0000_0163, 0, 0, 0]),
            leaf(0x8000_001e, [0, 0, 0, 0]),
        ]
    }

    const HOST: Host = Host {
        tsc_khz: Some(2_600_000),
        tsc_deadline: true,
    };

    #[test]
    fn apic_ids_leave_gaps_for_odd_counts() {
        let ids = |t: Topology| (0..t.vcpus()).map(|i| t.apic_id(i)).collect::<Vec<_>>();
        assert_eq!(ids(Topology::flat(4).unwrap()), [0, 1, 2, 3]);
        assert_eq!(ids(Topology::new(2, 3, 1).unwrap()), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids(Topology::new(1, 2, 2).unwrap()), [0, 1, 2, 3]);
    }

    #[test]
    fn impossible_topologies_are_refused() {
        for (sockets, cores, threads) in [(0, 1, 1), (1, 65, 1), (u32::MAX, 2, 1)] {
            let refused = Topology::new(sockets, cores, threads);
            assert_eq!(
                refused,
                Err(TopologyError::BadCount {
                    sockets,
                    cores,
                    threads
                })
            );
        }
        assert!(Topology::flat(64).is_ok() && Topology::new(64, 1, 1).is_ok());
        // Every size there is stays below the 8-bit limit: 3 x 3 x 7 is the sparsest kind.
        assert!(Topology::new(7, 3, 3).is_ok());
    }

    #[test]
    fn an_amd_vcpu_sees_its_place() {
        let topology = Topology::new(2, 2, 2).unwrap();
        let table = for_vcpu(&amd_host(), &topology, 7, HOST);
        let one = get(&table, 1, 0);
        assert_eq!(one.ebx, 7 << 24 | 4 << 16 | 0x0800);
        assert_eq!(
            one.ecx,
            1 << 21 | 1 << 24 | 1 << 31,
            "x2apic, tsc deadline, hypervisor; no vmx"
        );
        assert_eq!(one.edx, 1 << 28);
        let smt = get(&table, 0xb, 0);
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (1, 2, 0x100, 7));
        let core = get(&table, 0x1f, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, 7));
        assert_eq!(get(&table, 0x8000_0008, 0).ecx, 0x1_2003);
        assert_eq!(get(&table, 0x8000_0001, 0).ecx, 1 << 1 | 1 << 22, "no svm");
        assert_eq!(get(&table, 0x8000_000a, 0).edx, 0);
        assert_eq!(
            get(&table, 0x8000_001d, 0).eax,
            0x163 | 3 << 14,
            "level 3 is the socket's"
        );
        let node = get(&table, 0x8000_001e, 0);
        assert_eq!((node.eax, node.ebx, node.ecx), (7, 1 | 1 << 8, 1));
    }

    #[test]
    fn clock_rates_are_told_only_when_known() {
        let topology = Topology::flat(1).unwrap();
        let table = for_vcpu(&amd_host(), &topology, 0, HOST);
        assert_eq!(get(&table, 0x4000_0000, 0).eax, 0x4000_0010);
        let timing = get(&table, 0x4000_0010, 0);
        assert_eq!((timing.eax, timing.ebx), (2_600_000, 1_000_000));
        let unknown = Host {
            tsc_khz: None,
            tsc_deadline: false,
        };
        let table = for_vcpu(&amd_host(), &topology, 0, unknown);
        assert_eq!(get(&table, 0x4000_0000, 0).eax, 0x4000_0001);
        assert!(!table.iter().any(|e| e.function == 0x4000_0010));
        assert_eq!(get(&table, 1, 0).ecx & (1 << 24), 0);
        assert_eq!(get(&table, 1, 0).edx & (1 << 28), 0, "one vcpu: no htt");
    }

    #[test]
    fn an_intel_cache_is_shared_by_core_or_socket() {
        let topology = Topology::flat(4).unwrap();
        let intel = [
            leaf(0, [0x16, u32::from_le_bytes(*b"Genu"), 0, 0]),
            leaf(4, [0xfc00_4121, 0, 0, 0]),
            leaf(0x8000_0008, [0x3027, 0, 0, 0]),
        ];
        let table = for_vcpu(&intel, &topology, 2, HOST);
        assert_eq!(get(&table, 4, 0).eax, 0x121 | 3 << 26, "level 1 is the core's own");
        assert_eq!(
            get(&table, 0x8000_0008, 0).ecx,
            0,
            "cores are counted there on amd only"
        );
        assert!(
            !table.iter().any(|e| e.function == 0x1f),
            "no leaf above the host's last"
        );
    }
}
