//! One virtual machine at KVM: memory slots, interrupt chip, doorbells.
#![expect(unsafe_code, reason = "memory slots hand host addresses to the kernel")]

use std::io;
use std::sync::Arc;

use guestmem::GuestMemory;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::cpuid::{self, Topology};
use crate::error::CallError;
use crate::routing::{IrqRouting, MsiMessage};
use crate::savable::Savable;
use crate::system::{Capabilities, Kvm};
use crate::vcpu::{KernelTraits, Vcpu};

/// One page KVM needs for itself below 4 GiB on old Intel CPUs (real mode by paging). Nothing else may lie there.
pub const IDENTITY_MAP_START: u64 = 0xfffb_c000;

/// Three pages KVM needs for itself likewise (a task-state segment).
pub const TSS_START: u64 = 0xfffb_d000;

/// First address after what KVM keeps for itself.
pub const KVM_RESERVED_END: u64 = 0xfffc_0000;

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateVmError {
    /// More vCPUs than this kernel gives one machine.
    #[error("this kernel gives a machine {limit} vcpus at most, {wanted} were asked for")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u32,
        /// What the kernel allows, by number or by APIC id.
        limit: usize,
    },
    /// KVM refused.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Where a guest's write rings a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbell {
    /// A guest physical address; writes of any length and value.
    Mmio(u64),
    /// A port; writes of any width and value.
    Port(u16),
}

impl Doorbell {
    fn address(self) -> IoEventAddress {
        match self {
            Self::Mmio(address) => IoEventAddress::Mmio(address),
            Self::Port(port) => IoEventAddress::Pio(port.into()),
        }
    }
}

/// A virtual machine: RAM and interrupt chip are there, vCPUs come by [`Vm::create_vcpu`].
///
/// `Send` and `Sync`; share it in an `Arc`. The kernel keeps the machine alive until the last vCPU, interrupt and `Vm` are
/// gone.
pub struct Vm {
    fd: Arc<VmFd>,
    memory: GuestMemory,
    routing: Arc<IrqRouting>,
    cpuid: CpuId,
    capabilities: Capabilities,
    topology: Topology,
    savable: Savable,
}

