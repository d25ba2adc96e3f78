//! The device status field: what a driver may do next (virtio 1.2 §2.1, §3.1.1).
//!
//! ```text
//!            ACKNOWLEDGE             DRIVER            FEATURES_OK, features acceptable       DRIVER_OK
//!   Blank ────────────▶ Acknowledged ───────▶ Negotiating ──────────────────▶ Agreed ───────────────▶ Live
//!     ▲                                            │  ▲                                               │
//!     │                                            └──┘ not acceptable: the bit stays clear           │
//!     └──────────────────── 0 written, from anywhere: queues are taken back ◀────────────────────────┘
//! ```
//!
//! Held in `Live`: the device owns its queues (or failed to take them). `FAILED` is remembered beside the phase until reset, but
//! changes nothing. `NEEDS_RESET` is no phase: the device sets it from its workers, in [`super::link::Link`], and reset clears it.
//! A write that takes several steps at once takes them in order; a bit whose turn has not come is dropped.

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// The driver gave up.
pub(super) const FAILED: u8 = 128;
/// The device gave up until it is reset.
pub(super) const NEEDS_RESET: u8 = 64;

/// How far the driver has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Phase {
    /// Reset.
    Blank,
    /// The guest has seen the device.
    Acknowledged,
    /// The guest has a driver, which chooses features.
    Negotiating,
    /// Features are fixed; queues are set up.
    Agreed,
    /// The driver is ready: queues are served.
    Live,
}

/// What a status write asks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Activate,
    Reset,
}

impl Phase {
    /// Status bits of this phase.
    pub(super) const fn status(self) -> u8 {
        match self {
            Self::Blank => 0,
            Self::Acknowledged => ACKNOWLEDGE,
            Self::Negotiating => ACKNOWLEDGE | DRIVER,
            Self::Agreed => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Self::Live => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        }
    }

    /// The phase with this status.
    pub(super) fn of_status(status: u8) -> Option<Self> {
        let all = [
            Self::Blank,
            Self::Acknowledged,
            Self::Negotiating,
            Self::Agreed,
            Self::Live,
        ];
        all.into_iter().find(|phase| phase.status() == status)
    }

    /// True while the driver may choose features.
    pub(super) const fn negotiates(self) -> bool {
        matches!(self, Self::Blank | Self::Acknowledged | Self::Negotiating)
    }

    /// True once queues belong to the device.
    pub(super) const fn is_live(self) -> bool {
        matches!(self, Self::Live)
    }

    /// Where a write of `status` leads. `acceptable` tells whether the chosen features are.
    pub(super) fn after(self, status: u8, acceptable: impl FnOnce() -> bool) -> (Self, Step) {
        if status == 0 {
            return (Self::Blank, Step::Reset);
        }
        let mut phase = self;
        if phase == Self::Blank && status & ACKNOWLEDGE != 0 {
            phase = Self::Acknowledged;
        }
        if phase == Self::Acknowledged && status & DRIVER != 0 {
            phase = Self::Negotiating;
        }
        if phase == Self::Negotiating && status & FEATURES_OK != 0 && acceptable() {
            phase = Self::Agreed;
        }
        if phase == Self::Agreed && status & DRIVER_OK != 0 {
            return (Self::Live, Step::Activate);
        }
        (phase, Step::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_walks_through_and_a_hasty_one_does_not() {
        let step = |phase: Phase, status, ok| phase.after(status, || ok);
        assert_eq!(step(Phase::Blank, 1, true), (Phase::Acknowledged, Step::Nothing));
        assert_eq!(step(Phase::Acknowledged, 3, true), (Phase::Negotiating, Step::Nothing));
        assert_eq!(
            step(Phase::Negotiating, 0xb, false),
            (Phase::Negotiating, Step::Nothing)
        );
        assert_eq!(step(Phase::Negotiating, 0xb, true), (Phase::Agreed, Step::Nothing));
        assert_eq!(step(Phase::Agreed, 0xf, true), (Phase::Live, Step::Activate));
        assert_eq!(step(Phase::Live, 0xf, true), (Phase::Live, Step::Nothing));
        assert_eq!(
            step(Phase::Blank, 4, true),
            (Phase::Blank, Step::Nothing),
            "DRIVER_OK alone"
        );
        assert_eq!(step(Phase::Negotiating, 7, true), (Phase::Negotiating, Step::Nothing));
        assert_eq!(
            step(Phase::Live, 1, true),
            (Phase::Live, Step::Nothing),
            "bits are not cleared one by one"
        );
        for phase in [Phase::Blank, Phase::Negotiating, Phase::Live] {
            assert_eq!(step(phase, 0, true), (Phase::Blank, Step::Reset));
        }
    }
}
