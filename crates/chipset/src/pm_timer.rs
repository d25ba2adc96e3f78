//! The ACPI power management timer: a free-running counter for software that knows no better clock, as firmware.

use std::time::{Duration, Instant};

use device::BusHandler;

/// Ticks per second (ACPI 6.5 §4.8.3.3).
const TICKS_PER_SECOND: u128 = 3_579_545;

/// A 32-bit counter that begins at 0 when the machine is built. It never interrupts: hardware-reduced ACPI has no `TMR_STS`.
pub struct PmTimer {
    start: Instant,
}

impl PmTimer {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 4;

    /// A timer that counts from now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for PmTimer {
    fn default() -> Self {
        Self::new()
    }
}

/// The counter `elapsed` after its start; wraps every 1200 s.
fn ticks(elapsed: Duration) -> u32 {
    let ticks = elapsed.as_nanos() * TICKS_PER_SECOND / 1_000_000_000;
    u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or(0)
}

impl BusHandler for PmTimer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = ticks(self.start.elapsed()).to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut register = bytes.iter().skip(from);
        data.fill_with(|| register.next().copied().unwrap_or(0xff));
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_at_the_specified_rate_and_wraps() {
        assert_eq!(ticks(Duration::from_secs(1)), 3_579_545);
        assert_eq!(ticks(Duration::from_millis(500)), 1_789_772);
        let wrap_ns = (1_u64 << 32) * 1_000_000_000 / 3_579_545;
        assert!(ticks(Duration::from_nanos(wrap_ns + 1_000)) < 10);
    }

    #[test]
    fn reads_advance() {
        let timer = PmTimer::new();
        let read = || {
            let mut data = [0; 4];
            timer.read(0, &mut data);
            u32::from_le_bytes(data)
        };
        let first = read();
        std::thread::sleep(Duration::from_millis(1));
        assert!(read() > first);
        let mut past = [0; 2];
        timer.read(3, &mut past);
        assert_eq!(past[1], 0xff);
    }
}
