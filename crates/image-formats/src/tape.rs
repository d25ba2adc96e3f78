//! Tape archives as a stream, for what strangers packed.
//!
//! The `tar` crate decodes headers; the walk is done here, because what a header makes a reader keep or skip has to be bounded, and
//! because nothing that reaches out of the archive is passed over in silence: absolute and climbing paths, links, devices.
//! POSIX ustar and pax (IEEE 1003.1-2001), GNU long names and base-256 numbers.

use std::io::{self, Read};

use tar::{EntryType, Header};

/// Longest path, bytes (Linux, `PATH_MAX`).
const PATH_MAX: u64 = 4096;
/// Longest extended header, bytes; real ones have a few hundred.
const PAX_MAX: u64 = 64 << 10;
/// Unit of an archive, bytes.
const BLOCK: usize = 512;
/// Bytes passed over at once.
const SKIP_BYTES: usize = 32 << 10;

/// Why an archive is not read on.
#[derive(Debug, thiserror::Error)]
pub enum TapeError {
    /// The source failed, or what unpacks it.
    #[error("the archive can not be read")]
    Read(#[source] io::Error),
    /// It ends within an entry.
    #[error("the archive ends too early; it was cut short")]
    Truncated,
    /// A header makes no sense.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// Honest, and not supported.
    #[error("the archive holds {0}; pack it anew with plain tar")]
    Unsupported(&'static str),
    /// An entry would be outside.
    #[error("the archive's entry {0:?} has an absolute or climbing path")]
    UnsafePath(String),
    /// An entry that leads elsewhere, or is no file at all.
    #[error("the archive's entry {0:?} is a link or a device")]
    Link(String),
}

impl TapeError {
    /// A stable name for programs; the crate documents them.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "source_unreadable",
            Self::Truncated => "archive_truncated",
            Self::Damaged(_) => "archive_damaged",
            Self::Unsupported(_) => "archive_unsupported",
            Self::UnsafePath(_) => "archive_unsafe_path",
            Self::Link(_) => "archive_link",
        }
    }
}

/// An entry, before its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path within the archive: relative, without `.` and `..`.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Length of its content, bytes.
    pub size_bytes: u64,
}

/// An archive being read: after [`Tape::next_entry`] gave an entry, [`Tape::read`] gives its content.
pub struct Tape<R> {
    input: R,
    content_left: u64,
    filler_left: u64,
}

