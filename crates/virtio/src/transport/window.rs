//! The BAR through configuration space, for firmware without memory-mapped access (virtio 1.2 §4.1.4.9).

use std::sync::Arc;

use device::BusHandler;
use pci::CapabilityWindow;

/// `pci_cfg_data` of the capability: reads and writes the BAR where its other fields point.
pub(super) struct BarWindow {
    handler: Arc<dyn BusHandler>,
    bar: u8,
    size: u64,
}

impl BarWindow {
    /// Offsets in the capability's body (`struct virtio_pci_cap` less its first two bytes).
    pub(super) const BAR_AT: usize = 2;
    pub(super) const OFFSET_AT: usize = 6;
    pub(super) const DATA_AT: usize = 14;

    pub(super) const fn new(handler: Arc<dyn BusHandler>, bar: u8, size: u64) -> Self {
        Self { handler, bar, size }
    }

    /// Where in the BAR the driver points, if that can be accessed.
    fn target(&self, body: &[u8]) -> Option<(u64, usize)> {
        let bar = *body.get(Self::BAR_AT)?;
        let (&offset, rest) = body.get(Self::OFFSET_AT..)?.split_first_chunk::<4>()?;
        let (&length, _) = rest.split_first_chunk::<4>()?;
        let (offset, length) = (u64::from(u32::from_le_bytes(offset)), u32::from_le_bytes(length));
        let fits = offset + u64::from(length) <= self.size && offset.is_multiple_of(u64::from(length.max(1)));
        (bar == self.bar && matches!(length, 1 | 2 | 4) && fits).then_some((offset, length as usize))
    }
}

impl CapabilityWindow for BarWindow {
    fn read(&self, body: &[u8], offset: usize, data: &mut [u8]) {
        data.fill(0);
        let mut value = [0; 4];
        if let Some((target, length)) = self.target(body)
            && let Some(value) = value.get_mut(..length)
        {
            self.handler.read(target, value);
        }
        for (out, &byte) in data.iter_mut().zip(value.iter().skip(offset)) {
            *out = byte;
        }
    }

    fn write(&self, body: &[u8], offset: usize, data: &[u8]) {
        if let Some((target, length)) = self.target(body)
            && offset == 0
            && let Some(data) = data.get(..length)
        {
            self.handler.write(target, data);
        }
    }
}
