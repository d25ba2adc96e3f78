//! Specifications for tests (feature `test-utils`): change what the test is about.
#![expect(clippy::unwrap_used, reason = "a test's set-up fails by panicking")]

use crate::{Cpus, DiskBus, DiskCache, DiskLimits, DiskSector, DiskSpec, MachineParts, Memory, VmId};

/// A machine of one vCPU and 32 MiB, without disks or network.
///
/// # Panics
/// Never: its name is one.
pub fn small_machine() -> MachineParts {
    MachineParts {
        id: VmId::random(),
        name: "test".parse().unwrap(),
        cpus: Cpus {
            sockets: 1,
            cores: 1,
            threads: 1,
        },
        memory: Memory {
            size_bytes: 32 << 20,
            hugepages: None,
            prefault: false,
        },
        cmdline: String::new(),
        disks: vec![],
        nets: vec![],
        debug_exit: false,
    }
}

/// A disk that may be written, with its name as its serial number.
///
/// # Panics
/// If `name` is no name.
pub fn disk(name: &str, bus: DiskBus, queues: u16) -> DiskSpec {
    DiskSpec {
        name: name.parse().unwrap(),
        serial: name.to_owned(),
        bus,
        read_only: false,
        cdrom: false,
        queues,
        cache: DiskCache::Cached,
        sector: DiskSector::B512,
        limits: DiskLimits::default(),
    }
}
