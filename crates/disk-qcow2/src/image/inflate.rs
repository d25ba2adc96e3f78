//! Decompression, bounded: exactly one cluster comes out, whatever goes in.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress};
use libdeflater::Decompressor;

use crate::meta::entry::Compressed;
use crate::meta::header::Compression;

/// Largest window that a zstd frame may ask for, log2 of bytes: 8 MiB, four of the largest clusters. QEMU writes up to 2 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Decompressed clusters that are kept, bytes: two of the largest.
const KEPT_BYTES: usize = 4 << 20;

/// Most clusters of memory that wait to be filled.
const SPARE_MAX: usize = 4;

/// Decompresses one cluster into `bytes`, which has its length. `None` if the data is none, or ends early.
pub(crate) fn inflate(compression: Compression, data: &[u8], mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    match compression {
        Compression::Zlib => match Decompressor::new().deflate_decompress(data, &mut bytes) {
            Ok(count) if count == bytes.len() => {}
            // It ends early.
            Ok(_) => return None,
            Err(_) => inflate_start(data, &mut bytes)?,
        },
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(data).ok()?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).ok()?;
            decoder.read_exact(&mut bytes).ok()?;
        }
    }
    Some(bytes)
}

/// As QEMU reads it: what fills the cluster is good, whether or not the stream says that it ends there. Nobody writes it so.
#[cold]
fn inflate_start(data: &[u8], bytes: &mut [u8]) -> Option<()> {
    let mut inflater = Decompress::new(false);
    inflater.decompress(data, bytes, FlushDecompress::Finish).ok()?;
    (inflater.total_out() == bytes.len() as u64).then_some(())
}

/// How many of this thread's operations do the same at once.
#[derive(Default)]
pub(crate) struct Crowd(Cell<usize>);

/// Membership in a [`Crowd`], until it is dropped.
pub(crate) struct Member<'a>(&'a Crowd);

impl Crowd {
    pub(crate) fn join(&self) -> Member<'_> {
        self.0.set(self.0.get() + 1);
        Member(self)
    }
}

impl Member<'_> {
    pub(crate) fn is_alone(&self) -> bool {
        self.0.0.get() == 1
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// Recently decompressed clusters, so that small reads of one cluster decompress it once.
#[derive(Default)]
pub(crate) struct Inflated {
    recent: VecDeque<(Compressed, Arc<Vec<u8>>)>,
    /// Memory of what was forgotten: to be filled again without asking the allocator, and the kernel, for it.
    spare: Vec<Vec<u8>>,
}

impl Inflated {
    pub(crate) fn get(&self, data: Compressed) -> Option<Arc<Vec<u8>>> {
        let found = self.recent.iter().find(|(key, _)| *key == data);
        found.map(|(_, bytes)| Arc::clone(bytes))
    }

    /// Memory for one cluster, whatever is in it.
    pub(crate) fn memory(&mut self, cluster_bytes: usize) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| vec![0; cluster_bytes])
    }

    pub(crate) fn put(&mut self, data: Compressed, bytes: Arc<Vec<u8>>) {
        while self.recent.len() * bytes.len() >= KEPT_BYTES || self.recent.len() >= 64 {
            // Who still reads it keeps it.
            let forgotten = self.recent.pop_front().and_then(|(_, bytes)| Arc::into_inner(bytes));
            self.spare.extend(forgotten.filter(|_| self.spare.len() < SPARE_MAX));
        }
        self.recent.push_back((data, bytes));
    }

    /// Forgets all: a compressed cluster lost a reference, and something else may take its place.
    pub(crate) fn clear(&mut self) {
        self.recent.clear();
        self.spare.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_stream_without_an_end_is_as_good_as_it_is_long() {
        let plain: Vec<u8> = (0..65536u32).flat_map(|i| (i / 5).to_le_bytes()).take(65536).collect();
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        deflate.write_all(&plain).unwrap();
        deflate.flush().unwrap();
        let data = deflate.get_ref().clone();
        let inflate = |len| inflate(Compression::Zlib, &data, vec![0xee; len]);
        assert_eq!(inflate(65536).as_ref(), Some(&plain), "no last block");
        assert_eq!(inflate(32768).as_deref(), plain.get(..32768), "more than a cluster");
        assert_eq!(inflate(65537), None);
    }

    #[test]
    fn one_cluster_comes_out_or_nothing() {
        let plain: Vec<u8> = (0..65536u32).flat_map(|i| (i / 7).to_le_bytes()).take(65536).collect();
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        deflate.write_all(&plain).unwrap();
        let mut zlib = deflate.finish().unwrap();
        let mut zstd = zstd::bulk::compress(&plain, 3).unwrap();
        for (kind, data) in [(Compression::Zlib, &mut zlib), (Compression::Zstd, &mut zstd)] {
            let inflate = |data: &[u8], len| inflate(kind, data, vec![0xee; len]);
            assert_eq!(inflate(data, 65536).as_ref(), Some(&plain));
            assert_eq!(inflate(&data[..data.len() / 2], 65536), None);
            assert_eq!(inflate(data, 65537), None, "ends early");
            data.resize(data.len() + 300, 0);
            assert_eq!(
                inflate(data, 65536).as_ref(),
                Some(&plain),
                "the rest of the sector is ignored"
            );
            assert_eq!(inflate(&[0x55; 512], 65536), None);
        }
    }
}
