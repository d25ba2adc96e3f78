//! Bitmaps (qcow2 specification, "Bitmaps"): directory, table entries, and what keeps them true when the disk changes.

/// Most bitmaps an image may have. QEMU's limit.
pub const MAX_BITMAPS: u32 = 65_535;
/// Longest directory, bytes: 256 for each of the most bitmaps (QEMU takes four times that).
pub const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// Longest bitmap table, entries. QEMU's limit.
pub const MAX_TABLE_ENTRIES: u32 = 0x0800_0000;

/// The bitmap was not saved, or the disk changed without it: its contents mean nothing.
pub const FLAG_IN_USE: u32 = 1;
/// The bitmap tracks all changes of the disk.
pub const FLAG_AUTO: u32 = 2;
/// The bitmap may be used although its extra data is not understood.
pub const FLAG_EXTRA_COMPATIBLE: u32 = 4;

/// What every directory entry begins with, bytes.
const FIXED_BYTES: usize = 24;
/// Where the flags are within an entry, bytes.
const FLAGS_AT: usize = 12;
/// Entries begin at multiples of this, bytes.
const ALIGN_BYTES: usize = 8;
/// Longest name, bytes (specification).
const MAX_NAME_BYTES: usize = 1023;
/// Bits of a table entry that hold an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit of a table entry without offset: the piece is all ones.
const ALL_ONES: u64 = 1;

/// Why a bitmap directory is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BitmapError {
    /// It ends inside of an entry.
    #[error("bitmap directory entry {index} is cut off: {needed} bytes wanted, {there} are there")]
    Short {
        /// Which entry.
        index: usize,
        /// Its length, bytes.
        needed: u64,
        /// What is there, bytes.
        there: usize,
    },
    /// There is something behind the last entry.
    #[error("bitmap directory has {left} bytes behind its {count} entries")]
    Trailing {
        /// How many entries it has.
        count: usize,
        /// What is left, bytes.
        left: usize,
    },
    /// More bitmaps than accepted.
    #[error("image claims {count} bitmaps: at most {MAX_BITMAPS} are accepted")]
    TooMany {
        /// What it claims.
        count: u32,
    },
    /// A field that the specification excludes.
    #[error("bitmap directory entry {index} has a bad {field}")]
    BadField {
        /// Which entry.
        index: usize,
        /// Which field.
        field: &'static str,
    },
}

/// One entry of the bitmap directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Where its table is, bytes from the start of the file.
    pub table_offset: u64,
    /// Entries of its table.
    pub table_entries: u32,
    /// [`FLAG_IN_USE`], [`FLAG_AUTO`], [`FLAG_EXTRA_COMPATIBLE`].
    pub flags: u32,
    /// 1: dirty tracking, the only kind there is.
    pub kind: u8,
    /// One bit stands for two to this many bytes of the disk.
    pub granularity_bits: u8,
    /// Extra data, kept as it is.
    pub extra: Vec<u8>,
    /// Its name, unique within the image.
    pub name: Vec<u8>,
}

/// What an entry of a bitmap table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// All bits of the piece are 0.
    Zeroes,
    /// All bits of the piece are 1.
    Ones,
    /// The bits are in the cluster at this offset, bytes from the start of the file.
    At(u64),
    /// Reserved bits are set.
    Bad,
}

impl Piece {
    /// Reads a table entry.
    pub const fn of(entry: u64) -> Self {
        let offset = entry & OFFSET_MASK;
        match (offset, entry & !OFFSET_MASK) {
            (0, 0) => Self::Zeroes,
            (0, ALL_ONES) => Self::Ones,
            (_, 0) => Self::At(offset),
            _ => Self::Bad,
        }
    }
}

/// Where entry `index` lies in the directory: its first byte and its length with padding.
fn entry_bounds(directory: &[u8], index: usize, start: usize) -> Result<(usize, usize), BitmapError> {
    let rest = directory.get(start..).unwrap_or_default();
    let short = |needed| BitmapError::Short {
        index,
        needed,
        there: rest.len(),
    };
    let fixed = rest.first_chunk::<FIXED_BYTES>().ok_or(short(FIXED_BYTES as u64))?;
    let [.., n0, n1, e0, e1, e2, e3] = *fixed;
    let name = u64::from(u16::from_be_bytes([n0, n1]));
    let extra = u64::from(u32::from_be_bytes([e0, e1, e2, e3]));
    let needed = (FIXED_BYTES as u64 + name + extra).next_multiple_of(ALIGN_BYTES as u64);
    match usize::try_from(needed) {
        Ok(len) if len <= rest.len() => Ok((start, len)),
        _ => Err(short(needed)),
    }
}

fn parse_entry(index: usize, entry: &[u8]) -> Result<Bitmap, BitmapError> {
    let bad = |field| BitmapError::BadField { index, field };
    let (fixed, variable) = entry.split_first_chunk::<FIXED_BYTES>().ok_or(bad("length"))?;
    let [o0, o1, o2, o3, o4, o5, o6, o7, rest @ ..] = *fixed;
    let [
        t0,
        t1,
        t2,
        t3,
        f0,
        f1,
        f2,
        f3,
        kind,
        granularity_bits,
        n0,
        n1,
        e0,
        e1,
        e2,
        e3,
    ] = rest;
    let name_len = usize::from(u16::from_be_bytes([n0, n1]));
    let extra_len = usize::try_from(u32::from_be_bytes([e0, e1, e2, e3])).map_err(|_| bad("extra data"))?;
    let (extra, rest) = variable.split_at_checked(extra_len).ok_or(bad("extra data"))?;
    let name = rest.get(..name_len).ok_or(bad("name"))?;
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(bad("name"));
    }
    Ok(Bitmap {
        table_offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
        table_entries: u32::from_be_bytes([t0, t1, t2, t3]),
        flags: u32::from_be_bytes([f0, f1, f2, f3]),
        kind,
        granularity_bits,
        extra: extra.to_vec(),
        name: name.to_vec(),
    })
}

