//! The disks of a machine: opened once, and kept open over all its resets, since other processes must not come between.

mod devices;
mod stack;
mod write_through;

use std::sync::Arc;

use control::DiskLayer;
use disk::Disk;
use spec::{DiskSpec, Name};

pub(crate) use devices::DiskDevices;
pub use stack::StackError;
use stack::Stack;

use crate::files::ChainFiles;

/// A disk and what it consists of.
pub(crate) struct MachineDisk {
    pub(crate) spec: DiskSpec,
    stack: Stack,
}

impl MachineDisk {
    /// Opens the images of `files` and stacks them up to the disk of `spec`. Blocks on storage.
    pub(crate) fn open(spec: DiskSpec, files: ChainFiles) -> Result<Self, StackError> {
        let stack = Stack::open(&spec, files)?;
        Ok(Self { spec, stack })
    }

    /// What the device works on.
    pub(crate) fn top(&self) -> Arc<dyn Disk> {
        self.stack.top()
    }

    /// The images, top first.
    pub(crate) fn layers(&self) -> &[DiskLayer] {
        self.stack.layers()
    }

    /// Makes it larger. Blocks on storage.
    pub(crate) fn grow(&self, size_bytes: u64) -> Result<(), StackError> {
        self.stack.grow(size_bytes)
    }

    /// Makes everything durable and lets go of the images. Blocks on storage.
    pub(crate) fn close(self) {
        let name = self.spec.name;
        if let Err(error) = self.stack.close() {
            let error = crate::vcpu::whole(&error);
            tracing::error!(disk = %name, error, "disk can not be closed in good order");
        }
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Disks(Vec<MachineDisk>);

impl Disks {
    /// Opens all disks of a machine; on failure those that were open are closed again.
    pub(crate) fn open(specs: &[DiskSpec], files: Vec<ChainFiles>) -> Result<Self, StackError> {
        let mut disks = Self::default();
        for (spec, files) in specs.iter().zip(files) {
            match MachineDisk::open(spec.clone(), files) {
                Ok(disk) => disks.0.push(disk),
                Err(error) => {
                    disks.close();
                    return Err(error);
                }
            }
        }
        Ok(disks)
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

    /// Adds one that was just opened.
    pub(crate) fn add(&mut self, disk: MachineDisk) -> &MachineDisk {
        self.0.push_mut(disk)
    }

    pub(crate) fn remove(&mut self, name: &Name) -> Option<MachineDisk> {
        let place = self.0.iter().position(|disk| disk.spec.name == *name)?;
        Some(self.0.remove(place))
    }

    /// Closes all of them, whatever becomes of each.
    pub(crate) fn close(self) {
        self.0.into_iter().for_each(MachineDisk::close);
    }
}
