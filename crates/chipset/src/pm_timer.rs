//! The ACPI power management timer: a free-running counter for software that knows no better clock, as firmware.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use device::{BusHandler, Device, Draining, Migrate, Migration, Motion, SaveError};
use savestate::{LoadError, SaveState, Section, Sections};

use crate::lock;

/// Ticks per second (ACPI 6.5 §4.8.3.3).
const TICKS_PER_SECOND: u128 = 3_579_545;

savestate::section! {
    struct PmTimerState = "pm-timer", version 1 {
        elapsed_ns: u64,
    }
}

#[derive(Clone, Copy)]
struct Count {
    /// Counted before `since`.
    before: Duration,
    since: Instant,
    /// As it was when the timer was paused, or loaded.
    paused: Option<Duration>,
    /// It goes on from `paused`: what passed meanwhile passed for another process.
    loaded: bool,
}

impl Count {
    fn elapsed(&self) -> Duration {
        self.before.saturating_add(self.since.elapsed())
    }
}

/// A 32-bit counter that begins at 0 when the machine is built. It never interrupts: hardware-reduced ACPI has no `TMR_STS`. A
/// pause does not stop it, as it stops no other clock of the machine; a machine that is loaded finds it as it was saved.
pub struct PmTimer {
    count: Mutex<Count>,
    motion: Motion,
}

impl PmTimer {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 4;

    /// A timer that counts from now.
    pub fn new() -> Self {
        Self {
            count: Mutex::new(Count {
                before: Duration::ZERO,
                since: Instant::now(),
                paused: None,
                loaded: false,
            }),
            motion: Motion::default(),
        }
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
        let elapsed = lock(&self.count).elapsed();
        let bytes = ticks(elapsed).to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut register = bytes.iter().skip(from);
        data.fill_with(|| register.next().copied().unwrap_or(0xff));
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

impl Device for PmTimer {
    fn name(&self) -> &'static str {
        "pm-timer"
    }

    fn start(&self) {
        self.motion.begin();
    }

    fn pause(&self) -> Draining {
        self.motion.hold();
        let mut count = lock(&self.count);
        count.paused = Some(count.elapsed());
        Draining::done()
    }

    fn resume(&self) {
        self.motion.begin();
        let mut count = lock(&self.count);
        let paused = count.paused.take();
        if std::mem::take(&mut count.loaded) {
            count.before = paused.unwrap_or_default();
            count.since = Instant::now();
        }
    }

    /// Nothing resets it but power.
    fn reset(&self) {}

    fn migration(&self) -> Migration<'_> {
        Migration::Sections(self)
    }
}

impl Migrate for PmTimer {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        self.motion.may_save(self.name())?;
        // One that was never started has not counted for a guest.
        let elapsed = lock(&self.count).paused.unwrap_or_default();
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Ok(vec![PmTimerState { elapsed_ns }.save(self.name())])
    }

    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        self.motion.may_load(self.name())?;
        let (saved, _) = sections.take::<PmTimerState>(self.name())?;
        let elapsed = Duration::from_nanos(saved.elapsed_ns);
        *lock(&self.count) = Count {
            before: elapsed,
            since: Instant::now(),
            paused: Some(elapsed),
            loaded: true,
        };
        Ok(())
    }
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
