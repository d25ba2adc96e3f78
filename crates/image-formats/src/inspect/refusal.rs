//! Why an image is not taken.

use std::io;

use disk::probe::Format;

/// Why an image is not taken. Each variant has its own [`Refusal::code`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A qcow2 on top of another file.
    #[error("the qcow2 image has a backing file; flatten it first: qemu-img convert -O qcow2 OLD NEW")]
    BackingFile,
    /// A qcow2 whose data is in another file.
    #[error("the qcow2 image keeps its data in another file; join them first: qemu-img convert -O qcow2 OLD NEW")]
    DataFile,
    /// A qcow2 with incompatible features nobody here knows.
    #[error("the qcow2 image needs {0}; convert it: qemu-img convert -O qcow2 -o compat=1.1 OLD NEW")]
    UnknownFeature(String),
    /// A qcow2 nobody can read without its key.
    #[error("the {format} image is encrypted with {method}; decrypt it with qemu-img convert first")]
    Encrypted {
        /// The image's format.
        format: Format,
        /// The method as the format names it.
        method: String,
    },
    /// A differencing image.
    #[error("the {0} image holds only the differences to a parent image; flatten it first with qemu-img convert")]
    Parent(Format),
    /// A vmdk that is only, or has beside it, a description of other files.
    #[error("the vmdk image names another file ({0}); make one file of it: qemu-img convert -O vmdk OLD NEW")]
    ExternalExtent(String),
    /// A vmdk of several parts.
    #[error("the vmdk image has {0} extents instead of one; make one file of it: qemu-img convert -O vmdk OLD NEW")]
    SeveralExtents(usize),
    /// A kind of vmdk that is not taken.
    #[error("the vmdk image's createType is {0:?}; only monolithicSparse and streamOptimized are taken")]
    CreateType(String),
    /// A vmdk whose header at the end contradicts the one at the start.
    #[error("the vmdk image's footer contradicts its header: make the image anew")]
    Footer,
    /// Compressed, and what comes out is compressed again.
    #[error("what was unpacked is compressed again ({0}); one level of compression is taken")]
    NestedCompression(Format),
    /// An archive in an archive.
    #[error("an archive was found within an archive; put the disk itself into it")]
    NestedArchive,
    /// More than one format at once.
    #[error("the image is {0} and {1} at the same time; programs would not agree what it is")]
    Polyglot(Format, Format),
    /// An image that is a partitioned raw disk as well.
    #[error("the {0} image begins with a boot record or partition table; programs would not agree what it is")]
    PolyglotPartitions(Format),
    /// Not what was claimed.
    #[error("the image was said to be {claimed} and is {found}")]
    Mismatch {
        /// What was said.
        claimed: Format,
        /// What it is.
        found: Format,
    },
    /// A format that is not taken.
    #[error("the image is in {0} format, which is not taken here; convert it to one of the allowed formats")]
    NotAllowed(Format),
    /// Too large for its guest.
    #[error("the image's disk is {size_bytes} bytes, more than the {limit_bytes} allowed")]
    VirtualSize {
        /// Size the guest would see, bytes.
        size_bytes: u64,
        /// What is allowed, bytes.
        limit_bytes: u64,
    },
    /// Too large as a file.
    #[error("the image is longer than the {limit_bytes} bytes allowed")]
    Bytes {
        /// What is allowed, bytes.
        limit_bytes: u64,
    },
    /// A structure makes no sense.
    #[error("the {format} image is damaged: {what}")]
    Damaged {
        /// What it began as.
        format: Format,
        /// What makes no sense.
        what: String,
    },
    /// It ends before what it says it has.
    #[error("the {format} image ends after {found_bytes} bytes, before the {needed_bytes} its structures take")]
    Truncated {
        /// What it began as.
        format: Format,
        /// Least length, bytes.
        needed_bytes: u64,
        /// Length, bytes.
        found_bytes: u64,
    },
    /// There is nothing.
    #[error("the image is empty")]
    Empty,
}

impl Refusal {
    /// A stable name for programs; the crate documents them.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BackingFile => "backing_file",
            Self::DataFile => "data_file",
            Self::UnknownFeature(_) => "unknown_feature",
            Self::Encrypted { .. } => "encrypted",
            Self::Parent(Format::Vmdk) => "vmdk_parent",
            Self::Parent(Format::Vhd) => "vhd_parent",
            Self::Parent(Format::Vhdx) => "vhdx_parent",
            Self::Parent(_) => "vdi_parent",
            Self::ExternalExtent(_) => "vmdk_external_extent",
            Self::SeveralExtents(_) => "vmdk_several_extents",
            Self::CreateType(_) => "vmdk_create_type",
            Self::Footer => "vmdk_footer",
            Self::NestedCompression(_) => "nested_compression",
            Self::NestedArchive => "nested_archive",
            Self::Polyglot(..) => "polyglot",
            Self::PolyglotPartitions(_) => "polyglot_partition_table",
            Self::Mismatch { .. } => "format_mismatch",
            Self::NotAllowed(_) => "format_not_allowed",
            Self::VirtualSize { .. } => "virtual_size_beyond_quota",
            Self::Bytes { .. } => "bytes_beyond_quota",
            Self::Damaged { .. } => "damaged",
            Self::Truncated { .. } => "truncated",
            Self::Empty => "empty",
        }
    }

    pub(crate) fn damaged(format: Format, what: impl Into<String>) -> Self {
        let what = what.into();
        Self::Damaged { format, what }
    }
}

/// Why an open image could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It can not be read.
    #[error("the image can not be read")]
    Read(#[source] io::Error),
    /// It is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl InspectError {
    /// A stable name for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "source_unreadable",
            Self::Refused(refusal) => refusal.code(),
        }
    }
}
