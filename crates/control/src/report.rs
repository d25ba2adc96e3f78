//! Why a machine ended, written down for whoever asks later.

use serde::{Deserialize, Serialize};
use spec::VmId;

/// Name of the report in the machine's run directory. Written to a temporary name and renamed, so that it is whole or absent.
pub const REPORT_FILE: &str = "report.json";

/// The last words of a machine process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndReport {
    /// Which machine it was.
    pub id: VmId,
    /// What ended it.
    pub reason: EndReason,
    /// For people: what happened, in a sentence; for faults with the vCPU's registers.
    pub message: String,
    /// How often the guest was reset since the start.
    pub resets: u32,
    /// Seconds since the Unix epoch.
    pub at_unix_s: u64,
}

/// What ended a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EndReason {
    /// The guest powered itself off.
    GuestPowerOff,
    /// The daemon asked ([`crate::VmRequest::Quit`]).
    Requested,
    /// A vCPU faulted while it handled a double fault (Intel SDM volume 3 §6.15).
    TripleFault,
    /// KVM could not run a vCPU on.
    VcpuFailed,
    /// The guest wrote to the debug-exit port.
    DebugExit {
        /// What it wrote.
        code: u32,
    },
    /// The machine could not be built, or not be rebuilt on reset.
    BuildFailed,
    /// The machine moved away, and nothing of it is needed here any more.
    Departed,
    /// The machine that was to come did not.
    ArrivalFailed,
    /// A defect of the machine process itself.
    Internal,
}

impl EndReason {
    /// Whether this is how machines are meant to end.
    pub const fn is_clean(self) -> bool {
        matches!(
            self,
            Self::GuestPowerOff | Self::Requested | Self::Departed | Self::DebugExit { code: 0 }
        )
    }
}
