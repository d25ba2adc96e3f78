//! Events of a hardware-reduced ACPI machine: one interrupt, one register that says what happened.
//!
//! The register is read by the AML of the generic event device (`ACPI0013`, `_EVT`): a set bit is an event since the last
//! read, and reading clears it.

use std::sync::{Arc, Mutex};

use device::{BusHandler, Device, Draining, IrqLine, Migrate, Migration, Motion, SaveError};
use savestate::{LoadError, SaveState, Section, Sections};

use crate::lock;

/// Bit of the event register: the power button was pressed.
pub const POWER_BUTTON_EVENT: u32 = 1 << 0;

/// Bit of the event register: the machine has another generation id.
pub const GENERATION_EVENT: u32 = 1 << 1;

savestate::section! {
    struct EventsState = "acpi-events", version 1 {
        pending: u32,
    }
}

#[derive(Default)]
struct State {
    pending: u32,
    paused: bool,
}

/// The event register, 32 bits, read-to-clear.
pub struct EventRegister {
    state: Mutex<State>,
    irq: Arc<dyn IrqLine>,
    motion: Motion,
}

impl EventRegister {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 4;

    /// A register without pending events that interrupts by `irq`.
    pub fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self {
            state: Mutex::default(),
            irq,
            motion: Motion::default(),
        }
    }

    /// Presses the power button: an ACPI guest shuts down, others take no notice. Pressing again before the guest has looked
    /// is one press. While paused the press is kept for later.
    pub fn press_power_button(&self) {
        self.raise(POWER_BUTTON_EVENT);
    }

    /// Tells the guest that the id of its generation is another one. While paused it is kept for later.
    pub fn tell_generation(&self) {
        self.raise(GENERATION_EVENT);
    }

    fn raise(&self, events: u32) {
        let mut state = lock(&self.state);
        state.pending |= events;
        if !state.paused {
            self.irq.trigger();
        }
    }
}

impl BusHandler for EventRegister {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            let pending = std::mem::take(&mut lock(&self.state).pending);
            data.copy_from_slice(&pending.to_le_bytes());
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

impl Device for EventRegister {
    fn name(&self) -> &'static str {
        "events"
    }

    fn start(&self) {
        self.motion.begin();
    }

    fn pause(&self) -> Draining {
        self.motion.hold();
        lock(&self.state).paused = true;
        Draining::done()
    }

    fn resume(&self) {
        self.motion.begin();
        let mut state = lock(&self.state);
        state.paused = false;
        if state.pending != 0 {
            self.irq.trigger();
        }
    }

    fn reset(&self) {
        lock(&self.state).pending = 0;
    }

    fn migration(&self) -> Migration<'_> {
        Migration::Sections(self)
    }
}

impl Migrate for EventRegister {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        self.motion.may_save(self.name())?;
        let pending = lock(&self.state).pending;
        Ok(vec![EventsState { pending }.save(self.name())])
    }

    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        self.motion.may_load(self.name())?;
        let (saved, _) = sections.take::<EventsState>(self.name())?;
        *lock(&self.state) = State {
            pending: saved.pending,
            paused: true,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::CountingLine;

    fn read(register: &EventRegister) -> u32 {
        let mut data = [0; 4];
        register.read(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_press_interrupts_and_reading_clears_it() {
        let line = Arc::new(CountingLine::default());
        let register = EventRegister::new(line.clone());
        assert_eq!(read(&register), 0);
        register.press_power_button();
        register.press_power_button();
        assert_eq!(line.count(), 2);
        assert_eq!([read(&register), read(&register)], [POWER_BUTTON_EVENT, 0]);
    }

    #[test]
    fn odd_reads_are_all_ones_and_clear_nothing() {
        let register = EventRegister::new(Arc::new(CountingLine::default()));
        register.press_power_button();
        let mut byte = [0];
        register.read(0, &mut byte);
        register.read(2, &mut [0; 4]);
        assert_eq!(byte, [0xff]);
        assert_eq!(read(&register), POWER_BUTTON_EVENT);
    }

    #[test]
    fn a_press_while_paused_is_delivered_on_resume() {
        let line = Arc::new(CountingLine::default());
        let register = EventRegister::new(line.clone());
        register.pause().wait();
        register.press_power_button();
        assert_eq!(line.count(), 0);
        register.resume();
        assert_eq!((line.count(), read(&register)), (1, POWER_BUTTON_EVENT));
        register.press_power_button();
        register.reset();
        assert_eq!(read(&register), 0);
    }
}
