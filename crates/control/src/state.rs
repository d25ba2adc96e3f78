//! States of a machine process, and what may be asked in each.
//!
//! ```text
//!            Create             Start              Pause
//!   Empty ──────────▶ Created ──────────▶ Running ──────────▶ Paused
//!     │                  │                │  ▲ │                │ │
//!     │                  │          Reset └──┘ │◀──── Resume ───┘ │
//!     │                  │                     │                  │
//!     └────── Quit ──────┴──────── Quit ───────┴────── Quit ──────┤
//!                                 guest power-off, triple fault,  ▼
//!                                 vCPU error ─────────────────▶ Ended
//! ```
//!
//! A machine that was saved goes from *Empty* to *Paused* by `Create`, and on by `Resume`.
//!
//! *Empty*: the process waits to be told what machine it is. *Created*: memory, devices and vCPUs exist, nothing runs.
//! *Running*: vCPUs run. *Paused*: vCPUs stand still and devices are drained. *Ended*: the report is written, the process is
//! about to exit; nothing leads out of it.

use serde::{Deserialize, Serialize};

/// Where a machine process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It was not told yet what machine it is.
    Empty,
    /// Built, and not started.
    Created,
    /// vCPUs run.
    Running,
    /// vCPUs stand still, devices are quiet.
    Paused,
    /// Over; see the report.
    Ended,
}

/// What can be asked of a machine process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmAction {
    /// Become this machine.
    Create,
    /// Run the vCPUs for the first time.
    Start,
    /// Stop vCPUs and drain devices.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Power-cycle without leaving the process.
    Reset,
    /// End the process, with a report.
    Quit,
    /// Tell the state.
    Status,
    /// Change a disk.
    ChangeDisk,
    /// Tell of the disks.
    DiskReports,
    /// Save the machine.
    Save,
}

impl VmState {
    /// Whether `action` may be asked for in this state. This table is the only place that says so.
    pub const fn may(self, action: VmAction) -> bool {
        use VmAction::{ChangeDisk, Create, DiskReports, Pause, PowerButton, Quit, Reset, Resume, Save, Start, Status};
        match self {
            Self::Empty => matches!(action, Create | Quit | Status),
            Self::Created => matches!(action, Start | ChangeDisk | DiskReports | Quit | Status),
            Self::Running => matches!(
                action,
                Pause | PowerButton | Reset | ChangeDisk | DiskReports | Quit | Status
            ),
            Self::Paused => matches!(action, Resume | Save | ChangeDisk | DiskReports | Quit | Status),
            Self::Ended => matches!(action, Quit | Status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_drawing() {
        use VmAction::*;
        let all = [
            Create,
            Start,
            Pause,
            Resume,
            PowerButton,
            Reset,
            ChangeDisk,
            DiskReports,
            Save,
            Quit,
            Status,
        ];
        let allowed = |state: VmState| all.into_iter().filter(|action| state.may(*action)).collect::<Vec<_>>();
        assert_eq!(allowed(VmState::Empty), [Create, Quit, Status]);
        assert_eq!(
            allowed(VmState::Created),
            [Start, ChangeDisk, DiskReports, Quit, Status]
        );
        assert_eq!(
            allowed(VmState::Running),
            [Pause, PowerButton, Reset, ChangeDisk, DiskReports, Quit, Status]
        );
        assert_eq!(
            allowed(VmState::Paused),
            [Resume, ChangeDisk, DiskReports, Save, Quit, Status]
        );
        assert_eq!(allowed(VmState::Ended), [Quit, Status]);
    }
}
