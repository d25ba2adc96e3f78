//! A layer of a container disk being written: tar, gzip, pieces on their way, and the digest of the tar.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::Digest as _;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use crate::ImageDigest;

/// Length of a piece, bytes: one request each.
const PIECE_BYTES: usize = 4 << 20;
/// User and group that container disks give their files (KubeVirt: `qemu`).
const OWNER: u64 = 107;
/// Most is empty or compressed already; finer search costs several times as long.
const LEVEL: Compression = Compression::fast();

/// A file to be packed.
pub(crate) struct Member {
    /// Path in the layer.
    pub(crate) name: &'static str,
    pub(crate) file: File,
}

/// What a layer came to.
pub(crate) struct Packed {
    /// SHA-256 of the tar before compression: its `diff_id`.
    pub(crate) tar_digest: ImageDigest,
}

/// The way of the bytes: digest, gzip, pieces.
pub(crate) struct Layer {
    hasher: sha2::Sha256,
    gzip: GzEncoder<Pieces>,
}

impl Layer {
    pub(crate) fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        let pieces = Pieces {
            sender,
            piece: BytesMut::with_capacity(PIECE_BYTES),
        };
        Self {
            hasher: sha2::Sha256::new(),
            gzip: GzEncoder::new(pieces, LEVEL),
        }
    }

    fn finish(self) -> io::Result<Packed> {
        self.gzip.finish()?.send()?;
        Ok(Packed {
            tar_digest: ImageDigest::finish(self.hasher),
        })
    }
}

impl Write for Layer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gzip.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE_BYTES)).freeze();
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Ok(piece)).map_err(gone)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the directories and the members. `go_on` is told of bytes as they are packed, and says whether to go on. The same files
/// give the same layer. Blocks.
///
/// # Errors
/// Of a file; `BrokenPipe` when nobody takes pieces any more or `go_on` said no.
pub(crate) fn write(layer: Layer, members: Vec<Member>, go_on: &mut dyn FnMut(u64) -> bool) -> io::Result<Packed> {
    let mut tape = Builder::new(layer);
    let mut last = "";
    for member in members {
        let (directory, _) = member.name.split_once('/').unwrap_or_default();
        if directory != last {
            let mut header = header(EntryType::Directory, 0o555, 0);
            tape.append_data(&mut header, format!("{directory}/"), io::empty())?;
            last = directory;
        }
        let mut file = member.file;
        let length = file.metadata()?.len();
        file.rewind()?;
        let mut header = header(EntryType::Regular, 0o444, length);
        let watched = Watched {
            file: file.take(length),
            go_on: &mut *go_on,
        };
        tape.append_data(&mut header, member.name, watched)?;
    }
    tape.into_inner()?.finish()
}

fn header(kind: EntryType, mode: u32, length: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(length);
    header.set_uid(OWNER);
    header.set_gid(OWNER);
    header.set_mtime(0);
    header
}

struct Watched<'a> {
    file: io::Take<File>,
    go_on: &'a mut dyn FnMut(u64) -> bool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if (self.go_on)(count as u64) {
            Ok(count)
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}
