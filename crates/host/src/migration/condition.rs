//! Whether a machine can be moved, as far as that is known without asking anybody: the condition `LiveMigratable`.

use api_types::{Vm, VmCondition, VmPhase};

use crate::host::Host;
use crate::machine::ROOT_STAYS;

/// Name of the condition.
const LIVE_MIGRATABLE: &str = "LiveMigratable";

impl Host {
    /// The machine, with what can be done with it.
    pub(crate) fn with_conditions(&self, mut vm: Vm) -> Vm {
        let has_hosts = !self.0.context.config.migration.hosts.is_empty();
        let against = against(&vm, has_hosts);
        vm.conditions = vec![VmCondition {
            kind: LIVE_MIGRATABLE.to_owned(),
            status: against.is_none(),
            reason: against.as_ref().map(|(reason, _)| (*reason).to_owned()),
            message: against.map(|(_, message)| message),
        }];
        vm
    }
}

/// What speaks against moving it: a word, and a sentence.
fn against(vm: &Vm, has_hosts: bool) -> Option<(&'static str, String)> {
    if vm.spec.image.is_some() {
        return Some(("RootDiskNotShared", ROOT_STAYS.to_owned()));
    }
    let volume = vm.spec.disks.iter().find_map(|disk| disk.volume.as_ref());
    if let Some(volume) = volume {
        let text = format!("volume {volume} is this host's alone; only disks by path on shared storage move along");
        return Some(("VolumeNotShared", text));
    }
    if !has_hosts {
        let text = "no other host is configured ([hosts])";
        return Some(("NoHosts", text.to_owned()));
    }
    if !matches!(vm.status.phase, VmPhase::Running | VmPhase::Paused) {
        let text = format!(
            "it is {:?}; only machines that run or are paused are moved",
            vm.status.phase
        );
        return Some(("NotRunning", text));
    }
    None
}
