//! When to go on, when to pause, when to slow the guest, and when to give up: decided from figures alone.

use std::time::Duration;

use crate::machine::StateCost;
use crate::options::{OnTimeout, Options, PostCopy};

/// Rounds that moved less say little about the rate of the link, bytes.
const TELLING_BYTES: u64 = 1 << 20;
/// Rounds in which the guest dirtied more than half of what was sent before it is slowed, as in QEMU.
const STRIKES: u32 = 2;

/// What a finished round came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    /// Guest RAM that was dealt with, bytes.
    pub(crate) processed: u64,
    /// Bytes on the streams.
    pub(crate) wire: u64,
    /// Guest RAM still to send: dirtied meanwhile, or not reached.
    pub(crate) remaining: u64,
    /// How long it took until the target had all of it.
    pub(crate) took: Duration,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Another round.
    Again,
    /// Pause and send the rest.
    Pause,
    /// Pause and start at the target without the rest.
    PostCopy,
}

/// What to do in the middle of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Go on.
    Fine,
    /// End the round early, [`Steering::after`] knows why.
    StopRound,
    /// Not done in time.
    TooLate(Duration),
    /// Stuck.
    Stuck(Duration),
}

/// All that is known about how one migration goes.
#[derive(Debug)]
pub(crate) struct Steering {
    options: Options,
    post_copy: PostCopy,
    deadline: Option<(Duration, Duration)>,
    state: StateCost,
    round_trip: Duration,
    rounds: u32,
    strikes: u32,
    hurry: bool,
    throughput: u64,
    /// The fewest bytes that any round began with.
    lowest: u64,
    /// This round began with fewer than any before it, and the fewest bytes left in it so far.
    useful: Option<u64>,
    progress_at: Duration,
    moved: u64,
    moved_at: Duration,
    /// Percent taken from the vCPUs.
    pub(crate) throttle: u8,
    /// Dirtied in the last round, bytes per second.
    pub(crate) dirty_rate: u64,
    /// The pause if it began now.
    pub(crate) expected: Duration,
}

