//! The one pass: from a source's stream to a file, read once.
//!
//! ```text
//!   source ─► Tally ─► Decompress ─► Hashed ─┬─► Inspector ─► SparseWriter      raw, ISO, qcow2, foreign formats
//!             count,    one level    all     │
//!             stop      if any       digests └─► Ova ─► Hashed ─► Inspector ─► SparseWriter
//! ```
//!
//! What is kept in memory is buffers: 256 KiB here, the inspector's 190 KiB, and what the compression asks for (72 MiB at most). A
//! refusal ends the pass at the byte that shows it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use image_formats::ova::{Ova, OvaRules};
use image_formats::{
    Decompress, DecompressError, DecompressLimits, Expectations, Format, Inspection, Inspector, Packing, Wrapping,
};
use image_trust::{DigestSet, Digests, HashMethod};

use crate::sparse::SparseWriter;
use crate::{ImportError, durable};

/// Bytes moved at a time.
const PIECE: usize = 256 << 10;
/// How much is looked at before it is known what to do with it, bytes; the inspector's head.
const HEAD: u64 = 64 << 10;

/// What a pass is held to, and whom it tells.
pub(crate) struct Pass<'a, 'r> {
    /// The file to be made; must not exist.
    pub(crate) target: PathBuf,
    pub(crate) expected: &'a Expectations,
    pub(crate) unpack: DecompressLimits,
    /// Digests wanted of the bytes.
    pub(crate) methods: &'a [HashMethod],
    /// Bytes of disk space the file may take.
    pub(crate) room: Room,
    /// For a pass that may go on another time, unless its source is compressed or an archive.
    pub(crate) resumable: Option<Resumable<'r>>,
    /// Gets bytes of the source as they come; false ends the pass.
    pub(crate) seen: &'a mut dyn FnMut(u64) -> bool,
}

/// A pass that goes on, or may go on another time.
pub(crate) struct Resumable<'a> {
    /// Bytes at the start that the target has already; a multiple of 4096. They come in the stream all the same.
    pub(crate) there: u64,
    /// How often what is there is made durable, bytes.
    pub(crate) every: u64,
    /// Gets how many bytes are durable.
    pub(crate) note: &'a mut dyn FnMut(u64) -> io::Result<()>,
}

/// Disk space an import may take, and what to say when it is more.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) left_bytes: u64,
    pub(crate) store: crate::StoreName,
    pub(crate) limit_bytes: u64,
    /// Where the store is, and how much of its file system stays free.
    pub(crate) root: PathBuf,
    pub(crate) reserved_bytes: u64,
}

impl Room {
    pub(crate) fn check(&self, taken_bytes: u64) -> Result<(), ImportError> {
        if taken_bytes > self.left_bytes {
            return Err(ImportError::Quota {
                store: self.store.clone(),
                limit_bytes: self.limit_bytes,
            });
        }
        // An error shows where it is written.
        let is_full = self.reserved_bytes > 0
            && durable::free_bytes(&self.root).is_ok_and(|free_bytes| free_bytes < self.reserved_bytes);
        if is_full {
            return Err(ImportError::DiskFull(self.root.clone()));
        }
        Ok(())
    }
}

/// What a pass came to: a file, as the source had it.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) inspection: Inspection,
    /// Of the bytes after decompression.
    pub(crate) digests: DigestSet,
    /// Of the bytes before it, if they were compressed.
    pub(crate) packed: Option<DigestSet>,
    /// SHA-256 of the file.
    pub(crate) file_sha256: Option<Vec<u8>>,
    /// Path in the archive, if the source was one; else empty.
    pub(crate) source_path: String,
}

