//! The few fields of a qcow2 header that the harness reads and sets by itself (QEMU, docs/interop/qcow2.rst, "Header").

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// A set of feature bits.
#[derive(Debug, Clone, Copy)]
pub enum Features {
    /// Must be understood.
    Incompatible,
    /// May be ignored.
    Compatible,
    /// Is to be cleared by whoever does not know it.
    Autoclear,
}

impl Features {
    /// Offset in the header, bytes.
    const fn offset(self) -> u64 {
        match self {
            Self::Incompatible => 72,
            Self::Compatible => 80,
            Self::Autoclear => 88,
        }
    }
}

/// Dirty: bit of [`Features::Incompatible`].
const DIRTY: u64 = 1;

fn open(image: &Path) -> Result<File> {
    let file = File::options().read(true).write(true).open(image);
    file.with_context(|| format!("can not open {}", image.display()))
}

fn number(file: &File, offset: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u64::from_be_bytes(bytes))
}

fn word(file: &File, offset: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u32::from_be_bytes(bytes))
}

/// One set of feature bits of a version 3 image.
pub fn features(image: &Path, set: Features) -> Result<u64> {
    number(&open(image)?, set.offset())
}

/// Whether refcounts may be wrong because the last writer did not end well.
pub fn is_dirty(image: &Path) -> Result<bool> {
    let file = open(image)?;
    Ok(word(&file, 4)? >= 3 && number(&file, Features::Incompatible.offset())? & DIRTY != 0)
}

/// Sets one feature bit.
pub fn set_feature(image: &Path, set: Features, bit: u32) -> Result<()> {
    let file = open(image)?;
    let value = number(&file, set.offset())? | 1 << bit;
    file.write_all_at(&value.to_be_bytes(), set.offset())?;
    Ok(())
}

/// An extension: its type and its data.
type Extension = (u32, Vec<u8>);

/// All extensions, and where the list ends.
fn extensions(file: &File) -> Result<(Vec<Extension>, u64)> {
    let mut found = Vec::new();
    let mut at = if word(file, 4)? >= 3 {
        u64::from(word(file, 100)?)
    } else {
        72
    };
    loop {
        let (kind, len) = (word(file, at)?, word(file, at + 4)?);
        if kind == 0 {
            return Ok((found, at));
        }
        ensure!(len < 65_536 && found.len() < 64, "the extensions have no end");
        let mut data = vec![0; len as usize];
        file.read_exact_at(&mut data, at + 8)?;
        found.push((kind, data));
        at += 8 + u64::from(len).next_multiple_of(8);
    }
}

/// The data of an extension, if it is there.
pub fn extension(image: &Path, kind: u32) -> Result<Option<Vec<u8>>> {
    let (found, _) = extensions(&open(image)?)?;
    Ok(found.into_iter().find(|(it, _)| *it == kind).map(|(_, data)| data))
}

/// Adds an extension in front of the others' end; a backing file's name moves behind it.
pub fn add_extension(image: &Path, kind: u32, data: &[u8]) -> Result<()> {
    let file = open(image)?;
    let cluster = 1_u64 << word(&file, 20)?;
    let (_, end) = extensions(&file)?;
    let (name_at, name_len) = (number(&file, 8)?, word(&file, 16)?);
    let mut name = vec![0; name_len as usize];
    if name_at > 0 {
        file.read_exact_at(&mut name, name_at)?;
    }
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len())?.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend_from_slice(&[0; 8]);
    let new_name = end + bytes.len() as u64;
    bytes.extend_from_slice(&name);
    if end + bytes.len() as u64 > cluster {
        bail!("no room in the header of {}", image.display());
    }
    file.write_all_at(&bytes, end)?;
    if name_at > 0 {
        file.write_all_at(&new_name.to_be_bytes(), 8)?;
    }
    Ok(())
}
