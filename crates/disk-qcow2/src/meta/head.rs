//! All that an image's first cluster holds: header, extensions, the backing file's name.

use disk::{DiskError, DiskIo};
use guestmem::IoBuf;

use super::extension::{ExtensionError, Extensions, FeatureSet};
use super::header::{Header, HeaderError};
use super::layout::CLUSTER_BITS;

/// Why an image's first cluster can not be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// An extension.
    #[error("the header extensions of the qcow2 image are damaged")]
    Extension(#[from] ExtensionError),
    /// The backing file's name is no text.
    #[error("the backing file name in the qcow2 image is not valid UTF-8")]
    BackingName,
    /// It can not be read.
    #[error("the qcow2 header can not be read")]
    Read(#[source] DiskError),
}

/// An image's first cluster, read.
#[derive(Debug, Clone)]
pub struct Head {
    /// The fixed fields.
    pub header: Header,
    /// What follows them.
    pub extensions: Extensions,
    /// Name of the backing file as written.
    pub backing_file: Option<String>,
}

impl Head {
    /// Reads the first cluster of `io`, and what its header, extensions and names say.
    ///
    /// # Errors
    /// It can not be read, is damaged, or asks for what is not supported.
    pub async fn read(io: &dyn DiskIo) -> Result<Self, HeadError> {
        let size = io.geometry().size_bytes;
        let sector = u64::from(io.geometry().logical_sector_bytes);
        let first = read_start(io, sector.max(512).min(size)).await?;
        let header = Header::parse_fields(&first)?;
        let cluster = header
            .layout()
            .cluster_bytes()
            .min(size)
            .next_multiple_of(sector)
            .min(size);
        let bytes = if cluster > first.len() as u64 {
            read_start(io, cluster).await?
        } else {
            first
        };
        Self::parse(&bytes)
    }

    /// From the bytes of the first cluster, or as many of them as the file has.
    ///
    /// # Errors
    /// They are damaged, or ask for what is not supported.
    pub fn parse(cluster: &[u8]) -> Result<Self, HeadError> {
        let fields = Header::parse_fields(cluster)?;
        let start = fields.header_len as usize;
        let backing = usize::try_from(fields.backing_offset).unwrap_or(usize::MAX);
        let cluster_end = cluster.len().min(1 << fields.cluster_bits.min(*CLUSTER_BITS.end()));
        let end = if backing >= start {
            backing.min(cluster_end)
        } else {
            cluster_end
        };
        let area = cluster.get(start..end).unwrap_or_default();
        let extensions = Extensions::parse(area);
        // A feature that is not understood may have changed what extensions look like: it is the better explanation.
        let header = Header::parse(cluster, |bit| {
            let names = extensions.as_ref().ok()?;
            names.feature_name(FeatureSet::Incompatible, u8::try_from(bit).ok()?)
        })?;
        let name = (header.backing_offset != 0 && header.backing_len > 0).then(|| {
            let end = backing.checked_add(header.backing_len as usize)?;
            String::from_utf8(cluster.get(backing..end)?.to_vec()).ok()
        });
        let backing_file = match name {
            Some(None) => return Err(HeadError::BackingName),
            Some(name) => name,
            None => None,
        };
        Ok(Self {
            header,
            extensions: extensions?,
            backing_file,
        })
    }
}

async fn read_start(io: &dyn DiskIo, len: u64) -> Result<Vec<u8>, HeadError> {
    let len = usize::try_from(len).unwrap_or(0);
    let buf = IoBuf::heap(len, 4096).map_err(|error| {
        let failed = DiskError::new(disk::DiskOp::Read, disk::DiskErrorKind::Io);
        HeadError::Read(failed.because(error))
    })?;
    let (result, bufs) = io.read(0, vec![buf]).await;
    result.map_err(HeadError::Read)?;
    Ok(bufs.first().map(IoBuf::to_vec).unwrap_or_default())
}
