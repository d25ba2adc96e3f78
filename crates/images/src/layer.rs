//! The bytes of a layer: media types, decompression, bounds.

use std::fs::File;
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::unzstd::Unzstd;

/// Read from the file at a time, bytes.
const READ_AHEAD: usize = 256 << 10;

/// Why a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no archive, or a hostile one, or its compression is damaged.
    #[error("its content is damaged or not supported")]
    Damaged(#[source] io::Error),
    /// It ends in the middle.
    #[error("it ends too early: the layer was truncated when it was built or pushed")]
    Truncated,
    /// Unpacked it is larger than allowed.
    #[error("the image's layers unpack to more than {limit_bytes} bytes, twice what max_disk_bytes allows")]
    TooLarge {
        /// The limit for all layers together, bytes.
        limit_bytes: u64,
    },
    /// One file is larger than allowed.
    #[error("file {path} is {size_bytes} bytes; at most {limit_bytes} are allowed")]
    FileTooLarge {
        /// Path in the image.
        path: String,
        /// Its size, bytes.
        size_bytes: u64,
        /// What is allowed for its role, bytes.
        limit_bytes: u64,
    },
    /// There are absurdly many candidates.
    #[error("more than {0} files lie under /disk and /boot")]
    TooMany(usize),
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The compression a layer's media type states; none for what is no tar layer.
///
/// Types: OCI image specification 1.1 (also the deprecated non-distributable ones) and Docker image manifest 2.2.
pub(crate) fn compression(media_type: &str) -> Option<Compression> {
    let oci = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1."));
    let docker = media_type
        .strip_prefix("application/vnd.docker.image.rootfs.diff.")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff."));
    match (oci, docker) {
        (Some("tar"), _) | (_, Some("tar")) => Some(Compression::None),
        (Some("tar+gzip"), _) | (_, Some("tar.gzip")) => Some(Compression::Gzip),
        (Some("tar+zstd"), _) | (_, Some("tar.zstd")) => Some(Compression::Zstd),
        _ => None,
    }
}

/// The decompressed stream of a layer file. `seen` is told of compressed bytes as they are read, and ends the stream with an
/// error when it returns false. Fails without memory.
pub(crate) fn open<'a>(
    file: File,
    compression: Compression,
    seen: &'a mut dyn FnMut(u64) -> bool,
) -> io::Result<Box<dyn Read + 'a>> {
    let counted = BufReader::with_capacity(READ_AHEAD, Counted { file, seen });
    Ok(match compression {
        Compression::None => Box::new(counted),
        Compression::Gzip => Box::new(BufReader::with_capacity(READ_AHEAD, MultiGzDecoder::new(counted))),
        Compression::Zstd => Box::new(BufReader::with_capacity(READ_AHEAD, Unzstd::new(counted)?)),
    })
}

struct Counted<'a> {
    file: File,
    seen: &'a mut dyn FnMut(u64) -> bool,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if (self.seen)(count as u64) {
            Ok(count)
        } else {
            Err(io::Error::other("stopped"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut count = 0;
        let mut seen = |bytes| {
            count += bytes;
            true
        };
        let mut out = Vec::new();
        open(file.reopen().unwrap(), compression, &mut seen)?.read_to_end(&mut out)?;
        assert_eq!(count, bytes.len() as u64);
        Ok(out)
    }

    fn packed(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    #[test]
    fn knows_media_types() {
        for (name, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Some(Compression::Gzip),
            ),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
            ("text/plain", None),
        ] {
            assert_eq!(compression(name), expected, "{name}");
        }
    }

    #[test]
    fn reads_concatenated_streams_of_each_kind() {
        let gzip = |data: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        };
        let (one, two) = (vec![1; 300_000], vec![2; 10]);
        let whole = [one.clone(), two.clone()].concat();
        assert!(read(&whole, Compression::None).unwrap() == whole);
        assert!(read(&[gzip(&one), gzip(&two)].concat(), Compression::Gzip).unwrap() == whole);
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9].to_vec();
        assert!(read(&[packed(&one), skippable, packed(&two)].concat(), Compression::Zstd).unwrap() == whole);
    }

    #[test]
    fn damage_and_a_stop_are_errors() {
        assert!(read(b"no gzip at all", Compression::Gzip).is_err());
        assert!(read(b"no zstd at all", Compression::Zstd).is_err());
        let bytes = packed(&[7; 100_000]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let mut seen = |_| false;
        let mut out = Vec::new();
        assert!(
            open(file.reopen().unwrap(), Compression::None, &mut seen)
                .unwrap()
                .read_to_end(&mut out)
                .is_err()
        );
    }
}
