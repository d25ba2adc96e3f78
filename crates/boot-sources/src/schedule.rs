//! Cron schedules, in UTC.
//!
//! Five fields as in crontab(5): minute, hour, day of month, month, day of week. Each takes `*`, numbers, ranges `a-b`, steps
//! `*/n`, `a-b/n` and `a/n` (from *a* to the end), lists with commas, and for months and days of the week names of three letters
//! in any case. `@hourly @daily @midnight @weekly @monthly @yearly @annually` stand for what they say. There are no seconds
//! and no `@reboot`. Where neither day field begins with `*`, a day matches that fits either; else it has to fit both.
//!
//! All of it is read in UTC: no hour is there twice or missing, so that one slot is one poll.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::cron_field::FIELDS;

/// Longest schedule, bytes.
const TEXT_MAX: usize = 256;
/// Longest way from one slot to the next, days: a 29 February on a given weekday comes back after 28 years, and after 40 around
/// a century that has no leap year.
const SEARCH_DAYS: i32 = 41 * 366;

/// When something happens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Schedule {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// A day has to fit both day fields, not one of them.
    both_days: bool,
    /// Shortest time between two slots, seconds.
    gap_s: u32,
}

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not five fields and no known abbreviation.
    #[error(
        "{0:?} is no schedule: write minute, hour, day of month, month and day of week, as \"0 */12 * * *\", or @daily"
    )]
    Shape(String),
    /// A field that does not read.
    #[error("{0}")]
    Field(String),
    /// Fields that never come together.
    #[error("{0:?} never comes: no month named there has such a day")]
    Never(String),
}

impl ScheduleError {
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Shape(_) | Self::Field(_) => "schedule_invalid",
            Self::Never(_) => "schedule_never_fires",
        }
    }
}

/// The fields an abbreviation stands for.
fn spelled_out(text: &str) -> &str {
    match text {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        other => other,
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let shape = || ScheduleError::Shape(text.chars().take(60).collect());
        if text.len() > TEXT_MAX {
            return Err(shape());
        }
        let fields: Vec<_> = spelled_out(text.trim()).split_ascii_whitespace().collect();
        let fields: [&str; 5] = fields.try_into().map_err(|_| shape())?;
        let mut sets = [0; 5];
        for ((set, rule), field) in sets.iter_mut().zip(&FIELDS).zip(fields) {
            *set = rule.parse(field).map_err(ScheduleError::Field)?;
        }
        let [minutes, hours, days, months, weekdays] = sets;
        let [_, _, day_field, _, weekday_field] = fields;
        let mut schedule = Self {
            text: text.trim().to_owned(),
            minutes,
            hours,
            days,
            months,
            weekdays: weekdays | weekdays >> 7,
            both_days: [day_field, weekday_field]
                .iter()
                .any(|field| field.starts_with(['*', '?'])),
            gap_s: u32::MAX,
        };
        match schedule.next_after(Timestamp::UNIX_EPOCH) {
            Some(first) => {
                schedule.gap_s = schedule.measured_gap_s(first);
                Ok(schedule)
            }
            None => Err(ScheduleError::Never(schedule.text)),
        }
    }
}

impl Schedule {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first slot after `time`, a whole minute; `None` at the end of time (the year 9999).
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let now = TimeZone::UTC.to_datetime(time);
        let now = DateTime::from_parts(now.date(), Time::constant(now.hour(), now.minute(), 0, 0));
        let from = now.checked_add(1.minute()).ok()?;
        let (mut date, mut start) = (from.date(), from.time());
        let last = date.checked_add(SEARCH_DAYS.days()).unwrap_or(Date::MAX);
        while date <= last {
            if has(self.months, date.month()) {
                let time = self.time_of_day(start).filter(|_| self.has_day(date));
                if let Some(time) = time {
                    return TimeZone::UTC.to_timestamp(date.to_datetime(time)).ok();
                }
                date = date.tomorrow().ok()?;
            } else {
                date = date.last_of_month().tomorrow().ok()?;
            }
            start = Time::midnight();
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.both_days { day && weekday } else { day || weekday }
    }

