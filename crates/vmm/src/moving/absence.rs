//! What is missing of a machine that was started before all of its memory was there.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guestmem::{Absent, GuestMemory};
use migration::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, PageSet, Wanted};

const PAGE: u64 = PAGE_BYTES as u64;
/// How long the end of the watch may take.
const LOOK: Duration = Duration::from_millis(100);
/// Stack of the thread, bytes.
const STACK_BYTES: usize = 128 << 10;

/// Watches for whoever touches missing pages, until it is dropped.
#[derive(Debug)]
pub(super) struct Absence {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    absent: Absent,
    missing: PageSet,
    wanted: Wanted,
    over: AtomicBool,
    /// Before the start: pages that loading the machine's state has touched. It writes there what is in them anyway, as the time of
    /// day at the guest's boot, so that zeroes do until then.
    touched: Mutex<Option<Vec<u64>>>,
}

impl Absence {
    /// From now on the pages of `missing` are, whatever they held.
    pub(super) fn begin(memory: &GuestMemory, missing: &PageSet, wanted: Wanted) -> io::Result<Self> {
        let absent = Absent::new(memory)?;
        for (chunk, mask) in missing.chunks() {
            for (first, count) in runs(mask) {
                absent.remove(
                    chunk * CHUNK_BYTES as u64 + u64::from(first) * PAGE,
                    u64::from(count) * PAGE,
                )?;
            }
        }
        let shared = Arc::new(Shared {
            absent,
            missing: missing.clone(),
            wanted,
            over: AtomicBool::new(false),
            touched: Mutex::new(Some(Vec::new())),
        });
        let watching = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("missing-pages".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || watching.watch())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The machine is about to run: whatever is missing is fetched from now on.
    pub(super) fn start(&self) -> io::Result<()> {
        let touched = self
            .shared
            .touched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        for offset in touched.unwrap_or_default() {
            self.shared.absent.remove(offset, PAGE)?;
        }
        Ok(())
    }

    pub(super) fn place(&self, page: u64, bytes: Option<&[u8; PAGE_BYTES]>) -> io::Result<()> {
        self.shared.absent.place(page * PAGE, bytes)
    }
}

impl Drop for Absence {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its panic, if it had one, was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watch(&self) {
        while !self.over.load(Ordering::Acquire) {
            let served = self
                .absent
                .touched(LOOK)
                .and_then(|offsets| offsets.into_iter().try_for_each(|offset| self.serve(offset)));
            if let Err(error) = served {
                tracing::error!(%error, "missing memory can not be watched for");
                thread::sleep(LOOK);
            }
        }
    }

    fn serve(&self, offset: u64) -> io::Result<()> {
        let page = offset / PAGE;
        if !self.missing.contains(page) {
            // It was zero at the source, so it was not sent.
            return self.absent.place(offset, None);
        }
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *touched {
            Some(before_start) => {
                before_start.push(offset);
                self.absent.place(offset, None)
            }
            None => {
                drop(touched);
                self.wanted.page(page);
                Ok(())
            }
        }
    }
}

/// Runs of set bits: the first bit, and how many.
fn runs(mut mask: u64) -> impl Iterator<Item = (u32, u32)> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let first = mask.trailing_zeros();
        let count = (mask >> first).trailing_ones();
        let end = u64::from(first + count);
        mask = if end >= CHUNK_PAGES { 0 } else { mask >> end << end };
        Some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_all_bits_once() {
        let all = |mask| runs(mask).collect::<Vec<_>>();
        assert_eq!(all(0), []);
        assert_eq!(all(u64::MAX), [(0, 64)]);
        assert_eq!(all(0b1011), [(0, 2), (3, 1)]);
        assert_eq!(all(1 << 63 | 1), [(0, 1), (63, 1)]);
    }
}
