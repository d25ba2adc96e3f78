//! Disks with contents that tell a misplaced block from a right one.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Bytes made and compared at a time.
const CHUNK: usize = 1 << 20;

/// A raw file in which no two blocks are alike.
pub struct PatternDisk {
    /// Where it is.
    pub path: PathBuf,
}

impl PatternDisk {
    /// Writes `mib` MiB of xorshift64* output from `seed`: fast enough under emulation, and different everywhere.
    pub fn create(path: &Path, mib: usize, seed: u64) -> std::io::Result<Self> {
        let mut file = File::create_new(path)?;
        let mut state = seed | 1;
        let mut chunk = vec![0; CHUNK];
        for _ in 0..mib {
            for word in chunk.chunks_exact_mut(8) {
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
            }
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
        Ok(Self { path: path.to_owned() })
    }
}

/// Offset of the first MiB in which two files differ; a shorter file differs where it ends.
pub fn first_difference(left: &Path, right: &Path) -> std::io::Result<Option<u64>> {
    let (mut left, mut right) = (File::open(left)?, File::open(right)?);
    let mut offset = 0;
    loop {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        (&mut left).take(CHUNK as u64).read_to_end(&mut a)?;
        (&mut right).take(CHUNK as u64).read_to_end(&mut b)?;
        if a != b {
            return Ok(Some(offset));
        }
        if a.is_empty() {
            return Ok(None);
        }
        offset += CHUNK as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_differ_and_differences_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (one, same) = (
            PatternDisk::create(&at("a"), 3, 7).unwrap(),
            PatternDisk::create(&at("b"), 3, 7).unwrap(),
        );
        assert_eq!(first_difference(&one.path, &same.path).unwrap(), None);
        let bytes = std::fs::read(&one.path).unwrap();
        assert_ne!(bytes[..CHUNK], bytes[CHUNK..2 * CHUNK]);
        let mut changed = bytes.clone();
        changed[CHUNK + 5] ^= 1;
        std::fs::write(at("c"), &changed).unwrap();
        assert_eq!(first_difference(&one.path, &at("c")).unwrap(), Some(CHUNK as u64));
        std::fs::write(at("d"), &bytes[..2 * CHUNK]).unwrap();
        assert_eq!(first_difference(&one.path, &at("d")).unwrap(), Some(2 * CHUNK as u64));
    }
}
