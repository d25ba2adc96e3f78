//! How far an import has come.

use tokio::sync::watch;

/// What an import is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Asking the registry for the manifest and the configuration.
    #[default]
    Resolving,
    /// Downloading layers; bytes are compressed bytes of all layers, including those fetched earlier. Of a source that is one
    /// stream: taking it in, all of it, as bytes of the source.
    Fetching,
    /// Reading disk, kernel and initrd out of the layers; bytes are compressed bytes read.
    Unpacking,
    /// Copying a disk of this host; bytes are of the virtual size, or of what a machine copies of its own.
    Copying,
    /// Converting a disk in a foreign format; bytes are of the virtual size.
    Converting,
    /// Making the image durable and visible; no byte count.
    Sealing,
    /// Packing an image and sending it to a registry; bytes are of its files.
    Publishing,
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes of this phase that are done; never more than the total, if that is known.
    pub done_bytes: u64,
    /// Bytes of this phase in all; 0 while not known.
    pub total_bytes: u64,
}

/// Counts one phase into the channel the caller watches.
pub(crate) struct Meter<'a> {
    channel: &'a watch::Sender<Progress>,
    now: Progress,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(channel: &'a watch::Sender<Progress>, phase: Phase, total_bytes: u64) -> Self {
        let now = Progress {
            phase,
            done_bytes: 0,
            total_bytes,
        };
        channel.send_replace(now);
        Self { channel, now }
    }

    pub(crate) fn set(&mut self, done_bytes: u64) {
        self.now.done_bytes = match self.now.total_bytes {
            0 => done_bytes,
            total => done_bytes.min(total),
        };
        self.channel.send_replace(self.now);
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.set(self.now.done_bytes.saturating_add(bytes));
    }

    /// Takes back what turned out not to count: a server that could not continue starts over.
    pub(crate) fn take_back(&mut self, bytes: u64) {
        self.set(self.now.done_bytes.saturating_sub(bytes));
    }
}
