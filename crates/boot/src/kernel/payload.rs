//! The compressed kernel inside a bzImage, decompressed on the host within the bound its header gives.
//!
//! Linux's build appends the decompressed length, 32 bits, to every format that does not end in it anyway (gzip does).

use std::io::Read;

use super::KernelError;

/// LZ4 "legacy" frames, the format of `lz4 -l` that Linux uses: blocks of a 32-bit length and an LZ4 block.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What each block but the last decompresses to, bytes.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// Magic of a gzip member (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Magic of a Zstandard frame (RFC 8878).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Decompresses `compressed` to at most `limit` bytes; `None` if its format is not one of LZ4, gzip and zstd.
pub(super) fn decompress(compressed: &[u8], limit: u32) -> Result<Option<Vec<u8>>, KernelError> {
    let format = if compressed.starts_with(&LZ4_LEGACY) {
        "LZ4"
    } else if compressed.starts_with(&GZIP) {
        "gzip"
    } else if compressed.starts_with(&ZSTD) {
        "zstd"
    } else {
        return Ok(None);
    };
    let damaged = |reason| KernelError::Payload { format, reason };
    let size = compressed.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    if size > limit {
        return Err(damaged(format!(
            "it claims {size} bytes decompressed where {limit} are allowed, by its header and the machine's memory"
        )));
    }
    let size = usize::try_from(size).unwrap_or(0);
    let bytes = match format {
        "LZ4" => lz4_legacy(compressed, size),
        "gzip" => read_exactly(flate2::bufread::GzDecoder::new(compressed), size),
        _ => ruzstd::decoding::StreamingDecoder::new(compressed)
            .map_err(|error| error.to_string())
            .and_then(|decoder| read_exactly(decoder, size)),
    };
    bytes.map(Some).map_err(damaged)
}

fn read_exactly(mut from: impl Read, size: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // Grows with what really comes: a lie about the size costs nothing.
    let read = from.by_ref().take(size as u64).read_to_end(&mut bytes);
    match read {
        Ok(read) if read == size => Ok(bytes),
        Ok(read) => Err(format!("it ends after {read} of {size} bytes")),
        Err(error) => Err(error.to_string()),
    }
}

fn lz4_legacy(compressed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut rest = compressed.get(4..compressed.len().saturating_sub(4)).unwrap_or(&[]);
    let mut bytes = Vec::new();
    while let Some((block_len, after)) = rest.split_first_chunk() {
        if block_len == &LZ4_LEGACY {
            rest = after;
            continue;
        }
        let block_len = usize::try_from(u32::from_le_bytes(*block_len)).unwrap_or(usize::MAX);
        let Some((block, after)) = after.split_at_checked(block_len) else {
            return Err(format!("a block of {block_len} bytes is cut off after {}", after.len()));
        };
        rest = after;
        let start = bytes.len();
        bytes.resize(size.min(start + LZ4_LEGACY_BLOCK), 0);
        let room = bytes.get_mut(start..).unwrap_or(&mut []);
        let written = lz4_flex::block::decompress_into(block, room).map_err(|error| error.to_string())?;
        bytes.truncate(start + written);
    }
    if bytes.len() == size {
        Ok(bytes)
    } else {
        Err(format!("it ends after {} of {size} bytes", bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at * at / 257 % 251).unwrap()).collect()
    }

    fn with_size(mut compressed: Vec<u8>, size: usize) -> Vec<u8> {
        compressed.extend(u32::try_from(size).unwrap().to_le_bytes());
        compressed
    }

    /// As `lz4 -l` and Linux's build make it.
    fn lz4_legacy_of(bytes: &[u8]) -> Vec<u8> {
        let mut out = LZ4_LEGACY.to_vec();
        for chunk in bytes.chunks(LZ4_LEGACY_BLOCK) {
            let block = lz4_flex::block::compress(chunk);
            out.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            out.extend(block);
        }
        with_size(out, bytes.len())
    }

    fn gzip_of(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
        let mut out = Vec::new();
        encoder.read_to_end(&mut out).unwrap();
        out
    }

    fn zstd_of(bytes: &[u8]) -> Vec<u8> {
        let out = ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Uncompressed);
        with_size(out, bytes.len())
    }

    #[test]
    fn all_formats_round_trip() {
        let unpack = |compressed: &[u8]| decompress(compressed, u32::MAX).unwrap().unwrap();
        for len in [1, 1000, 300_000] {
            let bytes = sample(len);
            for compressed in [lz4_legacy_of(&bytes), gzip_of(&bytes), zstd_of(&bytes)] {
                assert!(unpack(&compressed) == bytes, "{len} bytes, {:x?}", &compressed[..4]);
            }
        }
        let two_blocks = vec![7; LZ4_LEGACY_BLOCK + 5];
        assert!(unpack(&lz4_legacy_of(&two_blocks)) == two_blocks);
        assert!(decompress(b"\xfd7zXZ\0\0\0", u32::MAX).unwrap().is_none());
        assert!(decompress(b"", u32::MAX).unwrap().is_none());
    }

    #[test]
    fn sizes_beyond_the_limit_and_lies_about_it_are_refused() {
        let bytes = sample(5000);
        for compressed in [lz4_legacy_of(&bytes), gzip_of(&bytes), zstd_of(&bytes)] {
            assert!(matches!(
                decompress(&compressed, 4999),
                Err(KernelError::Payload { .. })
            ));
            let mut longer = compressed.clone();
            let end = longer.len();
            longer[end - 4..].copy_from_slice(&6000_u32.to_le_bytes());
            assert!(decompress(&longer, 1 << 20).is_err());
            assert!(decompress(&compressed[..compressed.len() / 2], 1 << 30).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn damage_never_panics(at in 4_usize..3000, value in 0_u8.., which in 0_usize..3) {
            let bytes = sample(20_000);
            let mut compressed = [lz4_legacy_of(&bytes), gzip_of(&bytes), zstd_of(&bytes)][which].clone();
            let at = at % compressed.len();
            compressed[at] = value;
            if let Ok(Some(found)) = decompress(&compressed, 1 << 20) {
                proptest::prop_assert!(found.len() <= 1 << 20);
            }
        }
    }
}
