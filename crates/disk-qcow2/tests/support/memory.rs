//! A sparse file in memory: any length up to a limit, memory only for what is not zeroes.
#![allow(unreachable_pub, missing_docs, reason = "shared with the fuzz targets")]
#![allow(clippy::cast_possible_truncation, reason = "places within a page")]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk::{
    Disk, DiskError, DiskErrorKind, DiskFuture, DiskIo, DiskOp, Extent, ExtentKind, Geometry, Transferred, ZeroMode,
    total_len,
};
use guestmem::IoBuf;

const PAGE_BYTES: u64 = 4096;

struct Contents {
    len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

/// A disk of that kind. Clones are one disk.
#[derive(Clone)]
pub struct Memory {
    contents: Arc<Mutex<Contents>>,
    limit: u64,
}

impl Memory {
    /// These bytes, and growth up to `limit` bytes.
    pub fn holding(bytes: &[u8], limit: u64) -> Self {
        let mut contents = Contents {
            len: (bytes.len() as u64).next_multiple_of(512),
            pages: BTreeMap::new(),
        };
        contents.put(0, bytes);
        Self {
            contents: Arc::new(Mutex::new(contents)),
            limit,
        }
    }

    /// Makes the file this long, of zeroes.
    pub fn stretch(&self, len: u64) {
        let mut contents = self.lock();
        contents.len = contents.len.max(len.next_multiple_of(512));
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, op: DiskOp, offset: u64, len: u64) -> Result<MutexGuard<'_, Contents>, DiskError> {
        let contents = self.lock();
        Geometry::of_size(contents.len).check(op, offset, len)?;
        Ok(contents)
    }

    fn zero(&self, op: DiskOp, offset: u64, len: u64) -> Result<(), DiskError> {
        let mut contents = self.check(op, offset, len)?;
        let (first, last) = (offset.div_ceil(PAGE_BYTES), (offset + len) / PAGE_BYTES);
        if first < last {
            let dead: Vec<u64> = contents.pages.range(first..last).map(|(page, _)| *page).collect();
            for page in dead {
                contents.pages.remove(&page);
            }
        }
        let end = offset + len;
        let edges = match first < last {
            true => [offset..first * PAGE_BYTES, last * PAGE_BYTES..end],
            false => [offset..end, end..end],
        };
        for at in edges.into_iter().flat_map(|edge| edge.step_by(512)) {
            if contents.pages.contains_key(&(at / PAGE_BYTES)) {
                contents.put(at, &[0; 512]);
            }
        }
        Ok(())
    }
}

impl Contents {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let len = rest.len().min(PAGE_BYTES as usize - within);
            let page = self.pages.entry(at / PAGE_BYTES);
            let page = page.or_insert_with(|| vec![0; PAGE_BYTES as usize]);
            page[within..within + len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            at += len as u64;
        }
    }

    fn get(&self, offset: u64, bytes: &mut [u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let len = rest.len().min(PAGE_BYTES as usize - within);
            if let Some(page) = self.pages.get(&(at / PAGE_BYTES)) {
                rest[..len].copy_from_slice(&page[within..within + len]);
            }
            rest = &mut rest[len..];
            at += len as u64;
        }
    }
}

impl Disk for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn geometry(&self) -> Geometry {
        Geometry::of_size(self.lock().len)
    }

    fn open_queue(&self) -> Result<Rc<dyn DiskIo>, DiskError> {
        Ok(Rc::new(self.clone()))
    }
}

impl DiskIo for Memory {
    fn geometry(&self) -> Geometry {
        Geometry::of_size(self.lock().len)
    }

    fn read(&self, offset: u64, mut bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let result = self.check(DiskOp::Read, offset, total_len(&bufs)).map(|contents| {
            let mut at = offset;
            for buf in &mut bufs {
                let mut bytes = vec![0; buf.len()];
                contents.get(at, &mut bytes);
                let _ = buf.copy_from(0, &bytes);
                at += bytes.len() as u64;
            }
        });
        Box::pin(async move { (result, bufs) })
    }

    fn write(&self, offset: u64, bufs: Vec<IoBuf>) -> DiskFuture<'_, Transferred> {
        let result = self.check(DiskOp::Write, offset, total_len(&bufs)).map(|mut contents| {
            let mut at = offset;
            for buf in &bufs {
                contents.put(at, &buf.to_vec());
                at += buf.len() as u64;
            }
        });
        Box::pin(async move { (result, bufs) })
    }

    fn flush(&self) -> DiskFuture<'_, Result<(), DiskError>> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let result = self.zero(DiskOp::Discard, offset, len);
        Box::pin(async move { result })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> DiskFuture<'_, Result<(), DiskError>> {
        let result = self.zero(DiskOp::WriteZeroes, offset, len);
        Box::pin(async move { result })
    }

    fn grow(&self, size_bytes: u64) -> DiskFuture<'_, Result<(), DiskError>> {
        let mut contents = self.lock();
        let result = Geometry::of_size(contents.len)
            .check_grow(size_bytes)
            .and_then(|grows| {
                if grows && size_bytes > self.limit {
                    return Err(DiskError::new(DiskOp::Grow, DiskErrorKind::NoSpace).at(0, size_bytes));
                }
                contents.len = contents.len.max(size_bytes);
                Ok(())
            });
        drop(contents);
        Box::pin(async move { result })
    }

    fn extents(&self, offset: u64, len: u64) -> DiskFuture<'_, Result<Vec<Extent>, DiskError>> {
        let result = self.check(DiskOp::Extents, offset, len).map(|contents| {
            let (mut found, mut at, end) = (Vec::new(), offset, offset + len);
            while at < end && found.len() < 64 {
                let page = at / PAGE_BYTES;
                let next = contents.pages.range(page..).next().map_or(u64::MAX, |(page, _)| *page);
                let (kind, to) = match next == page {
                    true => (ExtentKind::Data, (page + 1) * PAGE_BYTES),
                    false => (ExtentKind::Zero, next.saturating_mul(PAGE_BYTES)),
                };
                let to = to.min(end);
                found.push(Extent {
                    offset: at,
                    len: to - at,
                    kind,
                });
                at = to;
            }
            found
        });
        Box::pin(async move { result })
    }
}
