//! The real-time clock: time of day and NVRAM of an MC146818A, in UTC.
//!
//! The clock follows the host's, at an offset that the guest changes by setting the time; the offset lives as long as the
//! machine. There is no interrupt output, so no alarm and no periodic interrupt: the tables given to the guest name none.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use device::{BusHandler, Device, Draining, Migrate, Migration, Motion, SaveError};
use savestate::{LoadError, SaveState, Section, Sections};

use crate::lock;

/// Registers (MC146818A data sheet, "Address map"); the century byte is where the FADT says, by custom 0x32.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Register A: an update is about to happen.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A at power-on: 32.768 kHz time base, 1024 Hz rate.
const A_DEFAULT: u8 = 0x26;
/// Register B: the time stands still while it is being set.
const SET: u8 = 1 << 7;
/// Register B: values are binary, else BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours count to 23, else to 12 with bit 7 for the afternoon.
const HOURS_24: u8 = 1 << 1;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
/// `UPDATE_IN_PROGRESS` is set this long before a second begins, microseconds (data sheet, t_BUC).
const UPDATE_NOTICE_US: u32 = 244;
/// Bytes of NVRAM behind the index register; bit 7 of the index is the NMI mask.
const NVRAM_BYTES: usize = 128;

/// A time of day, as the registers hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

/// Days from 1970-01-01 to the given date of the proleptic Gregorian calendar. Counts years from March, so that the leap
/// day is a year's last.
fn days_from_epoch(year: i64, month: u8, day: u8) -> i64 {
    let (year, month_from_march) = if month > 2 {
        (year, i64::from(month) - 3)
    } else {
        (year - 1, i64::from(month) + 9)
    };
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719468 days lie between 0000-03-01 and the epoch.
    year * 365 + leap_days + day_of_year - 719_468
}

fn byte(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(0)
}

impl Civil {
    fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400);
        // A first guess that is never late, on either side of 1970; corrected by a few years at most.
        let mut year = 1970 + days.div_euclid(366).min(days.div_euclid(365));
        while days_from_epoch(year + 1, 1, 1) <= days {
            year += 1;
        }
        let mut month = 12;
        while days_from_epoch(year, month, 1) > days {
            month -= 1;
        }
        Self {
            year,
            month,
            day: byte(days - days_from_epoch(year, month, 1) + 1),
            hour: byte(of_day / 3600),
            minute: byte(of_day / 60 % 60),
            second: byte(of_day % 60),
        }
    }

    fn to_unix(self) -> i64 {
        days_from_epoch(self.year, self.month, self.day) * 86_400
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// 1 is Sunday.
    fn weekday(self) -> u8 {
        byte((days_from_epoch(self.year, self.month, self.day) + 4).rem_euclid(7) + 1)
    }

    fn get(self, register: u8, mode: u8) -> u8 {
        let value = match register {
            SECONDS => self.second,
            MINUTES => self.minute,
            HOURS if mode & HOURS_24 == 0 => {
                let afternoon = if self.hour >= 12 { 0x80 } else { 0 };
                return encode((self.hour + 11) % 12 + 1, mode) | afternoon;
            }
            HOURS => self.hour,
            WEEKDAY => self.weekday(),
            DAY => self.day,
            MONTH => self.month,
            YEAR => byte(self.year.rem_euclid(100)),
            _ => byte(self.year.div_euclid(100)),
        };
        encode(value, mode)
    }

    /// Values out of range are clamped into it; a day that the month does not have runs over into the next.
    fn set(&mut self, register: u8, value: u8, mode: u8) {
        let plain = decode(value, mode);
        match register {
            SECONDS => self.second = plain.min(59),
            MINUTES => self.minute = plain.min(59),
            HOURS if mode & HOURS_24 == 0 => {
                let hour = decode(value & 0x7f, mode).clamp(1, 12) % 12;
                self.hour = if value & 0x80 != 0 { hour + 12 } else { hour };
            }
            HOURS => self.hour = plain.min(23),
            DAY => self.day = plain.clamp(1, 31),
            MONTH => self.month = plain.clamp(1, 12),
            YEAR => self.year = self.year.div_euclid(100) * 100 + i64::from(plain.min(99)),
            CENTURY => self.year = i64::from(plain.clamp(19, 99)) * 100 + self.year.rem_euclid(100),
            _ => {}
        }
    }
}

fn encode(value: u8, mode: u8) -> u8 {
    if mode & BINARY != 0 {
        value
    } else {
        ((value / 10 % 10) << 4) | (value % 10)
    }
}

fn decode(value: u8, mode: u8) -> u8 {
    if mode & BINARY != 0 {
        value
    } else {
        (value >> 4) * 10 + (value & 0xf)
    }
}

savestate::record! {
    /// A time that is being set.
    struct SavedTime {
        year: i64,
        month: u8,
        day: u8,
        hour: u8,
        minute: u8,
        second: u8,
    }
}

