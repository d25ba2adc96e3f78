//! The block device as its transport sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use device::{Draining, Migrate, Migration, SaveError};
use disk::{Disk, Geometry};
use savestate::{LoadError, SaveState, Section, Sections};
use telemetry::RateLimited;
use virtio::{ActivateError, Activation, DeviceKind, Signals, VirtQueue, VirtioDevice};

use super::config::{self, BlkOptions, WRITEBACK, feature};
use super::request::SERIAL_SIZE;
use super::worker::{Shared, Worker};
use crate::config_space;
use crate::crew::{Crew, Job};
use crate::figures::DiskFigures;

savestate::section! {
    struct BlkState = "virtio-blk", version 1 {
        /// The guest may lose completed writes until it flushes.
        writeback: bool,
        /// The write cache was given up, and is not flushed yet.
        flush_owed: bool,
    }
}

/// A virtio block device on a disk.
pub struct Blk {
    disk: Arc<dyn Disk>,
    /// As it was when the device was made; only the size is looked up again.
    geometry: Geometry,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
    crew: Crew,
    /// What the driver negotiated, and the way to it, while active.
    link: Mutex<Option<(u64, Arc<dyn Signals>)>>,
}

impl Blk {
    /// A device for `disk`. Opens nothing yet: each worker opens its own queue of the disk.
    pub fn new(disk: Arc<dyn Disk>, options: BlkOptions) -> Self {
        let mut serial = [0; SERIAL_SIZE];
        for (place, &byte) in serial.iter_mut().zip(options.serial.as_bytes()) {
            *place = byte;
        }
        Self {
            geometry: disk.geometry(),
            disk,
            queue_sizes: options.queue_sizes(),
            shared: Arc::new(Shared {
                name: options.name,
                serial,
                figures: Arc::default(),
                writeback: AtomicBool::new(true),
                flush_owed: AtomicBool::new(false),
                log: RateLimited::new(),
            }),
            crew: Crew::default(),
            link: Mutex::default(),
        }
    }

    /// What it did so far.
    pub fn figures(&self) -> &Arc<DiskFigures> {
        &self.shared.figures
    }

    /// Tells the driver that the disk has grown.
    pub fn resized(&self) {
        if let Some((_, signals)) = &*self.link.lock().unwrap_or_else(PoisonError::into_inner) {
            signals.config_changed();
        }
    }

    fn set_link(&self, link: Option<(u64, Arc<dyn Signals>)>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    fn job(&self, queue: VirtQueue) -> Job<Worker> {
        let (disk, shared) = (Arc::clone(&self.disk), Arc::clone(&self.shared));
        Job {
            queue: queue.index(),
            make: Box::new(move |place| {
                place.listen(&queue)?;
                let io = disk.open_queue()?;
                Ok(Worker::new(queue, io, shared, place.ring.clone(), place.bell.clone()))
            }),
        }
    }
}

impl VirtioDevice for Blk {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::BLOCK
    }

    fn features(&self) -> u64 {
        config::features(&self.geometry, self.queue_sizes.len())
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let geometry = Geometry {
            size_bytes: self.disk.geometry().size_bytes,
            ..self.geometry
        };
        let writeback = self.shared.writeback.load(Ordering::Relaxed);
        config_space::read(&config::space(&geometry, &self.queue_sizes, writeback), offset, data);
    }

    /// Only the write cache can be changed, by drivers that negotiated it. Whoever gives it up gets what is in it flushed.
    fn config_write(&self, offset: u64, data: &[u8]) {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let negotiated = link
            .as_ref()
            .is_some_and(|(features, _)| features & feature::CONFIG_WCE != 0);
        if let (WRITEBACK, &[mode], true) = (offset, data, negotiated) {
            let before = self.shared.writeback.swap(mode != 0, Ordering::SeqCst);
            if before && mode == 0 {
                self.shared.flush_owed.store(true, Ordering::SeqCst);
                self.crew.nudge();
            }
        }
    }

    fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        // A driver that can not flush must not need to (virtio 1.2 §5.2.6.2).
        let flushes = activation.features & feature::FLUSH != 0;
        self.shared.writeback.store(flushes, Ordering::Relaxed);
        let jobs = activation.queues.into_iter().map(|queue| self.job(queue)).collect();
        self.crew.start(&self.shared.name, &activation.signals, jobs)?;
        self.set_link(Some((activation.features, activation.signals)));
        Ok(())
    }

    fn deactivate(&self) -> Vec<VirtQueue> {
        self.set_link(None);
        let queues = self.crew.stop();
        self.shared.writeback.store(true, Ordering::Relaxed);
        queues
    }

    fn pause(&self) -> Draining {
        self.crew.pause()
    }

    fn resume(&self) {
        self.crew.resume();
    }

    fn migration(&self) -> Migration<'_> {
        Migration::Sections(self)
    }
}

impl Migrate for Blk {
    fn save(&self) -> Result<Vec<Section>, SaveError> {
        let state = BlkState {
            writeback: self.shared.writeback.load(Ordering::SeqCst),
            flush_owed: self.shared.flush_owed.load(Ordering::SeqCst),
        };
        Ok(vec![state.save(&self.shared.name)])
    }

    fn load(&self, sections: &mut Sections) -> Result<(), LoadError> {
        let (state, _) = sections.take::<BlkState>(&self.shared.name)?;
        self.shared.writeback.store(state.writeback, Ordering::SeqCst);
        self.shared.flush_owed.store(state.flush_owed, Ordering::SeqCst);
        Ok(())
    }
}
