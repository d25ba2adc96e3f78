//! One virtual CPU: its state at start, and the run loop's step.
#![expect(
    unsafe_code,
    reason = "the page a vCPU shares with KVM: a union by exit reason, and a buffer by offset"
)]

use std::io;
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU8;

use guestmem::GuestMemory;
use kvm_bindings::{
    CpuId, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, kvm_cpuid_entry2, kvm_fpu, kvm_lapic_state, kvm_regs,
    kvm_run, kvm_sregs,
};
use kvm_ioctls::{Error as Errno, VcpuFd};

use crate::entry::{self, BootTables};
use crate::error::CallError;
use crate::exit::Exit;
use crate::kick::{Kick, Kicker};
use crate::msr;
use crate::registers::RegisterDump;
use crate::savable::{Savable, XsaveSize};
use crate::system::Capabilities;

/// x87 control word after FNINIT (Intel SDM vol. 1 §8.1.5).
const FPU_CONTROL: u16 = 0x37f;
/// MXCSR at reset: all exceptions masked (Intel SDM vol. 1 §10.2.3).
const MXCSR_RESET: u32 = 0x1f80;
/// RFLAGS with nothing set but the bit that always is.
const RFLAGS_RESET: u64 = 2;

/// Registers of the local APIC (Intel SDM vol. 3A §10.4.1) and delivery modes of their bits 8–10.
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4 << 8;
const APIC_MODE_EXTINT: u32 = 7 << 8;

