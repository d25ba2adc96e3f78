//! Compression, into what QEMU decompresses.

use flate2::{Compress, FlushCompress, Status};

use crate::meta::header::Compression;

/// QEMU inflates with a window of 4 KiB (`inflateInit2(-12)`): nothing may refer further back.
const WINDOW_BITS: u8 = 12;

/// Level of zstd: the one its authors made the default.
const ZSTD_LEVEL: i32 = 3;

/// Compresses one cluster. `None` if that would save less than a sector.
pub(crate) fn deflate(kind: Compression, plain: &[u8]) -> Option<Vec<u8>> {
    let room = plain.len().checked_sub(512)?;
    match kind {
        Compression::Zlib => {
            let level = flate2::Compression::default();
            let mut bytes = Vec::with_capacity(room);
            let mut compress = Compress::new_with_window_bits(level, false, WINDOW_BITS);
            let ended = compress.compress_vec(plain, &mut bytes, FlushCompress::Finish).ok()?;
            (ended == Status::StreamEnd).then_some(bytes)
        }
        Compression::Zstd => {
            let bytes = zstd::bulk::compress(plain, ZSTD_LEVEL).ok()?;
            (bytes.len() <= room).then_some(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::inflate::inflate;

    #[test]
    fn what_is_compressed_comes_back() {
        let plain: Vec<u8> = (0..65536u32).flat_map(|i| (i / 9).to_le_bytes()).take(65536).collect();
        let mut noise = Vec::new();
        let mut state = 1u64;
        while noise.len() < 65536 {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            noise.extend(state.to_be_bytes());
        }
        for kind in [Compression::Zlib, Compression::Zstd] {
            for len in [512, 4096, 65536] {
                let bytes = deflate(kind, &plain[..len]);
                if len > 512 {
                    let bytes = bytes.unwrap();
                    assert!(bytes.len() <= len - 512);
                    assert_eq!(inflate(kind, &bytes, vec![0; len]).as_deref(), Some(&plain[..len]));
                } else {
                    assert_eq!(bytes, None, "a sector can not be made less");
                }
            }
            assert_eq!(deflate(kind, &noise), None);
        }
    }
}
