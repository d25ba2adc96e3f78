//! Whose turn it is.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::bucket::Bucket;
use super::{Limits, Rate, Timer};
use crate::DiskFuture;

/// Sleeps that end this close to each other are one: nothing that is woken in between starts another.
const SLACK: Duration = Duration::from_micros(1);

/// What waits in lines of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Read,
    Change,
    Other,
}

impl Class {
    const ALL: [Self; 3] = [Self::Read, Self::Change, Self::Other];

    const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Change => 1,
            Self::Other => 2,
        }
    }
}

/// What a request takes, besides one operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueId(u64);

/// One who waits.
struct Ticket {
    number: u64,
    cost: Cost,
    waker: Option<Waker>,
}

/// Those of one queue who wait, in the order they came.
struct Line {
    queue: QueueId,
    tickets: VecDeque<Ticket>,
}

/// Buckets that one kind of request draws from.
#[derive(Default)]
struct Meter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Meter {
    fn change(&mut self, (bytes, operations): (Option<Rate>, Option<Rate>), now: Duration) {
        let changed = |old: &Option<Bucket>, rate: Option<Rate>| {
            let rate = rate?;
            Some(match old {
                Some(old) => old.changed(rate, now),
                None => Bucket::full(rate, now),
            })
        };
        self.bytes = changed(&self.bytes, bytes);
        self.operations = changed(&self.operations, operations);
    }

    fn wait(&mut self, cost: Cost, now: Duration) -> Duration {
        // What moves no bytes does not wait for any.
        let bytes = self.bytes.as_mut().filter(|_| cost.bytes > 0);
        let bytes = bytes.map_or(Duration::ZERO, |bucket| bucket.wait(cost.bytes, now));
        let operations = self
            .operations
            .as_mut()
            .map_or(Duration::ZERO, |bucket| bucket.wait(1, now));
        bytes.max(operations)
    }

    fn draw(&mut self, cost: Cost) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(cost.bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }

    fn give_back(&mut self, cost: Cost) {
        if let Some(bucket) = &mut self.bytes {
            bucket.give_back(cost.bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.give_back(1);
        }
    }
}

struct State {
    limits: Limits,
    /// By class.
    meters: [Meter; 3],
    all: Meter,
    /// By class: the queue in front is the one whose turn it is.
    lines: [VecDeque<Line>; 3],
    /// Tickets that may go, and do not know it yet.
    admitted: Vec<u64>,
    next_ticket: u64,
    next_queue: u64,
}

/// The waiting room of one disk.
pub(super) struct Turns {
    timer: Arc<dyn Timer>,
    unlimited: AtomicBool,
    state: Mutex<State>,
}

impl Turns {
    pub(super) fn new(limits: Limits, timer: Arc<dyn Timer>) -> Self {
        let turns = Self {
            timer,
            unlimited: AtomicBool::new(true),
            state: Mutex::new(State {
                limits: Limits::default(),
                meters: Default::default(),
                all: Meter::default(),
                lines: Default::default(),
                admitted: Vec::new(),
                next_ticket: 0,
                next_queue: 0,
            }),
        };
        turns.set(limits);
        turns
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, limits: Limits) {
        let now = self.timer.now();
        let mut state = self.lock();
        state.limits = limits;
        state.all.change((limits.bytes, limits.operations), now);
        let [reads, changes, _] = &mut state.meters;
        reads.change((limits.read_bytes, limits.reads), now);
        changes.change((limits.write_bytes, limits.writes), now);
        self.unlimited.store(limits == Limits::default(), Ordering::Relaxed);
        let mut woken = state.admit_ready(now);
        // The others in front sleep for what may be too long now.
        woken.extend(state.fronts());
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    pub(super) fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Whether nobody has to ask. Requests that wait already are let go by [`Turns::set`].
    pub(super) fn is_unlimited(&self) -> bool {
        self.unlimited.load(Ordering::Relaxed)
    }

    pub(super) fn new_queue(&self) -> QueueId {
        let mut state = self.lock();
        state.next_queue += 1;
        QueueId(state.next_queue)
    }

    /// The queue is gone, and with it all its requests.
    pub(super) fn forget_queue(&self, queue: QueueId) {
        let mut state = self.lock();
        for lines in &mut state.lines {
            lines.retain(|line| line.queue != queue);
        }
        let woken = state.fronts();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits for the turn of a request. Dropped, it leaves the line, and what it was given goes back.
    pub(super) fn admit(&self, queue: QueueId, class: Class, cost: Cost) -> Admission<'_> {
        Admission {
            turns: self,
            queue,
            class,
            cost,
            stage: Stage::New,
            sleep: None,
        }
    }
}

impl State {
    /// Lets go whom the buckets have something for, oldest first between the classes. Returns whom to wake: they, and who is in
    /// front now.
    fn admit_ready(&mut self, now: Duration) -> Vec<Waker> {
        let mut woken = Vec::new();
        loop {
            let ready = Class::ALL.into_iter().filter_map(|class| {
                let index = class.index();
                let ticket = self.lines.get(index)?.front()?.tickets.front()?;
                let (number, cost) = (ticket.number, ticket.cost);
                let meter = self.meters.get_mut(index)?;
                meter.wait(cost, now).is_zero().then_some((number, cost, index))
            });
            let Some((number, cost, index)) = ready.min_by_key(|(number, ..)| *number) else {
                return woken;
            };
            if !self.all.wait(cost, now).is_zero() {
                return woken;
            }
            self.all.draw(cost);
            if let Some(meter) = self.meters.get_mut(index) {
                meter.draw(cost);
            }
            self.admitted.push(number);
            woken.extend(self.advance(index));
        }
    }

