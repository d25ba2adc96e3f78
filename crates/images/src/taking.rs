//! A file being taken out of a layer: hashed, inspected and written as it passes.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use image_formats::{Expectations, Inspection, Inspector, Refusal};
use image_trust::{DigestSet, Digests, HashMethod};
use serde::{Deserialize, Serialize};

use crate::intake::Room;
use crate::parts::{Failure, Role};
use crate::sparse::SparseWriter;

/// Bytes moved at a time.
pub(crate) const PIECE: usize = 256 << 10;

/// What a disk is held to as it passes.
#[derive(Debug, Clone)]
pub(crate) struct Judge {
    pub(crate) expected: Expectations,
    pub(crate) room: Room,
    /// Index of the last layer: what it brings nothing can replace, so that a refusal ends it all.
    pub(crate) last_layer: usize,
}

/// What a disk turned out to be.
pub(crate) type Judged = Result<Inspection, Refusal>;

/// What is known of a file in the middle of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Halfway {
    /// Bytes that are there, durable.
    pub(crate) done: u64,
    /// Their digests.
    digests: Vec<String>,
}

impl Halfway {
    /// Of bytes that have these digests.
    pub(crate) fn of(digests: &DigestSet) -> Self {
        Self {
            done: digests.size_bytes(),
            digests: HashMethod::ALL
                .iter()
                .filter_map(|&method| digests.pinned(method))
                .map(|pinned| pinned.to_string())
                .collect(),
        }
    }
}

/// The file and all that watches it.
pub(crate) struct Taking {
    writer: SparseWriter,
    digests: Digests,
    inspector: Option<Inspector>,
    refusal: Option<Refusal>,
    room: Option<Room>,
    /// Whether a refusal ends it all.
    is_final: bool,
}

impl Taking {
    /// Into a new file at `path`.
    pub(crate) fn begin(
        path: &Path,
        role: Role,
        layer: usize,
        methods: &[HashMethod],
        judge: Option<&Judge>,
    ) -> io::Result<Self> {
        let writer = SparseWriter::new(File::create_new(path)?);
        Ok(Self::with(writer, role, layer, methods, judge))
    }

    fn with(writer: SparseWriter, role: Role, layer: usize, methods: &[HashMethod], judge: Option<&Judge>) -> Self {
        let disk = judge.filter(|_| role == Role::Disk);
        Self {
            writer,
            digests: Digests::new(methods.iter().copied()),
            inspector: disk.map(|judge| Inspector::new(judge.expected.clone())),
            refusal: None,
            room: judge.map(|judge| judge.room.clone()),
            is_final: judge.is_some_and(|judge| judge.last_layer == layer),
        }
    }

    /// Goes on with the file at `path`, of which `halfway` tells; reads what is there again. `None`: it is not what it was.
    pub(crate) fn resume(
        path: &Path,
        role: Role,
        layer: usize,
        methods: &[HashMethod],
        judge: Option<&Judge>,
        halfway: &Halfway,
    ) -> Result<Option<Self>, Failure> {
        let fail = |error| Failure::Write(path.to_path_buf(), error);
        let metadata = path.metadata().map_err(fail)?;
        // With a second name it is part of an image already, and not to be touched.
        if metadata.len() < halfway.done || metadata.nlink() > 1 {
            return Ok(None);
        }
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(fail)?;
        let file = File::options().read(true).write(true).open(path).map_err(fail)?;
        // What was written after the note may be anything after a power cut.
        file.set_len(halfway.done).map_err(fail)?;
        let mut before = file.try_clone().map_err(fail)?;
        let writer = SparseWriter::resume_at(file, halfway.done).map_err(fail)?;
        let mut taking = Self::with(writer, role, layer, methods, judge);
        let mut buffer = vec![0; PIECE];
        loop {
            let count = before.read(&mut buffer).map_err(fail)?;
            if count == 0 {
                break;
            }
            taking.look(buffer.get(..count).unwrap_or_default())?;
        }
        let same = Halfway::of(&taking.digests.so_far()) == *halfway;
        Ok(same.then_some(taking))
    }

    /// Digests and inspection of the next bytes.
    fn look(&mut self, piece: &[u8]) -> Result<(), Failure> {
        self.digests.update(piece);
        let Some(inspector) = &mut self.inspector else {
            return Ok(());
        };
        match inspector.feed(piece) {
            Ok(()) => Ok(()),
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Result<(), Failure> {
        if self.is_final {
            return Err(Failure::Judged(Box::new(refusal.into())));
        }
        self.inspector = None;
        self.refusal = Some(refusal);
        Ok(())
    }

    /// Takes the next bytes in. What was refused is not written any more.
    pub(crate) fn write(&mut self, path: &Path, piece: &[u8]) -> Result<(), Failure> {
        self.look(piece)?;
        if self.refusal.is_some() {
            return Ok(());
        }
        self.writer
            .write_all(piece)
            .map_err(|error| Failure::Write(path.to_path_buf(), error))?;
        match &self.room {
            Some(room) => room
                .check(self.writer.data_bytes())
                .map_err(|error| Failure::Judged(Box::new(error))),
            None => Ok(()),
        }
    }

    /// Makes all bytes so far durable.
    pub(crate) fn settle(&mut self) -> io::Result<Halfway> {
        self.writer.settle_all()?;
        Ok(Halfway::of(&self.digests.so_far()))
    }

    /// Whether going on another time makes sense.
    pub(crate) const fn is_sound(&self) -> bool {
        self.refusal.is_none()
    }

    /// Completes the file: its length, digests, and what it is if it is a disk that is judged.
    pub(crate) fn finish(self, path: &Path) -> Result<(u64, DigestSet, Option<Judged>), Failure> {
        let Self {
            writer,
            digests,
            inspector,
            refusal,
            is_final,
            ..
        } = self;
        let digests = digests.finish();
        let fail = |error| Failure::Write(path.to_path_buf(), error);
        if let Some(refusal) = refusal {
            return Ok((digests.size_bytes(), digests, Some(Err(refusal))));
        }
        let (_, length) = writer.finish(1).map_err(fail)?;
        let judged = inspector.map(Inspector::finish);
        match judged {
            Some(Err(refusal)) if is_final => Err(Failure::Judged(Box::new(refusal.into()))),
            judged => Ok((length, digests, judged)),
        }
    }
}