#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Tape<R> {
    /// Over a stream at an archive's start.
    pub const fn new(input: R) -> Self {
        Self {
            input,
            content_left: 0,
            filler_left: 0,
        }
    }

    /// The source, behind what was read.
    pub const fn get_ref(&self) -> &R {
        &self.input
    }

    /// The next entry; passes over what is left of the one before. `None` at the end.
    ///
    /// # Errors
    /// The archive is damaged, not supported or reaches out of itself.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TapeError> {
        let mut overrides = Overrides::default();
        // Each turn reads a header, and the source has an end.
        loop {
            self.pass_entry()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let stated = header
                .entry_size()
                .map_err(|_| TapeError::Damaged("an entry has no valid size".to_owned()))?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => {
                    overrides.path = Some(self.kept(stated, PATH_MAX)?);
                    continue;
                }
                EntryType::XHeader => {
                    let records = self.kept(stated, PAX_MAX)?;
                    read_pax(&records, &mut overrides)?;
                    continue;
                }
                EntryType::GNULongLink | EntryType::XGlobalHeader => {
                    self.begin(stated)?;
                    continue;
                }
                _ => {}
            }
            let raw = overrides
                .path
                .take()
                .unwrap_or_else(|| header.path_bytes().into_owned());
            let shown = || String::from_utf8_lossy(&raw).chars().take(128).collect::<String>();
            let is_dir = match kind {
                EntryType::Regular | EntryType::Continuous => false,
                EntryType::Directory => true,
                EntryType::GNUSparse => return Err(TapeError::Unsupported("a GNU sparse file")),
                _ => return Err(TapeError::Link(shown())),
            };
            let path = safe_path(&raw).ok_or_else(|| TapeError::UnsafePath(shown()))?;
            let size_bytes = if is_dir { 0 } else { overrides.size.unwrap_or(stated) };
            self.begin(size_bytes)?;
            return Ok(Some(Entry {
                path,
                is_dir,
                size_bytes,
            }));
        }
    }

    /// Content of the current entry; 0 at its end.
    ///
    /// # Errors
    /// The source fails, or ends before the content does.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TapeError> {
        let most = usize::try_from(self.content_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        match self.input_read(buffer)? {
            0 => Err(TapeError::Truncated),
            count => {
                self.content_left -= count as u64;
                Ok(count)
            }
        }
    }

    /// All content of an entry whose size the caller has looked at; memory grows with what really comes.
    pub(crate) fn read_small(&mut self, size_bytes: u64) -> Result<Vec<u8>, TapeError> {
        let mut content = Vec::new();
        let mut have = 0;
        while (have as u64) < size_bytes {
            let left = usize::try_from(size_bytes).unwrap_or(usize::MAX) - have;
            content.resize(have + left.min(SKIP_BYTES), 0);
            match self.read(content.get_mut(have..).unwrap_or_default())? {
                0 => return Err(TapeError::Truncated),
                count => have += count,
            }
        }
        content.truncate(have);
        Ok(content)
    }

    fn kept(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, TapeError> {
        if size > limit {
            return Err(TapeError::Damaged(format!(
                "a name or extended header has {size} bytes"
            )));
        }
        self.begin(size)?;
        self.read_small(size)
    }

    fn begin(&mut self, size: u64) -> Result<(), TapeError> {
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        let padded = padded.ok_or_else(|| TapeError::Damaged(format!("an entry has {size} bytes")))?;
        self.content_left = size;
        self.filler_left = padded - size;
        Ok(())
    }

    /// The content must be there; some tools leave the last entry's filler and the end mark out.
    fn pass_entry(&mut self) -> Result<(), TapeError> {
        let mut scratch = vec![
            0;
            if self.content_left + self.filler_left == 0 {
                0
            } else {
                SKIP_BYTES
            }
        ];
        while self.content_left > 0 {
            self.read(&mut scratch)?;
        }
        while self.filler_left > 0 {
            let most = usize::try_from(self.filler_left)
                .unwrap_or(usize::MAX)
                .min(scratch.len());
            match self.input_read(scratch.get_mut(..most).unwrap_or_default())? {
                0 => break,
                count => self.filler_left -= count as u64,
            }
        }
        self.filler_left = 0;
        Ok(())
    }

    /// `None` at the end mark, or where the source ends between entries.
    fn header(&mut self) -> Result<Option<Header>, TapeError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while let Some(rest) = block.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match self.input_read(rest)? {
                0 if have == 0 => return Ok(None),
                0 => return Err(TapeError::Truncated),
                count => have += count,
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The sum counts its own field as eight spaces.
        let field = block.get(148..156).unwrap_or_default();
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
        let expected = sum(block) - sum(field) + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(expected) {
            return Err(TapeError::Damaged("a header's checksum is wrong".to_owned()));
        }
        Ok(Some(header))
    }

    fn input_read(&mut self, buffer: &mut [u8]) -> Result<usize, TapeError> {
        loop {
            match self.input.read(buffer) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TapeError::Read(error)),
            }
        }
    }
}

fn read_pax(bytes: &[u8], overrides: &mut Overrides) -> Result<(), TapeError> {
    let damaged = || TapeError::Damaged("an extended header makes no sense".to_owned());
    for record in tar::PaxExtensions::new(bytes) {
        let record = record.map_err(|_| damaged())?;
        match record.key_bytes() {
            b"path" => overrides.path = Some(record.value_bytes().to_vec()),
            b"size" => {
                let size = record.value().ok().and_then(|text| text.parse().ok());
                overrides.size = Some(size.ok_or_else(damaged)?);
            }
            key if key.starts_with(b"GNU.sparse") => return Err(TapeError::Unsupported("a GNU sparse file")),
            _ => {}
        }
    }
    Ok(())
}

