//! `/dev/kvm` itself: is it there, and can it do what a machine needs.
#![expect(
    unsafe_code,
    reason = "kvm-ioctls takes an already open /dev/kvm only as a raw descriptor"
)]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_API_VERSION, KVM_CAP_IOEVENTFD_ANY_LENGTH};
use kvm_ioctls::Cap;
use rustix::fs::{Mode, OFlags};

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device is not there.
    #[error("/dev/kvm is missing; load kvm_intel or kvm_amd and switch virtualization on in the firmware")]
    Missing,
    /// The device is there but not for us.
    #[error("no access to /dev/kvm; run in the group that owns it (mostly kvm)")]
    NoAccess,
    /// Something else went wrong.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// The descriptor is no KVM, or a kernel of another age.
    #[error("/dev/kvm speaks API version {found}, version {wanted} is needed", wanted = KVM_API_VERSION)]
    ApiVersion {
        /// What `KVM_GET_API_VERSION` answered.
        found: i32,
    },
    /// Features are missing, all of them listed.
    #[error("this kernel's KVM lacks {}; use Linux 5.15 or later", missing.join(", "))]
    MissingCapabilities {
        /// Their names in the KVM API documentation.
        missing: Vec<&'static str>,
    },
}

/// What a machine cannot do without.
const REQUIRED: [(Cap, &str); 12] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// What a machine makes use of when it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The local APIC's TSC-deadline mode (`KVM_CAP_TSC_DEADLINE_TIMER`); without it guests calibrate the APIC timer.
    pub tsc_deadline: bool,
    /// A vCPU can have another TSC frequency than the host (`KVM_CAP_TSC_CONTROL`).
    pub tsc_control: bool,
    /// A vCPU's TSC frequency can be asked for (`KVM_CAP_GET_TSC_KHZ`).
    pub tsc_khz: bool,
    /// The guest can be told that it was paused (`KVM_CAP_KVMCLOCK_CTRL`).
    pub kvmclock_ctrl: bool,
    /// Most vCPUs one machine may have (`KVM_CAP_MAX_VCPUS`).
    pub max_vcpus: usize,
    /// Greatest vCPU (= APIC) id plus one (`KVM_CAP_MAX_VCPU_ID`).
    pub max_vcpu_id: usize,
    /// Most memory slots (`KVM_CAP_NR_MEMSLOTS`).
    pub memory_slots: usize,
}

/// An open `/dev/kvm` that can do what a machine needs.
pub struct Kvm {
    pub(crate) fd: kvm_ioctls::Kvm,
    capabilities: Capabilities,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks it. To read: all that is done with it are requests, which need no more, and threads that may
    /// open nothing to write can do it.
    pub fn open() -> Result<Self, OpenError> {
        let fd =
            rustix::fs::open("/dev/kvm", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
                |errno| match errno {
                    rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::NXIO => OpenError::Missing,
                    rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => OpenError::NoAccess,
                    other => OpenError::Open(other.into()),
                },
            )?;
        Self::from_fd(fd)
    }

    /// Checks a `/dev/kvm` that somebody else opened.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, OpenError> {
        // SAFETY: the descriptor is open and ours alone, given up by `into_raw_fd`. That it is /dev/kvm is checked next, by a
        // call that fails on anything else.
        let fd = unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) };
        let found = fd.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(OpenError::ApiVersion { found });
        }
        let mut missing: Vec<_> = REQUIRED
            .into_iter()
            .filter(|&(cap, _)| !fd.check_extension(cap))
            .map(|(_, name)| name)
            .collect();
        if fd.check_extension_raw(KVM_CAP_IOEVENTFD_ANY_LENGTH.into()) <= 0 {
            missing.push("KVM_CAP_IOEVENTFD_ANY_LENGTH");
        }
        if !missing.is_empty() {
            return Err(OpenError::MissingCapabilities { missing });
        }
        let capabilities = Capabilities {
            tsc_deadline: fd.check_extension(Cap::TscDeadlineTimer),
            tsc_control: fd.check_extension(Cap::TscControl),
            tsc_khz: fd.check_extension(Cap::GetTscKhz),
            kvmclock_ctrl: fd.check_extension(Cap::KvmclockCtrl),
            max_vcpus: fd.get_max_vcpus(),
            max_vcpu_id: fd.get_max_vcpu_id(),
            memory_slots: fd.get_nr_memslots(),
        };
        Ok(Self { fd, capabilities })
    }

    /// What this kernel can do beyond the necessary.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_else_than_kvm_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = Kvm::from_fd(null.into()).err().unwrap();
        assert!(matches!(error, OpenError::ApiVersion { found: -1 }), "{error}");
    }
}