savestate::section! {
    struct RtcState = "rtc", version 1 {
        index: u8,
        register_b: u8,
        offset_s: i64,
        setting: Option<SavedTime>,
        nvram: [u8; NVRAM_BYTES],
    }
}

/// Further than four digits of a year can be from each other, seconds.
const OFFSET_MAX_S: u64 = 1_000_000_000_000;

impl From<Civil> for SavedTime {
    fn from(time: Civil) -> Self {
        Self {
            year: time.year,
            month: time.month,
            day: time.day,
            hour: time.hour,
            minute: time.minute,
            second: time.second,
        }
    }
}

impl SavedTime {
    /// If it can be in the registers.
    fn check(&self) -> Option<Civil> {
        let fits = (0..100_000).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        fits.then_some(Civil {
            year: self.year,
            month: self.month,
            day: self.day,
            hour: self.hour,
            minute: self.minute,
            second: self.second,
        })
    }
}

struct State {
    index: u8,
    register_b: u8,
    /// Guest time minus host time, seconds.
    offset_s: i64,
    /// The time being set, while `SET` is.
    setting: Option<Civil>,
    nvram: [u8; NVRAM_BYTES],
}

impl State {
    fn new() -> Self {
        Self {
            index: 0,
            register_b: HOURS_24,
            offset_s: 0,
            setting: None,
            nvram: [0; NVRAM_BYTES],
        }
    }

    fn read(&self, host: Duration) -> u8 {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                self.civil(host).get(self.index, self.register_b)
            }
            REGISTER_A if self.setting.is_none() && host.subsec_micros() >= 1_000_000 - UPDATE_NOTICE_US => {
                A_DEFAULT | UPDATE_IN_PROGRESS
            }
            REGISTER_A => A_DEFAULT,
            REGISTER_B => self.register_b,
            REGISTER_C => 0,
            REGISTER_D => VALID,
            index => self.nvram.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write(&mut self, value: u8, host: Duration) {
        match self.index {
            SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY => {
                let mut civil = self.civil(host);
                civil.set(self.index, value, self.register_b);
                if self.setting.is_some() {
                    self.setting = Some(civil);
                } else {
                    self.offset_s = civil.to_unix() - seconds(host);
                }
            }
            REGISTER_B => {
                self.register_b = value;
                if value & SET != 0 {
                    self.setting = Some(self.civil(host));
                } else if let Some(civil) = self.setting.take() {
                    self.offset_s = civil.to_unix() - seconds(host);
                }
            }
            WEEKDAY | REGISTER_A | REGISTER_C | REGISTER_D => {}
            index => {
                if let Some(cell) = self.nvram.get_mut(usize::from(index)) {
                    *cell = value;
                }
            }
        }
    }

    fn civil(&self, host: Duration) -> Civil {
        self.setting
            .unwrap_or_else(|| Civil::from_unix(seconds(host) + self.offset_s))
    }
}

fn seconds(since_epoch: Duration) -> i64 {
    // Four digits of a year: the registers hold no more, and the arithmetic stays far from overflow.
    const YEAR_9999_END_S: u64 = 253_402_300_799;
    i64::try_from(since_epoch.as_secs().min(YEAR_9999_END_S)).unwrap_or(0)
}

/// Index register at offset 0, data register at offset 1 (ports 0x70 and 0x71 of a PC).
pub struct Rtc {
    state: Mutex<State>,
    clock: fn() -> Duration,
    motion: Motion,
}

impl Rtc {
    /// Length of the register block, bytes.
    pub const SIZE: u64 = 2;
    /// Index of the century byte, for the FADT.
    pub const CENTURY_INDEX: u8 = CENTURY;

