//! Files with holes: writing runs of zeros as nothing, copying only what is there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;

/// The unit zeros are looked for in, bytes; a file system block on everything Karat runs on.
const BLOCK: usize = 4096;
/// Bytes moved by one system call while copying, so that a stop request is seen.
const COPY_STEP: u64 = 64 << 20;

/// Writes a stream into an empty file, leaving a hole for each block of zeros.
pub(crate) struct SparseWriter {
    file: File,
    /// File offset of the first byte in `pending`; a multiple of `BLOCK`.
    offset: u64,
    /// An incomplete block.
    pending: Vec<u8>,
    /// Bytes written, not counting holes.
    data: u64,
    /// Bytes at the start that the file has already.
    there: u64,
}

impl SparseWriter {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            offset: 0,
            pending: Vec::with_capacity(BLOCK),
            data: 0,
            there: 0,
        }
    }

    /// Goes on with a file whose first `there` bytes, a multiple of 4096, are what will be written; they count as data.
    pub(crate) fn resume(file: File, there: u64) -> Self {
        Self {
            there,
            ..Self::new(file)
        }
    }

    /// Goes on at the end of a file that was settled as a whole; `at` is its length. What is there counts as data as far as it
    /// occupies space.
    pub(crate) fn resume_at(file: File, at: u64) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let begun = at % BLOCK as u64;
        let mut pending = vec![0; usize::try_from(begun).unwrap_or_default()];
        file.read_exact_at(&mut pending, at - begun)?;
        Ok(Self {
            offset: at - begun,
            pending,
            data: file.metadata()?.blocks() * 512,
            ..Self::new(file)
        })
    }

    /// Makes all so far durable, also an incomplete block; the file ends behind it. Returns its length.
    pub(crate) fn settle_all(&mut self) -> io::Result<u64> {
        let length = self.offset + self.pending.len() as u64;
        self.file.write_all_at(&self.pending, self.offset)?;
        if self.file.metadata()?.len() < length {
            self.file.set_len(length)?;
        }
        self.file.sync_data()?;
        Ok(length)
    }

    /// Makes all whole blocks so far durable. Returns how many bytes these are; the file is at least that long.
    pub(crate) fn settle(&mut self) -> io::Result<u64> {
        if self.file.metadata()?.len() < self.offset {
            self.file.set_len(self.offset)?;
        }
        self.file.sync_data()?;
        Ok(self.offset)
    }

    /// Bytes of whole blocks so far.
    pub(crate) fn position(&self) -> u64 {
        self.offset
    }

    /// Bytes written so far, not counting holes.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data
    }

    /// Writes the last block and sets the length, rounded up to a multiple of `unit` with zeros. Returns file and length.
    pub(crate) fn finish(mut self, unit: u64) -> io::Result<(File, u64)> {
        let length = self.offset + self.pending.len() as u64;
        let rest = std::mem::take(&mut self.pending);
        self.put(&rest)?;
        let length = length
            .checked_next_multiple_of(unit.max(1))
            .ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.set_len(length)?;
        Ok((self.file, length))
    }

    /// Writes whole blocks (or the end), skipping zeros.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let zeros = run_length(rest, true);
            let data = rest.get(zeros..).unwrap_or_default();
            let (run, after) = data.split_at(run_length(data, false));
            self.offset += zeros as u64;
            // Blocks are whole, and so is what is there: a run begins before its end or not.
            let known = usize::try_from(self.there.saturating_sub(self.offset)).unwrap_or(usize::MAX);
            let fresh = run.get(known.min(run.len())..).unwrap_or_default();
            let at = self.offset + (run.len() - fresh.len()) as u64;
            self.file.write_all_at(fresh, at)?;
            self.offset += run.len() as u64;
            self.data += run.len() as u64;
            rest = after;
        }
        Ok(())
    }
}

/// Bytes in the leading blocks that are (or are not) all zeros.
fn run_length(bytes: &[u8], zero: bool) -> usize {
    bytes
        .chunks(BLOCK)
        .take_while(|block| block.iter().all(|&byte| byte == 0) == zero)
        .map(<[u8]>::len)
        .sum()
}

impl Write for SparseWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        if !self.pending.is_empty() {
            let wanted = (BLOCK - self.pending.len()).min(rest.len());
            let (now, later) = rest.split_at(wanted);
            self.pending.extend_from_slice(now);
            rest = later;
            if self.pending.len() < BLOCK {
                return Ok(bytes.len());
            }
            let mut block = std::mem::take(&mut self.pending);
            self.put(&block)?;
            block.clear();
            self.pending = block;
        }
        let (whole, end) = rest.split_at(rest.len() - rest.len() % BLOCK);
        self.put(whole)?;
        self.pending.extend_from_slice(end);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies the data of `source` into the empty file `target` and gives it the same length. Returns the bytes copied. `stop` is
/// asked every `COPY_STEP` bytes; true ends the copy with [`io::ErrorKind::Interrupted`].
pub(crate) fn copy_data(source: &File, target: &File, stop: &dyn Fn() -> bool) -> io::Result<u64> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut copied = 0;
    let mut position = 0;
    while position < length {
        let start = match rustix::fs::seek(source, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break, // Only a hole is left.
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        copy_range(source, target, start..end, stop)?;
        copied += end - start;
        position = end;
    }
    Ok(copied)
}