/// The path without `.` parts; `None` if it is absolute, climbs, is empty, or is no text.
fn safe_path(raw: &[u8]) -> Option<String> {
    let raw = raw.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(raw).ok()?;
    if text.starts_with('/') || text.len() as u64 > PATH_MAX || text.contains(['\\', ':']) {
        return None;
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let climbs = parts.contains(&"..") || parts.iter().any(|part| part.chars().any(char::is_control));
    (!climbs && !parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(name: &[u8], size: u64, kind: EntryType) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_size(size);
        header.set_entry_type(kind);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn walk(bytes: &[u8]) -> Result<Vec<(String, usize)>, TapeError> {
        let mut tape = Tape::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = tape.next_entry()? {
            found.push((entry.path.clone(), tape.read_small(entry.size_bytes)?.len()));
        }
        Ok(found)
    }

    #[test]
    fn entries_come_with_long_names_and_without_reading_them() {
        let long = "x".repeat(300);
        let bytes = archive(&[("./a", b"one"), ("b", &[7; 1000]), (&long, b"three")]);
        assert_eq!(
            walk(&bytes).unwrap(),
            [("a".into(), 3), ("b".into(), 1000), (long.clone(), 5)]
        );
        let mut tape = Tape::new(bytes.as_slice());
        let mut count = 0;
        while tape.next_entry().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 3);
        let end = bytes.len() - 1024 - 507;
        assert_eq!(walk(&bytes[..end]).unwrap().len(), 3, "no filler, no end mark");
    }

    #[test]
    fn extended_headers_override() {
        let pax = b"18 path=./big/one\n10 size=3\n";
        let mut bytes = raw(b"pax", pax.len() as u64, EntryType::XHeader);
        bytes.extend_from_slice(pax);
        bytes.resize(1024, 0);
        bytes.extend(raw(b"short", 0, EntryType::Regular));
        bytes.extend_from_slice(b"abc");
        assert_eq!(walk(&bytes).unwrap(), [("big/one".into(), 3)]);
    }

    #[test]
    fn what_reaches_out_is_refused_by_name() {
        let code = |name: &[u8], size, kind| walk(&raw(name, size, kind)).unwrap_err().code();
        for path in [
            &b"/etc/passwd"[..],
            b"a/../../b",
            b"..",
            b"a\\b",
            b"C:b",
            b"./",
            b"\xff",
        ] {
            assert_eq!(code(path, 0, EntryType::Regular), "archive_unsafe_path", "{path:?}");
        }
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo] {
            assert_eq!(code(b"a", 0, kind), "archive_link");
        }
        assert_eq!(code(b"a", 9, EntryType::GNUSparse), "archive_unsupported");
        assert_eq!(code(b"a", u64::MAX, EntryType::Regular), "archive_damaged");
        assert_eq!(code(b"a", 1 << 40, EntryType::GNULongName), "archive_damaged");
        assert_eq!(code(b"a", 1 << 40, EntryType::XHeader), "archive_damaged");
        assert_eq!(code(b"a", 1 << 40, EntryType::Regular), "archive_truncated");
        assert_eq!(walk(&[1; 512]).unwrap_err().code(), "archive_damaged");
        assert_eq!(walk(&[1; 100]).unwrap_err().code(), "archive_truncated");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_get_an_answer(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..1200), at in 0usize..3000, byte: u8) {
            let _ = walk(&noise);
            let mut bytes = archive(&[("disk/a", &[1; 600]), (&"n".repeat(200), b"x")]);
            let index = at % bytes.len();
            bytes[index] = byte;
            let _ = walk(&bytes);
        }
    }
}
