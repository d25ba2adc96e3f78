//! What goes over the streams, as bytes.
//!
//! Everything is little endian. A stream is frames without gaps:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length *n* of the payload, at most what the kind allows |
//! | 4 | 1 | kind |
//! | 5 | 3 | zero |
//! | 8 | 4 | CRC-32 (IEEE) of bytes 0–7 and the payload |
//! | 12 | *n* | payload |
//!
//! A *key* is 32 bytes: the migration id (16), the fencing token (16). A *text* is a length (2) and that much UTF-8, at most
//! 512 bytes. In the column *on*, C is the control stream and P the page streams; S→T is from source to target.
//!
//! | kind | name | on, way | payload | at most |
//! |---|---|---|---|---|
//! | 1 | hello | C S→T | magic `KARATMIG` (8), lowest version (2), highest version (2), key (32), machine (16), RAM digest (32), pages (8), offers (4), streams (1), purpose (1); longer is allowed and not read | 4 KiB |
//! | 2 | welcome | C T→S | version (2), offers taken (4), most streams (1) | 64 B |
//! | 3 | refuse | C, P T→S | reason (1), text | 1 KiB |
//! | 4 | parameters | C S→T | offers in use (4), streams (1), idle timeout in ms (4) | 64 B |
//! | 5 | stream hello | P S→T | magic (8), version (2), key (32), stream (1), purpose (1) | 64 B |
//! | 6 | stream welcome | P T→S | – | 0 |
//! | 7 | pages | P, C S→T | see below | 264 KiB |
//! | 8 | round end | P S→T | round (4) | 4 B |
//! | 9 | round done | C T→S | round (4) | 4 B |
//! | 10 | section | C S→T | version (4), name (text), the state | 16 MiB |
//! | 11 | missing | C both | pairs of chunk (8) and pages in it (8), chunks ascending | 64 KiB |
//! | 12 | seal | C S→T | sections (4), their digest (32), missing pages (8) | 64 B |
//! | 13 | ready | C T→S | key (32), missing pages (8) | 64 B |
//! | 14 | start | C S→T | key (32) | 32 B |
//! | 15 | started | C T→S | key (32) | 32 B |
//! | 16 | abort | C both | key (32), text | 1 KiB |
//! | 17 | wanted | C T→S | page numbers (8 each) | 8 KiB |
//! | 18 | complete | C T→S | key (32) | 32 B |
//!
//! Offers are bits: 1 zstd, 2 delta, 4 post-copy. The purpose is 0 for a move and 1 to fetch what a broken post-copy still owes.
//! The text of the digest of sections is: for each, length of the name (8), name, version (4), length (8), bytes.
//!
//! Pages of one chunk of 64, those of a mask in ascending order:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | chunk |
//! | 8 | 8 | mask of pages that are all zero |
//! | 16 | 8 | mask of pages that are sent raw |
//! | 24 | 8 | mask of pages that are sent as a delta against what was last sent of them |
//! | 32 | 4 | bytes *r* of the raw part: 4096 for each raw page, or fewer: then it is one zstd frame of that |
//! | 36 | *r* | raw part |
//! | 36+*r* | … | for each delta: length (2), [delta](crate::delta) |
//!
//! **Order.** Before a hand-over, chunk *c* goes over page stream *c* mod *streams* and over no other, so that what was sent
//! later of a page arrives later, however the streams race; a page on a foreign stream ends the migration. A round ends with a
//! *round end* on every page stream; *round done* says that all that was sent in front of all of them is in memory. *Seal* is
//! sent after the last *round done*, and nothing is written to memory between *seal* and *start*. After *start*, pages that are
//! still missing come over any stream, each once: their content can not change any more, so their order means nothing.

mod cursor;
mod frame;
mod message;
mod pages;

pub use frame::{FRAME_HEADER_BYTES, PAGES_PREFIX_BYTES, WireError, read_frame};
pub use message::{
    Hello, Key, MAGIC, MachineId, Message, Offers, Parameters, Purpose, RefuseReason, Seal, StreamHello, VERSION_MAX,
    VERSION_MIN, Welcome,
};
pub use pages::{PageFrame, PagesError};
pub(crate) use pages::{RAW_AT, bits, finish_pages};

/// Kind of a page frame; all others are a [`Message`].
pub const KIND_PAGES: u8 = 7;
