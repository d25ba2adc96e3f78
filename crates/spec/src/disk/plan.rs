//! From a disk that was asked for to one that can be built.

use std::collections::HashSet;
use std::path::PathBuf;

use super::ROOT_DISK;
use super::{DISK_SERIAL_MAX, DiskBus, DiskCache, DiskFormat, DiskLimits, DiskSector, DiskSpec, DiskWish};
use crate::host::{HostLimits, check_path};
use crate::name::Name;
use crate::problem::Problems;

/// Where the bytes of a disk are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DiskSource {
    /// A file or block device, beneath one of the host's `file_roots`, and how its bytes lie in it.
    Path {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
    },
    /// A volume, by name or id; the volumes' keeper decides whether it exists, and knows its format.
    Volume(String),
}

/// A disk and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Its place among the disks as written, for messages: `disks[index]`.
    pub index: usize,
    /// Where its bytes are.
    pub source: DiskSource,
    /// Its boot order, if one was written.
    pub boot_order: Option<u16>,
    /// What the guest sees.
    pub disk: DiskSpec,
}

/// The disks of a machine in the order in which the guest sees them; with `default_queues` where no number was asked for.
pub(crate) fn plan(
    wishes: &[DiskWish],
    default_queues: u16,
    host: &HostLimits,
    problems: &mut Problems,
) -> Vec<DiskPlan> {
    let mut plans = Vec::new();
    let mut names = HashSet::from([ROOT_DISK.to_owned()]);
    let mut orders = HashSet::new();
    for (index, wish) in wishes.iter().enumerate() {
        let field = format!("disks[{index}]");
        let earlier = wishes.iter().take(index);
        for (what, twice) in [
            (
                "path",
                earlier.clone().any(|e| wish.path.is_some() && e.path == wish.path),
            ),
            (
                "volume",
                earlier
                    .clone()
                    .any(|e| wish.volume.is_some() && e.volume == wish.volume),
            ),
        ] {
            if twice {
                problems.add(format!("{field}.{what}"), "this one is named twice");
            }
        }
        if let Some(order) = wish.boot_order
            && (order == 0 || !orders.insert(order))
        {
            problems.add(
                format!("{field}.boot_order"),
                "take 1 or more, a different one for each disk",
            );
        }
        let source = source(wish, &field, host, problems);
        let disk = device(wish, index, default_queues, problems);
        if let Some(disk) = &disk
            && !names.insert(disk.name.as_str().to_owned())
        {
            problems.add(
                format!("{field}.name"),
                format_args!("another disk is {} already", disk.name),
            );
        }
        plans.extend(source.zip(disk).map(|(source, disk)| DiskPlan {
            index,
            source,
            boot_order: wish.boot_order,
            disk,
        }));
    }
    plans.sort_by_key(|plan| (plan.boot_order.unwrap_or(u16::MAX), plan.index));
    plans
}

/// The disk that is cloned from a machine's image, on this bus; with this many request queues where it has its own.
pub(crate) fn root_disk(bus: DiskBus, queues: u16) -> Option<DiskSpec> {
    let name: Name = ROOT_DISK.parse().ok()?;
    Some(DiskSpec {
        serial: name.as_str().to_owned(),
        name,
        bus,
        read_only: false,
        cdrom: false,
        queues,
        cache: DiskCache::Cached,
        sector: DiskSector::B512,
        limits: DiskLimits::default(),
    })
}

fn source(wish: &DiskWish, field: &str, host: &HostLimits, problems: &mut Problems) -> Option<DiskSource> {
    match (&wish.path, &wish.volume) {
        (Some(path), None) => {
            let path = check_path(&format!("{field}.path"), path, host, problems)?;
            let format = wish.format.unwrap_or(DiskFormat::Raw);
            Some(DiskSource::Path { path, format })
        }
        (None, Some(volume)) => {
            if wish.format.is_some() {
                problems.add(
                    format!("{field}.format"),
                    "the format of a volume is recorded with it; leave it out",
                );
            }
            if volume.trim().is_empty() {
                problems.add(format!("{field}.volume"), "empty; name a volume");
                return None;
            }
            Some(DiskSource::Volume(volume.clone()))
        }
        (None, None) => {
            problems.add(field, "name a path or a volume");
            None
        }
        (Some(_), Some(_)) => {
            problems.add(field, "name either a path or a volume, not both");
            None
        }
    }
}

fn device(wish: &DiskWish, index: usize, default_queues: u16, problems: &mut Problems) -> Option<DiskSpec> {
    let field = format!("disks[{index}]");
    if wish.bus == DiskBus::Scsi && wish.queues.is_some() {
        problems.add(
            format!("{field}.queues"),
            "disks on the SCSI bus share the controller's queues; leave it out",
        );
    }
    if wish.cdrom && wish.sector_size.is_some() {
        problems.add(
            format!("{field}.sector_size"),
            "a CD-ROM has sectors of 2048 bytes; leave it out",
        );
    }
    let written = wish.name.clone().unwrap_or_else(|| format!("disk{}", index + 1));
    let name: Option<Name> = problems.take(&format!("{field}.name"), written.parse());
    let default_serial = || written.chars().take(DISK_SERIAL_MAX).collect();
    let disk = DiskSpec {
        name: name?,
        serial: wish.serial.clone().unwrap_or_else(default_serial),
        bus: wish.bus,
        read_only: wish.read_only || wish.cdrom,
        cdrom: wish.cdrom,
        queues: wish.queues.unwrap_or(default_queues),
        cache: wish.cache,
        sector: wish.sector_size.unwrap_or_default(),
        limits: wish.limits,
    };
    disk.check(&field, problems);
    Some(disk)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
