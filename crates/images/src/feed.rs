//! A blob from a registry to whoever reads it on another thread: continued where the connection broke off.

use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::PullError;
use crate::fetch::Blob;
use crate::registry::Registry;

/// Pieces between network and reader; a piece is what the HTTP stack read at once, up to some 100 KiB.
const PIECES_IN_FLIGHT: usize = 16;
/// Tries of one blob within one import, as long as each brings the blob further.
const TRIES_MAX: u32 = 5;
/// Pause before another try.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// The reader's end. What it gives ends early if the feed fails, or is dropped.
pub(crate) struct Fed {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Fed {
    /// Blocks; not to be called where async code runs.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        if let Some(to) = buffer.get_mut(..count) {
            self.piece.copy_to_slice(to);
        }
        Ok(count)
    }
}

/// The sender's end.
pub(crate) struct Feed<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) blob: &'a Blob,
    sender: mpsc::Sender<Bytes>,
    /// Bytes of the blob that the reader has, or will have.
    sent: u64,
}

impl<'a> Feed<'a> {
    /// Of what follows the first `from` bytes of `blob`.
    pub(crate) fn new(registry: &'a Registry, blob: &'a Blob, from: u64) -> (Self, Fed) {
        let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
        let feed = Self {
            registry,
            blob,
            sender,
            sent: from,
        };
        let piece = Bytes::new();
        (feed, Fed { pieces, piece })
    }

    /// Sends it all; less if the reader goes away.
    pub(crate) async fn run(mut self) -> Result<(), PullError> {
        let reader = self.sender.clone();
        let mut tries = 1;
        loop {
            let before = self.sent;
            let result = tokio::select! {
                biased;
                // It has seen enough, and says why; the registry may be silent for long.
                () = reader.closed() => return Ok(()),
                result = self.attempt() => result,
            };
            match result {
                Err(error) if error.is_transient() && self.sent > before && tries < TRIES_MAX => {
                    tracing::debug!(blob = %self.blob.digest, sent = self.sent, "trying again: {error}");
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// One request, and as much of its answer as comes.
    async fn attempt(&mut self) -> Result<(), PullError> {
        if self.sent >= self.blob.size {
            return Ok(());
        }
        let mut body = self.registry.blob(&self.blob.digest, self.sent).await?;
        // A registry that cannot continue begins anew: what was sent is passed over.
        let mut known = if body.continued { 0 } else { self.sent };
        while let Some(piece) = body.stream.next().await {
            let mut piece = match piece {
                Ok(piece) => piece,
                Err(error) => return self.broke_off(Some(error)),
            };
            let passed = piece.len().min(usize::try_from(known).unwrap_or(usize::MAX));
            piece.advance(passed);
            known -= passed as u64;
            let length = piece.len() as u64;
            if length > self.blob.size - self.sent {
                return Err(PullError::TooLong {
                    digest: self.blob.digest.clone(),
                    expected_bytes: self.blob.size,
                });
            }
            if length > 0 && self.sender.send(piece).await.is_err() {
                // The reader has gone.
                return Ok(());
            }
            self.sent += length;
        }
        self.broke_off(None)
    }

    fn broke_off(&self, source: Option<io::Error>) -> Result<(), PullError> {
        if self.sent == self.blob.size {
            return Ok(());
        }
        Err(PullError::BrokeOff {
            digest: self.blob.digest.clone(),
            done_bytes: self.sent,
            total_bytes: self.blob.size,
            source: source.map(Into::into),
        })
    }
}
