//! The bytes of an upload, between the request and the import.

use std::fs::File;
use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// What goes from the request to the import.
pub(super) enum Piece {
    Bytes(Bytes),
    /// All has come. A body that ends without it broke off.
    End,
}

/// What a client sends, or has sent before, on its way into the store; read where blocking is allowed.
pub(crate) enum Received {
    /// As it comes.
    Body(Body),
    /// From the file it was kept in.
    File(File),
}

/// A body.
pub(crate) struct Body {
    pieces: mpsc::Receiver<Piece>,
    rest: Bytes,
    is_over: bool,
}

impl Received {
    /// What comes out of a channel.
    pub(super) const fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self::Body(Body {
            pieces,
            rest: Bytes::new(),
            is_over: false,
        })
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Body(body) => body.read(buffer),
            Self::File(file) => file.read(buffer),
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.rest = bytes,
                Some(Piece::End) => self.is_over = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the sending broke off")),
            }
        }
        let taken = self.rest.len().min(buffer.len());
        let (now, _) = buffer.split_at_mut(taken);
        self.rest.copy_to_slice(now);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: Vec<Piece>) -> io::Result<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(8);
        for piece in pieces {
            assert!(sender.try_send(piece).is_ok());
        }
        drop(sender);
        let mut received = Received::new(receiver);
        let mut all = Vec::new();
        received.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn only_what_is_whole_ends_without_an_error() {
        let bytes = |text: &'static str| Piece::Bytes(Bytes::from_static(text.as_bytes()));
        let whole = read(vec![bytes("ab"), bytes(""), bytes("c"), Piece::End]).unwrap();
        assert_eq!(whole, b"abc");
        assert_eq!(read(vec![Piece::End]).unwrap(), b"");
        let broken = read(vec![bytes("ab")]).unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::UnexpectedEof);
    }
}