fn rate(bytes: u64, time: Duration) -> u64 {
    let nanos = time.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

impl Steering {
    /// At the start of the first round. `post_copy` is what both sides agreed to.
    pub(crate) fn new(options: &Options, post_copy: PostCopy, ram_bytes: u64, now: Duration) -> Self {
        let deadline = options
            .deadline(ram_bytes)
            .map(|length| (now.saturating_add(length), length));
        Self {
            options: options.clone(),
            post_copy,
            deadline,
            state: StateCost::default(),
            round_trip: Duration::ZERO,
            rounds: 0,
            strikes: 0,
            hurry: false,
            throughput: 0,
            lowest: u64::MAX,
            useful: None,
            progress_at: now,
            moved: 0,
            moved_at: now,
            throttle: 0,
            dirty_rate: 0,
            expected: Duration::MAX,
        }
    }

    /// What the hand-over costs besides memory.
    pub(crate) fn set_cost(&mut self, state: StateCost, round_trip: Duration) {
        self.state = state;
        self.round_trip = round_trip;
    }

    pub(crate) fn throughput(&self) -> u64 {
        self.throughput
    }

    /// Before the first round: whether there is to be one.
    pub(crate) fn first(&self) -> Step {
        if self.post_copy == PostCopy::AfterRounds(0) {
            Step::PostCopy
        } else {
            Step::Again
        }
    }

    /// A round begins with this much to send.
    pub(crate) fn begin(&mut self, remaining: u64, now: Duration) {
        self.useful = (remaining < self.lowest).then_some(remaining);
        if self.useful.is_some() {
            self.lowest = remaining;
            self.progress_at = now;
        }
    }

    /// Called every now and then while a round runs.
    pub(crate) fn tick(&mut self, now: Duration, remaining: u64, moved: u64) -> Tick {
        if moved != self.moved {
            self.moved = moved;
            self.moved_at = now;
        }
        if self.useful.is_some_and(|least| remaining < least) {
            self.useful = Some(remaining);
            self.progress_at = now;
        }
        if let Some((_, length)) = self.deadline.filter(|(at, _)| now >= *at) {
            if self.post_copy == PostCopy::Off && self.options.on_timeout == OnTimeout::Fail {
                return Tick::TooLate(length);
            }
            self.hurry = true;
        }
        let patience = self.options.progress_timeout;
        if now.saturating_sub(self.progress_at) >= patience {
            // A link that carries bytes can still bring the rest after the start; a dead one can not.
            let carries = now.saturating_sub(self.moved_at) < patience;
            if self.post_copy == PostCopy::Off || !carries {
                return Tick::Stuck(patience);
            }
            self.hurry = true;
        }
        if self.hurry { Tick::StopRound } else { Tick::Fine }
    }

    /// A round is over.
    pub(crate) fn after(&mut self, round: Round, dirtied: u64) -> Step {
        self.rounds += 1;
        // Pages that are zero cost nothing, and there are many in the first round: it shows what the link does, later ones show
        // what compression makes of it as well.
        let dealt = if self.rounds == 1 { round.wire } else { round.processed };
        let measured = rate(dealt, round.took);
        self.throughput = if dealt >= TELLING_BYTES {
            measured
        } else {
            self.throughput.max(measured)
        };
        self.dirty_rate = rate(dirtied, round.took);
        self.expected = self.downtime(round.remaining);
        if self.hurry {
            return if self.post_copy == PostCopy::Off {
                Step::Pause
            } else {
                Step::PostCopy
            };
        }
        if self.expected <= self.options.downtime {
            return Step::Pause;
        }
        if let PostCopy::AfterRounds(rounds) = self.post_copy
            && self.rounds >= rounds
        {
            return Step::PostCopy;
        }
        self.slow_down(dirtied > round.processed / 2);
        Step::Again
    }

    fn downtime(&self, remaining: u64) -> Duration {
        let bytes = remaining.saturating_add(self.state.bytes);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.throughput.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            .saturating_add(self.state.time)
            // Ready, and start.
            .saturating_add(self.round_trip * 2)
    }

    fn slow_down(&mut self, losing: bool) {
        let Some(slowing) = self.options.auto_converge.filter(|_| losing && self.rounds > 1) else {
            return;
        };
        self.strikes += 1;
        if self.strikes < STRIKES {
            return;
        }
        self.strikes = 0;
        let next = if self.throttle == 0 {
            slowing.initial_percent
        } else {
            self.throttle.saturating_add(slowing.step_percent)
        };
        self.throttle = next.min(slowing.max_percent).min(99);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::AutoConverge;

    const MIB: u64 = 1 << 20;

    /// A guest that dirties `dirty` MiB/s over a link of `link` MiB/s: seconds until the pause, or none.
    fn simulate(options: &Options, post_copy: PostCopy, dirty: u64, link: u64) -> (Option<Step>, Tick, u64, u8) {
        let ram = 1024 * MIB;
        let mut now = Duration::ZERO;
        let mut steering = Steering::new(options, post_copy, ram, now);
        steering.set_cost(
            StateCost {
                bytes: MIB,
                time: Duration::from_millis(20),
            },
            Duration::from_millis(1),
        );
        let (mut remaining, mut moved) = (ram, 0);
        loop {
            steering.begin(remaining, now);
            let mut left = remaining;
            let begin = now;
            let mut tick = Tick::Fine;
            while left > 0 && tick == Tick::Fine {
                now += Duration::from_millis(100);
                let piece = left.min(link * MIB / 10);
                left -= piece;
                moved += piece;
                tick = steering.tick(now, left, moved);
            }
            if matches!(tick, Tick::TooLate(_) | Tick::Stuck(_)) {
                return (None, tick, now.as_secs(), steering.throttle);
            }
            let took = now - begin;
            let slowed = dirty * MIB * u64::from(100 - steering.throttle) / 100;
            let dirtied = (u64::try_from(took.as_millis()).unwrap() * slowed / 1000).min(ram);
            let processed = remaining - left;
            remaining = dirtied + left;
            let step = steering.after(
                Round {
                    processed,
                    wire: processed,
                    remaining,
                    took,
                },
                dirtied,
            );
            if step != Step::Again {
                return (Some(step), tick, now.as_secs(), steering.throttle);
            }
        }
    }

    #[test]
    fn a_quiet_guest_converges_and_a_busy_one_runs_out_of_time() {
        let options = Options::default();
        let (step, _, seconds, _) = simulate(&options, PostCopy::Off, 10, 100);
        assert_eq!(step, Some(Step::Pause));
        assert!(seconds < 13, "{seconds}");
        let (step, tick, ..) = simulate(&options, PostCopy::Off, 200, 100);
        assert_eq!((step, tick), (None, Tick::Stuck(Duration::from_secs(150))));
        let hasty = Options {
            completion_timeout_per_gib: Some(Duration::from_secs(60)),
            ..options
        };
        let (step, tick, seconds, _) = simulate(&hasty, PostCopy::Off, 200, 100);
        assert_eq!(
            (step, tick, seconds),
            (None, Tick::TooLate(Duration::from_secs(60)), 60)
        );
    }

    #[test]
    fn auto_converge_slows_the_guest_until_it_fits() {
        let options = Options {
            auto_converge: Some(AutoConverge::default()),
            ..Options::default()
        };
        let (step, _, _, throttle) = simulate(&options, PostCopy::Off, 150, 100);
        assert_eq!(step, Some(Step::Pause));
        assert!((40..=99).contains(&throttle), "{throttle}");
        let (_, _, _, untouched) = simulate(&options, PostCopy::Off, 10, 100);
        assert_eq!(untouched, 0);
    }

    #[test]
    fn post_copy_comes_after_the_timeout_or_after_rounds() {
        let options = Options {
            completion_timeout_per_gib: Some(Duration::from_secs(30)),
            ..Options::default()
        };
        let (step, _, seconds, _) = simulate(&options, PostCopy::AfterTimeout, 200, 100);
        assert_eq!((step, seconds), (Some(Step::PostCopy), 30));
        let (step, _, seconds, _) = simulate(&options, PostCopy::AfterRounds(1), 200, 100);
        assert_eq!(step, Some(Step::PostCopy));
        assert!(seconds <= 11);
        let finish = Options {
            on_timeout: OnTimeout::Finish,
            ..options
        };
        let (step, _, seconds, _) = simulate(&finish, PostCopy::Off, 200, 100);
        assert_eq!((step, seconds), (Some(Step::Pause), 30));
    }

    #[test]
    fn a_dead_link_is_stuck_even_where_post_copy_is_allowed() {
        let mut steering = Steering::new(&Options::default(), PostCopy::AfterTimeout, 1024 * MIB, Duration::ZERO);
        steering.begin(MIB, Duration::ZERO);
        assert_eq!(steering.tick(Duration::from_secs(1), MIB / 2, MIB / 2), Tick::Fine);
        assert_eq!(steering.tick(Duration::from_secs(150), MIB / 2, MIB / 2), Tick::Fine);
        assert_eq!(
            steering.tick(Duration::from_secs(151), MIB / 2, MIB / 2),
            Tick::Stuck(Duration::from_secs(150))
        );
    }

    #[test]
    fn the_state_of_devices_counts_as_downtime() {
        let options = Options::default();
        let mut steering = Steering::new(&options, PostCopy::Off, MIB, Duration::ZERO);
        let round = Round {
            processed: 100 * MIB,
            wire: 100 * MIB,
            remaining: 0,
            took: Duration::from_secs(1),
        };
        steering.set_cost(
            StateCost {
                bytes: 40 * MIB,
                time: Duration::ZERO,
            },
            Duration::ZERO,
        );
        assert_eq!(steering.after(round, 0), Step::Again);
        steering.set_cost(
            StateCost {
                bytes: 4 * MIB,
                time: Duration::from_millis(200),
            },
            Duration::ZERO,
        );
        assert_eq!(steering.after(round, 0), Step::Pause);
    }
}