/// Calls `each` with index, first byte and length of every entry.
fn walk(
    directory: &[u8],
    count: u32,
    mut each: impl FnMut(usize, usize, usize) -> Result<(), BitmapError>,
) -> Result<(), BitmapError> {
    if count > MAX_BITMAPS {
        return Err(BitmapError::TooMany { count });
    }
    let mut next = 0;
    for index in 0..count as usize {
        let (start, len) = entry_bounds(directory, index, next)?;
        each(index, start, len)?;
        next = start + len;
    }
    match directory.len() - next {
        0 => Ok(()),
        left => Err(BitmapError::Trailing {
            count: count as usize,
            left,
        }),
    }
}

/// Parses a directory of `count` bitmaps.
///
/// # Errors
/// It is cut off, too long, or has fields that the specification excludes.
pub fn parse_directory(directory: &[u8], count: u32) -> Result<Vec<Bitmap>, BitmapError> {
    let mut bitmaps = Vec::new();
    walk(directory, count, |index, start, len| {
        let entry = directory.get(start..start + len).unwrap_or_default();
        bitmaps.push(parse_entry(index, entry)?);
        Ok(())
    })?;
    Ok(bitmaps)
}

/// Which bitmaps [`mark_in_use`] marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marking {
    /// Those that track every change: the disk's contents are about to change, and nobody keeps them up.
    Auto,
    /// All: the disk's size is about to change.
    All,
}

/// Marks bitmaps as in use, in the bytes of their directory. True: something changed, and the directory must be written and
/// made durable before the first change of the disk. Whoever finds such a bitmap later knows that it says nothing.
///
/// # Errors
/// The directory can not be parsed; nothing is marked.
pub fn mark_in_use(directory: &mut [u8], count: u32, marking: Marking) -> Result<bool, BitmapError> {
    let mut places = Vec::new();
    walk(directory, count, |_, start, _| {
        places.push(start + FLAGS_AT);
        Ok(())
    })?;
    let mut changed = false;
    for at in places {
        let Some(field) = directory.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) else {
            continue;
        };
        let flags = u32::from_be_bytes(*field);
        let concerned = marking == Marking::All || flags & FLAG_AUTO != 0;
        if concerned && flags & FLAG_IN_USE == 0 {
            *field = (flags | FLAG_IN_USE).to_be_bytes();
            changed = true;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], extra: &[u8], flags: u32) -> Vec<u8> {
        let mut bytes = 0x8_0000u64.to_be_bytes().to_vec();
        bytes.extend(1u32.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend([1, 16]);
        bytes.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        bytes.extend(u32::try_from(extra.len()).unwrap().to_be_bytes());
        bytes.extend(extra);
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_directory_is_parsed_and_marked() {
        let mut directory = [
            entry(b"nightly", b"", FLAG_AUTO),
            entry(b"manual", b"xyz", 0),
            entry(b"old", b"", FLAG_AUTO | FLAG_IN_USE),
        ]
        .concat();
        let bitmaps = parse_directory(&directory, 3).unwrap();
        assert_eq!(
            (bitmaps[0].name.as_slice(), bitmaps[0].granularity_bits),
            (b"nightly".as_slice(), 16)
        );
        assert_eq!(bitmaps[1].extra, b"xyz");
        let flags = |directory: &[u8]| -> Vec<u32> {
            let bitmaps = parse_directory(directory, 3).unwrap();
            bitmaps.iter().map(|b| b.flags).collect()
        };
        assert_eq!(mark_in_use(&mut directory, 3, Marking::Auto), Ok(true));
        assert_eq!(flags(&directory), [3, 0, 3]);
        assert_eq!(mark_in_use(&mut directory, 3, Marking::Auto), Ok(false));
        assert_eq!(mark_in_use(&mut directory, 3, Marking::All), Ok(true));
        assert_eq!(flags(&directory), [3, 1, 3]);
    }

    #[test]
    fn every_truncation_and_every_wrong_count_is_refused() {
        let directory = [entry(b"a", b"", 0), entry(b"b", b"12345678", 0)].concat();
        for len in 0..directory.len() {
            assert!(parse_directory(&directory[..len], 2).is_err(), "{len}");
        }
        assert!(parse_directory(&directory, 1).is_err());
        assert!(parse_directory(&directory, 3).is_err());
        assert_eq!(
            parse_directory(&[], u32::MAX),
            Err(BitmapError::TooMany { count: u32::MAX })
        );
        let mut huge = entry(b"a", b"", 0);
        huge[20..24].fill(0xff);
        assert!(matches!(
            parse_directory(&huge, 1),
            Err(BitmapError::Short { index: 0, .. })
        ));
        assert!(parse_directory(&entry(b"", b"", 0), 1).is_err());
        assert!(parse_directory(&entry(&[b'n'; 1024], b"", 0), 1).is_err());
    }

    #[test]
    fn table_entries() {
        assert_eq!(Piece::of(0), Piece::Zeroes);
        assert_eq!(Piece::of(1), Piece::Ones);
        assert_eq!(Piece::of(0x1_0000), Piece::At(0x1_0000));
        assert_eq!(Piece::of(0x1_0001), Piece::Bad);
        assert_eq!(Piece::of(2), Piece::Bad);
        assert_eq!(Piece::of(1 << 63), Piece::Bad);
    }
}
