//! What of a SCSI host is saved: the sizes its driver chose, events it was not told yet, and what the guest made of each unit.

use device::{Migrate, SaveError};
use savestate::{LoadError, SaveState, Section, Sections};

use super::address::Lun;
use super::device::Scsi;
use super::events::EventsState;
use super::unit::UnitState;

savestate::section! {
    struct ScsiState = "virtio-scsi", version 1 {
        cdb_bytes: u32,
        sense_bytes: u32,
        events: EventsState,
        units: Vec<UnitState>,
    }
}

impl Migrate for Scsi {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        let shared = &self.shared;
        let (cdb_bytes, sense_bytes) = shared.layout.state();
        let state = ScsiState {
            cdb_bytes,
            sense_bytes,
            events: shared.events.state(),
            units: shared
                .units
                .read(|table| table.values().map(|unit| unit.state()).collect()),
        };
        Ok(vec![state.save(&shared.name)])
    }

    /// The units are attached already, as they were.
    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        let shared = &self.shared;
        let (state, section) = sections.take::<ScsiState>(&shared.name)?;
        let unfit = |why: &str| LoadError::unfit(&section, why);
        let saved = state.units.iter().map(|saved| Lun::new(saved.target, saved.unit));
        if !saved.eq(self.luns().into_iter().map(Some)) {
            return Err(unfit("it has other units than it had"));
        }
        if !shared.layout.set_state(state.cdb_bytes, state.sense_bytes) {
            return Err(unfit("its driver chose sizes that can not be chosen"));
        }
        if !shared.events.set_state(&state.events) {
            return Err(unfit("it keeps events that there are not"));
        }
        let units = shared.units.read(|table| table.values().cloned().collect::<Vec<_>>());
        for (unit, saved) in units.iter().zip(&state.units) {
            unit.set_state(saved);
        }
        Ok(())
    }
}
