//! One machine for people.

use api_types::{DiskRequests, DiskWish, RootDisk, Vm, VmCondition, VmDisk};

use crate::output::{columns, fields, human, word};

fn condition(condition: &VmCondition) -> String {
    match &condition.reason {
        Some(reason) => format!("{}: no ({reason})", condition.kind),
        None => format!("{}: yes", condition.kind),
    }
}

/// Every field that says something.
pub(crate) fn describe(vm: &Vm) -> String {
    let (spec, status) = (&vm.spec, &vm.status);
    let boot = spec.boot.clone().unwrap_or_default();
    let taps: Vec<_> = spec.networks.iter().map(|net| format!("tap:{}", net.tap)).collect();
    let disks: Vec<_> = spec.disks.iter().map(disk).collect();
    fields(&[
        ("name", spec.name.clone()),
        ("id", vm.id.to_string()),
        ("phase", format!("{:?}", status.phase)),
        ("reason", status.reason.clone().unwrap_or_default()),
        ("message", status.message.clone().unwrap_or_default()),
        (
            "conditions",
            vm.conditions.iter().map(condition).collect::<Vec<_>>().join(", "),
        ),
        ("cpus", spec.cpus.to_string()),
        ("memory", spec.memory.to_string()),
        ("image", spec.image.clone().unwrap_or_default()),
        ("image digest", vm.image_digest.clone().unwrap_or_default()),
        (
            "disk size",
            spec.disk_size.map(|size| size.to_string()).unwrap_or_default(),
        ),
        ("disk bus", spec.disk_bus.map(|bus| word(&bus)).unwrap_or_default()),
        ("root disk", status.root_disk.as_ref().map(root).unwrap_or_default()),
        ("disks", disks.join(", ")),
        ("networks", taps.join(", ")),
        ("kernel", boot.kernel.unwrap_or_default()),
        ("initrd", boot.initrd.unwrap_or_default()),
        ("cmdline", boot.cmdline.unwrap_or_default()),
        ("process", status.pid.map(|pid| pid.to_string()).unwrap_or_default()),
        ("created", vm.created_at.to_string()),
        (
            "started",
            status.started_at.map(|at| at.to_string()).unwrap_or_default(),
        ),
        (
            "start to guest",
            status
                .start_to_guest_us
                .map(|us| format!("{us} µs"))
                .unwrap_or_default(),
        ),
        (
            "resets",
            if status.resets == 0 {
                String::new()
            } else {
                status.resets.to_string()
            },
        ),
    ])
}

fn root(disk: &RootDisk) -> String {
    format!("{}, {} ({})", word(&disk.method), word(&disk.format), disk.reason)
}

/// What the disks of a machine that runs did; nothing if it has none.
pub(crate) fn figures(disks: &[VmDisk]) -> String {
    if disks.is_empty() {
        return String::new();
    }
    let row = |disk: &VmDisk| {
        let requests = |of: &DiskRequests| match of.count {
            0 => "0".to_owned(),
            count => format!("{count} (p50 {} µs, p99 {} µs)", of.p50_us, of.p99_us),
        };
        [
            disk.name.clone(),
            human(disk.size_bytes),
            disk.layers.len().to_string(),
            requests(&disk.reads),
            human(disk.read_bytes),
            requests(&disk.writes),
            human(disk.written_bytes),
            disk.errors.to_string(),
        ]
    };
    let rows: Vec<_> = disks.iter().map(row).collect();
    let header = ["DISK", "SIZE", "FILES", "READS", "READ", "WRITES", "WRITTEN", "ERRORS"];
    format!("\n{}", columns(header, &rows))
}

/// Where a disk comes from.
fn disk(disk: &DiskWish) -> String {
    let from = match (&disk.volume, &disk.path) {
        (Some(volume), _) => format!("volume:{volume}"),
        (None, path) => path.clone().unwrap_or_default(),
    };
    let how = if disk.read_only || disk.cdrom {
        " (read-only)"
    } else {
        ""
    };
    format!("{from}{how}")
}
