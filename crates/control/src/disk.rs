//! What is said about disks.

use serde::{Deserialize, Serialize};
use spec::{DiskFormat, DiskLimits, DiskSpec, Name};

/// The images one disk consists of: the first is written, each reads what it does not hold itself from the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskChain {
    /// Top first; at least one.
    pub layers: Vec<DiskLayer>,
}

/// One image of a chain. Its files were opened, and locked, by whoever sends them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLayer {
    /// What messages call it: the path an operator knows.
    pub name: String,
    /// How its bytes lie in its file; never guessed from what they are.
    pub format: DiskFormat,
    /// Whether its file is open for writing and may be written.
    pub writable: bool,
    /// It keeps its data in a file of its own, which is called this.
    pub data_file: Option<String>,
}

impl DiskChain {
    /// How many files belong to it.
    pub fn file_count(&self) -> usize {
        self.layers.iter().map(DiskLayer::file_count).sum()
    }
}

impl DiskLayer {
    /// How many files belong to it: the image, then its data file if it has one.
    pub const fn file_count(&self) -> usize {
        1 + self.data_file.is_some() as usize
    }
}

/// A change to one disk of a machine that exists. Files travel with the frame, in the order of the layers, each image followed
/// by its data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum DiskChange {
    /// Make it larger; the guest is told.
    Resize {
        /// The new size, bytes; not less than it is.
        size_bytes: u64,
    },
    /// Keep to other rates from now on.
    Limit {
        /// Which.
        limits: DiskLimits,
    },
    /// From now on write into an empty image that comes along and is backed by what was on top, which is only read then.
    Snapshot {
        /// The new top.
        overlay: DiskLayer,
        /// What its header names as its backing image: the old top, as it is found from the new one's directory.
        backing: String,
    },
    /// Begin to copy what the top reads from the images below into it, so that it stands alone in the end. Answered at once;
    /// [`DiskJobState`] tells the rest.
    Stream,
    /// Begin to copy all of it into a new image that comes along, of the same size. Answered at once; [`DiskJobState`] tells the
    /// rest.
    ///
    /// With `pivot`, an empty file comes along after the image. [`PIVOTED`] is written there, and is durable, at the moment at
    /// which disk and copy are the same, durable, and not in use: whoever finds it knows that the copy is the disk from then on,
    /// also when nobody was left to tell of it.
    Mirror {
        /// The new image.
        target: DiskLayer,
        /// It reads as zeroes.
        is_zero: bool,
        /// Go on with the copy, once it is whole. Else it is left as it is at that moment.
        pivot: bool,
    },
    /// Give up the job that is at work on it.
    Cancel,
    /// Add it to the SCSI bus. Its files come along.
    Attach {
        /// What the guest sees.
        spec: Box<DiskSpec>,
        /// What it consists of.
        chain: DiskChain,
    },
    /// Take it from the SCSI bus. Answered when the guest can not reach it any more and its images are closed.
    Detach,
}

impl DiskChange {
    /// How many files belong to it.
    pub fn file_count(&self) -> usize {
        match self {
            Self::Attach { chain, .. } => chain.file_count(),
            Self::Snapshot { overlay, .. } => overlay.file_count(),
            Self::Mirror { target, pivot, .. } => target.file_count() + usize::from(*pivot),
            Self::Resize { .. } | Self::Limit { .. } | Self::Stream | Self::Cancel | Self::Detach => 0,
        }
    }
}

/// What is written into the file that comes along with [`DiskChange::Mirror`] when the copy becomes the disk.
pub const PIVOTED: &[u8] = b"pivoted\n";

/// Work on a disk that takes time; a disk has one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskJob {
    /// [`DiskChange::Stream`].
    Stream,
    /// [`DiskChange::Mirror`].
    Mirror,
}

/// How a job stands. The last three are its last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DiskJobState {
    /// It is at work.
    Running {
        /// Bytes dealt with.
        done_bytes: u64,
        /// Of so many; grows when the guest makes more work.
        total_bytes: u64,
    },
    /// It did what it was for.
    Done,
    /// It was given up on request; the disk is as it was.
    Cancelled,
    /// It could not go on; the disk is as it was.
    Failed {
        /// Why.
        message: String,
    },
}

/// Work on a disk: under way, or over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskJobReport {
    /// Of what kind.
    pub job: DiskJob,
    /// Name of the image it writes to.
    pub target: String,
    /// How it stands.
    #[serde(flatten)]
    pub state: DiskJobState,
}

/// What a disk is, and what it did since the machine was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its name.
    pub name: Name,
    /// Its size now, bytes.
    pub size_bytes: u64,
    /// Its layers now, top first.
    pub layers: Vec<DiskLayer>,
    /// The rates it is kept to.
    pub limits: DiskLimits,
    /// The work on it that was begun last, if any was; how it ended stays here until the next begins.
    #[serde(default)]
    pub job: Option<DiskJobReport>,
    /// Requests that were carried out, and how long they took.
    pub reads: DiskLatency,
    /// Likewise of writes.
    pub writes: DiskLatency,
    /// Likewise of flushes.
    pub flushes: DiskLatency,
    /// Likewise of discards and write-zeroes.
    pub trims: DiskLatency,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// Requests of one kind: how many, and how long they took from the guest's queue to the guest's interrupt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLatency {
    /// How many.
    pub count: u64,
    /// All of their time, nanoseconds.
    pub total_ns: u64,
    /// Half took no longer than this, microseconds; precise to the histogram's bucket, as are the others.
    pub p50_us: u64,
    /// Of 100, 99 took no longer.
    pub p99_us: u64,
    /// Of 1000, 999 took no longer.
    pub p999_us: u64,
    /// How many took no longer than each of [`LATENCY_BOUNDS_US`], in that order.
    #[serde(default)]
    pub within: Vec<u64>,
}

/// Microseconds by which [`DiskLatency::within`] counts: from a hit in the host's page cache to a storage that hangs.
pub const LATENCY_BOUNDS_US: [u64; 12] = [
    16, 32, 64, 128, 256, 512, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576,
];
