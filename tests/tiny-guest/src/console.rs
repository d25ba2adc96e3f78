//! The first serial port, polled.

use core::fmt;

use crate::cpu;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;

/// Writes text; see [`crate::println`].
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(put);
        Ok(())
    }
}

/// Sends a byte. The port is never busy in a virtual machine.
pub fn put(byte: u8) {
    cpu::out8(DATA, byte);
}

/// A byte that came in, if any.
pub fn get() -> Option<u8> {
    (cpu::in8(LINE_STATUS) & 1 != 0).then(|| cpu::in8(DATA))
}

/// Prints a line. Only the boot CPU may.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::console::Console, $($arguments)*);
    }};
}
