//! The machine at KVM, and its vCPUs.

use std::sync::Arc;

use boot::Entry;
use guestmem::{GuestAddress, GuestMemory};
use kvm::{BootTables, Kvm, Topology, Vcpu, Vm};
use spec::Cpus;

use super::BuildError;

/// A machine with `memory` and without vCPUs.
pub(super) fn vm(cpus: Cpus, memory: &GuestMemory) -> Result<Arc<Vm>, BuildError> {
    let kvm = Kvm::open().map_err(BuildError::Kvm)?;
    let topology = Topology::new(cpus.sockets, cpus.cores, cpus.threads).map_err(BuildError::Topology)?;
    Vm::create(&kvm, memory, topology).map(Arc::new).map_err(BuildError::Vm)
}

/// All vCPUs: the first at `entry`, the others waiting for the guest to start them.
pub(super) fn vcpus(vm: &Vm, entry: &Entry) -> Result<Vec<Vcpu>, BuildError> {
    let vcpus = all(vm)?;
    if let Some(first) = vcpus.first() {
        enter(first, vm.memory(), entry)?;
    }
    Ok(vcpus)
}

/// All vCPUs, as after power-on.
pub(super) fn all(vm: &Vm) -> Result<Vec<Vcpu>, BuildError> {
    (0..vm.topology().vcpus())
        .map(|index| vm.create_vcpu(index))
        .collect::<Result<_, _>>()
        .map_err(BuildError::Vcpu)
}

fn enter(vcpu: &Vcpu, memory: &GuestMemory, entry: &Entry) -> Result<(), BuildError> {
    match *entry {
        Entry::Pvh { rip, start_info } => vcpu.set_pvh_entry(rip.into(), start_info.into()),
        Entry::Linux64 { rip, zero_page } => {
            let place = GuestAddress(boot::layout::BOOT_TABLES);
            let tables = BootTables::write(memory, place).map_err(BuildError::BootTables)?;
            vcpu.set_linux64_entry(rip, zero_page, &tables)
        }
    }
    .map_err(BuildError::Vcpu)
}
