//! Copying what a chain shows into a new image.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::Access;
use spec::DiskFormat;

use crate::chain::{Chain, Layer};
use crate::copy::{self, CopyError, PIECE_BYTES, Rules};
use crate::create::{CreateError, CreateOptions, create};
use crate::open::{self, CloseError, OpenError, OpenOptions};
use crate::watch::Watch;
use disk_qcow2::ops::Preallocation;

/// Finest unit in which zeroes among data are left out of a raw image, bytes: the block of file systems.
const RAW_SPARSE_BYTES: usize = 4096;

/// How much is copied before the target's device is set to work on it, bytes.
const PUSH_BYTES: u64 = 16 << 20;

/// How to convert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The new image. It may be larger than the source, not smaller, and has no backing image.
    pub target: CreateOptions,
    /// Whether zeroes among the data are looked for and left out.
    pub sparse: bool,
    /// Whether the data is compressed. For qcow2 images without preallocation; zeroes are left out then.
    pub compressed: bool,
    /// One piece after the other, so that the same disk gives the same image, byte for byte. Slower.
    pub in_order: bool,
}

impl ConvertOptions {
    /// Sparse, and as fast as the host can.
    pub const fn to(target: CreateOptions) -> Self {
        Self {
            target,
            sparse: true,
            compressed: false,
            in_order: false,
        }
    }
}

/// Why a conversion failed. The target is of no use then.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The source.
    #[error("the image can not be opened")]
    Source(#[source] OpenError),
    /// The new image would be smaller than what is to be in it.
    #[error("a disk of {source_bytes} bytes does not fit into an image of {target_bytes}: make that at least as large")]
    TooSmall {
        /// Size of the source, bytes.
        source_bytes: u64,
        /// Size asked for, bytes.
        target_bytes: u64,
    },
    /// A new image with something below is not what a conversion makes.
    #[error("a converted image stands by itself: leave out its backing image and data file")]
    NotWhole,
    /// Compressed clusters are there or not, and only there where clusters are.
    #[error("only a qcow2 image without preallocation can be compressed")]
    Compressed,
    /// The new image.
    #[error("the new image can not be created")]
    Create(#[from] CreateError),
    /// The new image again.
    #[error("the new image can not be opened")]
    Target(#[source] OpenError),
    /// In between.
    #[error("the image could not be converted")]
    Copy(#[from] CopyError),
    /// At the end.
    #[error("the new image could not be finished")]
    Close(#[from] CloseError),
}

/// Writes what `source` shows into a new image in `file`, over whatever is there. Durable when this returns. Blocks.
///
/// # Errors
/// Source or target fail, do not fit, or it was stopped.
pub fn convert(source: &Chain, file: &File, options: &ConvertOptions, watch: &dyn Watch) -> Result<(), ConvertError> {
    let source = open::open(source, &OpenOptions::default()).map_err(ConvertError::Source)?;
    let source_bytes = source.disk().geometry().size_bytes;
    let target_bytes = options.target.size_bytes();
    if target_bytes < source_bytes {
        return Err(ConvertError::TooSmall {
            source_bytes,
            target_bytes,
        });
    }
    if options.compressed && !can_be_compressed(&options.target) {
        return Err(ConvertError::Compressed);
    }
    create(file, None, whole(&options.target)?)?;
    let again = file.try_clone().map_err(|source| {
        let name = "new image".to_owned();
        ConvertError::Target(OpenError::Descriptors { name, source })
    })?;
    let chain = Chain::new(
        Layer {
            name: "new image".to_owned(),
            format: options.target.format(),
            file: again,
            writable: true,
            data_file: None,
        },
        Vec::new(),
    );
    let access = OpenOptions {
        access: Access::ReadWrite,
        ..OpenOptions::default()
    };
    let target = open::open(&chain, &access).map_err(ConvertError::Target)?;
    let rules = Rules {
        sparse_bytes: sparse_unit(options),
        target_is_zero: true,
        threads: None,
        in_order: options.in_order,
    };
    let packed = options.compressed.then_some(&target);
    let pushing = Pushing {
        watch,
        target: file,
        pushed: AtomicU64::new(0),
    };
    copy::copy(&*source.disk(), &*target.disk(), packed, rules, &pushing)?;
    Ok(target.close_now()?)
}

/// Passes progress on, and keeps the target's device at work meanwhile: the sync at the end waits for what is left.
struct Pushing<'a> {
    watch: &'a dyn Watch,
    target: &'a File,
    pushed: AtomicU64,
}

impl Watch for Pushing<'_> {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.watch.progress(done_bytes, total_bytes);
        let pushed = self.pushed.load(Ordering::Relaxed);
        let due = done_bytes >= pushed.saturating_add(PUSH_BYTES);
        let turn = |now| {
            self.pushed
                .compare_exchange(pushed, now, Ordering::Relaxed, Ordering::Relaxed)
        };
        if due && turn(done_bytes).is_ok() {
            // A device that fails says so when it is synced.
            let _ = uring::blocking::start_writeback(self.target);
        }
    }

    fn is_stopped(&self) -> bool {
        self.watch.is_stopped()
    }
}

fn can_be_compressed(target: &CreateOptions) -> bool {
    matches!(target, CreateOptions::Qcow2(options) if options.preallocation == Preallocation::Off)
}

const fn whole(target: &CreateOptions) -> Result<&CreateOptions, ConvertError> {
    match target {
        CreateOptions::Qcow2(options) if options.backing.is_some() || options.data_file.is_some() => {
            Err(ConvertError::NotWhole)
        }
        _ => Ok(target),
    }
}

/// What is to be allocated is written, zeroes or not; in an image with clusters only whole ones are worth leaving out.
fn sparse_unit(options: &ConvertOptions) -> usize {
    let (preallocation, unit) = match &options.target {
        CreateOptions::Raw { preallocation, .. } => (*preallocation, RAW_SPARSE_BYTES),
        CreateOptions::Qcow2(qcow2) => {
            let cluster = usize::try_from(qcow2.cluster_bytes).unwrap_or(PIECE_BYTES);
            (qcow2.preallocation, cluster.clamp(RAW_SPARSE_BYTES, PIECE_BYTES))
        }
    };
    match options.sparse && preallocation == Preallocation::Off {
        true => unit,
        false => 0,
    }
}

/// Size of what a chain shows, bytes; a hint for [`CreateOptions`]. Blocks.
///
/// # Errors
/// The chain can not be opened.
pub fn virtual_size(source: &Chain) -> Result<u64, OpenError> {
    let options = OpenOptions {
        locking: disk_raw::Locking::Look,
        ..OpenOptions::default()
    };
    Ok(open::open(source, &options)?.disk().geometry().size_bytes)
}

impl Chain {
    /// A chain of one image that refers to no other.
    pub fn of_file(name: impl Into<String>, file: File, format: DiskFormat, writable: bool) -> Self {
        let layer = Layer {
            name: name.into(),
            format,
            file,
            writable,
            data_file: None,
        };
        Self::new(layer, Vec::new())
    }
}
