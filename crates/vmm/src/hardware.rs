//! What the state driver drives, and what it is built from.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use guestmem::GuestMemory;
use migration::{Fault, PageSet};
use spec::{GenerationId, MachineSpec, Name};
use virtio_devices::DiskSnapshot;

use crate::disks::{AttachError, Disks, MachineDisk};
use crate::files::{MachineFiles, SavedFiles};
use crate::saved::SaveMachineError;

/// Where the state of a machine that is built comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// Nowhere: it boots.
    Boot,
    /// A directory. It is built with its state, paused.
    Saved(&'a SavedFiles),
    /// Another process, from which it is still to come. Until it is there, memory is zero and the machine is as after power-on.
    Elsewhere,
}

/// What moving a built machine takes. Called from the driver's thread only.
pub(crate) trait Movable {
    /// Its RAM; may be read and written by others for as long as they hold it.
    fn memory(&self) -> GuestMemory;

    /// Begins to log which pages are written, from none on, or ends it.
    fn log_writes(&mut self, on: bool) -> Result<(), Fault>;

    /// The pages that vCPUs and devices wrote since the last call, numbered over all regions.
    fn take_written(&mut self) -> Result<PageSet, Fault>;

    /// Takes this percentage of their time away from the vCPUs, at most 99.
    fn throttle(&mut self, percent: u8);

    /// The state of everything but memory and disks. Legal while paused, and changes nothing.
    fn state(&self) -> Result<Vec<u8>, Fault>;

    /// Takes over what [`Movable::state`] gave elsewhere. The machine was built for [`Origin::Elsewhere`], and is as if paused.
    fn load_state(&mut self, state: &[u8]) -> Result<(), Fault>;
}

/// A built machine as the driver sees it. Called from the driver's thread only.
pub(crate) trait Hardware: Movable + Send {
    /// Starts devices and vCPUs of a machine that was just built. `asked` is when the start was asked for.
    fn start(&mut self, asked: Instant);

    /// Stops vCPUs and drains devices; all is quiet when this returns.
    fn pause(&mut self);

    /// Undoes [`Hardware::pause`].
    fn resume(&mut self);

    /// Saves all of it but the disks into a directory. Legal while paused, and changes nothing.
    fn save(&self, directory: BorrowedFd<'_>) -> Result<(), SaveMachineError>;

    /// Presses the power button.
    fn press_power_button(&self);

    /// Tells the guest that a disk has grown.
    fn disk_resized(&self, disk: &Name);

    /// Puts a disk that was just opened on the SCSI bus.
    fn attach(&mut self, disk: &MachineDisk) -> Result<(), AttachError>;

    /// Takes a disk from the SCSI bus; nothing uses it any more when this returns.
    fn detach(&mut self, disk: &Name) -> Result<(), AttachError>;

    /// What each disk did since this hardware was built.
    fn disk_figures(&self) -> Vec<(Name, DiskSnapshot)>;

    /// Ends vCPUs and workers, and gives everything back that is not in the [`Blueprint`].
    fn tear_down(self: Box<Self>);
}

/// What a machine is built from, again at each reset.
pub(crate) struct Blueprint {
    pub(crate) spec: MachineSpec,
    pub(crate) files: MachineFiles,
    /// Opened before the first build, and open until the machine ends.
    pub(crate) disks: Disks,
    /// What the guest is told when it is booted, or goes on as a copy.
    pub(crate) generation: GenerationId,
}
