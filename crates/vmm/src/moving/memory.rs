//! Guest RAM by page number.

use std::io;
use std::sync::OnceLock;

use guestmem::{Absent, Bytes, GuestAddress, GuestMemory};
use migration::{Fault, PAGE_BYTES, PageSet, SourceMemory, TargetMemory, Wanted};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::absence::Absence;

const PAGE: u64 = PAGE_BYTES as u64;

/// A page that the machine does not have: a defect.
#[derive(Debug, thiserror::Error)]
#[error("the machine has no page {0}")]
struct NoPage(u64);

/// Where pages are: regions follow each other without the holes between them.
#[derive(Debug)]
pub(super) struct Pages {
    memory: GuestMemory,
    /// First page, number of pages, and address of each region.
    regions: Vec<(u64, u64, u64)>,
    /// Of a machine that is started before all of it is there.
    absence: OnceLock<Absence>,
}

impl Pages {
    pub(super) fn new(memory: GuestMemory) -> Self {
        let regions = memory
            .regions()
            .map(|region| (region.file_offset / PAGE, region.len / PAGE, region.gpa.0))
            .collect();
        Self {
            memory,
            regions,
            absence: OnceLock::new(),
        }
    }

    /// Whether pages of it may be missing when the machine is started.
    pub(super) fn can_miss(&self) -> bool {
        Absent::is_possible(&self.memory)
    }

    /// From now on these are missing.
    pub(super) fn withhold(&self, missing: &PageSet, wanted: Wanted) -> io::Result<()> {
        let absence = Absence::begin(&self.memory, missing, wanted)?;
        self.absence
            .set(absence)
            .map_err(|_again| io::ErrorKind::AlreadyExists.into())
    }

    /// The machine is about to run.
    pub(super) fn start(&self) -> io::Result<()> {
        self.absence.get().map_or(Ok(()), Absence::start)
    }

    /// Calls `act` for each piece of `bytes` bytes from page `first` on that lies in one region: its address, and which bytes.
    fn for_each_piece(
        &self,
        first: u64,
        bytes: usize,
        mut act: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (mut page, mut done) = (first, 0);
        while done < bytes {
            let region = self
                .regions
                .iter()
                .find(|(start, pages, _)| (*start..start + pages).contains(&page));
            let &(start, pages, gpa) = region.ok_or(NoPage(page))?;
            let room = usize::try_from((start + pages - page) * PAGE).unwrap_or(usize::MAX);
            let end = bytes.min(done.saturating_add(room));
            act(GuestAddress(gpa + (page - start) * PAGE), done..end)?;
            page += ((end - done) as u64).div_ceil(PAGE);
            done = end;
        }
        Ok(())
    }

    pub(super) fn read_pages(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.for_each_piece(first, into.len(), |at, range| {
            let part = into.get_mut(range).unwrap_or_default();
            Ok(self.memory.read_slice(part, at)?)
        })
    }

    pub(super) fn write_pages(&self, first: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.for_each_piece(first, bytes.len(), |at, range| {
            Ok(self.memory.write_slice(bytes.get(range).unwrap_or_default(), at)?)
        })
    }

    /// The pages that may hold something else than zeros: those that the kernel has.
    pub(super) fn occupied(&self) -> PageSet {
        let pages = self.memory.ram_bytes() / PAGE;
        self.try_occupied(pages).unwrap_or_else(|error| {
            tracing::debug!(%error, "which pages are empty is not known, so all are looked at");
            PageSet::full(pages)
        })
    }

    fn try_occupied(&self, pages: u64) -> io::Result<PageSet> {
        let file = self.memory.whole_file().ok_or(io::ErrorKind::Unsupported)?;
        let mut set = PageSet::empty(pages);
        let end = pages * PAGE;
        let mut at = 0;
        while at < end {
            let data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            at = seek(file, SeekFrom::Hole(data))?.min(end);
            (data / PAGE..at.div_ceil(PAGE)).for_each(|page| set.insert(page));
        }
        Ok(set)
    }
}

impl SourceMemory for Pages {
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.read_pages(first, into)
    }
}

impl TargetMemory for Pages {
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.read_pages(first, into)
    }

    fn write(&self, first: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.write_pages(first, bytes)
    }

    fn place(&self, page: u64, bytes: Option<&[u8; PAGE_BYTES]>) -> Result<(), Fault> {
        match self.absence.get() {
            Some(absence) => Ok(absence.place(page, bytes)?),
            None => self.write_pages(page, bytes.unwrap_or(&[0; PAGE_BYTES])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestmem::MemoryConfig;

    const GIB: u64 = 1 << 30;

    fn pages(size_bytes: u64) -> Pages {
        Pages::new(
            GuestMemory::new(MemoryConfig {
                size_bytes,
                hugepages: None,
                prefault: false,
            })
            .unwrap(),
        )
    }

    #[test]
    fn pages_are_numbered_over_the_hole() {
        let pages = pages(3 * GIB + 2 * PAGE);
        let last_low = 3 * GIB / PAGE - 1;
        pages
            .write_pages(last_low, &[[1; PAGE_BYTES], [2; PAGE_BYTES]].concat())
            .unwrap();
        let byte = |gpa| pages.memory.read_obj::<u8>(GuestAddress(gpa)).unwrap();
        assert_eq!([byte(3 * GIB - 1), byte(4 * GIB), byte(4 * GIB + PAGE)], [1, 2, 0]);
        let mut both = vec![0; 2 * PAGE_BYTES];
        pages.read_pages(last_low, &mut both).unwrap();
        assert_eq!((both[PAGE_BYTES - 1], both[PAGE_BYTES]), (1, 2));
        assert!(pages.read_pages(last_low + 2, &mut both).is_err(), "one page too many");
        assert!(pages.write_pages(u64::MAX, &[0]).is_err());
    }

    #[test]
    fn only_pages_that_exist_are_occupied() {
        let pages = pages(64 << 20);
        assert!(pages.occupied().is_empty());
        // Huge pages may make more of it than was written.
        pages.write_pages(700, &[1]).unwrap();
        let set = pages.occupied();
        assert!(set.contains(700) && set.len() <= 512, "{}", set.len());
    }
}
