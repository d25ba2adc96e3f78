//! From layers to the few files an image is made of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use image_trust::{DigestSet, HashMethod};

use crate::entering::{KeptFile, KeptLayers, Midway, Noting, Stream};
use crate::layer::{self, Compression, LayerError};
use crate::parts::{CMDLINE_MAX, Failure, Role};
use crate::taking::{Halfway, Judge, Judged, PIECE, Taking};
use crate::tape::{Entry, Kind, Tape};
use crate::{ImageDigest, PullError};

/// What names of files taken out begin with.
pub(crate) const FOUND: &str = "found-";
/// Most candidates kept at once.
const CANDIDATES_MAX: usize = 64;
/// Prefix of an OCI whiteout: the rest names what is removed (image specification 1.1, "whiteouts").
const WHITEOUT: &str = ".wh.";
/// An OCI opaque whiteout: the directory's earlier content is removed.
const OPAQUE: &str = ".wh..wh..opq";

/// A file taken out of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    role: Role,
    layer: usize,
    /// Path in the image.
    pub(crate) path: String,
    /// Where it is now.
    pub(crate) file: PathBuf,
    /// Length, bytes.
    pub(crate) size: u64,
    /// Its digests, by the methods asked for.
    pub(crate) digests: DigestSet,
    /// What it is, for a disk that is judged as it passes.
    pub(crate) judged: Option<Judged>,
    /// Its number among the files made, and what it comes to once it is durable.
    number: u64,
    settled: Option<Halfway>,
}

/// A layer on disk.
#[derive(Debug, Clone)]
pub(crate) struct LayerFile {
    pub(crate) digest: ImageDigest,
    pub(crate) compression: Compression,
    pub(crate) file: PathBuf,
}

/// What the layers came to.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) disk: Found,
    pub(crate) kernel: Option<Found>,
    pub(crate) initrd: Option<Found>,
    /// Content of `/boot/cmdline`, trimmed and checked.
    pub(crate) cmdline: Option<String>,
}

/// Collects candidates from one layer after the other, lowest first.
pub(crate) struct Unpacker {
    dir: PathBuf,
    methods: Vec<HashMethod>,
    max_disk_bytes: u64,
    judge: Option<Judge>,
    unpacked_left: u64,
    found: BTreeMap<String, Found>,
    layer: usize,
    files_made: u64,
    links: u64,
    /// The file that an import before was taking out, and where it was.
    midway: Option<(Taking, Midway)>,
}

impl Unpacker {
    /// Files go to `dir`, which is the caller's to remove; digests by `methods` are made of each.
    pub(crate) fn new(dir: &Path, max_disk_bytes: u64, methods: &[HashMethod]) -> Self {
        Self {
            dir: dir.to_path_buf(),
            methods: methods.to_vec(),
            max_disk_bytes,
            judge: None,
            unpacked_left: unpacked_max(max_disk_bytes),
            found: BTreeMap::new(),
            layer: 0,
            files_made: 0,
            links: 0,
            midway: None,
        }
    }

    /// Holds disks to `judge` as they pass.
    pub(crate) fn judging(self, judge: Judge) -> Self {
        Self {
            judge: Some(judge),
            ..self
        }
    }

    /// Takes over the files that an import before left in the directory. False: they are not what they were.
    pub(crate) fn take_over(&mut self, kept: &KeptLayers) -> Result<bool, Failure> {
        self.drop_unkept(kept)?;
        for file in &kept.found {
            let path = self.place(file.number);
            let judge = self.judge.as_ref();
            let taking = Taking::resume(&path, file.role, file.layer, &self.methods, judge, &file.halfway)?;
            let Some(taking) = taking else { return Ok(false) };
            let found = self.taken(taking, file)?;
            self.found.insert(file.path.clone(), found);
        }
        self.layer = kept.layer;
        self.unpacked_left = kept.unpacked_left.min(self.unpacked_left);
        self.files_made = kept.files_made;
        self.links = kept.links;
        let Some(midway) = &kept.midway else { return Ok(true) };
        let (path, file) = (self.place(midway.file.number), &midway.file);
        let judge = self.judge.as_ref();
        let taking = Taking::resume(&path, file.role, file.layer, &self.methods, judge, &file.halfway)?;
        self.midway = taking.map(|taking| (taking, midway.clone()));
        Ok(self.midway.is_some())
    }

