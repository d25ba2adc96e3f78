//! Specifications for tests.

use control::DiskLayer;
use spec::{
    Cpus, DiskBus, DiskCache, DiskFormat, DiskLimits, DiskSector, DiskSpec, MachineParts, MachineSpec, Memory, NetSpec,
    VmId,
};

/// A small machine, changed by `change`.
pub(crate) fn spec(change: impl FnOnce(&mut MachineParts)) -> MachineSpec {
    let mut parts = MachineParts {
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
    };
    change(&mut parts);
    parts.try_into().unwrap()
}

/// A virtio disk of one queue.
pub(crate) fn disk(name: &str) -> DiskSpec {
    DiskSpec {
        name: name.parse().unwrap(),
        serial: name.to_owned(),
        bus: DiskBus::Virtio,
        read_only: false,
        cdrom: false,
        queues: 1,
        cache: DiskCache::Cached,
        sector: DiskSector::B512,
        limits: DiskLimits::default(),
    }
}

/// So many of them.
pub(crate) fn disks(count: usize) -> Vec<DiskSpec> {
    (0..count).map(|index| disk(&format!("disk{index}"))).collect()
}

/// A raw image that may be written.
pub(crate) fn layer(name: &str) -> DiskLayer {
    DiskLayer {
        name: name.to_owned(),
        format: DiskFormat::Raw,
        writable: true,
        data_file: None,
    }
}

/// An interface of `queue_pairs` pairs.
pub(crate) fn net(queue_pairs: u16) -> NetSpec {
    NetSpec {
        mac: "02:00:00:00:00:01".parse().unwrap(),
        queue_pairs,
    }
}
