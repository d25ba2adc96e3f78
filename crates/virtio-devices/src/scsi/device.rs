//! The SCSI host as its transport sees it, and as its machine does.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{Draining, Migration};
use disk::Disk;
use virtio::{ActivateError, Activation, DeviceKind, VirtQueue, VirtioDevice};

use super::address::Lun;
use super::config::{FIRST_REQUEST_QUEUE, KIND, Layout, LunOptions, Medium, ScsiOptions, feature};
use super::control::Steward;
use super::counters::ScsiCounters;
use super::events::{Events, Happening};
use super::task::Mailboxes;
use super::unit::{Attention, CD_BLOCK, Unit, Units};
use super::worker::{Shared, Worker};
use crate::config_space;
use crate::crew::{Crew, Job, Place};
use crate::figures::DiskFigures;

/// Most units of one host, by choice: REPORT LUNS of all of them fits two pages.
const UNITS_MAX: usize = 1024;

/// Why a unit could not be attached, detached or resized.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScsiError {
    /// There is a unit already.
    #[error("scsi unit {lun} is taken: detach it first or choose another place")]
    Taken {
        /// Where.
        lun: Lun,
    },
    /// There is no unit.
    #[error("there is no scsi unit {lun}")]
    Nobody {
        /// Where.
        lun: Lun,
    },
    /// The host holds no more.
    #[error("scsi unit {lun} is one too many: a host holds {UNITS_MAX}")]
    Full {
        /// Where.
        lun: Lun,
    },
    /// A CD needs sectors that make up its own.
    #[error(
        "scsi unit {lun} can not be a cd-rom: its disk has sectors of {sector_bytes} bytes, not of 512, 1024 or 2048"
    )]
    BadSectors {
        /// Where.
        lun: Lun,
        /// Of the disk.
        sector_bytes: u32,
    },
}

/// A virtio SCSI host. See the module for how to use it.
pub struct Scsi {
    queue_sizes: Vec<u16>,
    pub(super) shared: Arc<Shared>,
    crew: Crew,
}

impl Scsi {
    /// A host without units.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "options are made for one device, and given to it, as for the others"
    )]
    pub fn new(options: ScsiOptions) -> Self {
        Self {
            queue_sizes: options.queue_sizes(),
            shared: Arc::new(Shared {
                name: options.name.clone(),
                units: Units::default(),
                layout: Layout::new(),
                mailboxes: Mailboxes::default(),
                events: Events::default(),
                counters: Arc::default(),
            }),
            crew: Crew::default(),
        }
    }

    /// Puts `disk` at `lun`. Opens nothing yet: each worker opens its own queue of the disk with the first command. A driver
    /// that runs is told.
    ///
    /// # Errors
    /// The place is taken, there are too many units, or the disk is none for this medium.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "options are made for one unit, and given to it"
    )]
    pub fn attach(&self, lun: Lun, disk: Arc<dyn Disk>, options: LunOptions) -> Result<(), ScsiError> {
        let sector_bytes = disk.geometry().logical_sector_bytes;
        if options.medium == Medium::CdRom && !CD_BLOCK.is_multiple_of(sector_bytes) {
            return Err(ScsiError::BadSectors { lun, sector_bytes });
        }
        self.shared.units.change(|table| {
            if table.contains_key(&lun) {
                return Err(ScsiError::Taken { lun });
            }
            if table.len() >= UNITS_MAX {
                return Err(ScsiError::Full { lun });
            }
            tell_neighbours(table, lun);
            let unit = Unit::new(&self.shared.name, lun, disk, &options);
            table.insert(lun, Arc::new(unit));
            Ok(())
        })?;
        self.tell(Happening::Added, lun);
        Ok(())
    }

    /// Takes the unit at `lun` away: it is gone for the guest when this returns, and a driver that runs is told. The disk is in
    /// use until the token was waited for: commands in flight are finished.
    ///
    /// # Errors
    /// There is no such unit.
    pub fn detach(&self, lun: Lun) -> Result<Draining, ScsiError> {
        let unit = self.shared.units.change(|table| {
            let unit = table.remove(&lun).ok_or(ScsiError::Nobody { lun })?;
            tell_neighbours(table, lun);
            Ok(unit)
        })?;
        self.tell(Happening::Removed, lun);
        Ok(Draining::until(move || unit.wait_left()))
    }

    /// Tells the driver that the disk at `lun` has grown.
    ///
    /// # Errors
    /// There is no such unit.
    pub fn resized(&self, lun: Lun) -> Result<(), ScsiError> {
        let unit = self.shared.units.get(lun).ok_or(ScsiError::Nobody { lun })?;
        unit.raise(Attention::Capacity);
        self.tell(Happening::Resized, lun);
        Ok(())
    }

    /// The units there are.
    pub fn luns(&self) -> Vec<Lun> {
        self.shared.units.read(|table| table.keys().copied().collect())
    }

    /// What the unit at `lun` did since it was attached.
    pub fn figures(&self, lun: Lun) -> Option<Arc<DiskFigures>> {
        self.shared.units.get(lun).map(|unit| Arc::clone(&unit.figures))
    }

    /// What the host did so far.
    pub fn counters(&self) -> &Arc<ScsiCounters> {
        &self.shared.counters
    }

    fn tell(&self, happening: Happening, lun: Lun) {
        if !self.shared.events.add(happening, lun) {
            ScsiCounters::count(&self.shared.counters.events_missed);
        }
        self.crew.nudge();
    }

    fn worker(&self, queue: VirtQueue) -> Job<Staff> {
        let shared = Arc::clone(&self.shared);
        Job {
            queue: queue.index(),
            make: Box::new(move |place: &Place| {
                place.listen(&queue)?;
                let worker = Worker::new(queue, &shared, place.ring.clone(), place.bell.clone());
                Ok(Staff::Worker(worker))
            }),
        }
    }

    fn steward(&self, queues: Vec<VirtQueue>) -> Job<Staff> {
        let shared = Arc::clone(&self.shared);
        Job {
            queue: queues.first().map_or(0, VirtQueue::index),
            make: Box::new(move |place: &Place| {
                queues.iter().try_for_each(|queue| place.listen(queue))?;
                let steward = Steward::new(queues, shared, place.ring.clone(), place.bell.clone());
                Ok(Staff::Steward(steward))
            }),
        }
    }
}