impl Pass<'_, '_> {
    /// Reads `input` to its end. Blocks. Leaves the target behind when it fails, half written.
    pub(crate) fn run(self, input: &mut dyn Read) -> Result<Taken, ImportError> {
        let Self {
            target,
            expected,
            unpack,
            methods,
            room,
            resumable,
            seen,
        } = self;
        let tally = Tally(RefCell::new(Counts {
            seen,
            bytes: 0,
            stopped: false,
            digests: Some(Digests::new(methods.iter().copied())),
        }));
        let terms = Terms {
            expected,
            unpack,
            methods,
            room: &room,
            resumable,
        };
        let result = take(&tally, input, &target, terms);
        let counts = tally.0.into_inner();
        match result {
            Err(_) if counts.stopped => Err(ImportError::Cancelled),
            Err(ImportError::Upload { source, .. }) => Err(ImportError::Upload {
                after_bytes: counts.bytes,
                source,
            }),
            Err(error) => Err(error),
            Ok(taken) => Ok(Taken {
                packed: counts.digests.map(Digests::finish),
                ..taken
            }),
        }
    }
}

struct Terms<'a, 'r> {
    expected: &'a Expectations,
    unpack: DecompressLimits,
    methods: &'a [HashMethod],
    room: &'a Room,
    resumable: Option<Resumable<'r>>,
}

fn take(tally: &Tally<'_>, input: &mut dyn Read, target: &Path, terms: Terms<'_, '_>) -> Result<Taken, ImportError> {
    let Terms {
        expected,
        unpack,
        methods,
        room,
        resumable,
    } = terms;
    let reading = |error| ImportError::reading(error, 0);
    let packed = Counted { input, tally };
    let stream = Decompress::new(packed, unpack).map_err(|error| match error {
        DecompressError::Input(error) => reading(error),
        error => ImportError::Unpack(error),
    })?;
    let is_packed = stream.packing().is_some();
    if !is_packed {
        tally.stop_hashing();
    }
    let mut stream = Hashed::new(stream, methods);
    let mut head = Vec::new();
    (&mut stream).take(HEAD).read_to_end(&mut head).map_err(reading)?;
    let mut inspector = Inspector::new(Expectations {
        wrapping: if is_packed {
            Wrapping::Compression
        } else {
            expected.wrapping
        },
        ..expected.clone()
    });
    inspector.feed(&head)?;
    let format = match inspector.format_so_far() {
        Some(format) => format,
        None => inspector.judge_short()?,
    };
    let is_plain = format != Format::Packed(Packing::Tar);
    let mut file = Target::create(target, room, resumable.filter(|_| is_plain && !is_packed))?;
    if is_plain {
        file.write(&head)?;
        file.fill(&mut stream, &mut inspector)?;
        let inspection = inspector.finish()?;
        file.finish()?;
        let digests = stream.finish();
        return Ok(Taken {
            inspection,
            file_sha256: digests.get(HashMethod::Sha256).map(<[u8]>::to_vec),
            digests,
            packed: None,
            source_path: String::new(),
        });
    }
    let (inspection, file_sha256, source_path) = archived(&head, &mut stream, file, expected)?;
    // What follows the archive counts for its digest, and a compressed stream's checksum is at its end.
    io::copy(&mut stream, &mut io::sink()).map_err(reading)?;
    Ok(Taken {
        inspection,
        file_sha256,
        digests: stream.finish(),
        packed: None,
        source_path,
    })
}

/// The disk in an archive that begins with `head` and goes on with `stream`: what it is, its SHA-256, its path.
fn archived(
    head: &[u8],
    stream: &mut dyn Read,
    mut file: Target<'_, '_>,
    expected: &Expectations,
) -> Result<(Inspection, Option<Vec<u8>>, String), ImportError> {
    let rules = OvaRules {
        max_disk_bytes: expected.max_bytes,
        require_manifest: false,
    };
    let ova = Ova::open(head.chain(stream), rules).map_err(|error| ImportError::of_ova(error, 0))?;
    let mut disk = Hashed::new(ova, &[HashMethod::Sha256]);
    let mut inspector = Inspector::new(Expectations {
        claimed: None,
        wrapping: Wrapping::Archive,
        ..expected.clone()
    });
    file.fill(&mut disk, &mut inspector)?;
    let inspection = inspector.finish()?;
    file.finish()?;
    let Hashed { input: ova, digests } = disk;
    let source_path = ova.disk().path.clone();
    // Only now is the disk to be believed.
    ova.finish().map_err(|error| ImportError::of_ova(error, 0))?;
    let sha256 = digests.finish().get(HashMethod::Sha256).map(<[u8]>::to_vec);
    Ok((inspection, sha256, source_path))
}