    /// A clock that shows the host's UTC.
    pub fn new() -> Self {
        Self::with_clock(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn with_clock(clock: fn() -> Duration) -> Self {
        Self {
            state: Mutex::new(State::new()),
            clock,
            motion: Motion::default(),
        }
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl BusHandler for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, [byte]) = (offset, data) {
            *byte = lock(&self.state).read((self.clock)());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let mut state = lock(&self.state);
        match offset {
            0 => state.index = value & 0x7f,
            1 => state.write(value, (self.clock)()),
            _ => {}
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        "rtc"
    }

    fn start(&self) {
        self.motion.begin();
    }

    fn pause(&self) -> Draining {
        self.motion.hold();
        Draining::done()
    }

    fn resume(&self) {
        self.motion.begin();
    }

    /// The battery keeps time and NVRAM; the control registers start over.
    fn reset(&self) {
        let mut state = lock(&self.state);
        state.index = 0;
        state.register_b = HOURS_24;
        state.setting = None;
    }

    fn migration(&self) -> Migration<'_> {
        Migration::Sections(self)
    }
}

/// The time of day is not saved: it is the host's, and the guest's distance from it is.
impl Migrate for Rtc {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        self.motion.may_save(self.name())?;
        let state = lock(&self.state);
        let saved = RtcState {
            index: state.index,
            register_b: state.register_b,
            offset_s: state.offset_s,
            setting: state.setting.map(SavedTime::from),
            nvram: state.nvram,
        };
        Ok(vec![saved.save(self.name())])
    }

    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        self.motion.may_load(self.name())?;
        let (saved, section) = sections.take::<RtcState>(self.name())?;
        let setting = saved.setting.as_ref().map(SavedTime::check);
        if saved.index > 0x7f || saved.offset_s.unsigned_abs() > OFFSET_MAX_S || setting == Some(None) {
            return Err(LoadError::unfit(&section, "no clock can have these registers"));
        }
        *lock(&self.state) = State {
            index: saved.index,
            register_b: saved.register_b,
            offset_s: saved.offset_s,
            setting: setting.flatten(),
            nvram: saved.nvram,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:58.999900 UTC, a Thursday.
    fn leap_day() -> Duration {
        Duration::new(1_709_251_198, 999_900_000)
    }

    fn get(rtc: &Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0];
        rtc.read(1, &mut data);
        data[0]
    }

    fn set(rtc: &Rtc, index: u8, value: u8) {
        rtc.write(0, &[index | 0x80]);
        rtc.write(1, &[value]);
    }

    fn time(rtc: &Rtc) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| get(rtc, index))
    }

    #[test]
    fn calendar_agrees_with_known_days() {
        for (seconds, civil) in [
            (0, (1970, 1, 1)),
            (951_782_400, (2000, 2, 29)),
            (1_709_164_800, (2024, 2, 29)),
            (4_107_542_400, (2100, 3, 1)),
            (-86_400, (1969, 12, 31)),
        ] {
            let found = Civil::from_unix(seconds);
            assert_eq!((found.year, found.month, found.day), civil);
            assert_eq!(found.to_unix(), seconds);
        }
    }

    /// From what a host whose clock is set back makes of 1900, the first year a guest can set. Later ones are drawn at random below.
    #[test]
    fn calendar_knows_every_day() {
        for day in days_from_epoch(1840, 1, 1)..days_from_epoch(2200, 1, 1) {
            let civil = Civil::from_unix(day * 86_400);
            assert!(
                (1..=12).contains(&civil.month) && (1..=31).contains(&civil.day),
                "{civil:?}"
            );
            assert_eq!(civil.to_unix(), day * 86_400);
        }
    }

    #[test]
    fn the_end_of_1900_can_be_set() {
        let rtc = Rtc::with_clock(leap_day);
        for (index, value) in [(CENTURY, 0x19), (YEAR, 0), (MONTH, 0x11), (DAY, 0x15)] {
            set(&rtc, index, value);
        }
        assert_eq!(time(&rtc), [0x19, 0, 0x11, 0x15, 5, 0x23, 0x59, 0x58]);
    }

    #[test]
    fn shows_bcd_binary_and_twelve_hours() {
        let rtc = Rtc::with_clock(leap_day);
        assert_eq!(time(&rtc), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
        set(&rtc, REGISTER_B, HOURS_24 | BINARY);
        assert_eq!(time(&rtc), [20, 24, 2, 29, 5, 23, 59, 58]);
        set(&rtc, REGISTER_B, 0);
        assert_eq!(get(&rtc, HOURS), 0x91);
        assert_eq!(get(&rtc, REGISTER_A), A_DEFAULT | UPDATE_IN_PROGRESS);
        assert_eq!((get(&rtc, REGISTER_C), get(&rtc, REGISTER_D)), (0, VALID));
    }

    #[test]
    fn a_time_that_was_set_stays_and_survives_reset() {
        let rtc = Rtc::with_clock(leap_day);
        set(&rtc, REGISTER_B, HOURS_24 | SET);
        for (index, value) in [(CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31)] {
            set(&rtc, index, value);
        }
        assert_eq!(get(&rtc, REGISTER_A) & UPDATE_IN_PROGRESS, 0);
        set(&rtc, REGISTER_B, HOURS_24);
        set(&rtc, HOURS, 0x07);
        let expected = [0x19, 0x99, 0x12, 0x31, 6, 0x07, 0x59, 0x58];
        assert_eq!(time(&rtc), expected);
        rtc.reset();
        assert_eq!(time(&rtc), expected);
    }

    #[test]
    fn nvram_keeps_bytes() {
        let rtc = Rtc::new();
        set(&rtc, 0x40, 0xa5);
        assert_eq!((get(&rtc, 0x40), get(&rtc, 0x41)), (0xa5, 0));
    }

    proptest::proptest! {
        #[test]
        fn calendar_round_trips(seconds in -10_000_000_000_i64..300_000_000_000) {
            proptest::prop_assert_eq!(Civil::from_unix(seconds).to_unix(), seconds);
        }

        #[test]
        fn no_access_panics(accesses in proptest::collection::vec((0_u8.., 0_u8..), 0..200)) {
            let rtc = Rtc::with_clock(leap_day);
            for (index, value) in accesses {
                set(&rtc, index, value);
                time(&rtc);
            }
        }
    }
}