/// Why a vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// `KVM_RUN` failed.
    #[error("vcpu {index} cannot run")]
    Run {
        /// Which vCPU.
        index: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The signal that interrupts vCPUs could not be set up.
    #[error("the signal that interrupts vcpus cannot be set up")]
    Signal(#[source] io::Error),
}

/// What of this kernel a vCPU has to know.
pub(crate) struct KernelTraits {
    pub(crate) capabilities: Capabilities,
    pub(crate) savable: Savable,
}

/// A virtual CPU. Runs on whichever thread calls [`Vcpu::run`]; best always the same one. Keeps the guest's RAM mapped.
pub struct Vcpu {
    fd: VcpuFd,
    index: u32,
    kick: Kick,
    kernel: KernelTraits,
    /// KVM has the addresses of this mapping and uses them in [`Vcpu::run`].
    _memory: GuestMemory,
}

impl Vcpu {
    pub(crate) fn new(
        fd: VcpuFd,
        index: u32,
        cpuid: &[kvm_cpuid_entry2],
        kernel: KernelTraits,
        memory: GuestMemory,
    ) -> Result<Self, CallError> {
        let what = || format!("tell vcpu {index} its cpu features");
        let table = CpuId::from_entries(cpuid).map_err(|_| CallError::unfit(what()))?;
        fd.set_cpuid2(&table).map_err(CallError::on(what()))?;
        msr::set_boot_msrs(&fd, index)?;
        let fpu = kvm_fpu {
            fcw: FPU_CONTROL,
            mxcsr: MXCSR_RESET,
            ..Default::default()
        };
        fd.set_fpu(&fpu)
            .map_err(CallError::on(format!("reset the fpu of vcpu {index}")))?;
        wire_local_apic(&fd, index)?;
        Ok(Self {
            fd,
            index,
            kick: Kick::default(),
            kernel,
            _memory: memory,
        })
    }

    /// Its number, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    pub(crate) fn msr_list(&self) -> &[u32] {
        &self.kernel.savable.msrs
    }

    pub(crate) const fn xsave_size(&self) -> XsaveSize {
        self.kernel.savable.xsave
    }

    /// A handle that interrupts it.
    pub fn kicker(&self) -> Kicker {
        self.kick.kicker()
    }

    /// Starts in 32-bit protected mode at `rip` with `rbx` in ebx: the PVH entry and its start info. First vCPU only.
    pub fn set_pvh_entry(&self, rip: u64, rbx: u64) -> Result<(), CallError> {
        let registers = kvm_regs {
            rip,
            rbx,
            rflags: RFLAGS_RESET,
            ..Default::default()
        };
        self.enter_at(&registers, entry::protected_mode)
    }

    /// Starts in long mode at `rip` with `rsi`: the 64-bit Linux entry and its zero page. First vCPU only.
    pub fn set_linux64_entry(&self, rip: u64, rsi: u64, tables: &BootTables) -> Result<(), CallError> {
        let registers = kvm_regs {
            rip,
            rsi,
            rflags: RFLAGS_RESET,
            ..Default::default()
        };
        self.enter_at(&registers, |sregs| entry::long_mode(sregs, tables))
    }

    /// Starts in real mode at `segment:offset`, with flat data segments at 0. For tests and tiny guests.
    pub fn set_real_mode_entry(&self, segment: u16, offset: u16) -> Result<(), CallError> {
        let registers = kvm_regs {
            rip: offset.into(),
            rflags: RFLAGS_RESET,
            ..Default::default()
        };
        self.enter_at(&registers, |sregs| {
            sregs.cs.selector = segment;
            sregs.cs.base = u64::from(segment) << 4;
        })
    }

    fn enter_at(&self, registers: &kvm_regs, mode: impl FnOnce(&mut kvm_sregs)) -> Result<(), CallError> {
        let what = || format!("set the entry registers of vcpu {}", self.index);
        let mut sregs = self.fd.get_sregs().map_err(CallError::on(what()))?;
        mode(&mut sregs);
        self.fd.set_sregs(&sregs).map_err(CallError::on(what()))?;
        self.fd.set_regs(registers).map_err(CallError::on(what()))
    }

    /// Runs the guest until it needs something, or somebody kicks. Blocks meanwhile, also while the guest is idle or (not the
    /// first vCPU) not yet started. After an error the vCPU is lost.
    ///
    /// [`Exit::Interrupted`] may also come without a kick.
    pub fn run(&mut self) -> Result<Exit<'_>, RunError> {
        loop {
            let entered = self.enter_guest()?;
            // Nothing writes the byte now: the signal handler has no pointer to it outside of `enter_guest`.
            self.fd.set_kvm_immediate_exit(0);
            match entered {
                Some(Ok(())) => return Ok(decode(self.fd.get_kvm_run())),
                // A vCPU that waited for its start-up IPI answers so once when it got it.
                Some(Err(libc::EAGAIN)) => {}
                None | Some(Err(libc::EINTR)) => {
                    self.kick.take_pending();
                    return Ok(Exit::Interrupted);
                }
                Some(Err(errno)) => {
                    return Err(RunError::Run {
                        index: self.index,
                        source: io::Error::from_raw_os_error(errno),
                    });
                }
            }
        }
    }

    /// `None`: a kick was pending, the guest did not run.
    fn enter_guest(&mut self) -> Result<Option<Result<(), i32>>, RunError> {
        let immediate_exit: *const AtomicU8 = (&raw const self.fd.get_kvm_run().immediate_exit).cast();
        // The page stays mapped as long as `self.fd`, longer than the guard.
        let _running = self.kick.enter(immediate_exit).map_err(RunError::Signal)?;
        if self.kick.take_pending() {
            return Ok(None);
        }
        Ok(Some(self.fd.run().map(drop).map_err(Errno::errno)))
    }

    /// Finishes the instruction whose exit was answered last, without running another one: only then do the registers tell
    /// the whole state. Call it after the last [`Vcpu::run`] before state is read or saved.
    pub fn settle(&mut self) -> Result<(), RunError> {
        self.fd.set_kvm_immediate_exit(1);
        let done = self.fd.run().map(drop);
        self.fd.set_kvm_immediate_exit(0);
        match done {
            Ok(()) => Ok(()),
            Err(errno) if [libc::EINTR, libc::EAGAIN].contains(&errno.errno()) => Ok(()),
            Err(errno) => Err(RunError::Run {
                index: self.index,
                source: io::Error::from_raw_os_error(errno.errno()),
            }),
        }
    }

    /// What it was doing, for a report.
    pub fn registers(&self) -> Result<RegisterDump, CallError> {
        let what = || format!("read the registers of vcpu {}", self.index);
        let registers = self.fd.get_regs().map_err(CallError::on(what()))?;
        let sregs = self.fd.get_sregs().map_err(CallError::on(what()))?;
        Ok(RegisterDump::new(&registers, &sregs))
    }

    /// Rate of the guest's TSC, kHz; `None` where this kernel does not tell.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.kernel
            .capabilities
            .tsc_khz
            .then(|| self.fd.get_tsc_khz().ok())
            .flatten()
    }

    /// Sets the rate of the guest's TSC. Fails where it is not the host's and the CPU cannot scale
    /// ([`Capabilities::tsc_control`]).
    pub fn set_tsc_khz(&self, khz: u32) -> Result<(), CallError> {
        self.fd.set_tsc_khz(khz).map_err(CallError::on(format!(
            "set the tsc of vcpu {} to {khz} kHz",
            self.index
        )))
    }

    /// Tells the guest that it was paused, so that its watchdogs do not bark: call after a pause, before running again.
    /// Without effect for guests that have no kvmclock, and on kernels without the call.
    pub fn tell_paused(&self) {
        if self.kernel.capabilities.kvmclock_ctrl
            && let Err(errno) = self.fd.kvmclock_ctrl()
        {
            tracing::debug!(vcpu = self.index, %errno, "guest without kvmclock not told of its pause");
        }
    }

    /// True while it waits for a start-up IPI, that is: the guest has not brought it up.
    pub fn is_waiting_for_startup(&self) -> Result<bool, CallError> {
        let state = self
            .fd
            .get_mp_state()
            .map_err(CallError::on(format!("read the run state of vcpu {}", self.index)))?;
        Ok(matches!(
            state.mp_state,
            kvm_bindings::KVM_MP_STATE_UNINITIALIZED | kvm_bindings::KVM_MP_STATE_INIT_RECEIVED
        ))
    }
}

