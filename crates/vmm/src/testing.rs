//! Specifications for tests.

use control::DiskLayer;
use spec::{DiskBus, DiskFormat, DiskSpec, MachineParts, MachineSpec, NetSpec};

/// A small machine, changed by `change`.
pub(crate) fn spec(change: impl FnOnce(&mut MachineParts)) -> MachineSpec {
    let mut parts = spec::testing::small_machine();
    change(&mut parts);
    parts.try_into().unwrap()
}

/// A virtio disk of one queue.
pub(crate) fn disk(name: &str) -> DiskSpec {
    spec::testing::disk(name, DiskBus::Virtio, 1)
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
