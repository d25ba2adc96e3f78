//! Operations in flight: everything the kernel may touch while it works, kept until it has said that it is done.
//!
//! ```text
//!              launch                     completion                  taken by the future
//!   Free ───────────────▶ Flying(waker) ─────────────▶ Landed(result) ─────────────────────▶ Free
//!                            │ future dropped             │ future dropped
//!                            ▼                            └──────────────────────────────────▶ Free
//!                         Abandoned ───── completion ────────────────────────────────────────▶ Free
//! ```
//!
//! *Flying* and *Abandoned* hold buffers, file and scratch memory; nothing the kernel was told an address of moves or is freed
//! before the slot leaves these two states.

use std::cell::UnsafeCell;
use std::task::Waker;

use guestmem::IoBuf;
use io_uring::types::Timespec;

use crate::file::File;

/// Names one operation: slot and the slot's generation, so that a late cancellation can not hit the slot's next tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the two halves apart")]
    pub(crate) fn from_user_data(user_data: u64) -> Self {
        Self {
            index: user_data as u32,
            generation: (user_data >> 32) as u32,
        }
    }
}

/// What becomes of an operation whose future is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abandon {
    /// It runs to its end: it ends soon by itself, and half done is worse than done.
    Finish,
    /// It is cancelled: it may wait for ever.
    Cancel,
}

/// Memory of one slot that is not the caller's but that the kernel reads or writes.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Counter of an eventfd, written by the kernel.
    pub(crate) word: UnsafeCell<u64>,
    /// Duration of a timeout, read by the kernel at submission.
    pub(crate) duration: UnsafeCell<Timespec>,
}

/// What an operation owns while it flies.
pub(crate) struct Cargo {
    pub(crate) bufs: Vec<IoBuf>,
    pub(crate) file: Option<File>,
    pub(crate) abandon: Abandon,
    /// Where in `bufs` the kernel begins to write, bytes; `None` if it only reads them.
    pub(crate) fills: Option<usize>,
}

enum State {
    Free,
    Flying(Option<Waker>),
    Abandoned,
    Landed(i32),
}

/// One slot. Its heap parts stay where they are when the table grows, and are used again by the next operation.
pub(crate) struct Slot {
    generation: u32,
    state: State,
    pub(crate) cargo: Option<Cargo>,
    pub(crate) scratch: Box<Scratch>,
    pub(crate) segments: Vec<libc::iovec>,
    /// It is among [`Flights::large`].
    is_large: bool,
}

impl Slot {
    /// Whether it has an operation in flight with which that is done when nobody waits for it.
    fn flies(&self, abandon: Abandon) -> bool {
        let flying = matches!(self.state, State::Flying(_) | State::Abandoned);
        flying && self.cargo.as_ref().is_some_and(|cargo| cargo.abandon == abandon)
    }
}

/// How an operation looks to its future.
pub(crate) enum Progress {
    Flying,
    Landed(Landing),
}

/// What is left of an operation that is over.
pub(crate) struct Landing {
    /// What the kernel said: a count, or a negated errno.
    pub(crate) result: i32,
    /// What the operation owned.
    pub(crate) bufs: Vec<IoBuf>,
    /// [`Scratch::word`].
    pub(crate) word: u64,
}

/// All operations of one ring.
#[derive(Default)]
pub(crate) struct Flights {
    slots: Vec<Slot>,
    free: Vec<u32>,
    flying: usize,
    large: usize,
}