    /// Takes the ticket in front of a class out of its line, and gives the turn to the next queue. Returns its waker, and that of the
    /// new front.
    fn advance(&mut self, class: usize) -> Vec<Waker> {
        let mut woken = Vec::new();
        let Some(lines) = self.lines.get_mut(class) else {
            return woken;
        };
        if let Some(mut line) = lines.pop_front() {
            woken.extend(line.tickets.pop_front().and_then(|ticket| ticket.waker));
            if !line.tickets.is_empty() {
                lines.push_back(line);
            }
        }
        woken.extend(front_waker(lines));
        woken
    }

    fn fronts(&self) -> Vec<Waker> {
        self.lines.iter().filter_map(front_waker).collect()
    }

    /// How long the ticket in front of `class` sleeps; `None` if that is not `number`.
    fn sleep_of(&mut self, class: Class, number: u64, now: Duration) -> Option<Duration> {
        let index = class.index();
        let ticket = self.lines.get(index)?.front()?.tickets.front()?;
        if ticket.number != number {
            return None;
        }
        let cost = ticket.cost;
        let own = self.meters.get_mut(index)?.wait(cost, now);
        Some(own.max(self.all.wait(cost, now)))
    }
}

fn front_waker(lines: &VecDeque<Line>) -> Option<Waker> {
    lines.front()?.tickets.front()?.waker.clone()
}

enum Stage {
    New,
    Waiting(u64),
    Through,
}

/// A request's way through the waiting room.
pub(super) struct Admission<'a> {
    turns: &'a Turns,
    queue: QueueId,
    class: Class,
    cost: Cost,
    stage: Stage,
    /// Until when, and the sleep.
    sleep: Option<(Duration, DiskFuture<'static, ()>)>,
}

impl Admission<'_> {
    fn join(&self, state: &mut State) -> u64 {
        let number = state.next_ticket;
        state.next_ticket += 1;
        let ticket = Ticket {
            number,
            cost: self.cost,
            waker: None,
        };
        if let Some(lines) = state.lines.get_mut(self.class.index()) {
            match lines.iter_mut().find(|line| line.queue == self.queue) {
                Some(line) => line.tickets.push_back(ticket),
                None => lines.push_back(Line {
                    queue: self.queue,
                    tickets: VecDeque::from([ticket]),
                }),
            }
        }
        number
    }

    fn ticket<'s>(&self, state: &'s mut State, number: u64) -> Option<&'s mut Ticket> {
        let lines = state.lines.get_mut(self.class.index())?;
        let line = lines.iter_mut().find(|line| line.queue == self.queue)?;
        let place = line
            .tickets
            .binary_search_by_key(&number, |ticket| ticket.number)
            .ok()?;
        line.tickets.get_mut(place)
    }
}

impl Future for Admission<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let turns = self.turns;
        loop {
            let now = turns.timer.now();
            let mut state = turns.lock();
            let number = match self.stage {
                Stage::New => self.join(&mut state),
                Stage::Waiting(number) => number,
                Stage::Through => return Poll::Ready(()),
            };
            self.stage = Stage::Waiting(number);
            let woken = state.admit_ready(now);
            if let Some(place) = state.admitted.iter().position(|&admitted| admitted == number) {
                state.admitted.swap_remove(place);
                self.stage = Stage::Through;
            } else if let Some(ticket) = self.ticket(&mut state, number) {
                ticket.waker = Some(context.waker().clone());
            }
            let sleep = state.sleep_of(self.class, number, now);
            drop(state);
            woken.into_iter().for_each(Waker::wake);
            if matches!(self.stage, Stage::Through) {
                return Poll::Ready(());
            }
            // Who is not in front has no use for a clock.
            let Some(wait) = sleep else {
                self.sleep = None;
                return Poll::Pending;
            };
            let until = now.saturating_add(wait);
            let fits = |known: Duration| known.abs_diff(until) <= SLACK;
            if !self.sleep.as_ref().is_some_and(|(known, _)| fits(*known)) {
                self.sleep = Some((until, turns.timer.sleep(wait)));
            }
            let rested = self.sleep.as_mut().map(|(_, sleep)| sleep.as_mut().poll(context));
            if !rested.is_some_and(|rested| rested.is_ready()) {
                return Poll::Pending;
            }
            self.sleep = None;
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let Stage::Waiting(number) = self.stage else { return };
        let now = self.turns.timer.now();
        let mut state = self.turns.lock();
        let state_ref = &mut *state;
        if let Some(place) = state_ref.admitted.iter().position(|&admitted| admitted == number) {
            // It was given something, and does nothing with it.
            state_ref.admitted.swap_remove(place);
            state_ref.all.give_back(self.cost);
            if let Some(meter) = state_ref.meters.get_mut(self.class.index()) {
                meter.give_back(self.cost);
            }
        } else if let Some(lines) = state_ref.lines.get_mut(self.class.index()) {
            for line in lines.iter_mut().filter(|line| line.queue == self.queue) {
                line.tickets.retain(|ticket| ticket.number != number);
            }
            lines.retain(|line| !line.tickets.is_empty());
        }
        let mut woken = state.admit_ready(now);
        woken.extend(state.fronts());
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}