/// The other units of a target have to say that there are not those any more that there were.
fn tell_neighbours(table: &BTreeMap<Lun, Arc<Unit>>, lun: Lun) {
    let neighbours = table.values().filter(|unit| unit.lun.target() == lun.target());
    neighbours.for_each(|unit| unit.raise(Attention::Units));
}

/// Whoever serves queues of a host.
enum Staff {
    Worker(Worker),
    Steward(Steward),
}

impl crate::crew::Service for Staff {
    fn begin(&mut self) {
        match self {
            Self::Worker(worker) => worker.begin(),
            Self::Steward(steward) => steward.begin(),
        }
    }

    fn settle(&mut self) -> bool {
        match self {
            Self::Worker(worker) => worker.settle(),
            Self::Steward(steward) => steward.settle(),
        }
    }

    fn hold(&mut self) {
        match self {
            Self::Worker(worker) => worker.hold(),
            Self::Steward(steward) => steward.hold(),
        }
    }

    fn finish(self) -> Vec<VirtQueue> {
        match self {
            Self::Worker(worker) => worker.finish(),
            Self::Steward(steward) => steward.finish(),
        }
    }
}

impl VirtioDevice for Scsi {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        feature::HOTPLUG | feature::CHANGE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.shared.layout.space(&self.queue_sizes), offset, data);
    }

    /// Only the sizes of CDBs and of sense data can be changed.
    fn config_write(&self, offset: u64, data: &[u8]) {
        self.shared.layout.write(offset, data);
    }

    fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        let (others, requests): (Vec<_>, Vec<_>) = activation
            .queues
            .into_iter()
            .partition(|queue| queue.index() < FIRST_REQUEST_QUEUE);
        let mut jobs: Vec<_> = requests.into_iter().map(|queue| self.worker(queue)).collect();
        if !others.is_empty() {
            jobs.push(self.steward(others));
        }
        self.shared.events.begin(activation.features);
        let started = self.crew.start(&self.shared.name, &activation.signals, jobs);
        if started.is_err() {
            self.shared.events.begin(0);
        }
        started
    }

    fn deactivate(&self) -> Vec<VirtQueue> {
        let queues = self.crew.stop();
        self.shared.events.begin(0);
        self.shared.layout.reset();
        self.shared.units.read(|table| {
            table.values().for_each(|unit| unit.reset(Attention::PowerOn));
        });
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
