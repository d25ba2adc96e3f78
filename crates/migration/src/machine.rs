//! What this crate needs of a machine, at each end.

use std::sync::Arc;
use std::time::Duration;

use crate::page_set::{PAGE_BYTES, PageSet};
use crate::section::Section;
use crate::wanted::Wanted;

/// Why a machine could not do what it was asked.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Guest RAM at the source.
pub trait SourceMemory: Send + Sync {
    /// Copies the pages from `first` on into `into`, which is whole pages. Called by several threads, while the guest writes
    /// too: a page that is written meanwhile may come out torn, and is then dirty in a later [`Departing::take_dirty`].
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault>;
}

/// What saving all sections costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateCost {
    /// Bytes of all sections.
    pub bytes: u64,
    /// How long saving them, and loading them again, takes.
    pub time: Duration,
}

/// A machine that leaves.
///
/// It runs when it is handed over, and it runs when it is given back ([`crate::Departure::Stayed`]), in which case
/// [`Departing::stay`] was the last call.
pub trait Departing: Sized {
    /// Its RAM. May be read for as long as somebody holds it, also after [`Departing::departed`].
    type Memory: SourceMemory + 'static;

    /// The same memory at every call.
    fn memory(&self) -> Arc<Self::Memory>;

    /// Begins to log writes to memory, then says which pages may hold something else than zeros. Called once, first.
    fn begin(&mut self) -> Result<PageSet, Fault>;

    /// The pages written since [`Departing::begin`] or the last call, by vCPUs and devices together. After a pause: all that
    /// were written until nothing wrote any more.
    fn take_dirty(&mut self) -> Result<PageSet, Fault>;

    /// What [`Departing::save`] will cost, as measured on this machine and not guessed. The machine runs, and goes on to.
    fn state_cost(&mut self) -> Result<StateCost, Fault>;

    /// Takes away this percentage of the vCPUs' time, 0 to 99.
    fn throttle(&mut self, percent: u8);

    /// Stops vCPUs and devices. When this returns, nothing writes to memory or to the outside.
    fn pause(&mut self) -> Result<(), Fault>;

    /// The state of everything but RAM. The machine is paused.
    fn save(&mut self) -> Result<Vec<Section>, Fault>;

    /// The move came to nothing: stop logging and throttling, and run again if paused. Must work in any state.
    fn stay(&mut self) -> Result<(), Fault>;

    /// The departure is on record. By value: what is left can not run. Locks on disks and the like are given up here, before
    /// the target is told to start.
    fn departed(self);
}

/// Guest RAM at the target. All zero at first.
///
/// Before the start, writes to different pages come from several threads, those to one page from one. After the start, only
/// [`TargetMemory::place`] is called.
pub trait TargetMemory: Send + Sync {
    /// Copies the pages from `first` on into `into`: what was written there last, or zeros.
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault>;

    /// Writes whole pages from `first` on.
    fn write(&self, first: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// Puts a missing page in its place, in one step for whoever looks, and wakes who waits for it. `None` is zeros. Called
    /// once for each missing page that arrives; again, with the same content, if a call failed.
    fn place(&self, page: u64, bytes: Option<&[u8; PAGE_BYTES]>) -> Result<(), Fault>;
}

/// A machine that comes: built like the one at the source, without state, never run.
pub trait Arriving: Sized {
    /// Its RAM.
    type Memory: TargetMemory + 'static;

    /// The same memory at every call.
    fn memory(&self) -> Arc<Self::Memory>;

    /// Whether it can be started with pages missing.
    fn can_post_copy(&self) -> bool;

    /// From now on these pages are missing, whatever they hold: who touches one waits until it is placed, and its number is
    /// given to `wanted`. Called at most once, before [`Arriving::load`]. What `load` itself reads of guest memory must wait as
    /// little as the guest does: it must not touch a missing page.
    fn withhold(&mut self, missing: &PageSet, wanted: Wanted) -> Result<(), Fault>;

    /// Takes the state of everything but RAM. A section that nobody knows, and a part that gets none, is an error. When this
    /// returns `Ok`, nothing but [`Arriving::start`] is lacking, and nothing that could refuse was left for it.
    fn load(&mut self, sections: Vec<Section>) -> Result<(), Fault>;

    /// Takes over what the source gave up (locks on disks), runs, and announces itself on its networks. The source has
    /// departed: on `Err` no machine runs, and the call is made again later.
    fn start(&mut self) -> Result<(), Fault>;

    /// The move came to nothing: give everything back, leave nothing behind.
    fn discard(self);
}
