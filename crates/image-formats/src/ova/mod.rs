//! OVA: a tape archive with a description, a manifest and files, of which one is the disk.
//!
//! ```text
//!   Ova::open ──► disk found ──► Read: the disk's bytes ──► finish: the rest, the manifest
//! ```
//!
//! The archive is read once, front to back, as DSP0243 lays it out: the description first, then, if there is one, the manifest (it
//! may also be the last entry), then the files in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

mod error;
mod manifest;
mod ovf;

pub use error::OvaError;
use manifest::{Digests, Hashing, Manifest};
pub use ovf::{Envelope, OvfDisk, OvfFile};

use crate::tape::{Entry, Tape};

/// Longest description, bytes.
const OVF_MAX: u64 = 2 << 20;
/// Longest manifest or certificate, bytes.
const MANIFEST_MAX: u64 = 256 << 10;
/// Most entries.
const ENTRIES_MAX: usize = 256;
/// Bytes read at a time where nobody wants them.
const SCRATCH_BYTES: usize = 64 << 10;

/// What is asked of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OvaRules {
    /// Longest disk file, bytes.
    pub max_disk_bytes: u64,
    /// Whether it has to have a manifest.
    pub require_manifest: bool,
}

/// The disk in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvaDisk {
    /// Its file's path.
    pub path: String,
    /// Its file's length, bytes.
    pub size_bytes: u64,
    /// Size of the disk, bytes, as the description tells it.
    pub capacity_bytes: Option<u64>,
    /// Its format as the description tells it: an address of a specification, to be shown only.
    pub format: Option<String>,
}

/// What a whole archive came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OvaReport {
    /// Whether there was a manifest; its digests were right.
    pub had_manifest: bool,
}

/// An archive being read; [`Read`] gives the disk's bytes.
pub struct Ova<R> {
    tape: Tape<R>,
    rules: OvaRules,
    envelope: Envelope,
    ovf_path: String,
    disk: OvaDisk,
    seen: BTreeSet<String>,
    manifest: Option<Manifest>,
    digests: BTreeMap<String, Digests>,
    hashing: Option<Hashing>,
}

impl<R: Read> Ova<R> {
    /// Reads up to the disk. Blocks.
    ///
    /// # Errors
    /// The archive is refused, or can not be read.
    pub fn open(input: R, rules: OvaRules) -> Result<Self, OvaError> {
        let mut tape = Tape::new(input);
        let first = tape
            .next_entry()?
            .filter(|entry| has_extension(&entry.path, "ovf"))
            .ok_or(OvaError::NoDescription)?;
        let text = small(&mut tape, &first, OVF_MAX)?;
        let envelope = Envelope::parse(&text)?;
        let disk = the_disk(&envelope)?;
        let mut hashing = Hashing::of(None, &first.path);
        hashing.update(&text);
        let mut ova = Self {
            tape,
            rules,
            envelope,
            disk,
            seen: BTreeSet::from([first.path.clone()]),
            manifest: None,
            digests: BTreeMap::from([(first.path.clone(), hashing.finish())]),
            ovf_path: first.path,
            hashing: None,
        };
        match ova.walk()? {
            Some(entry) => {
                ova.disk.size_bytes = entry.size_bytes;
                ova.hashing = Some(Hashing::of(ova.manifest.as_ref(), &entry.path));
                Ok(ova)
            }
            None => Err(OvaError::NoDisk),
        }
    }

    /// The disk.
    pub const fn disk(&self) -> &OvaDisk {
        &self.disk
    }

    /// The source, behind what was read.
    pub const fn get_ref(&self) -> &R {
        self.tape.get_ref()
    }

    /// Reads what is left, of the disk too, and compares the digests. Only then is the disk to be believed. Blocks.
    ///
    /// # Errors
    /// The archive is refused, or can not be read.
    pub fn finish(mut self) -> Result<OvaReport, OvaError> {
        let mut scratch = vec![0; SCRATCH_BYTES];
        while self.next_piece(&mut scratch)? > 0 {}
        if let Some(entry) = self.walk()? {
            return Err(OvaError::Duplicate(entry.path));
        }
        match &self.manifest {
            Some(manifest) => manifest.check(&self.digests, &[&self.ovf_path, &self.disk.path])?,
            None if self.rules.require_manifest => return Err(OvaError::NoManifest),
            None => {}
        }
        Ok(OvaReport {
            had_manifest: self.manifest.is_some(),
        })
    }

