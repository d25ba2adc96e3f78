//! Queue notifications: one doorbell per queue, an event descriptor behind each.

use std::io;
use std::sync::Arc;

use device::{BusHandler, Doorbell, EventFd};

/// Bytes from one doorbell to the next (`notify_off_multiplier`).
pub(super) const DOORBELL_STRIDE: u32 = 4;

/// `EFD_NONBLOCK | EFD_CLOEXEC` (eventfd(2)): a guest that rings too often must not block a vCPU.
const EVENT_FLAGS: i32 = 0o4000 | 0o2_000_000;

pub(super) struct Doorbells(Vec<Arc<EventFd>>);

impl Doorbells {
    pub(super) fn new(queues: usize) -> io::Result<Self> {
        let events = (0..queues).map(|_| EventFd::new(EVENT_FLAGS).map(Arc::new));
        Ok(Self(events.collect::<io::Result<_>>()?))
    }

    pub(super) fn event(&self, queue: u16) -> Option<&Arc<EventFd>> {
        self.0.get(usize::from(queue))
    }
}

impl BusHandler for Doorbells {
    /// Doorbells have no value.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    /// Only where the machine does not have the kernel watch the doorbells.
    fn write(&self, offset: u64, _data: &[u8]) {
        let stride = u64::from(DOORBELL_STRIDE);
        let queue = u16::try_from(offset / stride)
            .ok()
            .filter(|_| offset.is_multiple_of(stride));
        if let Some(event) = queue.and_then(|queue| self.event(queue)) {
            // Fails only when the counter is full: then it is rung already.
            let _ = event.write(1);
        }
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let bell = |(offset, event): (u64, &Arc<EventFd>)| Doorbell {
            offset,
            event: Arc::clone(event),
        };
        (0..).step_by(DOORBELL_STRIDE as usize).zip(&self.0).map(bell).collect()
    }
}
