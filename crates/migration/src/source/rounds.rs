//! Rounds over memory while the guest runs.
//!
//! A round sends a set of pages and ends when the target has them. What the guest dirtied meanwhile, and what was not reached
//! when the round was stopped early, is the set of the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::wires::{Event, Job, Plan, Wires, ram_bytes};
use crate::error::Failure;
use crate::machine::{Departing, Fault};
use crate::options::PostCopy;
use crate::page_set::{PageSet, SharedPages};
use crate::steering::{Round, Steering, Step, Tick};
use crate::wire::{Message, Offers};

/// Rounds of one machine.
pub(super) struct Rounds<'a> {
    pub(super) wires: &'a mut Wires,
    steering: Steering,
    round: u32,
    /// Longest time in which nothing moves while the guest is paused.
    standstill: Duration,
}

fn fault(what: &'static str) -> impl Fn(Fault) -> Failure {
    move |error| Failure::Machine { what, error }
}

impl<'a> Rounds<'a> {
    pub(super) fn new(wires: &'a mut Wires, plan: &Plan) -> Self {
        let post_copy = if wires.offers.has(Offers::POST_COPY) {
            plan.options.post_copy
        } else {
            PostCopy::Off
        };
        let total = ram_bytes(plan.layout.pages());
        let steering = Steering::new(&plan.options, post_copy, total, wires.clock.now());
        wires.handle.update(|progress| progress.total_bytes = total);
        Self {
            wires,
            steering,
            round: 0,
            standstill: plan.options.handover_timeout,
        }
    }

    /// Rounds until it is time to pause: what is still to send then, and whether it is to follow the start.
    pub(super) fn run<D: Departing>(&mut self, machine: &mut D) -> Result<(PageSet, Step), Failure> {
        let mut set = machine.begin().map_err(fault("log its writes"))?;
        let mut step = self.steering.first();
        while step == Step::Again {
            let cost = machine.state_cost().map_err(fault("say what its state costs"))?;
            self.steering.set_cost(cost, self.wires.round_trip);
            let before = self.wires.counters.wire_bytes.load(Ordering::Relaxed);
            let begin = self.wires.clock.now();
            let sent = set.len();
            let mut left = self.send(&set, true)?;
            let took = self.wires.clock.now().saturating_sub(begin);
            let dirty = machine.take_dirty().map_err(fault("say which pages it wrote"))?;
            let processed = ram_bytes(sent - left.len());
            left.union(&dirty);
            let wire = self.wires.counters.wire_bytes.load(Ordering::Relaxed) - before;
            let round = Round {
                processed,
                wire,
                remaining: ram_bytes(left.len()),
                took,
            };
            let throttle = self.steering.throttle;
            step = self.steering.after(round, ram_bytes(dirty.len()));
            if step == Step::Again && self.steering.throttle != throttle {
                machine.throttle(self.steering.throttle);
            }
            self.tell(left.len());
            tracing::debug!(
                round = self.round,
                sent_bytes = processed,
                left_bytes = ram_bytes(left.len()),
                expected_ms = self.steering.expected.as_millis(),
                throttle = self.steering.throttle,
                ?step,
                "round over memory done"
            );
            set = left;
        }
        Ok((set, step))
    }

    /// Sends a set; returns what was not reached, which is nothing unless the guest runs and time is up.
    pub(super) fn send(&mut self, set: &PageSet, guest_runs: bool) -> Result<PageSet, Failure> {
        self.round += 1;
        let round = self.round;
        let (shared, stop) = (Arc::new(SharedPages::new(set)), Arc::new(AtomicBool::new(false)));
        self.steering.begin(ram_bytes(set.len()), self.wires.clock.now());
        self.wires.assign(|| Job::Round {
            set: Arc::clone(&shared),
            round,
            stop: Arc::clone(&stop),
        });
        let mut told_at = Duration::ZERO;
        let mut moved = (0, self.wires.clock.now());
        loop {
            let is_done = match self.wires.next()? {
                Some(Event::Control(Message::RoundDone(done))) if done == round => true,
                Some(_) => return Err(Failure::Protocol("something else than the end of the round")),
                None => false,
            };
            let now = self.wires.clock.now();
            let bytes = self.wires.counters.wire_bytes.load(Ordering::Relaxed);
            if bytes != moved.0 {
                moved = (bytes, now);
            }
            if !is_done && !guest_runs && now.saturating_sub(moved.1) >= self.standstill {
                return Err(Failure::Handover(self.standstill));
            }
            // Also when it is done: rounds may all be over before anybody looks.
            match self.steering.tick(now, ram_bytes(shared.len()), bytes) {
                Tick::StopRound => stop.store(guest_runs, Ordering::Release),
                Tick::TooLate(length) if guest_runs => return Err(Failure::CompletionTimeout(length)),
                Tick::Stuck(length) if guest_runs || !is_done => return Err(Failure::NoProgress(length)),
                // A guest that is paused already is at its end.
                Tick::Fine | Tick::TooLate(_) | Tick::Stuck(_) => {}
            }
            if is_done {
                return Ok(shared.to_set());
            }
            if now.saturating_sub(told_at) >= Duration::from_secs(1) {
                told_at = now;
                self.tell(shared.len());
            }
        }
    }

    fn tell(&self, remaining_pages: u64) {
        let (steering, counters) = (&self.steering, &self.wires.counters);
        self.wires.handle.update(|progress| {
            progress.processed_bytes = ram_bytes(counters.pages.load(Ordering::Relaxed));
            progress.remaining_bytes = ram_bytes(remaining_pages);
            progress.wire_bytes = counters.wire_bytes.load(Ordering::Relaxed);
            progress.zero_pages = counters.zero_pages.load(Ordering::Relaxed);
            progress.delta_pages = counters.delta_pages.load(Ordering::Relaxed);
            progress.dirty_bytes_per_s = steering.dirty_rate;
            progress.throughput_bytes_per_s = steering.throughput();
            progress.round = self.round;
            progress.expected_downtime = steering.expected;
            progress.throttle_percent = steering.throttle;
        });
    }
}
