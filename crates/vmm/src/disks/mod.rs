//! The disks of a machine: opened once, and kept open over all its resets, since other processes must not come between.

mod devices;
mod engine;
mod error;
mod images;
mod job;
mod limits;
mod live;
mod stack;
mod write_through;

use std::fs::File;
use std::sync::Arc;

use control::{DiskJob, DiskJobState, DiskLatency, DiskReport, LATENCY_BOUNDS_US};
use disk::Disk;
use spec::{DiskBus, DiskLimits, DiskSpec, Name};
use telemetry::HistogramSnapshot;
use virtio_devices::DiskSnapshot;

pub use devices::AttachError;
pub(crate) use devices::DiskDevices;
pub use error::StackError;
pub use job::JobNews;
pub(crate) use job::Tell;
use stack::Stack;

use crate::files::{ChainFiles, LayerFiles};
use crate::layout::{FIRST_DISK_SLOT, FIRST_NET_SLOT};

/// Disks on the SCSI bus at one time, by choice.
const SCSI_TARGETS: u8 = 64;

/// Where the guest finds a disk; the same after each reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A slot of the root bus of its own.
    Slot(u8),
    /// A target of the SCSI bus; its only unit is 0.
    Target(u8),
}

/// A disk and what it consists of.
pub(crate) struct MachineDisk {
    pub(crate) spec: DiskSpec,
    pub(crate) place: Place,
    stack: Stack,
}

impl MachineDisk {
    /// What the device works on.
    pub(crate) fn top(&self) -> Arc<dyn Disk> {
        self.stack.top()
    }

    /// What it is, and what it did by `figures`.
    pub(crate) fn report(&self, figures: &DiskSnapshot) -> DiskReport {
        let DiskSnapshot {
            reads,
            writes,
            flushes,
            trims,
            errors,
        } = figures;
        DiskReport {
            name: self.spec.name.clone(),
            size_bytes: self.stack.top().geometry().size_bytes,
            layers: self.stack.layers().to_vec(),
            limits: self.stack.limits(),
            job: self.stack.told().cloned(),
            reads: latency(&reads.latency),
            writes: latency(&writes.latency),
            flushes: latency(&flushes.latency),
            trims: latency(&trims.latency),
            read_bytes: reads.bytes,
            written_bytes: writes.bytes,
            errors: *errors,
        }
    }

    /// Keeps to these rates from now on.
    pub(crate) fn limit(&mut self, limits: DiskLimits) {
        self.stack.limit(limits);
    }

    /// Makes it larger. Blocks on storage.
    pub(crate) fn grow(&self, size_bytes: u64) -> Result<(), StackError> {
        self.stack.grow(size_bytes)
    }

    /// Goes on in an overlay made in the file of `files`, which calls the top of the moment `backing`. Blocks on storage.
    pub(crate) fn snapshot(&mut self, files: LayerFiles, backing: String) -> Result<(), StackError> {
        self.stack.snapshot(files, backing)
    }

    /// Begins to copy what is below the top into it.
    pub(crate) fn begin_stream(&mut self, tell: Tell) -> Result<(), StackError> {
        self.stack.begin_stream(tell)
    }

    /// Begins to copy all of it into the image of `files`, and to go on there if there is a `note` to write that to.
    pub(crate) fn begin_mirror(
        &mut self,
        files: LayerFiles,
        is_zero: bool,
        note: Option<File>,
        tell: Tell,
    ) -> Result<(), StackError> {
        self.stack.begin_mirror(files, is_zero, note, tell)
    }

    /// A job is at work on it.
    pub(crate) const fn is_at_work(&self) -> bool {
        self.stack.is_at_work()
    }

    /// Asks the job to give up. False if there is none.
    pub(crate) fn cancel_job(&self) -> bool {
        self.stack.cancel_job()
    }

    /// Waits for the end of the job, and takes over what it made.
    pub(crate) fn end_job(&mut self) -> Option<(DiskJob, DiskJobState)> {
        self.stack.end_job()
    }

