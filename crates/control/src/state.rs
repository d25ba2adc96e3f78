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
//! ```text
//!            Arrive               it is here                  it was given away             nothing is missing there
//!   Empty ──────────▶ Arriving ──────────────▶ Running, Paused ─────────────────▶ Departed ──────────────────────────▶ Ended
//!                        └─ it did not come ─▶ Ended
//! ```
//!
//! *Empty*: the process waits to be told what machine it is. *Created*: memory, devices and vCPUs exist, nothing runs.
//! *Arriving*: the same for a machine that comes from elsewhere; it is not this process that can start it. *Departed*: it runs
//! elsewhere, and never again here. *Running*: vCPUs run. *Paused*: vCPUs stand still and devices are drained. *Ended*: the report is written, the process is
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
    /// Built for a machine that is on its way here.
    Arriving,
    /// vCPUs run.
    Running,
    /// vCPUs stand still, devices are quiet.
    Paused,
    /// The machine runs elsewhere, and may still need memory from here.
    Departed,
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
    /// Move the machine away.
    Depart,
    /// Steer a move that is under way: its bandwidth, its streams, its end.
    SteerDeparture,
    /// Become a machine that comes from elsewhere.
    Arrive,
    /// Tell what the source has on record.
    DecideArrival,
}

impl VmState {
    /// Whether `action` may be asked for in this state. This table is the only place that says so.
    pub const fn may(self, action: VmAction) -> bool {
        use VmAction::{
            Arrive, ChangeDisk, Create, DecideArrival, Depart, DiskReports, Pause, PowerButton, Quit, Reset, Resume,
            Save, Start, Status, SteerDeparture,
        };
        match self {
            Self::Empty => matches!(action, Create | Arrive | Quit | Status),
            Self::Created => matches!(action, Start | ChangeDisk | DiskReports | Quit | Status),
            Self::Arriving => matches!(action, DecideArrival | DiskReports | Quit | Status),
            Self::Running => matches!(
                action,
                Pause | PowerButton | Reset | Depart | SteerDeparture | ChangeDisk | DiskReports | Quit | Status
            ),
            Self::Paused => matches!(
                action,
                Resume | Save | Depart | SteerDeparture | ChangeDisk | DiskReports | Quit | Status
            ),
            Self::Departed => matches!(action, SteerDeparture | Quit | Status),
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
            Depart,
            SteerDeparture,
            Arrive,
            DecideArrival,
            Quit,
            Status,
        ];
        let allowed = |state: VmState| all.into_iter().filter(|action| state.may(*action)).collect::<Vec<_>>();
        assert_eq!(allowed(VmState::Empty), [Create, Arrive, Quit, Status]);
        assert_eq!(
            allowed(VmState::Created),
            [Start, ChangeDisk, DiskReports, Quit, Status]
        );
        assert_eq!(
            allowed(VmState::Running),
            [
                Pause,
                PowerButton,
                Reset,
                ChangeDisk,
                DiskReports,
                Depart,
                SteerDeparture,
                Quit,
                Status
            ]
        );
        assert_eq!(allowed(VmState::Arriving), [DiskReports, DecideArrival, Quit, Status]);
        assert_eq!(allowed(VmState::Departed), [SteerDeparture, Quit, Status]);
        assert_eq!(
            allowed(VmState::Paused),
            [
                Resume,
                ChangeDisk,
                DiskReports,
                Save,
                Depart,
                SteerDeparture,
                Quit,
                Status
            ]
        );
        assert_eq!(allowed(VmState::Ended), [Quit, Status]);
    }
}
