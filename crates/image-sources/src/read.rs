//! From the asynchronous stream to `std::io::Read`, for decoders that run in a thread where blocking is allowed.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::error::SourceError;
use crate::opened::Opened;

/// Pieces under way however small they are.
const PIECES_MAX: usize = 256;

/// A piece, and the room it takes until it is read; or the end.
type Item = Result<Option<(Bytes, OwnedSemaphorePermit)>, SourceError>;

/// Reads an [`Opened`] with blocking calls. Dropping it ends the fetch. An error of the source comes wrapped in an [`io::Error`];
/// [`SourceError::within`] finds it. A fetch that was cut off by the end of the runtime is an error, never the end of the data.
pub struct PieceReader {
    items: mpsc::Receiver<Item>,
    current: Option<(Bytes, OwnedSemaphorePermit)>,
    ended: bool,
    pump: AbortHandle,
}

impl PieceReader {
    /// Ends the fetch from another thread: a read that waits for the peer returns an error at once, and so do all later ones.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        self.pump.clone()
    }
}

impl std::fmt::Debug for PieceReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PieceReader")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Opened {
    /// Lets a task of `runtime` fetch up to `ahead_bytes` ahead of a blocking reader (one piece at least).
    #[must_use]
    pub fn into_read(self, runtime: &Handle, ahead_bytes: u32) -> PieceReader {
        let (sender, items) = mpsc::channel(PIECES_MAX);
        let task = runtime.spawn(pump(self, sender, ahead_bytes.max(1)));
        PieceReader {
            items,
            current: None,
            ended: false,
            pump: task.abort_handle(),
        }
    }
}

async fn pump(mut opened: Opened, sender: mpsc::Sender<Item>, ahead_bytes: u32) {
    let room = Arc::new(Semaphore::new(ahead_bytes as usize));
    loop {
        let piece = tokio::select! {
            biased;
            () = sender.closed() => return,
            piece = opened.next_piece() => piece,
        };
        let (item, last) = match piece {
            Ok(Some(piece)) => {
                let size = u32::try_from(piece.len()).unwrap_or(u32::MAX).min(ahead_bytes);
                let room = Arc::clone(&room);
                // The reader's end drops the pieces that hold the room, so this does not wait for ever.
                let Ok(permit) = room.acquire_many_owned(size).await else {
                    return;
                };
                (Ok(Some((piece, permit))), false)
            }
            Ok(None) => (Ok(None), true),
            Err(error) => (Err(error), true),
        };
        if sender.send(item).await.is_err() || last {
            return;
        }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some((piece, _)) = &mut self.current {
                if piece.has_remaining() {
                    let count = piece.remaining().min(buffer.len());
                    buffer
                        .get_mut(..count)
                        .into_iter()
                        .for_each(|buffer| piece.copy_to_slice(buffer));
                    return Ok(count);
                }
                self.current = None;
            }
            if self.ended {
                return Ok(0);
            }
            match self.items.blocking_recv() {
                Some(Ok(Some(piece))) => self.current = Some(piece),
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => {
                    let cut_off = "the fetch was cut off, or failed before";
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, cut_off));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::{StreamExt, stream};

    use super::*;
    use crate::identity::Identity;
    use crate::opened::Progress;

    fn opened(pieces: impl stream::Stream<Item = Result<Bytes, SourceError>> + Send + 'static) -> Opened {
        Opened::new(Identity::default(), 0, Progress::new(None), pieces.boxed())
    }

    #[tokio::test]
    async fn an_abort_ends_a_read_that_waits() {
        let mut read = opened(stream::pending()).into_read(&Handle::current(), 1);
        let abort = read.abort_handle();
        let reading = tokio::task::spawn_blocking(move || read.read(&mut [0; 10]));
        tokio::time::sleep(Duration::from_millis(20)).await;
        abort.abort();
        let result = tokio::time::timeout(Duration::from_secs(10), reading)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn reads_all_pieces_then_the_end() {
        let pieces = (0..100u8).map(|byte| Ok(Bytes::from(vec![byte; 1000])));
        let mut read = opened(stream::iter(pieces)).into_read(&Handle::current(), 1500);
        let all = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            read.read_to_end(&mut all).map(|_| all)
        });
        let all = all.await.unwrap().unwrap();
        assert_eq!(all.len(), 100_000);
        assert!(
            all.chunks(1000)
                .zip(0..)
                .all(|(piece, byte)| piece.iter().all(|other| *other == byte))
        );
    }

    #[tokio::test]
    async fn no_more_is_fetched_ahead_than_was_asked_for() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        let pieces = stream::repeat_with(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from_static(&[7; 1000]))
        });
        let read = opened(pieces.take(1000)).into_read(&Handle::current(), 10_000);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(made.load(Ordering::Relaxed), 11); // ten in the buffer, one waiting for room
        drop(read);
    }

    #[tokio::test]
    async fn dropping_the_reader_drops_the_source() {
        let (alive, mut gone) = tokio::sync::oneshot::channel::<()>();
        let pieces = stream::unfold(alive, |alive| async move {
            std::future::pending::<()>().await;
            Some((Ok(Bytes::new()), alive))
        });
        let read = opened(pieces).into_read(&Handle::current(), 10);
        tokio::task::yield_now().await;
        assert!(
            gone.try_recv()
                .is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty)
        );
        drop(read);
        assert!(
            tokio::time::timeout(Duration::from_secs(5), gone)
                .await
                .unwrap()
                .is_err()
        );
    }

    #[test]
    fn an_error_is_found_again_and_an_end_of_the_runtime_is_no_end_of_data() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = SourceError::NotAFile("/x".into());
        let mut read = opened(stream::iter([Err(error)])).into_read(runtime.handle(), 10);
        let mut stuck = opened(stream::pending()).into_read(runtime.handle(), 10);
        runtime.block_on(async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        });
        let error = read.read(&mut [0]).unwrap_err();
        assert_eq!(SourceError::within(&error).unwrap().code(), "not_a_file");
        drop(runtime);
        assert_eq!(stuck.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