    /// The next piece of the disk; 0 at its end.
    fn next_piece(&mut self, buffer: &mut [u8]) -> Result<usize, OvaError> {
        let Some(hashing) = &mut self.hashing else { return Ok(0) };
        let count = self.tape.read(buffer)?;
        hashing.update(buffer.get(..count).unwrap_or_default());
        if count == 0
            && !buffer.is_empty()
            && let Some(hashing) = self.hashing.take()
        {
            self.digests.insert(self.disk.path.clone(), hashing.finish());
        }
        Ok(count)
    }

    /// Goes on to the disk's entry, or the end.
    fn walk(&mut self) -> Result<Option<Entry>, OvaError> {
        while let Some(entry) = self.tape.next_entry()? {
            if entry.is_dir {
                continue;
            }
            if !self.seen.insert(entry.path.clone()) {
                return Err(OvaError::Duplicate(entry.path));
            }
            if self.seen.len() > ENTRIES_MAX {
                return Err(OvaError::TooManyEntries);
            }
            if entry.path == self.disk.path {
                let limit_bytes = self.rules.max_disk_bytes;
                if entry.size_bytes > limit_bytes {
                    return Err(OvaError::DiskTooLarge { limit_bytes });
                }
                return Ok(Some(entry));
            }
            self.other(&entry)?;
        }
        Ok(None)
    }

    fn other(&mut self, entry: &Entry) -> Result<(), OvaError> {
        if has_extension(&entry.path, "mf") && self.manifest.is_none() {
            let text = small(&mut self.tape, entry, MANIFEST_MAX)?;
            self.manifest = Some(Manifest::parse(&text)?);
            return Ok(());
        }
        if has_extension(&entry.path, "cert") {
            return small(&mut self.tape, entry, MANIFEST_MAX).map(drop);
        }
        if !self.envelope.files.iter().any(|file| path_of(&file.href) == entry.path) {
            return Err(OvaError::Unlisted(entry.path.clone()));
        }
        let mut hashing = Hashing::of(self.manifest.as_ref(), &entry.path);
        let mut scratch = vec![0; SCRATCH_BYTES];
        loop {
            let count = self.tape.read(&mut scratch)?;
            if count == 0 {
                break;
            }
            hashing.update(scratch.get(..count).unwrap_or_default());
        }
        self.digests.insert(entry.path.clone(), hashing.finish());
        Ok(())
    }
}

impl<R: Read> Read for Ova<R> {
    /// Errors hold an [`OvaError`], see [`OvaError::of`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next_piece(buffer).map_err(OvaError::into_io)
    }
}

fn small<R: Read>(tape: &mut Tape<R>, entry: &Entry, limit_bytes: u64) -> Result<Vec<u8>, OvaError> {
    if entry.size_bytes > limit_bytes {
        return Err(OvaError::EntryTooLarge {
            path: entry.path.clone(),
            limit_bytes,
        });
    }
    Ok(tape.read_small(entry.size_bytes)?)
}

/// The one disk a description tells of.
fn the_disk(envelope: &Envelope) -> Result<OvaDisk, OvaError> {
    let disk = match envelope.disks.as_slice() {
        [] => return Err(OvaError::NoDisk),
        [one] => one,
        several => return Err(OvaError::SeveralDisks(several.len())),
    };
    if disk.has_parent {
        return Err(OvaError::DiskParent);
    }
    let wanted = disk.file_ref.as_deref().ok_or(OvaError::NoDisk)?;
    let mut files = envelope.files.iter().filter(|file| file.id == wanted);
    let file = files.next().ok_or(OvaError::NoDisk)?;
    if files.next().is_some() {
        return Err(OvaError::Description(format!("two files are called {wanted:?}")));
    }
    if file.href.contains("://") || file.href.starts_with('/') || file.href.split('/').any(|part| part == "..") {
        return Err(OvaError::ExternalFile(file.href.chars().take(128).collect()));
    }
    if file.is_packed {
        return Err(OvaError::DiskCompressed);
    }
    Ok(OvaDisk {
        path: path_of(&file.href),
        size_bytes: file.size_bytes.unwrap_or(0),
        capacity_bytes: disk.capacity_bytes,
        format: disk.format.clone(),
    })
}

/// Written as the archive's entries are.
fn path_of(href: &str) -> String {
    let parts: Vec<&str> = href.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    parts.join("/")
}

fn has_extension(path: &str, wanted: &str) -> bool {
    path.rsplit_once('.')
        .is_some_and(|(_, extension)| extension.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests;
