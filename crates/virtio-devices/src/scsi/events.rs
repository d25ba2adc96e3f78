//! What a driver is told without having asked (virtio 1.2 §5.6.6.3): kept until it has room, up to a limit.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::address::Lun;
use super::config::{EVENT_SIZE, feature};

/// Events kept for a driver that gives no buffers. Picked: what Linux has buffers for, eight times.
const PENDING_MAX: usize = 64;
/// Event flag: some were lost before this one.
const MISSED: u32 = 1 << 31;
/// Transport reset.
const TRANSPORT: u32 = 1;
/// Parameter change.
const PARAMETERS: u32 = 3;

/// What happened to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    Added,
    Removed,
    Resized,
}

impl Happening {
    /// Event and reason.
    const fn words(self) -> (u32, u32) {
        match self {
            Self::Added => (TRANSPORT, 1),
            Self::Removed => (TRANSPORT, 2),
            // CAPACITY DATA HAS CHANGED: additional sense code, then its qualifier.
            Self::Resized => (PARAMETERS, 0x2a | 0x09 << 8),
        }
    }

    const fn feature(self) -> u64 {
        match self {
            Self::Added | Self::Removed => feature::HOTPLUG,
            Self::Resized => feature::CHANGE,
        }
    }
}

savestate::record! {
    /// What happened to a unit: 0 it was added, 1 removed, 2 resized.
    pub(super) struct HappeningState {
        happening: u8,
        target: u8,
        unit: u16,
    }
}

savestate::record! {
    /// Events that the driver was not told yet.
    pub(super) struct EventsState {
        pending: Vec<HappeningState>,
        missed: bool,
    }
}

#[derive(Default)]
struct State {
    /// What was negotiated; none while the device is inactive, so that nothing is kept.
    features: u64,
    pending: VecDeque<(Happening, Lun)>,
    missed: bool,
}

/// Events of a host.
#[derive(Default)]
pub(super) struct Events(Mutex<State>);

impl Events {
    /// From now on for a driver with these features.
    pub(super) fn begin(&self, features: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State {
            features,
            ..State::default()
        };
    }

    /// False if it is lost.
    pub(super) fn add(&self, happening: Happening, lun: Lun) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.features & happening.feature() == 0 {
            return true;
        }
        // The same again, unless the driver is told something else of the unit in between.
        let last = state.pending.iter().rev().find(|(_, of)| *of == lun);
        if last.is_some_and(|(last, _)| *last == happening) {
            return true;
        }
        let room = state.pending.len() < PENDING_MAX;
        if room {
            state.pending.push_back((happening, lun));
        } else {
            state.missed = true;
        }
        room
    }

    pub(super) fn state(&self) -> EventsState {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = |(happening, lun): &(Happening, Lun)| HappeningState {
            happening: match happening {
                Happening::Added => 0,
                Happening::Removed => 1,
                Happening::Resized => 2,
            },
            target: lun.target(),
            unit: lun.unit(),
        };
        EventsState {
            pending: state.pending.iter().map(saved).collect(),
            missed: state.missed,
        }
    }

    /// False, and nothing changed, if these are no events.
    pub(super) fn set_state(&self, saved: &EventsState) -> bool {
        let event = |saved: &HappeningState| {
            let happening = match saved.happening {
                0 => Happening::Added,
                1 => Happening::Removed,
                2 => Happening::Resized,
                _ => return None,
            };
            Some((happening, Lun::new(saved.target, saved.unit)?))
        };
        let pending = saved.pending.iter().map(event).collect::<Option<VecDeque<_>>>();
        let Some(pending) = pending.filter(|pending| pending.len() <= PENDING_MAX) else {
            return false;
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending = pending;
        state.missed = saved.missed;
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending.is_empty()
    }

    /// The next event, as the driver reads it.
    pub(super) fn take(&self) -> Option<[u8; EVENT_SIZE]> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (happening, lun) = state.pending.pop_front()?;
        let (event, reason) = happening.words();
        let missed = if std::mem::take(&mut state.missed) { MISSED } else { 0 };
        let mut bytes = [0; EVENT_SIZE];
        let parts = [&(event | missed).to_le_bytes()[..], &lun.told(), &reason.to_le_bytes()];
        let parts = parts.into_iter().flatten();
        bytes.iter_mut().zip(parts).for_each(|(place, &byte)| *place = byte);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_behind_ends_with_what_is_there() {
        let events = Events::default();
        events.begin(feature::HOTPLUG | feature::CHANGE);
        let [one, other] = [1, 2].map(|unit| Lun::new(0, unit).unwrap());
        for (happening, lun) in [
            (Happening::Added, one),
            (Happening::Removed, one),
            (Happening::Resized, other),
            (Happening::Added, one),
            // Told already.
            (Happening::Resized, other),
            (Happening::Added, one),
        ] {
            assert!(events.add(happening, lun));
        }
        let told: Vec<_> = std::iter::from_fn(|| events.take()).collect();
        let told: Vec<_> = told.iter().map(|event| (event[0], event[7], event[12])).collect();
        let (transport, parameters) = (TRANSPORT.to_le_bytes()[0], PARAMETERS.to_le_bytes()[0]);
        assert_eq!(
            told,
            [
                (transport, 1, 1),
                (transport, 1, 2),
                (parameters, 2, 0x2a),
                (transport, 1, 1)
            ]
        );
    }
}
