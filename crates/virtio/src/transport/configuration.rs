//! The common configuration structure (virtio 1.2 §4.1.4.3): what the driver chose for the device and its queues.

use super::link::Link;
use crate::queue::RingSetup;

savestate::record! {
    /// What the driver chose for a queue.
    pub(super) struct QueueState {
        size: u16,
        enabled: bool,
        descriptors: u64,
        available: u64,
        used: u64,
    }
}

savestate::record! {
    /// What the driver chose.
    pub(super) struct RegistersState {
        feature_select: u32,
        driver_feature_select: u32,
        driver_features: u64,
        queue_select: u16,
        queues: Vec<QueueState>,
    }
}

/// Offset of the status byte, the only register with a will of its own.
pub(super) const STATUS: u64 = 0x14;
/// Bytes of the structure.
const SIZE: usize = 0x3c;

#[derive(Clone, Copy)]
struct Queue {
    size_max: u16,
    enabled: bool,
    setup: RingSetup,
}

pub(super) struct Registers {
    feature_select: u32,
    driver_feature_select: u32,
    pub(super) driver_features: u64,
    queue_select: u16,
    queues: Vec<Queue>,
}

impl Registers {
    /// As after reset, for queues of these largest sizes.
    pub(super) fn new(sizes: &[u16]) -> Self {
        let queue = |&size_max: &u16| Queue {
            size_max,
            enabled: false,
            setup: RingSetup {
                size: size_max,
                ..RingSetup::default()
            },
        };
        Self {
            feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: sizes.iter().map(queue).collect(),
        }
    }

    pub(super) fn state(&self) -> RegistersState {
        let saved = |queue: &Queue| QueueState {
            size: queue.setup.size,
            enabled: queue.enabled,
            descriptors: queue.setup.descriptors,
            available: queue.setup.available,
            used: queue.setup.used,
        };
        RegistersState {
            feature_select: self.feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(saved).collect(),
        }
    }

    /// The registers that were saved, if a device with queues of these sizes can have them.
    pub(super) fn of_state(saved: &RegistersState, sizes: &[u16]) -> Result<Self, String> {
        if saved.queues.len() != sizes.len() {
            let (now, then) = (sizes.len(), saved.queues.len());
            return Err(format!("it has {now} queues, and had {then}"));
        }
        let mut registers = Self::new(sizes);
        for (queue, saved) in registers.queues.iter_mut().zip(&saved.queues) {
            if !saved.size.is_power_of_two() || saved.size > queue.size_max {
                return Err(format!("it had a queue of {} entries", saved.size));
            }
            queue.enabled = saved.enabled;
            queue.setup = RingSetup {
                size: saved.size,
                descriptors: saved.descriptors,
                available: saved.available,
                used: saved.used,
            };
        }
        registers.feature_select = saved.feature_select;
        registers.driver_feature_select = saved.driver_feature_select;
        registers.driver_features = saved.driver_features;
        registers.queue_select = saved.queue_select;
        Ok(registers)
    }

    /// Queues the driver enabled.
    pub(super) fn enabled(&self) -> impl Iterator<Item = (u16, RingSetup)> {
        let numbered = (0..).zip(&self.queues);
        numbered
            .filter(|(_, queue)| queue.enabled)
            .map(|(index, queue)| (index, queue.setup))
    }

    /// The structure as the driver reads it.
    pub(super) fn bytes(&self, offered: u64, status: u8, link: &Link) -> [u8; SIZE] {
        let queue = self.queues.get(usize::from(self.queue_select));
        let setup = queue.map_or(RingSetup::default(), |queue| queue.setup);
        let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let fields: [(usize, &[u8]); 16] = [
            (0x00, &self.feature_select.to_le_bytes()),
            (0x04, &half(offered, self.feature_select).to_le_bytes()),
            (0x08, &self.driver_feature_select.to_le_bytes()),
            (
                0x0c,
                &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
            ),
            (0x10, &link.config_vector().to_le_bytes()),
            (0x12, &queues.to_le_bytes()),
            (0x14, &[status, link.generation()]),
            (0x16, &self.queue_select.to_le_bytes()),
            (0x18, &setup.size.to_le_bytes()),
            (0x1a, &link.queue_vector(self.queue_select).to_le_bytes()),
            (0x1c, &u16::from(queue.is_some_and(|queue| queue.enabled)).to_le_bytes()),
            (0x1e, &queue.map_or(0, |_| self.queue_select).to_le_bytes()),
            (0x20, &setup.descriptors.to_le_bytes()),
            (0x28, &setup.available.to_le_bytes()),
            (0x30, &setup.used.to_le_bytes()),
            (0x38, &[0; 4]),
        ];
        let mut bytes = [0; SIZE];
        for (offset, field) in fields {
            for (out, &byte) in bytes.iter_mut().skip(offset).zip(field) {
                *out = byte;
            }
        }
        bytes
    }

    /// A write of a whole field, or of half a 64-bit one. Others are dropped (virtio 1.2 §4.1.3.1). `phase` is whether
    /// features are still negotiated, and whether the device owns its queues.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], phase: (bool, bool), link: &Link) {
        let (negotiating, live) = phase;
        if let &[a, b, c, d, e, f, g, h] = data {
            self.write(offset, &[a, b, c, d], phase, link);
            self.write(offset + 4, &[e, f, g, h], phase, link);
        } else if let Ok(&value) = <&[u8; 4]>::try_from(data) {
            let value = u32::from_le_bytes(value);
            match offset {
                0x00 => self.feature_select = value,
                0x08 => self.driver_feature_select = value,
                0x0c if negotiating => set_half(&mut self.driver_features, self.driver_feature_select, value),
                0x20..0x38 if !live => self.write_address(offset, value),
                _ => {}
            }
        } else if let Ok(&value) = <&[u8; 2]>::try_from(data) {
            let value = u16::from_le_bytes(value);
            match offset {
                0x10 => link.set_config_vector(value),
                0x16 => self.queue_select = value,
                0x1a => link.set_queue_vector(self.queue_select, value),
                0x18 | 0x1c if !live => self.write_queue(offset, value),
                _ => {}
            }
        }
    }

    fn write_queue(&mut self, offset: u64, value: u16) {
        let Some(queue) = self.selected() else { return };
        if offset == 0x1c {
            queue.enabled |= value == 1;
        } else if !queue.enabled && value.is_power_of_two() && value <= queue.size_max {
            queue.setup.size = value;
        }
    }

    fn write_address(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.selected().filter(|queue| !queue.enabled) else {
            return;
        };
        let address = match offset & !7 {
            0x20 => &mut queue.setup.descriptors,
            0x28 => &mut queue.setup.available,
            _ => &mut queue.setup.used,
        };
        match offset & 7 {
            0 => set_half(address, 0, value),
            4 => set_half(address, 1, value),
            _ => {}
        }
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }
}

/// Half 0 or 1 of a 64-bit field; there are no others.
fn half(value: u64, which: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match which {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_half(value: &mut u64, which: u32, new: u32) {
    match which {
        0 => *value = *value & !0xffff_ffff | u64::from(new),
        1 => *value = *value & 0xffff_ffff | u64::from(new) << 32,
        _ => {}
    }
}
