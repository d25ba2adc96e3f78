//! Changes to what a disk consists of, under a running guest.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::{DiskJob, DiskJobReport, DiskJobState};
use disk::Access;
use disk_image::{BackingName, Chain, OpenOptions, live};
use rustix::fs::FlockOperation;
use spec::DiskFormat;
use uring::blocking::LockKind;

use super::engine::block_on;
use super::error::StackError;
use super::images;
use super::job::{self, Job, Target, Tell};
use super::stack::Stack;
use crate::files::LayerFiles;

impl Stack {
    fn wrong(&self, why: &str) -> StackError {
        StackError::Chain {
            disk: self.name.clone(),
            why: why.to_owned(),
        }
    }

    fn check_idle(&self) -> Result<(), StackError> {
        match &self.job {
            Some(job) => {
                Err(self.wrong(&format!("a {:?} is at work on it: wait or cancel that", job.kind).to_lowercase()))
            }
            None => Ok(()),
        }
    }

    /// Makes an overlay in the empty file of `files`, which calls what is on top now `backing`, and goes on there. Blocks on
    /// storage.
    pub(super) fn snapshot(&mut self, files: LayerFiles, backing: String) -> Result<(), StackError> {
        self.check_idle()?;
        let mut overlay = files.layer.clone();
        if overlay.format != DiskFormat::Qcow2 || !overlay.writable || files.data.is_some() {
            return Err(self.wrong("an overlay is a qcow2 image by itself, open for writing"));
        }
        let options = OpenOptions {
            cache_bytes: images::cache_bytes(self.layers.len() + 1),
            ..self.images.options
        };
        let Some(below) = self.layers.first_mut().filter(|below| below.writable) else {
            return Err(self.wrong("it is only read, so there is nothing to take a snapshot of"));
        };
        let backing = BackingName {
            name: backing,
            format: match below.format {
                DiskFormat::Raw => "raw".to_owned(),
                DiskFormat::Qcow2 => "qcow2".to_owned(),
            },
        };
        let file = images::layer(files).file;
        let made = live::snapshot(&self.images.switch, &file, &overlay.name, &backing, &options);
        let image = made.map_err(|source| StackError::Snapshot {
            disk: self.name.clone(),
            source: Box::new(source),
        })?;
        below.writable = false;
        if let Some(read) = self.locked.replace(file.into()) {
            share(&read, &below.name);
        }
        overlay.data_file = None;
        self.layers.insert(0, overlay);
        self.images.images.push(Arc::new(image));
        Ok(())
    }

    /// Begins to copy what is below the top into it.
    pub(super) fn begin_stream(&mut self, tell: Tell) -> Result<(), StackError> {
        self.check_idle()?;
        let top = self.images.images.last().cloned().zip(self.layers.first().cloned());
        let Some((image, layer)) = top.filter(|_| self.layers.len() > 1) else {
            return Err(self.wrong("there is nothing below its image"));
        };
        let switch = self.images.switch.clone();
        let target = layer.name.clone();
        self.begin(DiskJob::Stream, target, tell, move |watch| {
            job::stream(&switch, &image, layer, watch)
        })
    }

    /// Begins to copy all of it into the image of `files`, and to go on there if there is a `note` to write that to. Blocks on
    /// storage while the image is opened.
    pub(super) fn begin_mirror(
        &mut self,
        files: LayerFiles,
        is_zero: bool,
        note: Option<File>,
        tell: Tell,
    ) -> Result<(), StackError> {
        self.check_idle()?;
        let layer = files.layer.clone();
        let again = files.image.try_clone().ok().filter(|_| note.is_some());
        let chain = Chain::new(images::layer(files), Vec::new());
        let options = OpenOptions {
            access: Access::ReadWrite,
            cache_bytes: images::cache_bytes(1),
            ..self.images.options
        };
        let opened = block_on(&self.name, disk_image::assemble(&chain, &options))?;
        let image = opened.map_err(|source| StackError::Image {
            disk: self.name.clone(),
            source: Box::new(source),
        })?;
        let target = Target {
            image,
            layer,
            is_zero,
            note,
        };
        let name = target.layer.name.clone();
        let switch = self.images.switch.clone();
        self.begin(DiskJob::Mirror, name, tell, move |watch| {
            job::mirror(&switch, target, watch)
        })?;
        self.target = again;
        Ok(())
    }

    fn begin(
        &mut self,
        kind: DiskJob,
        target: String,
        tell: Tell,
        work: impl FnOnce(&dyn disk_image::Watch) -> job::Outcome + Send + 'static,
    ) -> Result<(), StackError> {
        let begun = Job::begin(kind, tell, work).map_err(|source| StackError::Thread {
            disk: self.name.clone(),
            source,
        })?;
        self.job = Some(begun);
        self.told = Some(DiskJobReport {
            job: kind,
            target,
            state: DiskJobState::Running {
                done_bytes: 0,
                total_bytes: 0,
            },
        });
        Ok(())
    }

    /// The job is so far.
    pub(super) fn job_at(&mut self, done_bytes: u64, total_bytes: u64) -> Option<(DiskJob, DiskJobState)> {
        let job = self.job.as_ref()?.kind;
        Some((
            job,
            self.tell(DiskJobState::Running {
                done_bytes,
                total_bytes,
            }),
        ))
    }

    fn tell(&mut self, state: DiskJobState) -> DiskJobState {
        if let Some(told) = &mut self.told {
            told.state = state.clone();
        }
        state
    }

    /// What is known of the last job.
    pub(super) const fn told(&self) -> Option<&DiskJobReport> {
        self.told.as_ref()
    }

    /// A job is at work on it.
    pub(super) const fn is_at_work(&self) -> bool {
        self.job.is_some()
    }

    /// Asks the job to give up. False if there is none.
    pub(super) fn cancel_job(&self) -> bool {
        self.job.as_ref().map(Job::stop).is_some()
    }

    /// Waits for the end of the job, and takes over what it made.
    pub(super) fn end_job(&mut self) -> Option<(DiskJob, DiskJobState)> {
        let job = self.job.take()?;
        let kind = job.kind;
        let target = self.target.take();
        let state = match job.outcome() {
            Ok(None) => DiskJobState::Done,
            Ok(Some(top)) => {
                // What was there is not written any more, and was closed or needs no closing: the copy is the disk.
                self.images.images = vec![Arc::new(top.image)];
                self.layers = vec![top.layer];
                self.locked = target.or_else(|| self.locked.take());
                DiskJobState::Done
            }
            Err(failed) => failed.state(),
        };
        Some((kind, self.tell(state)))
    }
}

/// Others may read the file from now on, which nobody writes any more. By both ways in which the daemon locks it.
fn share(file: &OwnedFd, name: &str) {
    let shared = rustix::fs::flock(file, FlockOperation::NonBlockingLockShared).map_err(std::io::Error::from);
    let shared = shared.and_then(|()| uring::blocking::lock(file, LockKind::Shared));
    if let Err(error) = shared {
        tracing::warn!(name, %error, "an image that is only read stays locked against others until the machine ends");
    }
}
