//! An address space made of handlers: port I/O or memory-mapped I/O.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use vmm_sys_util::eventfd::EventFd;

/// Registers somewhere on a bus.
///
/// Infallible: what a guest does wrong is the guest's matter. An access a device does not know reads as all ones and writes
/// nothing. `data` is 1, 2, 4 or 8 bytes; `offset` counts from the start of the mapping, and `offset + data.len()` may
/// reach past its end only if the handler was mapped smaller than what it decodes.
pub trait BusHandler: Send + Sync {
    /// Fills `data` with what the guest reads.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes what the guest wrote.
    fn write(&self, offset: u64, data: &[u8]);

    /// Places where a write only rings a bell. The machine may have the kernel signal [`Doorbell::event`] instead of calling
    /// [`BusHandler::write`]; the handler must treat both alike.
    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }
}

/// A register whose write is a signal and nothing else.
pub struct Doorbell {
    /// Offset in the handler's mapping, bytes.
    pub offset: u64,
    /// Signalled on every write, of any length and value.
    pub event: Arc<EventFd>,
}

/// Why a range could not be mapped or unmapped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// The range touches one that is taken.
    #[error("bus range {base:#x}+{size:#x} overlaps the one at {taken:#x}")]
    Overlap {
        /// Start of the refused range.
        base: u64,
        /// Its length, bytes.
        size: u64,
        /// Start of the range it overlaps.
        taken: u64,
    },
    /// The range is empty or wraps around.
    #[error("bus range {base:#x}+{size:#x} is empty or wraps")]
    BadRange {
        /// Start of the refused range.
        base: u64,
        /// Its length, bytes.
        size: u64,
    },
    /// No mapping starts there.
    #[error("no bus range starts at {base:#x}")]
    NotMapped {
        /// Where one was expected.
        base: u64,
    },
}

struct Mapping {
    size: u64,
    handler: Arc<dyn BusHandler>,
}

/// Ranges of one address space and who answers for them. Look-ups take a read lock only, so vCPUs do not wait for each other.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Mapping>>,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `handler` at `base..base + size`.
    pub fn map(&self, base: u64, size: u64, handler: Arc<dyn BusHandler>) -> Result<(), MapError> {
        let end = base
            .checked_add(size)
            .filter(|_| size > 0)
            .ok_or(MapError::BadRange { base, size })?;
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&taken, mapping)) = ranges.range(..end).next_back()
            && taken + mapping.size > base
        {
            return Err(MapError::Overlap { base, size, taken });
        }
        ranges.insert(base, Mapping { size, handler });
        Ok(())
    }

    /// Takes away the mapping that starts at `base`.
    pub fn unmap(&self, base: u64) -> Result<(), MapError> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.remove(&base).map(drop).ok_or(MapError::NotMapped { base })
    }

    /// Reads for a vCPU; all ones where nothing is mapped. True if a handler answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address) {
            Some((handler, offset)) => {
                handler.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes for a vCPU; dropped where nothing is mapped. True if a handler took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.find(address).is_some_and(|(handler, offset)| {
            handler.write(offset, data);
            true
        })
    }

    fn find(&self, address: u64) -> Option<(Arc<dyn BusHandler>, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, mapping) = ranges.range(..=address).next_back()?;
        let offset = address - base;
        (offset < mapping.size).then(|| (Arc::clone(&mapping.handler), offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusHandler for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0.wrapping_add(u8::try_from(offset).unwrap()));
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn finds_the_handler_and_its_offset() {
        let bus = Bus::new();
        bus.map(0x10, 4, Arc::new(Echo(1))).unwrap();
        bus.map(0x14, 4, Arc::new(Echo(0x40))).unwrap();
        assert_eq!(
            [0xf, 0x10, 0x13, 0x14, 0x17, 0x18].map(|a| read(&bus, a)),
            [0xff, 1, 4, 0x40, 0x43, 0xff]
        );
    }

    #[test]
    fn refuses_overlap_from_every_side_and_bad_ranges() {
        let bus = Bus::new();
        bus.map(0x10, 0x10, Arc::new(Echo(0))).unwrap();
        for (base, size) in [(0x8, 0x9), (0x10, 1), (0x1f, 1), (0x18, 0x100), (0, 0x1000)] {
            assert_eq!(
                bus.map(base, size, Arc::new(Echo(0))),
                Err(MapError::Overlap {
                    base,
                    size,
                    taken: 0x10
                })
            );
        }
        assert!(matches!(
            bus.map(0x40, 0, Arc::new(Echo(0))),
            Err(MapError::BadRange { .. })
        ));
        assert!(matches!(
            bus.map(u64::MAX, 2, Arc::new(Echo(0))),
            Err(MapError::BadRange { .. })
        ));
        bus.map(0x8, 8, Arc::new(Echo(0))).unwrap();
        bus.map(0x20, 8, Arc::new(Echo(0))).unwrap();
    }

    #[test]
    fn unmap_frees_the_range() {
        let bus = Bus::new();
        bus.map(0x10, 0x10, Arc::new(Echo(0))).unwrap();
        assert_eq!(bus.unmap(0x11), Err(MapError::NotMapped { base: 0x11 }));
        bus.unmap(0x10).unwrap();
        bus.map(0x18, 0x10, Arc::new(Echo(7))).unwrap();
        assert_eq!(read(&bus, 0x18), 7);
    }
}