/// LINT0 takes the PIC's interrupts, LINT1 the NMI, as firmware leaves them.
fn wire_local_apic(fd: &VcpuFd, index: u32) -> Result<(), CallError> {
    let what = || format!("wire the local apic of vcpu {index}");
    let mut apic = fd.get_lapic().map_err(CallError::on(what()))?;
    set_apic_register(&mut apic, APIC_LVT_LINT0, APIC_MODE_EXTINT);
    set_apic_register(&mut apic, APIC_LVT_LINT1, APIC_MODE_NMI);
    fd.set_lapic(&apic).map_err(CallError::on(what()))
}

fn set_apic_register(apic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in apic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

/// Reads the exit out of the page KVM shares with us. Only right after a successful `KVM_RUN`.
fn decode(run: &mut kvm_run) -> Exit<'_> {
    match run.exit_reason {
        KVM_EXIT_IO => decode_port(run),
        KVM_EXIT_MMIO => {
            // SAFETY: the exit reason says that the kernel filled in `mmio`.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let length = (mmio.len as usize).min(mmio.data.len());
            let (address, data) = (mmio.phys_addr, mmio.data.split_at_mut(length).0);
            if mmio.is_write != 0 {
                Exit::MmioWrite { address, data }
            } else {
                Exit::MmioRead { address, data }
            }
        }
        KVM_EXIT_HLT => Exit::Hlt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: the exit reason says that the kernel filled in `system_event`.
            let event = unsafe { run.__bindgen_anon_1.system_event };
            Exit::SystemEvent(event.type_.into())
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that the kernel filled in `fail_entry`.
            let fail = unsafe { run.__bindgen_anon_1.fail_entry };
            Exit::FailEntry {
                reason: fail.hardware_entry_failure_reason,
                cpu: fail.cpu,
            }
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that the kernel filled in `internal`.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            Exit::InternalError {
                suberror: internal.suberror,
                data: internal.data.iter().take(internal.ndata as usize).copied().collect(),
            }
        }
        reason => Exit::Unexpected { reason },
    }
}

fn decode_port(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: the caller saw KVM_EXIT_IO, with which the kernel fills in `io`.
    let io = unsafe { run.__bindgen_anon_1.io };
    let length = usize::from(io.size) * io.count as usize;
    let Ok(offset) = usize::try_from(io.data_offset) else {
        return Exit::Unexpected { reason: KVM_EXIT_IO };
    };
    // The kernel places the data in the page after `kvm_run`, inside of the same mapping.
    let data = ptr::from_mut(run).cast::<u8>().wrapping_add(offset);
    // SAFETY: by the KVM API `length` bytes at `data_offset` from the start of the mapping hold the data, and nobody uses them
    // while `run` is borrowed.
    let data = unsafe { slice::from_raw_parts_mut(data, length) };
    let (port, size) = (io.port, io.size);
    if u32::from(io.direction) == KVM_EXIT_IO_IN {
        Exit::IoIn { port, size, data }
    } else {
        Exit::IoOut { port, size, data }
    }
}
