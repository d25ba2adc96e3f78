//! When a source is polled: its schedule, moved by an offset of its own.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use crate::schedule::Schedule;

/// Jitter where a definition names none, seconds.
pub const JITTER_DEFAULT_S: u32 = 300;
/// Largest jitter, seconds: a day.
pub const JITTER_MAX_S: u32 = 86_400;

/// The times at which one source is polled.
///
/// A hundred sources with the same schedule should not knock at the same second, and each should keep to its times over a
/// restart. So the offset follows from the source's name alone: between 0 and the jitter, and never more than half of the
/// schedule's shortest gap. It is the same for every slot, so that polls are in order and none is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollTimes {
    schedule: Schedule,
    offset: SignedDuration,
}

impl PollTimes {
    /// The times of the source called `name`.
    pub fn new(name: &str, schedule: &Schedule, jitter_s: u32) -> Self {
        let most = jitter_s.min(JITTER_MAX_S).min(schedule.shortest_gap_s() / 2);
        let digest = Sha256::new()
            .chain_update(b"boot source jitter\0")
            .chain_update(name)
            .finalize();
        let number = digest
            .iter()
            .take(8)
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let offset = u32::try_from(number % (u64::from(most) + 1)).unwrap_or(0);
        Self {
            schedule: schedule.clone(),
            offset: SignedDuration::from_secs(offset.into()),
        }
    }

    /// How much later than its schedule the source is polled.
    pub const fn offset(&self) -> SignedDuration {
        self.offset
    }

    /// The first poll after `time`; `None` at the end of time.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let slot = self.schedule.next_after(time.saturating_sub(self.offset).ok()?)?;
        slot.checked_add(self.offset).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(name: &str, schedule: &str, jitter_s: u32) -> PollTimes {
        PollTimes::new(name, &schedule.parse().unwrap(), jitter_s)
    }

    #[test]
    fn offsets_spread_and_stay() {
        let all: std::collections::HashSet<_> = (0..100)
            .map(|n| times(&format!("s{n}"), "@hourly", 600).offset())
            .collect();
        assert!(all.len() > 80, "{}", all.len());
        // A change of this number moves every poll of every host: on purpose only.
        assert_eq!(
            times("debian-12", "@daily", 600).offset(),
            times("debian-12", "@hourly", 600).offset()
        );
        assert_eq!(times("debian-12", "@daily", 0).offset(), SignedDuration::ZERO);
    }

    #[test]
    fn between_slot_and_offset_the_poll_is_yet_to_come() {
        let times = times("debian-12", "@daily", 600);
        let slot: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
        assert!(times.offset() > SignedDuration::from_secs(1));
        assert_eq!(
            times.next_after(slot + SignedDuration::from_secs(1)),
            Some(slot + times.offset())
        );
    }

    proptest! {
        #[test]
        fn polls_are_late_by_no_more_than_the_jitter(
            name in "[a-z]{1,8}", jitter in 0..2 * JITTER_MAX_S, second in 0_i64..4_102_444_800, more in 0_i64..1_000_000,
            text in prop_oneof![Just("* * * * *"), Just("*/7 3 * * *"), Just("0 */12 * * *"), Just("@monthly")],
        ) {
            let times = times(&name, text, jitter);
            let schedule: Schedule = text.parse().unwrap();
            let [early, late] = [second, second + more].map(|second| Timestamp::from_second(second).unwrap());
            let (first, second) = (times.next_after(early).unwrap(), times.next_after(late).unwrap());
            prop_assert!(first > early && first <= second);
            let slot = first - times.offset();
            let fits = schedule.next_after(slot - SignedDuration::from_secs(1)) == Some(slot);
            prop_assert!(fits);
            // None is left out on the way there.
            let before = first - SignedDuration::from_secs(1);
            prop_assert_eq!(times.next_after(before), Some(first));
            let offset = times.offset().as_secs();
            prop_assert!((0..=i64::from(jitter.min(JITTER_MAX_S))).contains(&offset));
            // Never into the next slot.
            prop_assert!(schedule.next_after(slot).unwrap() > first);
        }
    }
}
