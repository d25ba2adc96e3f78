//! One request's buffers, served in parts by several places without copies.

use disk::{DiskError, DiskFuture, Transferred};
use guestmem::IoBuf;

use std::future::poll_fn;
use std::task::Poll;

/// Buffers from which parts are cut off in order, and which are put together again from the parts.
pub(crate) struct Parts {
    /// Not cut yet, in reverse.
    rest: Vec<IoBuf>,
    /// What came back, each with whether the next one continues it.
    back: Vec<IoBuf>,
    /// Per piece handed out: the next piece is of the same buffer.
    continues: Vec<bool>,
}

impl Parts {
    pub(crate) fn new(mut bufs: Vec<IoBuf>) -> Self {
        bufs.reverse();
        Self {
            rest: bufs,
            back: Vec::new(),
            continues: Vec::new(),
        }
    }

    /// The next `len` bytes. Empty buffers travel with what follows them.
    pub(crate) fn take(&mut self, mut len: u64) -> Vec<IoBuf> {
        let mut part = Vec::new();
        while len > 0
            && let Some(mut buf) = self.rest.pop()
        {
            let all = buf.len() as u64 <= len;
            if !all {
                // Cannot be cut: less than a buffer's length.
                self.rest
                    .push(buf.split_off(usize::try_from(len).unwrap_or(usize::MAX)));
            }
            len -= buf.len() as u64;
            self.continues.push(!all);
            part.push(buf);
        }
        part
    }

    /// Takes parts back, in the order in which they were given.
    pub(crate) fn give_back(&mut self, part: Vec<IoBuf>) {
        self.back.extend(part);
    }

    /// The buffers as they were.
    pub(crate) fn finish(mut self) -> Vec<IoBuf> {
        self.rest.reverse();
        let uncut = self.continues.last() == Some(&true);
        let mut whole: Vec<IoBuf> = Vec::with_capacity(self.back.len() + self.rest.len());
        let mut continues = false;
        let mut told = self.continues.into_iter();
        let ending = self.rest.into_iter().enumerate().map(|(i, buf)| (buf, i == 0 && uncut));
        let back = self.back.into_iter().map(|buf| (buf, false));
        for (index, (buf, _)) in back.chain(ending).enumerate() {
            match whole.pop() {
                Some(last) if continues && index > 0 => match last.rejoin(buf) {
                    Ok(joined) => whole.push(joined),
                    Err((last, buf)) => whole.extend([last, buf]),
                },
                Some(last) => whole.extend([last, buf]),
                None => whole.push(buf),
            }
            continues = told.next().unwrap_or(false);
        }
        whole
    }
}

/// Awaits all of a few futures; each is polled whenever anything wakes.
pub(crate) async fn join<T>(mut futures: Vec<DiskFuture<'_, T>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *slot = Some(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Zeroes all of the buffers.
pub(crate) fn zero(bufs: &mut [IoBuf]) -> Result<(), DiskError> {
    for buf in bufs {
        let len = buf.len();
        buf.fill(0, len, 0).map_err(cannot_copy)?;
    }
    Ok(())
}

/// Copies `bytes` into the buffers.
pub(crate) fn scatter(bufs: &mut [IoBuf], mut bytes: &[u8]) -> Result<(), DiskError> {
    for buf in bufs {
        let (head, tail) = bytes.split_at_checked(buf.len()).unwrap_or((bytes, &[]));
        buf.copy_from(0, head).map_err(cannot_copy)?;
        bytes = tail;
    }
    Ok(())
}

fn cannot_copy(error: guestmem::IoBufError) -> DiskError {
    DiskError::new(disk::DiskOp::Read, disk::DiskErrorKind::Io).because(error)
}

/// A transfer that ends at once.
pub(crate) fn ended<'a>(result: Result<(), DiskError>, bufs: Vec<IoBuf>) -> DiskFuture<'a, Transferred> {
    Box::pin(std::future::ready((result, bufs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_buffers_come_back_as_they_were() {
        for cuts in [vec![100], vec![1, 99], vec![30, 3, 60, 7], vec![33, 1, 16, 20], vec![5]] {
            let bytes: Vec<u8> = (0..100).collect();
            let lens = [0, 33, 0, 17, 50, 0];
            let mut at = 0;
            let bufs: Vec<IoBuf> = lens
                .iter()
                .map(|&len| {
                    at += len;
                    IoBuf::from_bytes(&bytes[at - len..at]).unwrap()
                })
                .collect();
            let starts: Vec<_> = bufs.iter().map(IoBuf::as_mut_ptr).collect();
            let mut parts = Parts::new(bufs);
            let mut at = 0;
            for cut in cuts {
                let part = parts.take(cut);
                let read: Vec<u8> = part.iter().flat_map(IoBuf::to_vec).collect();
                assert_eq!((read.len() as u64, &read[..]), (cut, &bytes[at..at + read.len()]));
                at += read.len();
                parts.give_back(part);
            }
            let back = parts.finish();
            assert_eq!(back.iter().map(IoBuf::len).collect::<Vec<_>>(), lens);
            assert_eq!(back.iter().map(IoBuf::as_mut_ptr).collect::<Vec<_>>(), starts);
        }
    }
}
