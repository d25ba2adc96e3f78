//! Whether two disks hold the same.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use disk::{Disk, DiskError, DiskIo, DiskOp, Extent, ExtentKind};
use guestmem::IoBuf;

use crate::copy::{PIECE_BYTES, Pieces, Regions, is_zero, no_memory, on_threads};
use crate::engine::{self, EngineError};
use crate::watch::Watch;

/// Length of one comparison, bytes.
const STEP_BYTES: u64 = 1 << 20;

/// How two disks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Not at all; where one is longer, the rest of it is zeroes.
    Same,
    /// Somewhere.
    Differs {
        /// Where the first 512 bytes that differ begin, bytes.
        offset: u64,
    },
}

/// Why two disks could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// It was told to stop.
    #[error("stopped on request")]
    Stopped,
    /// One can not be read.
    #[error("disk {name} can not be read")]
    Read {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// No executor.
    #[error("comparing can not run")]
    Engine(#[from] EngineError),
}

struct Job<'a> {
    disks: [&'a dyn Disk; 2],
    regions: Regions,
    watch: &'a dyn Watch,
    outcome: Mutex<Option<Result<u64, CompareError>>>,
}

impl Job<'_> {
    fn settle(&self, outcome: Result<u64, CompareError>) {
        let mut settled = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *settled, outcome) {
            (none @ None, outcome) => *none = Some(outcome),
            (Some(Ok(lowest)), Ok(offset)) => *lowest = offset.min(*lowest),
            (Some(_), _) => {}
        }
    }

    /// Whether what is at `at` matters no more: a difference before it is known, or something went wrong.
    fn is_over(&self, at: u64) -> bool {
        if self.watch.is_stopped() {
            self.settle(Err(CompareError::Stopped));
        }
        match &*self.outcome.lock().unwrap_or_else(PoisonError::into_inner) {
            None => false,
            Some(Ok(lowest)) => at >= *lowest,
            Some(Err(_)) => true,
        }
    }
}

/// Compares two disks. A shorter one counts as continued with zeroes. Blocks.
///
/// # Errors
/// One can not be read, or it was stopped.
pub fn compare(one: &dyn Disk, two: &dyn Disk, watch: &dyn Watch) -> Result<Comparison, CompareError> {
    let size = one.geometry().size_bytes.max(two.geometry().size_bytes);
    let job = Job {
        disks: [one, two],
        regions: Regions::of(size),
        watch,
        outcome: Mutex::new(None),
    };
    on_threads(None, || match engine::block_on(go_through(&job)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => job.settle(Err(error)),
        Err(error) => job.settle(Err(error.into())),
    });
    match job.outcome.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(Comparison::Same),
        Some(Ok(offset)) => Ok(Comparison::Differs { offset }),
        Some(Err(error)) => Err(error),
    }
}

/// One side of the comparison.
struct Side<'a> {
    disk: &'a dyn Disk,
    io: std::rc::Rc<dyn DiskIo>,
    pieces: Pieces,
}

async fn go_through(job: &Job<'_>) -> Result<(), CompareError> {
    let side = |disk| {
        let failed = |source| failure(disk, source);
        Ok::<_, CompareError>(Side {
            disk,
            io: disk.open_queue().map_err(failed)?,
            pieces: Pieces::default(),
        })
    };
    let [one, two] = job.disks;
    let mut sides = [side(one)?, side(two)?];
    while let Some(Range { start: mut at, end }) = job.regions.take() {
        while at < end {
            if job.is_over(at) {
                return Ok(());
            }
            let [one, two] = &mut sides;
            let (left, right) = (one.kind_of(at, end - at).await?, two.kind_of(at, end - at).await?);
            let mut len = left.len.min(right.len);
            if left.kind == ExtentKind::Data || right.kind == ExtentKind::Data {
                len = len.min(STEP_BYTES);
                let (a, b) = (
                    one.read(at, len, left.kind).await?,
                    two.read(at, len, right.kind).await?,
                );
                if let Some(place) = first_difference(a.as_deref(), b.as_deref()) {
                    job.settle(Ok((at + place) - (at + place) % 512));
                    return Ok(());
                }
                one.pieces.keep(a.unwrap_or_default());
                two.pieces.keep(b.unwrap_or_default());
            }
            at += len;
            job.regions.finish(len, job.watch);
        }
    }
    Ok(())
}

