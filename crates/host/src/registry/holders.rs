//! Which machines have which volumes, as the machines' records tell.

use std::collections::HashMap;

use api_types::{Vm, VmPhase, VolumeAttachment};
use spec::VmId;

use super::volume_record::VolumeRecord;

/// A machine that has a volume as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) id: VmId,
    /// Name of the machine.
    pub(crate) vm: String,
    /// What the disk is called there.
    pub(crate) disk: String,
    pub(crate) read_only: bool,
    pub(crate) phase: VmPhase,
}

impl Holder {
    /// Whether the machine has a process, or may have one soon.
    pub(crate) const fn runs(&self) -> bool {
        !matches!(self.phase, VmPhase::Stopped | VmPhase::Failed)
    }

    pub(crate) fn into_attachment(self) -> VolumeAttachment {
        VolumeAttachment {
            vm: self.vm,
            disk: self.disk,
            read_only: self.read_only,
        }
    }
}

/// The holders of all volumes, by what machines call these: name or id.
pub(super) struct Holders<'a>(HashMap<&'a str, Vec<Holder>>);

impl<'a> Holders<'a> {
    pub(super) fn of(vms: &'a [Vm]) -> Self {
        let mut holders: HashMap<_, Vec<Holder>> = HashMap::new();
        for vm in vms {
            for (index, disk) in vm.spec.disks.iter().enumerate() {
                let Some(volume) = &disk.volume else { continue };
                holders.entry(volume.as_str()).or_default().push(Holder {
                    id: vm.id,
                    vm: vm.spec.name.clone(),
                    disk: disk.name.clone().unwrap_or_else(|| format!("disk{}", index + 1)),
                    read_only: disk.read_only || disk.cdrom,
                    phase: vm.status.phase,
                });
            }
        }
        Self(holders)
    }

    /// By name of the machine.
    pub(super) fn of_volume(&self, volume: &VolumeRecord) -> Vec<Holder> {
        let id = volume.id.to_string();
        let called = [volume.name(), &id].map(|name| self.0.get(name));
        let mut holders: Vec<_> = called.into_iter().flatten().flatten().cloned().collect();
        holders.sort_by(|one, other| one.vm.cmp(&other.vm));
        holders
    }
}
