//! What an image says about other files, before anything of it is opened.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use disk_qcow2::meta::head::{Head, HeadError};
use disk_qcow2::meta::header::{Header, WRITTEN_BYTES, incompatible};
use spec::DiskFormat;

/// Why the start of an image makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// It can not be read.
    #[error("its beginning can not be read")]
    Read(#[source] io::Error),
    /// Header, extensions or names are refused.
    #[error("its header is refused")]
    Head(#[from] HeadError),
}

/// An image below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Its name, as it is written.
    pub(crate) name: String,
    /// Its format, if that is written.
    pub(crate) format: Option<String>,
}

/// The files an image refers to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct References {
    pub(crate) backing: Option<Backing>,
    /// The guest's data is in another file, which is called so if it is named at all.
    pub(crate) data_file: Option<Option<String>>,
}

impl References {
    /// What `file` refers to if it is a `format`. Looks at its first cluster only. Blocks.
    pub(crate) fn read(file: &File, format: DiskFormat) -> Result<Self, ReferenceError> {
        match format {
            DiskFormat::Raw => Ok(Self::default()),
            DiskFormat::Qcow2 => Self::of_qcow2(file),
        }
    }

    fn of_qcow2(file: &File) -> Result<Self, ReferenceError> {
        let start = read_start(file, WRITTEN_BYTES as usize)?;
        let fields = Header::parse_fields(&start).map_err(HeadError::from)?;
        let cluster = usize::try_from(fields.layout().cluster_bytes()).unwrap_or(usize::MAX);
        let head = Head::parse(&read_start(file, cluster)?)?;
        let backing = match head.backing_file {
            None => None,
            Some(name) => Some(Backing {
                name,
                format: head
                    .extensions
                    .backing_format()
                    .map_err(HeadError::from)?
                    .map(str::to_owned),
            }),
        };
        let data_file = match head.header.incompatible & incompatible::DATA_FILE {
            0 => None,
            _ => Some(head.extensions.data_file().map_err(HeadError::from)?.map(str::to_owned)),
        };
        Ok(Self { backing, data_file })
    }
}

/// The first `len` bytes, or what there is.
fn read_start(file: &File, len: usize) -> Result<Vec<u8>, ReferenceError> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ReferenceError::Read(error)),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
