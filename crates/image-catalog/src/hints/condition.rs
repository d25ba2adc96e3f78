//! What an image asks for and a machine can not give.

use std::fmt;

use serde::Serialize;

/// Kind of a [`Condition`]. The texts are part of the API and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// The image is made for a processor that this host has not.
    ArchitectureNotRun,
    /// The image is made for another hypervisor, or for another interface between guest and host.
    HypervisorNotKvm,
    /// The controller of disks or CD-ROM drives does not exist here.
    BusNotAvailable,
    /// The network card does not exist here.
    VifModelNotAvailable,
    /// There is no video card, or no such one.
    VideoNotAvailable,
    /// There is no source of randomness.
    RngNotAvailable,
    /// There is no watchdog.
    WatchdogNotAvailable,
    /// There is no channel to a guest agent.
    GuestAgentNotAvailable,
    /// NUMA nodes can not be shown.
    NumaNotAvailable,
    /// The layout of vCPUs can not be chosen.
    TopologyNotAvailable,
    /// Memory can not be made of such pages.
    PageSizeNotAvailable,
    /// vCPUs can not be pinned.
    PinningNotAvailable,
    /// Machines can not begin with such firmware.
    FirmwareNotAvailable,
    /// Nothing checks signatures of what boots.
    SecureBootNotAvailable,
    /// Karat has one kind of machine, and it is not the one named.
    MachineTypeNotAvailable,
    /// A ramdisk without a kernel is not used.
    RamdiskWithoutKernel,
    /// The guest is Windows, and the machine is not tuned for it.
    WindowsNotTuned,
    /// A device or a feature that Karat's machine has not.
    FeatureNotAvailable,
    /// The property speaks of machines of another hypervisor.
    OtherHypervisor,
}

/// What a condition means for a machine that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The machine is made, without what was asked for.
    NotApplied,
    /// No machine is made: the guest would not run, or not as safely as the image demands.
    Refused,
}

/// One thing that an image asks for and a machine can not give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What it is.
    pub kind: ConditionKind,
    /// What it means.
    pub severity: Severity,
    /// The property that asks for it.
    pub property: String,
    /// What an operator reads.
    pub message: String,
}

impl ConditionKind {
    /// Every kind.
    pub const ALL: [Self; 19] = [
        Self::ArchitectureNotRun,
        Self::HypervisorNotKvm,
        Self::BusNotAvailable,
        Self::VifModelNotAvailable,
        Self::VideoNotAvailable,
        Self::RngNotAvailable,
        Self::WatchdogNotAvailable,
        Self::GuestAgentNotAvailable,
        Self::NumaNotAvailable,
        Self::TopologyNotAvailable,
        Self::PageSizeNotAvailable,
        Self::PinningNotAvailable,
        Self::FirmwareNotAvailable,
        Self::SecureBootNotAvailable,
        Self::MachineTypeNotAvailable,
        Self::RamdiskWithoutKernel,
        Self::WindowsNotTuned,
        Self::FeatureNotAvailable,
        Self::OtherHypervisor,
    ];

    /// The stable text, as `bus_not_available`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ArchitectureNotRun => "architecture_not_run",
            Self::HypervisorNotKvm => "hypervisor_not_kvm",
            Self::BusNotAvailable => "bus_not_available",
            Self::VifModelNotAvailable => "vif_model_not_available",
            Self::VideoNotAvailable => "video_not_available",
            Self::RngNotAvailable => "rng_not_available",
            Self::WatchdogNotAvailable => "watchdog_not_available",
            Self::GuestAgentNotAvailable => "guest_agent_not_available",
            Self::NumaNotAvailable => "numa_not_available",
            Self::TopologyNotAvailable => "topology_not_available",
            Self::PageSizeNotAvailable => "page_size_not_available",
            Self::PinningNotAvailable => "pinning_not_available",
            Self::FirmwareNotAvailable => "firmware_not_available",
            Self::SecureBootNotAvailable => "secure_boot_not_available",
            Self::MachineTypeNotAvailable => "machine_type_not_available",
            Self::RamdiskWithoutKernel => "ramdisk_without_kernel",
            Self::WindowsNotTuned => "windows_not_tuned",
            Self::FeatureNotAvailable => "feature_not_available",
            Self::OtherHypervisor => "other_hypervisor",
        }
    }
}

impl fmt::Display for ConditionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Condition {
    /// The stable text of its kind.
    pub const fn code(&self) -> &'static str {
        self.kind.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_distinct_and_are_what_is_serialised() {
        let mut seen = std::collections::HashSet::new();
        for kind in ConditionKind::ALL {
            assert!(seen.insert(kind.as_str()), "{kind} twice");
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