    /// Removes what came after the note.
    fn drop_unkept(&self, kept: &KeptLayers) -> Result<(), Failure> {
        let files = kept.found.iter().chain(kept.midway.iter().map(|midway| &midway.file));
        let known: Vec<PathBuf> = files.map(|file| self.place(file.number)).collect();
        let fail = |error| Failure::Write(self.dir.clone(), error);
        for path in crate::store::children(&self.dir).map_err(fail)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(FOUND) && !known.contains(&path) {
                std::fs::remove_file(&path).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Takes in the next layer. `seen` gets the compressed bytes read and returns false to stop.
    pub(crate) fn add(&mut self, layer: &LayerFile, seen: &mut dyn FnMut(u64) -> bool) -> Result<(), Failure> {
        let file = File::open(&layer.file).map_err(|error| Failure::Write(layer.file.clone(), error))?;
        let mut stopped = false;
        let mut watch = |bytes| {
            stopped = stopped || !seen(bytes);
            !stopped
        };
        let opened = layer::open(file, layer.compression, &mut watch).map_err(Failure::reading)?;
        let (_, result) = self.add_stream(Stream::Closed(opened), None);
        match result {
            Err(_) if stopped => Err(Failure::Stopped),
            result => result,
        }
    }

    /// Takes in the next layer; the rest of it, if an import before was in its middle: `stream` was entered there. Returns the
    /// stream, of which all that is unpacked was read unless this failed.
    pub(crate) fn add_stream<'s>(
        &mut self,
        stream: Stream<'s>,
        noting: Option<&mut Noting<'_>>,
    ) -> (Stream<'s>, Result<(), Failure>) {
        let limit_bytes = unpacked_max(self.max_disk_bytes);
        let limit = self.unpacked_left;
        let bounded = stream.take(limit);
        let mut tape = match &self.midway {
            None => Tape::new(bounded),
            Some((_, midway)) => Tape::resume(bounded, midway.left),
        };
        let mut result = self.all_of(&mut tape, noting);
        let mut rest = tape.into_inner();
        if result.is_ok() {
            // Padding after the end mark; and a compressed stream's checksum is only checked at its end.
            result = io::copy(&mut rest, &mut io::sink()).map(drop).map_err(Failure::reading);
        }
        self.unpacked_left = rest.limit();
        self.layer += 1;
        if self.unpacked_left == 0 {
            result = Err(Failure::Layer(LayerError::TooLarge { limit_bytes }));
        }
        (rest.into_inner(), result)
    }

    fn all_of(
        &mut self,
        tape: &mut Tape<io::Take<Stream<'_>>>,
        mut noting: Option<&mut Noting<'_>>,
    ) -> Result<(), Failure> {
        if let Some((taking, Midway { size, file, .. })) = self.midway.take() {
            self.fill(taking, size, &file, tape, &mut noting)?;
        }
        self.entries(tape, &mut noting)
    }

    fn entries(
        &mut self,
        tape: &mut Tape<io::Take<Stream<'_>>>,
        noting: &mut Option<&mut Noting<'_>>,
    ) -> Result<(), Failure> {
        while let Some(entry) = tape.next().map_err(Failure::reading)? {
            if self.whiteout(&entry.path)? {
                continue;
            }
            if entry.kind != Kind::Other || Role::of(&entry.path).is_some() {
                self.forget(|found| found.path == entry.path || is_below(&found.path, &entry.path))?;
            }
            match (Role::of(&entry.path), entry.kind) {
                (Some(role), Kind::File) => self.keep(role, &entry, tape, noting)?,
                (Some(Role::Disk), Kind::Link) => self.links += 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Applies a whiteout; false if the path is none. Only what earlier layers brought is removed.
    fn whiteout(&mut self, path: &str) -> Result<bool, Failure> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let layer = self.layer;
        if name == OPAQUE {
            self.forget(|found| found.layer < layer && is_below(&found.path, parent))?;
        } else if let Some(name) = name.strip_prefix(WHITEOUT) {
            let gone = if parent.is_empty() {
                name.to_owned()
            } else {
                format!("{parent}/{name}")
            };
            self.forget(|found| found.layer < layer && (found.path == gone || is_below(&found.path, &gone)))?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn forget(&mut self, gone: impl Fn(&Found) -> bool) -> Result<(), Failure> {
        for (_, found) in self.found.extract_if(.., |_, found| gone(found)) {
            std::fs::remove_file(&found.file).map_err(|error| Failure::Write(found.file, error))?;
        }
        Ok(())
    }

    fn keep(
        &mut self,
        role: Role,
        entry: &Entry,
        tape: &mut Tape<io::Take<Stream<'_>>>,
        noting: &mut Option<&mut Noting<'_>>,
    ) -> Result<(), Failure> {
        let limit_bytes = role.limit_bytes(self.max_disk_bytes);
        if entry.size > limit_bytes {
            return Err(Failure::Layer(LayerError::FileTooLarge {
                path: entry.path.clone(),
                size_bytes: entry.size,
                limit_bytes,
            }));
        }
        if self.found.len() >= CANDIDATES_MAX {
            return Err(Failure::Layer(LayerError::TooMany(CANDIDATES_MAX)));
        }
        let file = KeptFile {
            role,
            layer: self.layer,
            path: entry.path.clone(),
            number: self.files_made,
            halfway: Halfway::default(),
        };
        let path = self.place(file.number);
        self.files_made += 1;
        let taking = Taking::begin(&path, role, self.layer, &self.methods, self.judge.as_ref())
            .map_err(|error| Failure::Write(path, error))?;
        self.fill(taking, entry.size, &file, tape, noting)
    }

    /// Takes the rest of an entry in.
    fn fill(
        &mut self,
        mut taking: Taking,
        size: u64,
        file: &KeptFile,
        tape: &mut Tape<io::Take<Stream<'_>>>,
        noting: &mut Option<&mut Noting<'_>>,
    ) -> Result<(), Failure> {
        let path = self.place(file.number);
        let mut buffer = vec![0; PIECE];
        loop {
            match tape.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => taking.write(&path, buffer.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::reading(error)),
            }
            let Some(noting) = noting.as_deref_mut() else { continue };
            if tape.input().get_ref().offset() < noting.noted.saturating_add(noting.every) || !taking.is_sound() {
                continue;
            }
            if let Some(entrance) = tape.input().get_ref().entrance() {
                let halfway = taking.settle().map_err(|error| Failure::Write(path.clone(), error))?;
                let midway = Midway {
                    left: tape.left(),
                    size,
                    file: KeptFile {
                        halfway,
                        ..file.clone()
                    },
                    entrance,
                };
                self.note(tape.input().limit(), Some(midway), noting)?;
            }
        }
        let found = self.taken(taking, file)?;
        if found.size < size {
            return Err(Failure::Layer(LayerError::Truncated));
        }
        self.found.insert(file.path.clone(), found);
        Ok(())
    }

    /// Notes that layers up to this one are done.
    pub(crate) fn note_layer(&mut self, noting: &mut Noting<'_>) -> Result<(), Failure> {
        self.note(self.unpacked_left, None, noting)
    }

    fn note(&mut self, unpacked_left: u64, midway: Option<Midway>, noting: &mut Noting<'_>) -> Result<(), Failure> {
        let mut whole = Vec::new();
        for found in self.found.values_mut() {
            let Some(file) = found.settle()? else { return Ok(()) };
            whole.push(file);
        }
        noting.noted = midway.as_ref().map_or(0, |midway| midway.entrance.offset());
        let kept = KeptLayers {
            layer: self.layer,
            unpacked_left,
            files_made: self.files_made,
            links: self.links,
            found: whole,
            midway,
        };
        (noting.note)(kept).map_err(|error| Failure::Write(self.dir.clone(), error))
    }

    fn taken(&self, taking: Taking, file: &KeptFile) -> Result<Found, Failure> {
        let path = self.place(file.number);
        let (size, digests, judged) = taking.finish(&path)?;
        Ok(Found {
            role: file.role,
            layer: file.layer,
            path: file.path.clone(),
            file: path,
            size,
            digests,
            judged,
            number: file.number,
            settled: None,
        })
    }

    /// Where the file of this number is.
    fn place(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{FOUND}{number}"))
    }

    /// Decides which file is which.
    pub(crate) fn finish(&self) -> Result<Contents, PullError> {
        let disk = self
            .pick(Role::Disk, "disk")?
            .ok_or(PullError::NoDisk { links: self.links })?;
        let cmdline = match self.pick(Role::Cmdline, "command line")? {
            Some(found) => {
                let bytes = std::fs::read(&found.file).map_err(PullError::io("read", found.file))?;
                Some(check_cmdline(&String::from_utf8_lossy(&bytes))?)
            }
            None => None,
        };
        Ok(Contents {
            disk,
            kernel: self.pick(Role::Kernel, "kernel")?,
            initrd: self.pick(Role::Initrd, "initrd")?,
            cmdline,
        })
    }

    fn pick(&self, role: Role, name: &'static str) -> Result<Option<Found>, PullError> {
        let all: Vec<&Found> = self.found.values().filter(|found| found.role == role).collect();
        let plain = |found: &&&Found| {
            role != Role::Disk && matches!(found.path.as_str(), "boot/vmlinuz" | "boot/initrd" | "boot/initrd.img")
        };
        match all.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some((*one).clone())),
            several => match several.iter().filter(plain).collect::<Vec<_>>().as_slice() {
                [one] => Ok(Some((**one).clone())),
                _ => Err(PullError::Ambiguous {
                    role: name,
                    paths: several.iter().map(|found| format!("/{}", found.path)).collect(),
                }),
            },
        }
    }
}

/// Trims a command line; refuses what a kernel would misread.
pub(crate) fn check_cmdline(text: &str) -> Result<String, PullError> {
    let text = text.trim();
    if text.len() as u64 >= CMDLINE_MAX / 2 {
        return Err(PullError::Cmdline("is longer than the 2047 bytes an x86 kernel takes"));
    }
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(PullError::Cmdline(
            "holds more than one line, or characters other than printable ASCII",
        ));
    }
    Ok(text.to_owned())
}

/// Bytes all layers together may unpack to: room for a replaced disk.
fn unpacked_max(max_disk_bytes: u64) -> u64 {
    max_disk_bytes.saturating_mul(2).saturating_add(4 << 30)
}

impl Found {
    /// Makes it durable; none for a disk that was refused.
    fn settle(&mut self) -> Result<Option<KeptFile>, Failure> {
        if matches!(self.judged, Some(Err(_))) {
            return Ok(None);
        }
        if self.settled.is_none() {
            let synced = File::open(&self.file).and_then(|file| file.sync_all());
            synced.map_err(|error| Failure::Write(self.file.clone(), error))?;
        }
        let halfway = self.settled.get_or_insert_with(|| Halfway::of(&self.digests));
        Ok(Some(KeptFile {
            role: self.role,
            layer: self.layer,
            path: self.path.clone(),
            number: self.number,
            halfway: halfway.clone(),
        }))
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
