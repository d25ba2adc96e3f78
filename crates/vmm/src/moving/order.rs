//! What the migration thread asks of the state driver, and what it is told.

use std::sync::mpsc::Sender;

use control::MigrationNews;
use guestmem::GuestMemory;
use migration::{Dialer, Fault, PageSet, StateCost};

/// Where an answer goes.
pub type Answer<T> = Sender<Result<T, Fault>>;

/// What the migration thread wants. The driver answers when it is done.
pub enum MoveOrder {
    /// Log writes.
    Begin(Answer<()>),
    /// Say which pages were written since.
    TakeDirty(Answer<PageSet>),
    /// Say what saving costs.
    Cost(Answer<StateCost>),
    /// Slow the vCPUs by this percentage.
    Throttle(u8),
    /// Stop vCPUs and devices.
    Pause(Answer<()>),
    /// They were stopped, and all that the guest did before has been dealt with.
    Paused(Answer<()>),
    /// Save everything but memory.
    Save(Answer<Vec<u8>>),
    /// Go on as before.
    Stay(Answer<()>),
    /// The departure is on record: give the machine up, all but its memory.
    Departed(Answer<()>),
    /// Take over this state.
    Load {
        /// Everything but memory.
        state: Vec<u8>,
        /// The machine was paused, and stays so.
        paused: bool,
        /// When it is done.
        answer: Answer<()>,
    },
    /// Run what has arrived.
    Start(Answer<()>),
    /// Give up what did not arrive.
    Discard(Answer<()>),
    /// Tell the daemon.
    Tell(MigrationNews),
    /// The thread is about to end.
    Over(Outcome),
}

/// How a move ended, as far as the process is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The machine is elsewhere, and nothing of it is needed here.
    Gone,
    /// It stayed.
    Stayed {
        /// Why.
        reason: String,
        /// Somebody wanted it so.
        cancelled: bool,
    },
    /// It is here with all of its memory.
    Arrived,
    /// It did not come.
    Discarded {
        /// Why.
        reason: String,
    },
}

/// What the daemon has to say to a move.
pub enum Steer {
    /// Bytes per second from now on.
    Tune(u64),
    /// Give it up.
    Cancel,
    /// To the thread.
    Word(Word),
}

/// What the migration thread waits for.
pub enum Word {
    /// What is on record at the source.
    Decided {
        /// The machine has departed.
        departed: bool,
    },
    /// Streams in the place of those that broke.
    Links(Box<dyn Dialer + Send>),
}

/// The memory of a machine that moves, and what the migration thread asks of the driver about the rest.
pub(crate) struct Asking {
    pub(crate) orders: Box<dyn Fn(MoveOrder) + Send + Sync>,
    pub(crate) memory: GuestMemory,
}

/// The driver is gone, and the machine with it.
#[derive(Debug, thiserror::Error)]
#[error("the machine has ended")]
struct Ended;

impl Asking {
    /// Has something done, and waits for it.
    pub(crate) fn ask<T>(&self, order: impl FnOnce(Answer<T>) -> MoveOrder) -> Result<T, Fault> {
        let (answer, answered) = std::sync::mpsc::channel();
        (self.orders)(order(answer));
        answered.recv().unwrap_or_else(|_| Err(Box::new(Ended)))
    }

    /// Does not wait.
    pub(crate) fn tell(&self, order: MoveOrder) {
        (self.orders)(order);
    }
}
