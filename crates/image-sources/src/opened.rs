//! An object being read, wherever it comes from.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};

use crate::error::SourceError;
use crate::identity::Identity;

/// Stands for a length that is not known.
const UNKNOWN: u64 = u64::MAX;

/// A source opened at a byte: a stream of its bytes from there to the end, in pieces of at most some 400 KiB. Nothing is read
/// ahead of the consumer but what one connection's or file's buffers hold; dropping it ends the fetch. The stream ends after the
/// first error.
pub struct Opened {
    identity: Identity,
    offset: u64,
    progress: Progress,
    pieces: BoxStream<'static, Result<Bytes, SourceError>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("identity", &self.identity)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl Opened {
    pub(crate) fn new(
        identity: Identity,
        offset: u64,
        progress: Progress,
        pieces: BoxStream<'static, Result<Bytes, SourceError>>,
    ) -> Self {
        Self {
            identity,
            offset,
            progress,
            pieces,
        }
    }

    /// What the object is: to be given to `open_at` when the fetch is to go on another time.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Length of the whole object, bytes; none if the server tells only by its end.
    #[must_use]
    pub fn length_bytes(&self) -> Option<u64> {
        self.identity.length_bytes
    }

    /// Where the stream began, bytes from the object's beginning.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A view of how far it is, to be kept and read by others.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The next piece; none after the last one.
    ///
    /// # Errors
    /// [`SourceError`], once; after that there is nothing more.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>, SourceError> {
        self.pieces.next().await.transpose()
    }
}

impl Stream for Opened {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(context)
    }
}

/// How far a fetch is. All clones show the same.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    fetched_bytes: AtomicU64,
    total_bytes: AtomicU64,
    retries: AtomicU32,
}

impl Progress {
    pub(crate) fn new(total_bytes: Option<u64>) -> Self {
        Self(Arc::new(Counters {
            fetched_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(total_bytes.unwrap_or(UNKNOWN)),
            retries: AtomicU32::new(0),
        }))
    }

    /// Bytes received since it was opened, without those before the offset it was opened at.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.0.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Length of the whole object, bytes, once it is known.
    #[must_use]
    pub fn total_bytes(&self) -> Option<u64> {
        let total = self.0.total_bytes.load(Ordering::Relaxed);
        (total != UNKNOWN).then_some(total)
    }

    /// How often it had to try again.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.0.retries.load(Ordering::Relaxed)
    }

    pub(crate) fn add_bytes(&self, count: u64) {
        self.0.fetched_bytes.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn add_retry(&self) {
        self.0.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_total(&self, total: Option<u64>) {
        if let Some(total) = total {
            self.0.total_bytes.store(total, Ordering::Relaxed);
        }
    }
}
