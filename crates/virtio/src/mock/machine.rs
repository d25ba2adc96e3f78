//! A machine's side: a bus for BARs, and interrupts that are counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use device::{Bus, BusHandler, MapError, MsiMessage, MsiRoutes};
use pci::BarSpace;

#[derive(Default)]
pub(super) struct Space(pub(super) Bus);

impl BarSpace for Space {
    fn map(&self, base: u64, size: u64, handler: Arc<dyn BusHandler>) -> Result<(), MapError> {
        self.0.map(base, size, handler)
    }

    fn unmap(&self, base: u64, _size: u64, _handler: &Arc<dyn BusHandler>) {
        self.0.unmap(base).unwrap();
    }
}

/// Interrupts of the device: how many of each vector.
#[derive(Default)]
pub struct MockRoutes {
    routed: Mutex<BTreeMap<u16, MsiMessage>>,
    delivered: Mutex<BTreeMap<u16, u64>>,
    changed: Condvar,
}

impl MockRoutes {
    /// Interrupts of `vector` so far.
    pub fn delivered(&self, vector: u16) -> u64 {
        self.delivered.lock().unwrap().get(&vector).copied().unwrap_or(0)
    }

    /// Waits until there were more than `seen` interrupts of `vector`; false at the deadline.
    pub fn wait_beyond(&self, vector: u16, seen: u64, deadline: Instant) -> bool {
        let mut delivered = self.delivered.lock().unwrap();
        while delivered.get(&vector).copied().unwrap_or(0) <= seen {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            (delivered, _) = self.changed.wait_timeout(delivered, left).unwrap();
        }
        true
    }
}

impl MsiRoutes for MockRoutes {
    fn route(&self, vector: u16, message: Option<MsiMessage>) {
        let mut routed = self.routed.lock().unwrap();
        match message {
            Some(message) => routed.insert(vector, message),
            None => routed.remove(&vector),
        };
    }

    fn deliver(&self, vector: u16) {
        assert!(
            self.routed.lock().unwrap().contains_key(&vector),
            "vector {vector} has no route"
        );
        *self.delivered.lock().unwrap().entry(vector).or_default() += 1;
        self.changed.notify_all();
    }
}
