//! A BAR made of parts.

use std::sync::Arc;

use device::{BusHandler, Doorbell};

struct Region {
    offset: u64,
    size: u64,
    handler: Arc<dyn BusHandler>,
}

/// Registers of several owners behind one BAR.
///
/// An access that no single part covers reads as all ones and writes nothing.
#[derive(Default)]
pub struct Regions {
    regions: Vec<Region>,
}

impl Regions {
    /// A BAR without any registers.
    pub const fn new() -> Self {
        Self { regions: Vec::new() }
    }

    /// Adds `handler` at `offset..offset + size` bytes of the BAR. Where parts overlap the earlier one answers.
    #[must_use]
    pub fn with(mut self, offset: u64, size: u64, handler: Arc<dyn BusHandler>) -> Self {
        self.regions.push(Region { offset, size, handler });
        self
    }

    fn find(&self, offset: u64, length: usize) -> Option<(&Region, u64)> {
        let length = u64::try_from(length).ok()?;
        self.regions.iter().find_map(|region| {
            let inside = offset.checked_sub(region.offset)?;
            (inside.checked_add(length)? <= region.size).then_some((region, inside))
        })
    }
}

impl BusHandler for Regions {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset, data.len()) {
            Some((region, inside)) => region.handler.read(inside, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((region, inside)) = self.find(offset, data.len()) {
            region.handler.write(inside, data);
        }
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let shifted = |region: &Region| {
            let offset = region.offset;
            region.handler.doorbells().into_iter().map(move |bell| Doorbell {
                offset: offset + bell.offset,
                event: bell.event,
            })
        };
        self.regions.iter().flat_map(shifted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::EventFd;

    struct Part(u8);

    impl BusHandler for Part {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset).unwrap());
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
        fn doorbells(&self) -> Vec<Doorbell> {
            vec![Doorbell {
                offset: 4,
                event: Arc::new(EventFd::new(0).unwrap()),
            }]
        }
    }

    #[test]
    fn parts_answer_at_their_own_offsets() {
        let bar = Regions::new()
            .with(0x10, 0x10, Arc::new(Part(0)))
            .with(0x20, 0x10, Arc::new(Part(0x80)));
        let read = |offset| {
            let mut data = [0; 2];
            bar.read(offset, &mut data);
            data[0]
        };
        assert_eq!(
            [0x0, 0x10, 0x1e, 0x1f, 0x20, 0x2f, u64::MAX].map(read),
            [0xff, 0, 0xe, 0xff, 0x80, 0xff, 0xff]
        );
        let bells: Vec<u64> = bar.doorbells().iter().map(|bell| bell.offset).collect();
        assert_eq!(bells, [0x14, 0x24]);
    }
}
