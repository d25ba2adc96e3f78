//! Bringing slices into the cache, and holding guest ranges.

use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use event_listener::Event;
use guestmem::IoBuf;

use super::cache::Kind;
use super::fault::{Damage, Fault};
use super::state::{Engine, Image};
use super::tables::{Tables, Want};

/// Held while a slice is read; whoever waits for it is woken when this is dropped, with or without the slice.
struct Loading<'a> {
    image: &'a Image,
    key: u64,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let waiters: Option<Arc<Event>> = self.image.tables().loading.remove(&self.key).flatten();
        if let Some(waiters) = waiters {
            waiters.notify(usize::MAX);
        }
    }
}

/// A guest range that nobody else maps anew meanwhile. In guest clusters.
pub(crate) struct RangeGuard<'a> {
    image: &'a Image,
    ticket: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let waiters = self.image.tables().busy.leave(self.ticket);
        if let Some(waiters) = waiters {
            waiters.notify(usize::MAX);
        }
    }
}

impl Engine {
    /// Makes a step under the lock, loading what it wants until it can be made. Steps that may need refcount blocks made use
    /// [`Engine::allocate`].
    pub(crate) async fn step<T>(&self, mut step: impl FnMut(&mut Tables) -> Result<T, Want>) -> Result<T, Fault> {
        loop {
            let want = match step(&mut self.image.tables()) {
                Ok(done) => return Ok(done),
                Err(want) => want,
            };
            match want {
                Want::Slice(key, kind) => self.load(key, kind).await?,
                Want::Turn => turn().await,
                Want::Block(number) => {
                    let host = number.saturating_mul(self.image.layout.refblock_span_bytes());
                    return Err(Damage::Refcount(host).into());
                }
                Want::Damage(damage) => return Err(damage.into()),
            }
        }
    }

    /// Brings a slice into the cache, or waits until somebody else has.
    pub(crate) async fn load(&self, key: u64, kind: Kind) -> Result<(), Fault> {
        let loading = loop {
            let listener = {
                let mut tables = self.image.tables();
                if tables.cache.contains(key) {
                    return Ok(());
                }
                match tables.loading.get_mut(&key) {
                    Some(waiters) => waiters.get_or_insert_default().listen(),
                    None => {
                        tables.loading.insert(key, None);
                        break Loading {
                            image: &self.image,
                            key,
                        };
                    }
                }
            };
            listener.await;
        };
        let bytes = self.read_slice(key).await?;
        self.image.tables().cache.insert(key, kind, bytes);
        drop(loading);
        Ok(())
    }

    /// Reads a slice from the file. What lies behind the end of the file is zeroes, if the slice's cluster begins before it.
    async fn read_slice(&self, key: u64) -> Result<Box<[u8]>, Fault> {
        let layout = self.image.layout;
        let end = self.file.geometry().size_bytes;
        if layout.cluster_floor(key) >= end {
            return Err(Damage::Outside(key).into());
        }
        let there = end.saturating_sub(key).min(layout.slice_bytes());
        let mut bytes = Vec::new();
        if there > 0 {
            let buf = IoBuf::heap(usize::try_from(there).unwrap_or(0), 4096)?;
            let (result, bufs) = self.file.read(key, vec![buf]).await;
            result?;
            bytes = bufs.first().map(IoBuf::to_vec).unwrap_or_default();
        }
        bytes.resize(usize::try_from(layout.slice_bytes()).unwrap_or(0), 0);
        Ok(bytes.into())
    }

    /// Waits until nobody else maps these guest clusters, and keeps others from it.
    pub(crate) async fn hold(&self, clusters: Range<u64>) -> RangeGuard<'_> {
        loop {
            let taken = self.image.tables().busy.take(clusters.clone());
            match taken {
                Ok(ticket) => {
                    return RangeGuard {
                        image: &self.image,
                        ticket,
                    };
                }
                Err(listener) => listener.await,
            }
        }
    }
}

/// Lets the thread's other work go first.
async fn turn() {
    let mut had = false;
    std::future::poll_fn(|context| {
        if had {
            return Poll::Ready(());
        }
        had = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
