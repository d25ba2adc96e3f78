//! What the state driver drives, and what it is built from.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use spec::{GenerationId, MachineSpec, Name};
use virtio_devices::DiskSnapshot;

use crate::disks::{AttachError, Disks, MachineDisk};
use crate::files::MachineFiles;
use crate::saved::SaveMachineError;

/// A built machine as the driver sees it. Called from the driver's thread only.
pub(crate) trait Hardware: Send {
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