impl Vm {
    /// Makes a machine with this RAM (slot n = region n, dirty log off), IOAPIC, PIC and local APICs, and no timer chip: guests
    /// learn their clock rates by CPUID and kvmclock.
    pub fn create(kvm: &Kvm, memory: &GuestMemory, topology: Topology) -> Result<Self, CreateVmError> {
        let capabilities = kvm.capabilities();
        let limit = capabilities.max_vcpus.min(capabilities.max_vcpu_id);
        let greatest_id = topology.apic_id(topology.vcpus() - 1);
        if topology.vcpus() as usize > capabilities.max_vcpus || greatest_id as usize >= capabilities.max_vcpu_id {
            let wanted = topology.vcpus();
            return Err(CreateVmError::TooManyVcpus { wanted, limit });
        }
        let fd = Arc::new(create_interruptible(kvm)?);
        fd.set_identity_map_address(IDENTITY_MAP_START)
            .map_err(CallError::on("place the identity map"))?;
        fd.set_tss_address(usize::try_from(TSS_START).unwrap_or(usize::MAX))
            .map_err(CallError::on("place the task-state segment"))?;
        fd.create_irq_chip()
            .map_err(CallError::on("create the interrupt chip"))?;
        let cpuid = kvm
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CallError::on("ask which cpu features guests may have"))?;
        let vm = Self {
            routing: Arc::new(IrqRouting::new(Arc::clone(&fd))),
            fd,
            memory: memory.clone(),
            cpuid,
            capabilities,
            topology,
            savable: Savable::of(&kvm.fd)?,
        };
        for slot in 0..vm.memory.regions().len() {
            vm.set_slot(slot, false)?;
        }
        Ok(vm)
    }

    /// Makes vCPU number `index` (0-based, below [`Topology::vcpus`]), ready for real mode at the reset vector: CPUID, MSRs, FPU
    /// and local APIC are set. Number 0 runs; the others wait for the guest's start-up IPI.
    pub fn create_vcpu(&self, index: u32) -> Result<Vcpu, CallError> {
        let id = self.topology.apic_id(index);
        let fd = self
            .fd
            .create_vcpu(id.into())
            .map_err(CallError::on(format!("create vcpu {index}")))?;
        let tsc_khz = if self.capabilities.tsc_khz {
            fd.get_tsc_khz().ok()
        } else {
            None
        };
        let host = cpuid::Host {
            tsc_khz,
            tsc_deadline: self.capabilities.tsc_deadline,
        };
        let cpuid = cpuid::for_vcpu(self.cpuid.as_slice(), &self.topology, index, host);
        let kernel = KernelTraits {
            capabilities: self.capabilities,
            savable: self.savable.clone(),
        };
        Vcpu::new(fd, index, &cpuid, kernel, self.memory.clone())
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The machine's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The machine's interrupt routes.
    pub fn irq_routing(&self) -> &Arc<IrqRouting> {
        &self.routing
    }

    /// Sockets, cores and threads.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Has the kernel signal `event` at every guest write to `at`, instead of a vCPU exit.
    pub fn add_doorbell(&self, at: Doorbell, event: &EventFd) -> Result<(), CallError> {
        self.fd
            .register_ioevent(event, &at.address(), NoDatamatch)
            .map_err(CallError::on(format!("add a doorbell at {at:x?}")))
    }

    /// Undoes [`Vm::add_doorbell`]; same arguments.
    pub fn remove_doorbell(&self, at: Doorbell, event: &EventFd) -> Result<(), CallError> {
        self.fd
            .unregister_ioevent(event, &at.address(), NoDatamatch)
            .map_err(CallError::on(format!("remove the doorbell at {at:x?}")))
    }

    /// Delivers a message that has no route, once. True if a vCPU took it, false if the guest blocks it.
    pub fn signal_msi(&self, message: MsiMessage) -> Result<bool, CallError> {
        let [l0, l1, l2, l3, h0, h1, h2, h3] = message.address.to_le_bytes();
        let msi = kvm_msi {
            address_lo: u32::from_le_bytes([l0, l1, l2, l3]),
            address_hi: u32::from_le_bytes([h0, h1, h2, h3]),
            data: message.data,
            ..Default::default()
        };
        self.fd
            .signal_msi(msi)
            .map(|taken| taken > 0)
            .map_err(CallError::on("deliver a message-signalled interrupt"))
    }

    /// Switches the log of pages that vCPUs write on (from clean) or off, for all RAM.
    pub fn set_dirty_log(&self, on: bool) -> Result<(), CallError> {
        (0..self.memory.regions().len()).try_for_each(|slot| self.set_slot(slot, on))
    }

    /// Pages of slot `slot` (= region of [`GuestMemory::regions`]) that vCPUs wrote since the last call: one bit per 4 KiB page.
    /// Device writes are in [`guestmem::DirtyLog`], same layout; or both together. Fails when the log is off.
    pub fn take_dirty_log(&self, slot: usize) -> Result<Vec<u64>, CallError> {
        let (number, region) = self.region(slot)?;
        self.fd
            .get_dirty_log(number, usize::try_from(region.len).unwrap_or(usize::MAX))
            .map_err(CallError::on(format!("read the dirty log of memory slot {slot}")))
    }

    fn region(&self, slot: usize) -> Result<(u32, guestmem::Region<'_>), CallError> {
        let missing = || CallError {
            what: format!("find memory slot {slot}"),
            source: io::ErrorKind::NotFound.into(),
        };
        let region = self.memory.regions().nth(slot).ok_or_else(missing)?;
        Ok((u32::try_from(slot).map_err(|_| missing())?, region))
    }

    fn set_slot(&self, slot: usize, log_dirty: bool) -> Result<(), CallError> {
        let (number, region) = self.region(slot)?;
        let argument = kvm_userspace_memory_region {
            slot: number,
            flags: if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: region.gpa.0,
            memory_size: region.len,
            userspace_addr: region.host_address,
        };
        // SAFETY: the range is a mapping of `self.memory`, which lives as long as this `Vm`; the regions do not overlap. vCPUs
        // that outlive the `Vm` hold the kernel's machine, but `Vcpu` keeps a clone of the memory too.
        let done = unsafe { self.fd.set_user_memory_region(argument) };
        done.map_err(CallError::on(format!(
            "give the machine {} bytes of memory at {:#x}",
            region.len, region.gpa.0
        )))
    }
}

/// `KVM_CREATE_VM` gives up when a signal arrives; try again.
fn create_interruptible(kvm: &Kvm) -> Result<VmFd, CallError> {
    loop {
        match kvm.fd.create_vm() {
            Err(errno) if errno.errno() == libc::EINTR => {}
            other => return other.map_err(CallError::on("create a machine")),
        }
    }
}