fn copy_range(source: &File, target: &File, range: std::ops::Range<u64>, stop: &dyn Fn() -> bool) -> io::Result<()> {
    let mut from = range.start;
    let mut in_kernel = true;
    let mut buffer = Vec::new();
    while from < range.end {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let step = (range.end - from).min(COPY_STEP);
        if in_kernel {
            let (mut at, mut to) = (from, from);
            let length = usize::try_from(step).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(source, Some(&mut at), target, Some(&mut to), length) {
                Ok(0) | Err(rustix::io::Errno::XDEV | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
                    in_kernel = false;
                }
                Ok(count) => from += count as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        } else {
            buffer.resize(usize::try_from(step.min(1 << 20)).unwrap_or(BLOCK), 0);
            source.read_exact_at(&mut buffer, from)?;
            target.write_all_at(&buffer, from)?;
            from += buffer.len() as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    fn pattern(runs: &[(u8, usize)]) -> Vec<u8> {
        runs.iter()
            .flat_map(|&(byte, count)| std::iter::repeat_n(byte, count))
            .collect()
    }

    fn written(data: &[u8], step: usize, unit: u64) -> (tempfile::NamedTempFile, u64) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = SparseWriter::new(file.reopen().unwrap());
        for piece in data.chunks(step) {
            writer.write_all(piece).unwrap();
        }
        let (_, length) = writer.finish(unit).unwrap();
        (file, length)
    }

    #[test]
    fn writes_the_same_bytes_whatever_the_pieces_and_skips_zeros() {
        let data = pattern(&[
            (0, 1 << 20),
            (7, 5000),
            (0, 3 << 20),
            (1, 1),
            (0, 20_000),
            (9, 4096),
            (0, 777),
        ]);
        for step in [1000, 4096, 4097, 65_536, data.len()] {
            let (file, length) = written(&data, step, 1);
            assert_eq!(length, data.len() as u64);
            assert!(std::fs::read(file.path()).unwrap() == data, "step {step}");
            assert!(
                file.as_file().metadata().unwrap().blocks() * 512 <= 64 << 10,
                "step {step}"
            );
        }
    }

    #[test]
    fn goes_on_where_it_was_settled() {
        let data = pattern(&[(3, 40_000), (0, 20_000), (5, 9000), (0, 70_000), (7, 100)]);
        for cut in [1000, 50_000, 65_000, 100_000] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut writer = SparseWriter::new(file.reopen().unwrap());
            writer.write_all(&data[..cut]).unwrap();
            let there = writer.settle().unwrap();
            assert!(there <= cut as u64 && there + 4096 > cut as u64);
            assert!(file.as_file().metadata().unwrap().len() >= there);
            drop(writer);
            // Bytes that are there are not looked at again.
            let mut again = data.clone();
            if there >= 4096 {
                again[..4096].fill(9);
            }
            let mut writer = SparseWriter::resume(file.reopen().unwrap(), there);
            for piece in again.chunks(3000) {
                writer.write_all(piece).unwrap();
            }
            writer.finish(1).unwrap();
            assert!(std::fs::read(file.path()).unwrap() == data, "cut at {cut}");
        }
    }

    #[test]
    fn goes_on_in_the_middle_of_a_block_where_all_was_settled() {
        let data = pattern(&[(3, 40_000), (0, 20_000), (5, 9000), (0, 70_000), (7, 100)]);
        for cut in [0, 1000, 4096, 50_000, 65_000, 100_000, data.len()] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut writer = SparseWriter::new(file.reopen().unwrap());
            writer.write_all(&data[..cut]).unwrap();
            assert_eq!(writer.settle_all().unwrap(), cut as u64);
            assert_eq!(file.as_file().metadata().unwrap().len(), cut as u64);
            // What it was settled from goes on as well.
            writer.write_all(&data[cut..]).unwrap();
            writer.finish(1).unwrap();
            assert!(std::fs::read(file.path()).unwrap() == data, "cut at {cut}");
            file.as_file().set_len(cut as u64).unwrap();
            let mut writer = SparseWriter::resume_at(
                File::options().read(true).write(true).open(file.path()).unwrap(),
                cut as u64,
            )
            .unwrap();
            writer.write_all(&data[cut..]).unwrap();
            writer.finish(1).unwrap();
            assert!(std::fs::read(file.path()).unwrap() == data, "resumed at {cut}");
        }
    }

    #[test]
    fn rounds_the_length_up() {
        let (file, length) = written(&[5; 700], 100, 512);
        assert_eq!(length, 1024);
        assert_eq!(std::fs::read(file.path()).unwrap()[698..702], [5, 5, 0, 0]);
        assert_eq!(written(&[], 1, 512).1, 0);
    }

    #[test]
    fn copies_data_and_keeps_holes() {
        let source = tempfile::tempfile().unwrap();
        source.set_len(32 << 20).unwrap();
        source.write_all_at(&[3; 100_000], 5 << 20).unwrap();
        source.write_all_at(&[4; 10], (20 << 20) + 11).unwrap();
        let mut target = tempfile::tempfile().unwrap();
        let copied = copy_data(&source, &target, &|| false).unwrap();
        assert!((100_010..1 << 20).contains(&copied), "{copied}");
        assert!(target.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut all = Vec::new();
        target.read_to_end(&mut all).unwrap();
        let mut expected = vec![0; 32 << 20];
        expected[5 << 20..(5 << 20) + 100_000].fill(3);
        expected[(20 << 20) + 11..(20 << 20) + 21].fill(4);
        assert!(all == expected);
        let stopped = copy_data(&source, &tempfile::tempfile().unwrap(), &|| true).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }
}