/// Bytes of the source: how many, their digests as long as they may turn out to be compressed, and whether to go on.
struct Tally<'a>(RefCell<Counts<'a>>);

struct Counts<'a> {
    seen: &'a mut dyn FnMut(u64) -> bool,
    bytes: u64,
    stopped: bool,
    digests: Option<Digests>,
}

impl Tally<'_> {
    fn stop_hashing(&self) {
        self.0.borrow_mut().digests = None;
    }

    fn count(&self, bytes: &[u8]) -> io::Result<()> {
        let mut counts = self.0.borrow_mut();
        counts.bytes += bytes.len() as u64;
        if let Some(digests) = &mut counts.digests {
            digests.update(bytes);
        }
        if (counts.seen)(bytes.len() as u64) {
            return Ok(());
        }
        counts.stopped = true;
        Err(io::Error::other("the import was cancelled"))
    }
}

struct Counted<'a, 'b> {
    input: &'a mut dyn Read,
    tally: &'a Tally<'b>,
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.tally.count(buffer.get(..count).unwrap_or_default())?;
        Ok(count)
    }
}

/// A stream whose digests are computed as it is read.
struct Hashed<R> {
    input: R,
    digests: Digests,
}

impl<R> Hashed<R> {
    fn new(input: R, methods: &[HashMethod]) -> Self {
        Self {
            input,
            digests: Digests::new(methods.iter().copied()),
        }
    }

    fn finish(self) -> DigestSet {
        self.digests.finish()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.digests.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// The file being made.
struct Target<'a, 'r> {
    path: &'a Path,
    writer: SparseWriter,
    room: &'a Room,
    resumable: Option<Resumable<'r>>,
    /// Bytes noted as durable.
    noted: u64,
}

impl<'a, 'r> Target<'a, 'r> {
    fn create(path: &'a Path, room: &'a Room, resumable: Option<Resumable<'r>>) -> Result<Self, ImportError> {
        let there = resumable.as_ref().map_or(0, |resumable| resumable.there);
        let file = match there {
            0 => File::create_new(path),
            // What was written after the last note may be anything after a power cut.
            _ => File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(there).map(|()| file)),
        };
        Ok(Self {
            path,
            writer: SparseWriter::resume(file.map_err(ImportError::io("create", path))?, there),
            room,
            resumable,
            noted: there,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.writer
            .write_all(bytes)
            .map_err(ImportError::io("write", self.path))?;
        self.room.check(self.writer.data_bytes())?;
        let Some(resumable) = &mut self.resumable else {
            return Ok(());
        };
        if self.writer.position() < self.noted.saturating_add(resumable.every) {
            return Ok(());
        }
        let settled = self.writer.settle();
        self.noted = settled.map_err(ImportError::io("sync", self.path))?;
        (resumable.note)(self.noted).map_err(ImportError::io("note the progress of", self.path))
    }

    /// All that is left of `stream`, as the inspector lets it pass.
    fn fill(&mut self, stream: &mut dyn Read, inspector: &mut Inspector) -> Result<(), ImportError> {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ImportError::reading(error, 0)),
            };
            let piece = buffer.get(..count).unwrap_or_default();
            inspector.feed(piece)?;
            self.write(piece)?;
        }
    }

    fn finish(self) -> Result<(), ImportError> {
        let done = self.writer.finish(1);
        done.map(drop).map_err(ImportError::io("write", self.path))
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
