//! Why a machine could not be built.

use std::io;

use control::{Refusal, RefusalKind};

use crate::story::whole;

/// What went wrong, by part of the machine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// RAM.
    #[error("guest memory can not be made")]
    Memory(#[source] guestmem::CreateError),
    /// `/dev/kvm` is missing, too old, or not for us.
    #[error("KVM can not be used")]
    Kvm(#[source] kvm::OpenError),
    /// Sockets, cores and threads.
    #[error("vcpus can not be laid out")]
    Topology(#[source] kvm::TopologyError),
    /// KVM gives no machine.
    #[error("KVM machine can not be made")]
    Vm(#[source] kvm::CreateVmError),
    /// KVM gives no vCPU.
    #[error("vcpus can not be made")]
    Vcpu(#[source] kvm::CallError),
    /// KVM gives no interrupt.
    #[error("interrupts can not be wired")]
    Interrupt(#[source] kvm::RouteError),
    /// Two things at one address: a defect.
    #[error("address spaces can not be laid out")]
    Map(#[source] device::MapError),
    /// A virtio device has no place behind its transport.
    #[error("virtio device can not be connected")]
    Transport(#[source] virtio::TransportError),
    /// The PCI bus has no place for a device.
    #[error("pci device can not be plugged in")]
    Plug(#[source] pci::PlugError),
    /// A disk's images.
    #[error(transparent)]
    Disk(crate::disks::StackError),
    /// A disk on the SCSI bus.
    #[error(transparent)]
    Scsi(crate::disks::AttachError),
    /// A tap's queues.
    #[error("{name} can not use its tap: pass queues of a tap that has virtio headers (IFF_VNET_HDR)")]
    Tap {
        /// Name of the interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No more descriptors.
    #[error("files can not be opened once more; raise the limit on open files (RLIMIT_NOFILE)")]
    Descriptors(#[source] io::Error),
    /// Kernel, initial RAM disk or tables.
    #[error("guest can not be prepared to boot")]
    Boot(#[source] boot::BootError),
    /// Page tables for the first vCPU.
    #[error("page tables for the first vcpu can not be written")]
    BootTables(#[source] guestmem::GuestMemoryError),
    /// The machine was saved, and can not go on.
    #[error("saved machine can not be restored")]
    Restore(#[source] crate::RestoreError),
    /// Threads.
    #[error("vcpu threads can not be started; raise the limit on processes (RLIMIT_NPROC, pids.max)")]
    Threads(#[source] io::Error),
}

impl BuildError {
    /// For the daemon: what kind of failure it is, and the whole story in one line.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal {
            kind: self.kind(),
            message: whole(self),
        }
    }

    const fn kind(&self) -> RefusalKind {
        match self {
            Self::Memory(_) | Self::Kvm(_) | Self::Vm(_) | Self::Vcpu(_) | Self::Threads(_) | Self::Descriptors(_) => {
                RefusalKind::HostLacks
            }
            Self::Disk(_) | Self::Tap { .. } | Self::Restore(_) => RefusalKind::BadFile,
            Self::Boot(boot::BootError::Kernel(_) | boot::BootError::Initrd(_)) => RefusalKind::BadKernel,
            Self::Topology(_)
            | Self::Interrupt(_)
            | Self::Map(_)
            | Self::Transport(_)
            | Self::Plug(_)
            | Self::Scsi(_)
            | Self::Boot(_)
            | Self::BootTables(_) => RefusalKind::Failed,
        }
    }
}
