//! What of a virtio device is saved: what its driver chose, how far it came, where the queues are, and the device's own state.
//!
//! Queues are saved as positions: a paused device has nothing in flight, and the rings themselves are guest memory.

use std::sync::atomic::Ordering;

use device::{Migrate, Migration, SaveError};
use savestate::{LoadError, SaveState, Section, Sections};

use super::configuration::{Registers, RegistersState};
use super::link::LinkState;
use super::status::{FAILED, Phase};
use super::{State, VirtioPci};
use crate::feature;
use crate::signals::Signals;

savestate::record! {
    struct PositionState {
        available: u16,
        used: u16,
    }
}

savestate::section! {
    struct TransportState = "virtio-pci", version 1 {
        /// Device type.
        device: u16,
        /// Device status, without `FAILED` and `DEVICE_NEEDS_RESET`.
        status: u8,
        /// The driver gave up.
        failed: bool,
        registers: RegistersState,
        link: LinkState,
        positions: Vec<PositionState>,
    }
}

impl VirtioPci {
    fn check(&self, saved: &TransportState) -> Result<(Phase, Registers), String> {
        let (now, then) = (self.device.kind().id, saved.device);
        if now != then {
            return Err(format!("it is a device of type {now}, and was one of type {then}"));
        }
        let phase = Phase::of_status(saved.status).ok_or("its driver had come to where none can come")?;
        let registers = Registers::of_state(&saved.registers, self.device.queue_sizes())?;
        let missing = registers.driver_features & !self.offered();
        let agreed = phase >= Phase::Agreed;
        if agreed && (missing != 0 || registers.driver_features & feature::VERSION_1 == 0) {
            return Err(format!("its driver uses features {missing:#x}, which it has not here"));
        }
        let queues = self.device.queue_sizes().len();
        if saved.positions.len() != queues || saved.link.queue_vectors.len() != queues {
            return Err("its parts disagree about the number of queues".to_owned());
        }
        Ok((phase, registers))
    }

    fn become_saved(&self, state: &mut State, saved: &TransportState) -> Result<(), String> {
        let (phase, registers) = self.check(saved)?;
        self.clear(state);
        state.registers = registers;
        state.failed = if saved.failed { FAILED } else { 0 };
        for (position, saved) in state.positions.iter().zip(&saved.positions) {
            position.set((saved.available, saved.used));
        }
        self.link.set_state(&saved.link);
        // Workers that are started now stand still from the beginning.
        self.device.pause().wait();
        if phase.is_live() && !saved.link.given_up {
            self.activate(state).map_err(|error| error.to_string())?;
        }
        state.phase = phase;
        Ok(())
    }

    /// After it was loaded: an interrupt that was on its way when the machine was saved may not have arrived. One too many makes
    /// a driver look at its queues in vain.
    pub(super) fn interrupt_again(&self) {
        let state = self.lock();
        if state.phase.is_live() {
            state
                .registers
                .enabled()
                .for_each(|(index, _)| self.link.queue_used(index));
        }
    }
}

impl Migrate for VirtioPci {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        let name = self.device.name();
        self.motion.may_save(name)?;
        let mut sections = {
            let state = self.lock();
            let positions = state.positions.iter().map(|position| position.get());
            let saved = TransportState {
                device: self.device.kind().id,
                status: state.phase.status(),
                failed: state.failed != 0,
                registers: state.registers.state(),
                link: self.link.state(),
                positions: positions
                    .map(|(available, used)| PositionState { available, used })
                    .collect(),
            };
            vec![saved.save(name)]
        };
        match self.device.migration() {
            Migration::Stateless => {}
            Migration::Sections(own) => sections.extend(own.save()?),
            Migration::Immovable { why } => {
                let name = name.to_owned();
                return Err(SaveError::Immovable { name, why });
            }
        }
        Ok(sections)
    }

    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        let name = self.device.name();
        self.motion.may_load(name)?;
        let (saved, section) = sections.take::<TransportState>(name)?;
        self.become_saved(&mut self.lock(), &saved)
            .map_err(|why| LoadError::unfit(&section, why))?;
        if let Migration::Sections(own) = self.device.migration() {
            own.load(sections)?;
        }
        self.loaded.store(true, Ordering::SeqCst);
        Ok(())
    }
}
