//! What workers share with the transport: vectors, ISR status, and whether the device gave up. No locks but MSI-X's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

use device::BusHandler;
use pci::Msix;
use telemetry::RateLimited;

use super::status::NEEDS_RESET;
use crate::fault::RingError;
use crate::signals::Signals;

/// "No vector": the event raises no interrupt (virtio 1.2 §4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue was used. Only told where no vector tells it: to drivers without MSI-X (virtio 1.2 §4.1.4.5.1).
const ISR_QUEUE: u8 = 1;
/// ISR status: configuration changed.
const ISR_CONFIG: u8 = 2;

savestate::record! {
    /// What workers and driver tell each other by.
    pub(super) struct LinkState {
        config_vector: u16,
        pub(super) queue_vectors: Vec<u16>,
        isr: u8,
        generation: u8,
        pub(super) given_up: bool,
    }
}

pub(super) struct Link {
    device: String,
    msix: Arc<Msix>,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
    generation: AtomicU8,
    given_up: AtomicBool,
    stops: AtomicU64,
    /// A guest can break its rings all day.
    log: RateLimited,
}

impl Link {
    pub(super) fn new(device: String, msix: Arc<Msix>, queues: usize) -> Self {
        Self {
            device,
            msix,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            given_up: AtomicBool::new(false),
            stops: AtomicU64::new(0),
            log: RateLimited::new(),
        }
    }

    /// Status bits that workers set.
    pub(super) fn status(&self) -> u8 {
        if self.given_up.load(Ordering::Acquire) {
            NEEDS_RESET
        } else {
            0
        }
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn stops(&self) -> u64 {
        self.stops.load(Ordering::Relaxed)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.known(vector), Ordering::Relaxed);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(place) = self.queue_vectors.get(usize::from(queue)) {
            place.store(self.known(vector), Ordering::Relaxed);
        }
    }

    /// Reset: no vectors, nothing pending, not broken. The device is inactive.
    pub(super) fn clear(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.isr.store(0, Ordering::Relaxed);
        self.given_up.store(false, Ordering::Release);
    }

    pub(super) fn state(&self) -> LinkState {
        let vectors = self.queue_vectors.iter();
        LinkState {
            config_vector: self.config_vector(),
            queue_vectors: vectors.map(|vector| vector.load(Ordering::Relaxed)).collect(),
            isr: self.isr.load(Ordering::Acquire),
            generation: self.generation(),
            given_up: self.given_up.load(Ordering::Acquire),
        }
    }

    /// Becomes what was saved. The device is inactive, and has as many queues.
    pub(super) fn set_state(&self, saved: &LinkState) {
        self.set_config_vector(saved.config_vector);
        for (queue, &vector) in (0..).zip(&saved.queue_vectors) {
            self.set_queue_vector(queue, vector);
        }
        self.isr.store(saved.isr, Ordering::Release);
        self.generation.store(saved.generation, Ordering::Release);
        self.given_up.store(saved.given_up, Ordering::Release);
    }

    /// The device can not go on: for `error`, whoever's fault it is.
    pub(super) fn give_up(&self, error: &dyn std::fmt::Display) {
        self.stops.fetch_add(1, Ordering::Relaxed);
        if let Some(admitted) = self.log.admit() {
            let (device, suppressed) = (&self.device, admitted.suppressed);
            tracing::warn!(device, %error, suppressed, "virtio device stops until its driver resets it");
        }
        if !self.given_up.swap(true, Ordering::AcqRel) {
            self.config_changed();
        }
    }

    fn known(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }
}

impl Signals for Link {
    fn queue_used(&self, index: u16) {
        match self.queue_vector(index) {
            NO_VECTOR => {
                self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
            }
            vector => self.msix.trigger(vector),
        }
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        let vector = self.config_vector();
        if vector != NO_VECTOR {
            self.msix.trigger(vector);
        }
    }

    fn needs_reset(&self, index: u16, error: &RingError) {
        self.give_up(&format_args!("queue {index}: {error}"));
    }
}

/// The ISR status byte: reading clears it.
pub(super) struct IsrStatus(pub(super) Arc<Link>);

impl BusHandler for IsrStatus {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = self.0.isr.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