    /// The job is so far.
    pub(crate) fn job_at(&mut self, done_bytes: u64, total_bytes: u64) -> Option<(DiskJob, DiskJobState)> {
        self.stack.job_at(done_bytes, total_bytes)
    }

    /// Makes everything durable and lets go of the images. Blocks on storage.
    pub(crate) fn close(self) {
        let name = self.spec.name;
        if let Err(error) = self.stack.close() {
            let error = crate::story::whole(&error);
            tracing::error!(disk = %name, error, "disk can not be closed in good order");
        }
    }
}

fn latency(times: &HistogramSnapshot) -> DiskLatency {
    let us = |share| {
        let time = times.quantile(share).unwrap_or_default();
        u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
    };
    let within = |bound_us: u64| {
        let whole = times.buckets.iter().filter(|bucket| bucket.below_ns <= bound_us * 1000);
        whole.map(|bucket| bucket.count).sum()
    };
    DiskLatency {
        within: LATENCY_BOUNDS_US.map(within).to_vec(),
        count: times.count,
        total_ns: times.sum_ns,
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Disks(Vec<MachineDisk>);

impl Disks {
    /// Opens all disks of a machine; on failure those that were open are closed again. Blocks on storage.
    pub(crate) fn open(specs: &[DiskSpec], files: Vec<ChainFiles>) -> Result<Self, StackError> {
        let mut disks = Self::default();
        for (spec, files) in specs.iter().zip(files) {
            if let Err(error) = disks.add(spec.clone(), files) {
                disks.close();
                return Err(error);
            }
        }
        Ok(disks)
    }

    /// Opens the images of `files`, stacks them up to the disk of `spec`, and finds a place for it. Blocks on storage.
    pub(crate) fn add(&mut self, spec: DiskSpec, files: ChainFiles) -> Result<&MachineDisk, StackError> {
        let place = self.free_place(&spec)?;
        let stack = Stack::open(&spec, files)?;
        Ok(self.0.push_mut(MachineDisk { spec, place, stack }))
    }

    /// The lowest that nothing has, so that the guest finds disks in the order of the specification.
    fn free_place(&self, spec: &DiskSpec) -> Result<Place, StackError> {
        let mut places: Box<dyn Iterator<Item = Place>> = match spec.bus {
            DiskBus::Virtio => Box::new((FIRST_DISK_SLOT..FIRST_NET_SLOT).map(Place::Slot)),
            DiskBus::Scsi => Box::new((0..SCSI_TARGETS).map(Place::Target)),
        };
        let free = places.find(|place| self.0.iter().all(|disk| disk.place != *place));
        free.ok_or_else(|| StackError::Chain {
            disk: spec.name.to_string(),
            why: "the machine has too many disks".to_owned(),
        })
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, MachineDisk> {
        self.0.iter()
    }

    pub(crate) fn get(&self, name: &Name) -> Option<&MachineDisk> {
        self.0.iter().find(|disk| disk.spec.name == *name)
    }

    pub(crate) fn get_mut(&mut self, name: &Name) -> Option<&mut MachineDisk> {
        self.0.iter_mut().find(|disk| disk.spec.name == *name)
    }

    pub(crate) fn remove(&mut self, name: &Name) -> Option<MachineDisk> {
        let place = self.0.iter().position(|disk| disk.spec.name == *name)?;
        Some(self.0.remove(place))
    }

    /// Does something that waits for requests to end, which are not held up by limits meanwhile.
    pub(crate) fn unlimited<T>(&self, act: impl FnOnce() -> T) -> T {
        self.0.iter().for_each(|disk| disk.stack.lift_limits());
        let done = act();
        self.0.iter().for_each(|disk| disk.stack.limit_again());
        done
    }

    /// Closes all of them, whatever becomes of each.
    pub(crate) fn close(self) {
        self.0.into_iter().for_each(MachineDisk::close);
    }
}
