//! How a guest resets or switches off its machine.

use std::sync::Arc;

use device::BusHandler;

/// What a guest asked of the machine that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestRequest {
    /// Start over as after power-on.
    Reset,
    /// Switch off (ACPI S5).
    PowerOff,
    /// End at once with this code; only from the debug-exit port, which tests map.
    DebugExit(u32),
}

/// Takes a guest's requests.
///
/// Called from the vCPU thread that executes the guest's write, possibly from several at once and more than once: the first
/// request counts. Must not block; the vCPU is expected to be stopped soon after, but the guest may run a few instructions
/// more.
pub trait PowerSink: Send + Sync {
    /// The guest asks for `request`.
    fn request(&self, request: GuestRequest);
}

/// What the guest writes to the reset register, byte (FADT `RESET_VALUE`; ours to choose).
pub const RESET_VALUE: u8 = 1;
/// `SLP_TYP` of soft off (first element of `\_S5`, ACPI 6.5 §7.4.2; ours to choose, by custom the state's number).
pub const SLEEP_TYPE_S5: u8 = 5;

/// Offset of the sleep control register (ACPI 6.5 §4.8.3.7).
const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register (ACPI 6.5 §4.8.3.7); never signals a wake-up, there is no sleep but soft off.
const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register (ACPI 6.5 §4.8.3.6).
const RESET: u64 = 2;
/// `SLP_EN` in the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Where `SLP_TYP`, three bits, begins in the sleep control register.
const SLEEP_TYPE_SHIFT: u32 = 2;

/// Sleep control, sleep status and reset register of a hardware-reduced ACPI machine: bytes 0, 1 and 2.
pub struct PowerRegisters {
    sink: Arc<dyn PowerSink>,
}

impl PowerRegisters {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 4;

    /// Registers that tell `sink` what the guest asked.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self { sink }
    }
}

impl BusHandler for PowerRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (SLEEP_CONTROL | SLEEP_STATUS | RESET, Some(first)) = (offset, data.first_mut()) {
            *first = 0;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & 7;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                self.sink.request(GuestRequest::PowerOff);
            }
            RESET if value == RESET_VALUE => self.sink.request(GuestRequest::Reset),
            _ => {}
        }
    }
}

/// Pulse the reset line (8042 command).
const PULSE_RESET: u8 = 0xfe;

/// What is left of the 8042 keyboard controller: the command port (0x64) as reset switch, for guests that do not look at ACPI.
pub struct KeyboardController {
    sink: Arc<dyn PowerSink>,
}

impl KeyboardController {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 1;

    /// A command port that tells `sink` of resets.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self { sink }
    }
}

impl BusHandler for KeyboardController {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status: no data, input buffer empty; a driver waits for the latter before it sends the reset command.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            self.sink.request(GuestRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn only_soft_off_and_the_reset_value_are_requests() {
        let requests = Arc::new(Requests::default());
        let registers = PowerRegisters::new(requests.clone());
        let soft_off = SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
        for value in 0..=u8::MAX {
            for offset in [SLEEP_CONTROL, SLEEP_STATUS, RESET, 3] {
                registers.write(offset, &[value]);
            }
            let type_and_enable = value & 0x3c;
            let expected: Vec<_> = [
                (type_and_enable == soft_off).then_some(GuestRequest::PowerOff),
                (value == RESET_VALUE).then_some(GuestRequest::Reset),
            ]
            .into_iter()
            .flatten()
            .collect();
            assert_eq!(requests.take(), expected, "value {value:#x}");
        }
    }

    #[test]
    fn wide_accesses_do_nothing() {
        let requests = Arc::new(Requests::default());
        let registers = PowerRegisters::new(requests.clone());
        registers.write(SLEEP_CONTROL, &[0x34, 0]);
        registers.write(RESET, &[1, 0, 0, 0]);
        assert_eq!(requests.take(), []);
        let mut data = [0; 2];
        registers.read(SLEEP_CONTROL, &mut data);
        assert_eq!(data, [0, 0xff]);
    }

    #[test]
    fn keyboard_controller_resets_by_its_pulse_command_alone() {
        let requests = Arc::new(Requests::default());
        let controller = KeyboardController::new(requests.clone());
        controller.write(0, &[0xd1]);
        assert_eq!(requests.take(), []);
        controller.write(0, &[PULSE_RESET]);
        assert_eq!(requests.take(), [GuestRequest::Reset]);
        let mut status = [0xff];
        controller.read(0, &mut status);
        assert_eq!(status, [0]);
    }
}