impl Flights {
    /// A slot for an operation that is about to be launched. The cargo comes back at four billion.
    pub(crate) fn board(&mut self, cargo: Cargo) -> Result<Key, Cargo> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let Ok(index) = u32::try_from(self.slots.len()) else {
                    return Err(cargo);
                };
                self.slots.push(Slot {
                    generation: 0,
                    state: State::Free,
                    cargo: None,
                    scratch: Box::default(),
                    segments: Vec::new(),
                    is_large: false,
                });
                index
            }
        };
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Err(cargo);
        };
        slot.state = State::Flying(None);
        slot.cargo = Some(cargo);
        self.flying += 1;
        Ok(Key {
            index,
            generation: slot.generation,
        })
    }

    /// The slot of `key`, unless it has a new tenant.
    pub(crate) fn slot(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)
    }

    /// Takes back an operation that never reached the kernel.
    pub(crate) fn unboard(&mut self, key: Key) -> Option<Cargo> {
        self.flying -= 1;
        self.count_large(key, false);
        self.release(key)
    }

    /// Notes whether an operation in flight moves many bytes. True if another one does, too.
    pub(crate) fn count_large(&mut self, key: Key, is_large: bool) -> bool {
        let Some(slot) = self.slot(key) else {
            return false;
        };
        let was_large = std::mem::replace(&mut slot.is_large, is_large);
        self.large = self.large + usize::from(is_large) - usize::from(was_large);
        is_large && self.large > 1
    }

    /// The kernel is done with `key`. Returns whom to wake, and what is to be dropped if nobody waits any more.
    pub(crate) fn land(&mut self, key: Key, result: i32) -> (Option<Waker>, Option<Cargo>) {
        self.count_large(key, false);
        let Some(slot) = self.slot(key) else {
            return (None, None);
        };
        if let Some(cargo) = &slot.cargo
            && let Some(start) = cargo.fills
        {
            mark_filled(&cargo.bufs, start, result);
        }
        match std::mem::replace(&mut slot.state, State::Landed(result)) {
            State::Flying(waker) => {
                self.flying -= 1;
                (waker, None)
            }
            State::Abandoned => {
                self.flying -= 1;
                (None, self.release(key))
            }
            // One completion per operation: a second one for the same key does not exist.
            state @ (State::Free | State::Landed(_)) => {
                slot.state = state;
                (None, None)
            }
        }
    }

    /// How `key` is doing; `waker` is called when it lands.
    pub(crate) fn progress(&mut self, key: Key, waker: &Waker) -> Option<Progress> {
        let slot = self.slot(key)?;
        match &mut slot.state {
            State::Flying(Some(old)) => old.clone_from(waker),
            State::Flying(none) => *none = Some(waker.clone()),
            State::Landed(result) => {
                let (result, word) = (*result, *slot.scratch.word.get_mut());
                let bufs = self.release(key).map(|cargo| cargo.bufs).unwrap_or_default();
                return Some(Progress::Landed(Landing { result, bufs, word }));
            }
            State::Free | State::Abandoned => return None,
        }
        Some(Progress::Flying)
    }

    /// The future of `key` is gone. Returns whether the operation should be cancelled, and what is to be dropped.
    pub(crate) fn abandon(&mut self, key: Key) -> (bool, Option<Cargo>) {
        let Some(slot) = self.slot(key) else {
            return (false, None);
        };
        match slot.state {
            State::Flying(_) => {
                slot.state = State::Abandoned;
                let cancel = slot
                    .cargo
                    .as_ref()
                    .is_some_and(|cargo| cargo.abandon == Abandon::Cancel);
                (cancel, None)
            }
            State::Landed(_) => (false, self.release(key)),
            State::Free | State::Abandoned => (false, None),
        }
    }

    /// Operations the kernel is not done with.
    pub(crate) fn flying(&self) -> usize {
        self.flying
    }

    /// Keys of operations in flight that may wait for ever.
    pub(crate) fn endless(&self) -> Vec<Key> {
        let keys = self
            .slots
            .iter()
            .zip(0..)
            .filter(|(slot, _)| slot.flies(Abandon::Cancel));
        keys.map(|(slot, index)| Key {
            index,
            generation: slot.generation,
        })
        .collect()
    }

    /// Whether something is in flight that ends by itself.
    pub(crate) fn any_finite(&self) -> bool {
        self.flying > 0 && self.slots.iter().any(|slot| slot.flies(Abandon::Finish))
    }

    /// Gives up on waiting: everything the kernel may still touch is leaked.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        *self = Self::default();
    }

    fn release(&mut self, key: Key) -> Option<Cargo> {
        let slot = self.slot(key)?;
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        slot.segments.clear();
        let cargo = slot.cargo.take();
        self.free.push(key.index);
        cargo
    }
}

/// Tells the dirty log of guest RAM what the kernel wrote: everything where it failed, as nobody knows how far it came.
fn mark_filled(bufs: &[IoBuf], start: usize, result: i32) {
    let mut left = usize::try_from(result).map_or(usize::MAX, |count| start.saturating_add(count));
    for buf in bufs {
        if left == 0 {
            return;
        }
        buf.mark_written(left.min(buf.len()));
        left = left.saturating_sub(buf.len());
    }
}
