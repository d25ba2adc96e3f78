//! From the files of a chain to one disk.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::{DiskJobReport, DiskLayer};
use disk::throttle::{Limits, Throttle, Throttling};
use disk::{Disk, DiskError};
use spec::{DiskCache, DiskLimits, DiskSpec};

use super::engine::block_on;
use super::error::StackError;
use super::images::Images;
use super::job::Job;
use super::limits::{self, RingTimer};
use super::write_through::WriteThrough;
use crate::files::ChainFiles;

/// Images and what is done to requests on their way to them.
pub(super) struct Stack {
    pub(super) name: String,
    /// What the device works on.
    top: Arc<dyn Disk>,
    /// What is below limits and write-through.
    pub(super) images: Images,
    throttling: Throttling,
    limits: DiskLimits,
    /// Top first.
    pub(super) layers: Vec<DiskLayer>,
    /// What is at work on the images.
    pub(super) job: Option<Job>,
    /// What was told of it, or of the one before.
    pub(super) told: Option<DiskJobReport>,
    /// The file on top once more: its lock is let go of when it is only read.
    pub(super) locked: Option<OwnedFd>,
    /// The same of the file that a mirror is to go on in.
    pub(super) target: Option<OwnedFd>,
}

impl Stack {
    pub(super) fn open(spec: &DiskSpec, files: ChainFiles) -> Result<Self, StackError> {
        let name = spec.name.to_string();
        let layers = files.0.iter().map(|files| files.layer.clone()).collect();
        let locked = files.0.first().and_then(|top| top.image.try_clone().ok());
        let images = block_on(&name, Images::open(spec, files))??;
        let switch = Arc::new(images.switch.clone());
        let below: Arc<dyn Disk> = match spec.cache {
            DiskCache::Writethrough => Arc::new(WriteThrough::new(switch)),
            DiskCache::Cached | DiskCache::Direct => switch,
        };
        let throttle = Throttle::new(below, limits::of(&spec.limits), Arc::new(RingTimer::new()));
        Ok(Self {
            name,
            throttling: throttle.throttling(),
            limits: spec.limits,
            top: Arc::new(throttle),
            images,
            layers,
            job: None,
            told: None,
            locked,
            target: None,
        })
    }

    /// Keeps to these rates from now on.
    pub(super) fn limit(&mut self, limits: DiskLimits) {
        self.limits = limits;
        self.throttling.set(limits::of(&limits));
    }

    pub(super) const fn limits(&self) -> DiskLimits {
        self.limits
    }

    /// Lets everything go that waits for its turn, and whatever comes, until [`Stack::limit_again`].
    pub(super) fn lift_limits(&self) {
        self.throttling.set(Limits::default());
    }

    /// Undoes [`Stack::lift_limits`].
    pub(super) fn limit_again(&self) {
        self.throttling.set(limits::of(&self.limits));
    }

    pub(super) fn top(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.top)
    }

    pub(super) fn layers(&self) -> &[DiskLayer] {
        &self.layers
    }

    pub(super) fn grow(&self, size_bytes: u64) -> Result<(), StackError> {
        self.operate(async {
            let io = self.top.open_queue()?;
            io.grow(size_bytes).await
        })
    }

    pub(super) fn close(mut self) -> Result<(), StackError> {
        if self.job.is_some() {
            self.cancel_job();
            self.end_job();
        }
        self.operate(self.images.close())
    }

    fn operate(&self, act: impl Future<Output = Result<(), DiskError>>) -> Result<(), StackError> {
        block_on(&self.name, act)?.map_err(|source| StackError::Operation {
            disk: self.name.clone(),
            source,
        })
    }
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