impl Side<'_> {
    /// What is at `at`, for how long.
    async fn kind_of(&self, at: u64, len: u64) -> Result<Extent, CompareError> {
        let size = self.io.geometry().size_bytes;
        let zeroes = Extent {
            offset: at,
            len,
            kind: ExtentKind::Zero,
        };
        if at >= size {
            return Ok(zeroes);
        }
        let found = self.io.extents(at, len.min(size - at)).await;
        let found = found.map_err(|source| failure(self.disk, source))?;
        Ok(found.first().copied().unwrap_or(zeroes))
    }

    /// `None` for zeroes.
    async fn read(&mut self, at: u64, len: u64, kind: ExtentKind) -> Result<Option<Vec<IoBuf>>, CompareError> {
        if kind == ExtentKind::Zero {
            return Ok(None);
        }
        let failed = |source| failure(self.disk, source);
        let len = usize::try_from(len).unwrap_or_default();
        let bufs = self
            .pieces
            .take(at, len)
            .map_err(|error| failed(no_memory(DiskOp::Read, error)))?;
        let (result, bufs) = self.io.read(at, bufs).await;
        result.map_err(failed)?;
        Ok(Some(bufs))
    }
}

fn failure(disk: &dyn Disk, source: DiskError) -> CompareError {
    CompareError::Read {
        name: disk.name().to_owned(),
        source,
    }
}

/// Buffers of both sides are cut alike, as they come from the same place of a disk.
fn first_difference(one: Option<&[IoBuf]>, two: Option<&[IoBuf]>) -> Option<u64> {
    let mut at = 0;
    match (one, two) {
        (Some(one), Some(two)) => {
            let (mut left, mut right) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
            for (a, b) in one.iter().zip(two) {
                let (left, right) = (left.get_mut(..a.len())?, right.get_mut(..b.len())?);
                // Can not fail: the lengths are the buffers' own.
                let _ = (a.copy_to(0, left), b.copy_to(0, right));
                if left != right {
                    let place = left.iter().zip(&*right).position(|(a, b)| a != b);
                    return Some(at + place.unwrap_or_default() as u64);
                }
                at += a.len() as u64;
            }
            None
        }
        (Some(some), None) | (None, Some(some)) => {
            for buf in some {
                if !is_zero(buf, 0, buf.len()) {
                    let place = buf.to_vec().iter().position(|&byte| byte != 0);
                    return Some(at + place.unwrap_or_default() as u64);
                }
                at += buf.len() as u64;
            }
            None
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::conformance::pattern;
    use disk::{Access, InMemory};

    #[test]
    fn one_changed_byte_is_found_and_zeroes_at_the_end_are_not() {
        let mut bytes = vec![0; 9 << 20];
        bytes[3 << 20..5 << 20].copy_from_slice(&pattern(2 << 20, 1));
        let disk = |bytes: &[u8]| InMemory::holding(bytes.to_vec(), Access::ReadOnly);
        let whole = disk(&bytes);
        let compared = |other: &[u8]| compare(&whole, &disk(other), &()).unwrap();
        assert_eq!(compared(&bytes), Comparison::Same);
        assert_eq!(compared(&bytes[..5 << 20]), Comparison::Same);
        assert_eq!(compared(&bytes[..3 << 20]), Comparison::Differs { offset: 3 << 20 });
        for place in [0, (4 << 20) + 777, (9 << 20) - 1] {
            let mut other = bytes.clone();
            other[place] ^= 1;
            let offset = place as u64 / 512 * 512;
            assert_eq!(compared(&other), Comparison::Differs { offset });
        }
        let stopped = crate::Progress::new();
        stopped.stop();
        assert!(matches!(compare(&whole, &whole, &stopped), Err(CompareError::Stopped)));
    }
}
