//! Why a vCPU came back from the guest.

/// What `KVM_RUN` returned with. Data is borrowed from the vCPU's shared page: fill `data` of reads before the next run.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// The guest reads a port: `data.len() / size` times `size` bytes (1, 2 or 4).
    IoIn {
        /// Port number.
        port: u16,
        /// Width of one access, bytes.
        size: u8,
        /// To be filled with what the guest reads; more than one access for string instructions.
        data: &'a mut [u8],
    },
    /// The guest writes a port.
    IoOut {
        /// Port number.
        port: u16,
        /// Width of one access, bytes.
        size: u8,
        /// What it writes; more than one access for string instructions.
        data: &'a [u8],
    },
    /// The guest reads an address that is not RAM.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// To be filled, 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes an address that is not RAM.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// What it writes, 1 to 8 bytes.
        data: &'a [u8],
    },
    /// The guest halted. Not seen with the in-kernel irqchip, which waits in the kernel.
    Hlt,
    /// Triple fault: the guest's CPU gave up.
    Shutdown,
    /// The guest asked the hypervisor for something (Hyper-V crash MSRs, PSCI-like calls).
    SystemEvent(SystemEventKind),
    /// The CPU refused to enter the guest: its state is invalid.
    FailEntry {
        /// The hardware's reason (VMX exit reason or SVM exit code).
        reason: u64,
        /// Host CPU it happened on.
        cpu: u32,
    },
    /// KVM gave up: for example an instruction that it cannot emulate.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`: 1 emulation failure, 2 simultaneous exceptions, 3 delivery of an event, 4 unexpected exit.
        suberror: u32,
        /// Details by suberror; for 1 a flag word and then, if bit 0 is set, length and bytes of the instruction.
        data: Vec<u64>,
    },
    /// Nobody asked the guest: a signal or [`crate::Kicker::kick`]. Look at what is to be done, then run again.
    Interrupted,
    /// An exit this crate never asks KVM for.
    Unexpected {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
}

/// `KVM_SYSTEM_EVENT_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemEventKind {
    /// Power off.
    Shutdown,
    /// Restart.
    Reset,
    /// The guest says that it crashed.
    Crash,
    /// Another event, by number.
    Other(u32),
}

impl From<u32> for SystemEventKind {
    fn from(event: u32) -> Self {
        match event {
            kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Self::Shutdown,
            kvm_bindings::KVM_SYSTEM_EVENT_RESET => Self::Reset,
            kvm_bindings::KVM_SYSTEM_EVENT_CRASH => Self::Crash,
            other => Self::Other(other),
        }
    }
}
