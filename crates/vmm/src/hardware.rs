//! What the state driver drives, and what it is built from.

use std::time::Instant;

use spec::MachineSpec;

use crate::files::MachineFiles;

/// A built machine as the driver sees it. Called from the driver's thread only.
pub(crate) trait Hardware: Send {
    /// Starts devices and vCPUs of a machine that was just built. `asked` is when the start was asked for.
    fn start(&mut self, asked: Instant);

    /// Stops vCPUs and drains devices; all is quiet when this returns.
    fn pause(&mut self);

    /// Undoes [`Hardware::pause`].
    fn resume(&mut self);

    /// Presses the power button.
    fn press_power_button(&self);

    /// Ends vCPUs and workers, and gives everything back that is not in the [`Blueprint`].
    fn tear_down(self: Box<Self>);
}

/// What a machine is built from, again at each reset.
pub(crate) struct Blueprint {
    pub(crate) spec: MachineSpec,
    pub(crate) files: MachineFiles,
}
