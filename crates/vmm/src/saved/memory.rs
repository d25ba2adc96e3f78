//! RAM in a file: every page at its place, zero pages as holes, and a checksum for each piece.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use guestmem::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
use rustix::fs::SeekFrom;
use savestate::{LoadError, Section};

use super::RestoreError;

/// Bytes of a piece: what has a checksum of its own.
const PIECE: usize = 1 << 20;
/// Bytes of a page: what is written or left out.
const PAGE: usize = 4096;
const ZEROES: [u8; PAGE] = [0; PAGE];

savestate::record! {
    /// A piece that is not all zeroes.
    pub(super) struct PieceState {
        /// Its number in the file.
        number: u32,
        /// CRC-32 (IEEE 802.3) of its bytes.
        sum: u32,
    }
}

savestate::section! {
    /// What is in the memory file. RAM's regions follow each other in it without the holes between them.
    pub(super) struct MemoryState = "memory", version 1 {
        ram_bytes: u64,
        /// In ascending order.
        pieces: Vec<PieceState>,
    }
}

#[cfg(test)]
impl MemoryState {
    pub(super) const fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

impl MemoryState {
    /// It is of a machine with as much memory.
    pub(super) fn check_size(&self, now: u64, section: &Section) -> Result<(), LoadError> {
        let then = self.ram_bytes;
        if now == then {
            return Ok(());
        }
        Err(LoadError::unfit(
            section,
            format!("it has {now} bytes of memory, and had {then}"),
        ))
    }
}

pub(super) enum WriteError {
    Memory(GuestMemoryError),
    File(io::Error),
}

pub(super) enum ReadError {
    File(io::Error),
    Other(RestoreError),
}

/// A piece of RAM: its number, its place in the file and in the guest, and its length.
struct Piece {
    number: u32,
    offset: u64,
    parts: Vec<(GuestAddress, usize)>,
}

/// All pieces. A region ends on a page, and may end within a piece, which then goes on with the next.
fn pieces(memory: &GuestMemory) -> impl Iterator<Item = Piece> {
    let regions: Vec<(u64, u64, u64)> = memory
        .regions()
        .map(|region| (region.file_offset, region.gpa.0, region.len))
        .collect();
    let ram_bytes = memory.ram_bytes();
    (0..).zip((0..ram_bytes).step_by(PIECE)).map(move |(number, offset)| {
        let end = ram_bytes.min(offset + PIECE as u64);
        let part = |&(start, gpa, len): &(u64, u64, u64)| {
            let (from, to) = (offset.max(start), end.min(start + len));
            let length = usize::try_from(to.checked_sub(from)?)
                .ok()
                .filter(|&length| length > 0)?;
            Some((GuestAddress(gpa + (from - start)), length))
        };
        Piece {
            number,
            offset,
            parts: regions.iter().filter_map(part).collect(),
        }
    })
}

/// Where the kernel knows that there is nothing in a file.
struct Holes<'a> {
    file: Option<BorrowedFd<'a>>,
    /// Up to here there is nothing.
    data_from: u64,
}

impl<'a> Holes<'a> {
    const fn of(file: Option<BorrowedFd<'a>>) -> Self {
        Self { file, data_from: 0 }
    }

    /// Nothing is in `offset..offset + PIECE`. Asked in ascending order.
    fn cover(&mut self, offset: u64) -> bool {
        let end = offset + PIECE as u64;
        let Some(file) = self.file.filter(|_| self.data_from < end) else {
            return self.data_from >= end;
        };
        match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(data) => self.data_from = data,
            Err(rustix::io::Errno::NXIO) => self.data_from = u64::MAX,
            // Not every file system can tell.
            Err(_) => return false,
        }
        self.data_from >= end
    }
}

/// Writes RAM to `file`, which is empty. Nothing writes RAM meanwhile.
pub(super) fn write(memory: &GuestMemory, file: &File) -> Result<MemoryState, WriteError> {
    file.set_len(memory.ram_bytes()).map_err(WriteError::File)?;
    let mut holes = Holes::of(memory.whole_file());
    let mut buffer = vec![0; PIECE];
    let mut written = Vec::new();
    for piece in pieces(memory) {
        if holes.cover(piece.offset) {
            continue;
        }
        let bytes = fetch(memory, &piece, &mut buffer).map_err(WriteError::Memory)?;
        let mut offset = piece.offset;
        let mut any = false;
        for page in bytes.chunks(PAGE) {
            if page != ZEROES {
                any = true;
                file.write_all_at(page, offset).map_err(WriteError::File)?;
            }
            offset += page.len() as u64;
        }
        if any {
            written.push(PieceState {
                number: piece.number,
                sum: crc32fast::hash(bytes),
            });
        }
    }
    Ok(MemoryState {
        ram_bytes: memory.ram_bytes(),
        pieces: written,
    })
}

fn fetch<'b>(memory: &GuestMemory, piece: &Piece, buffer: &'b mut [u8]) -> Result<&'b [u8], GuestMemoryError> {
    let mut filled = 0;
    for &(gpa, length) in &piece.parts {
        if let Some(part) = buffer.get_mut(filled..filled + length) {
            memory.read_slice(part, gpa)?;
            filled += length;
        }
    }
    Ok(buffer.get(..filled).unwrap_or_default())
}

/// Fills RAM, which is zeroed, from `file`.
pub(super) fn read(state: &MemoryState, section: &Section, file: &File, memory: &GuestMemory) -> Result<(), ReadError> {
    let unfit = |why: String| ReadError::Other(LoadError::unfit(section, why).into());
    state
        .check_size(memory.ram_bytes(), section)
        .map_err(|error| ReadError::Other(error.into()))?;
    let then = state.ram_bytes;
    let length = file.metadata().map_err(ReadError::File)?.len();
    if length != then {
        return Err(unfit(format!("its memory file has {length} bytes instead of {then}")));
    }
    let mut buffer = vec![0; PIECE];
    let mut saved = state.pieces.iter().peekable();
    let mut holes = Holes::of(Some(file.as_fd()));
    for piece in pieces(memory) {
        let expected = saved.next_if(|saved| saved.number == piece.number);
        if expected.is_none() && holes.cover(piece.offset) {
            continue;
        }
        let total = piece.parts.iter().map(|(_, length)| length).sum();
        let bytes = buffer.get_mut(..total).unwrap_or_default();
        file.read_exact_at(bytes, piece.offset).map_err(ReadError::File)?;
        let right = match expected {
            Some(expected) => crc32fast::hash(bytes) == expected.sum,
            None => bytes.iter().all(|&byte| byte == 0),
        };
        if !right {
            let offset = piece.offset;
            return Err(ReadError::Other(RestoreError::Damaged { offset }));
        }
        store(memory, &piece, bytes).map_err(|error| ReadError::Other(RestoreError::Memory(error)))?;
    }
    match saved.next() {
        None => Ok(()),
        Some(left) => Err(unfit(format!("it names piece {} out of order", left.number))),
    }
}

/// Pages of zeroes are left as they are, so that they take no memory.
fn store(memory: &GuestMemory, piece: &Piece, bytes: &[u8]) -> Result<(), GuestMemoryError> {
    let mut rest = bytes;
    for &(gpa, length) in &piece.parts {
        let (part, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        rest = behind;
        for (page, gpa) in part.chunks(PAGE).zip((gpa.0..).step_by(PAGE)) {
            if page != ZEROES {
                memory.write_slice(page, GuestAddress(gpa))?;
            }
        }
    }
    Ok(())
}
