//! One virtqueue as its worker holds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use device::EventFd;
use guestmem::{Bytes, GuestAddress, GuestMemory};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::chain::Chain;
use crate::fault::RingError;
use crate::signals::Signals;

/// Avail ring flag: the driver wants no interrupts (virtio 1.2 §2.7.6). Meaningless with `EVENT_IDX`.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// What a driver programmed for a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RingSetup {
    /// Entries.
    pub(crate) size: u16,
    /// Guest-physical address of the descriptor table.
    pub(crate) descriptors: u64,
    /// Guest-physical address of the driver area.
    pub(crate) available: u64,
    /// Guest-physical address of the device area.
    pub(crate) used: u64,
}

/// Where a queue is, for whoever saves it while its worker stands still.
#[derive(Debug, Default)]
pub(crate) struct Position(AtomicU32);

impl Position {
    /// Next entry of the available and of the used ring.
    pub(crate) fn get(&self) -> (u16, u16) {
        let [a0, a1, u0, u1] = self.0.load(Ordering::Acquire).to_le_bytes();
        (u16::from_le_bytes([a0, a1]), u16::from_le_bytes([u0, u1]))
    }

    pub(crate) fn set(&self, (available, used): (u16, u16)) {
        let both = u32::from(used) << 16 | u32::from(available);
        self.0.store(both, Ordering::Release);
    }
}

/// What a queue has of its own, beside what the driver programmed.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) kick: &'a Arc<EventFd>,
    /// Where it begins, and tells where it is.
    pub(crate) position: &'a Arc<Position>,
}

/// A split virtqueue with its position, its doorbell and its way to the driver.
///
/// Owned by exactly one worker while the device is active. A worker serves it so:
///
/// ```text
///   loop { while let Some(chain) = pop() { … push(head, written) … }  signal();  if !arm() { wait for kick() } }
/// ```
///
/// The first [`RingError`] is the last thing to do with it: [`VirtQueue::fail`].
pub struct VirtQueue {
    index: u16,
    ring: Queue,
    memory: GuestMemory,
    kick: Arc<EventFd>,
    signals: Arc<dyn Signals>,
    /// Chains were pushed since the last [`VirtQueue::signal`].
    unsignalled: bool,
    shown: Arc<Position>,
}

impl VirtQueue {
    pub(crate) fn new(
        index: u16,
        setup: RingSetup,
        event_idx: bool,
        memory: &GuestMemory,
        ends: Ends<'_>,
        signals: &Arc<dyn Signals>,
    ) -> Result<Self, RingError> {
        let mut ring = Queue::new(setup.size)?;
        ring.try_set_size(setup.size)?;
        ring.try_set_desc_table_address(GuestAddress(setup.descriptors))?;
        ring.try_set_avail_ring_address(GuestAddress(setup.available))?;
        ring.try_set_used_ring_address(GuestAddress(setup.used))?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        let (available, used) = ends.position.get();
        ring.set_next_avail(available);
        ring.set_next_used(used);
        let size = usize::from(setup.size);
        let extents = [
            (setup.descriptors, 16 * size),
            (setup.available, 6 + 2 * size),
            (setup.used, 6 + 8 * size),
        ];
        if !extents
            .iter()
            .all(|&(gpa, len)| memory.contains(GuestAddress(gpa), len))
        {
            return Err(RingError::BadRing {
                why: "rings outside of guest memory",
            });
        }
        Ok(Self {
            index,
            ring,
            memory: memory.clone(),
            kick: Arc::clone(ends.kick),
            signals: Arc::clone(signals),
            unsignalled: false,
            shown: Arc::clone(ends.position),
        })
    }

    /// Which queue of its device this is.
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Guest RAM.
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Rung when chains may have become available.
    pub const fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// Next entry of the available and of the used ring: all that has to be kept when a queue moves.
    pub fn position(&self) -> (u16, u16) {
        (self.ring.next_avail(), self.ring.next_used())
    }

    /// Next available chain.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let ram = self.memory.inner();
        let Some(chain) = self.ring.iter(ram)?.next() else {
            return Ok(None);
        };
        self.show();
        Chain::collect(chain).map(Some)
    }

    /// Makes the chain popped last available again, unless it was pushed. Chains come back in the reverse order of their pops.
    pub fn unpop(&mut self) {
        self.ring.go_to_previous_position();
        self.show();
    }

    fn show(&self) {
        self.shown.set(self.position());
    }

    /// Gives a chain back with `written` bytes at the front of its writable buffers filled.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.unsignalled = true;
        self.ring.add_used(self.memory.inner(), head, written)?;
        self.show();
        Ok(())
    }

    /// Interrupts for what was pushed since the last call, if the driver wants to know.
    pub fn signal(&mut self) -> Result<(), RingError> {
        if !std::mem::take(&mut self.unsignalled) {
            return Ok(());
        }
        let wanted = if self.ring.event_idx_enabled() {
            self.ring.needs_notification(self.memory.inner())?
        } else {
            std::sync::atomic::fence(Ordering::SeqCst);
            let flags: u16 = self
                .memory
                .load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
            u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0
        };
        if wanted {
            self.signals.queue_used(self.index);
        }
        Ok(())
    }

    /// Asks for a kick when chains become available. True if there are some already, which may bring no kick.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        Ok(self.ring.enable_notification(self.memory.inner())?)
    }

    /// Asks for no kicks: the worker looks by itself. A hint.
    pub fn disarm(&mut self) -> Result<(), RingError> {
        Ok(self.ring.disable_notification(self.memory.inner())?)
    }

    /// Gives up: the driver is told to reset the device.
    pub fn fail(&mut self, error: &RingError) {
        self.signals.needs_reset(self.index, error);
    }
}
