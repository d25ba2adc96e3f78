//! Why a disk does not work.

use disk::DiskError;

/// Why a disk can not be used as it is wanted.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A raw image.
    #[error("disk {disk} can not be opened")]
    Raw {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: disk_raw::OpenError,
    },
    /// A chain.
    #[error("disk {disk} can not be opened")]
    Image {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: Box<disk_image::OpenError>,
    },
    /// A snapshot.
    #[error("no snapshot can be taken of disk {disk}")]
    Snapshot {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: Box<disk_image::live::SnapshotError>,
    },
    /// No thread for a job.
    #[error("disk {disk} can not be worked on; raise the limit on processes (RLIMIT_NPROC, pids.max)")]
    Thread {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The chain makes no sense.
    #[error("disk {disk} can not be opened: {why}")]
    Chain {
        /// The disk.
        disk: String,
        /// Why.
        why: String,
    },
    /// An operation on the open disk.
    #[error("disk {disk} can not be changed")]
    Operation {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// No io_uring for the thread that works on images.
    #[error("disk {disk} can not be worked on")]
    Ring {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: uring::SetupError,
    },
    /// The ring broke.
    #[error("disk {disk} can not be worked on")]
    Broken {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: uring::RingError,
    },
}