    /// The first time of a day not before `from`.
    fn time_of_day(&self, from: Time) -> Option<Time> {
        for hour in (from.hour()..24).filter(|hour| has(self.hours, *hour)) {
            let first = if hour == from.hour() { from.minute() } else { 0 };
            if let Some(minute) = (first..60).find(|minute| has(self.minutes, *minute)) {
                return Some(Time::constant(hour, minute, 0, 0));
            }
        }
        None
    }

    /// Shortest time between two slots, seconds.
    pub(crate) const fn shortest_gap_s(&self) -> u32 {
        self.gap_s
    }

    /// Shortest time between the slots from `slot` on, as far as two hundred of them and some years tell.
    fn measured_gap_s(&self, mut slot: Timestamp) -> u32 {
        const SLOTS: usize = 200;
        const SPAN_S: i64 = 4 * 366 * 86_400;
        let mut shortest = u32::MAX;
        for _ in 0..SLOTS {
            let Some(next) = self.next_after(slot).filter(|_| slot.as_second() <= SPAN_S) else {
                break;
            };
            shortest = shortest.min(u32::try_from(next.as_second() - slot.as_second()).unwrap_or(u32::MAX));
            slot = next;
        }
        shortest
    }
}

/// Whether bit `bit` is set.
fn has(set: u64, bit: i8) -> bool {
    set >> bit & 1 == 1
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.text
    }
}

impl TryFrom<String> for Schedule {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slots(schedule: &str, from: &str, count: usize) -> Vec<String> {
        let schedule: Schedule = schedule.parse().unwrap();
        let mut time: Timestamp = from.parse().unwrap();
        let mut found = Vec::new();
        for _ in 0..count {
            time = schedule.next_after(time).unwrap();
            found.push(time.to_string());
        }
        found
    }

    #[test]
    fn what_the_reference_writes() {
        assert_eq!(
            slots("0 */12 * * *", "2026-11-22T11:59:59.9Z", 3),
            ["2026-11-22T12:00:00Z", "2026-11-23T00:00:00Z", "2026-11-23T12:00:00Z"]
        );
        assert_eq!(
            slots("55 8/12 * * *", "2026-11-22T08:55:00Z", 3),
            ["2026-11-22T20:55:00Z", "2026-11-23T08:55:00Z", "2026-11-23T20:55:00Z"]
        );
    }

    #[test]
    fn abbreviations_names_lists_and_steps() {
        let from = "2026-11-22T10:30:30Z"; // a Sunday
        assert_eq!(slots("@hourly", from, 1), ["2026-11-22T11:00:00Z"]);
        assert_eq!(slots("@daily", from, 1), slots("@midnight", from, 1));
        assert_eq!(slots("@weekly", from, 1), ["2026-11-29T00:00:00Z"]);
        assert_eq!(slots("@monthly", from, 1), ["2026-12-01T00:00:00Z"]);
        assert_eq!(slots("@yearly", from, 1), slots("@annually", from, 1));
        assert_eq!(slots("15 4 * * Mon-fri", from, 1), ["2026-11-23T04:15:00Z"]);
        assert_eq!(slots("0 0 * * 7", from, 1), slots("0 0 * * sun", from, 1));
        assert_eq!(
            slots("0 0 * * 5-7", from, 3),
            ["2026-11-27T00:00:00Z", "2026-11-28T00:00:00Z", "2026-11-29T00:00:00Z"]
        );
        assert_eq!(
            slots("0 0 1 JAN,jul *", from, 2),
            ["2027-01-01T00:00:00Z", "2027-07-01T00:00:00Z"]
        );
        assert_eq!(
            slots("10-30/10,31 10 * * *", from, 2),
            ["2026-11-22T10:31:00Z", "2026-11-23T10:10:00Z"]
        );
    }

    #[test]
    fn two_day_fields_are_either_or_both() {
        let from = "2026-11-22T10:30:30Z";
        assert_eq!(
            slots("0 0 13 * fri", from, 2),
            ["2026-11-27T00:00:00Z", "2026-12-04T00:00:00Z"]
        );
        // Begins with a star: both. The first odd day that is a Friday.
        assert_eq!(slots("0 0 */2 * fri", from, 1), ["2026-11-27T00:00:00Z"]);
        assert_eq!(slots("0 0 */2 * sat", from, 1), ["2026-12-05T00:00:00Z"]);
    }

    #[test]
    fn rare_days_are_found_and_impossible_ones_refused() {
        assert_eq!(slots("0 0 29 2 *", "2096-03-01T00:00:00Z", 1), ["2104-02-29T00:00:00Z"]);
        assert_eq!(
            slots("0 0 31 */3,4 *", "2026-11-22T00:00:00Z", 1),
            ["2027-01-31T00:00:00Z"]
        );
        assert_eq!(
            slots("0 0 29 2 */7", "2026-11-22T00:00:00Z", 1),
            ["2032-02-29T00:00:00Z"]
        );
        assert_eq!(
            slots("0 0 29 2 */7", "2088-03-01T00:00:00Z", 1),
            ["2128-02-29T00:00:00Z"]
        );
        for never in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
            assert_eq!(never.parse::<Schedule>().unwrap_err().code(), "schedule_never_fires");
        }
        let last = "9999-12-30T00:00:00Z".parse().unwrap();
        assert_eq!("0 0 1 1 *".parse::<Schedule>().unwrap().next_after(last), None);
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "is no schedule"),
            ("* * * *", "is no schedule"),
            ("0 * * * * *", "is no schedule"),
            ("@reboot", "is no schedule"),
            ("60 * * * *", "minute \"60\"; take 0 to 59"),
            ("* 24 * * *", "hour \"24\"; take 0 to 23"),
            ("* * 0 * *", "day of month \"0\"; take 1 to 31"),
            ("* * * foo *", "month \"foo\"; take 1 to 12, or jan to dec"),
            ("* * * * 8", "day of week \"8\"; take 0 to 7, or sun to sat"),
            ("*/0 * * * *", "minute step \"0\"; take 1 to 59"),
            ("30-10 * * * *", "runs backwards"),
            ("1,,2 * * * *", "minute \"\""),
            ("001 * * * *", "minute \"001\""),
            ("-1 * * * *", "minute \"\""),
            ("* * L * *", "day of month \"L\""),
        ] {
            let error = text.parse::<Schedule>().unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert_eq!(error.code(), "schedule_invalid");
        }
        assert!(format!("{} * * * *", "1,".repeat(500)).parse::<Schedule>().is_err());
    }

    #[test]
    fn gaps_are_measured() {
        for (text, gap) in [
            ("* * * * *", 60),
            ("0 */12 * * *", 43_200),
            ("0 8,9 * * *", 3600),
            ("@weekly", 604_800),
        ] {
            assert_eq!(text.parse::<Schedule>().unwrap().shortest_gap_s(), gap, "{text}");
        }
    }

    /// Fields that are sometimes wrong.
    fn field() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("*".to_owned()),
            (0..60_u8).prop_map(|n| n.to_string()),
            (1..20_u8).prop_map(|n| format!("*/{n}")),
            (0..12_u8, 0..20_u8).prop_map(|(a, b)| format!("{a}-{}", a + b)),
            "[a-z0-9,*/-]{1,6}",
        ]
    }

    proptest! {
        // Schedules with a slot in decades take a while to be searched.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn slots_come_later_in_order_and_fit(fields in proptest::array::uniform5(field()), second in 0_i64..4_102_444_800, more in 0_i64..10_000_000) {
            let Ok(schedule) = fields.join(" ").parse::<Schedule>() else { return Ok(()) };
            let early = Timestamp::from_second(second).unwrap();
            let late = Timestamp::from_second(second + more).unwrap();
            let (first, second) = (schedule.next_after(early).unwrap(), schedule.next_after(late).unwrap());
            prop_assert!(first > early && second > late && first <= second);
            prop_assert_eq!(first.as_second() % 60, 0);
            // Nothing between `early` and the slot fits: a slot is its own predecessor's next.
            prop_assert_eq!(schedule.next_after(Timestamp::from_second(first.as_second() - 1).unwrap()), Some(first));
            prop_assert_eq!(schedule.to_string().parse::<Schedule>(), Ok(schedule));
        }

        #[test]
        fn nothing_that_is_written_panics(text in ".{0,60}") {
            let _ = text.parse::<Schedule>();
        }
    }
}
