//! Tar archives as a stream, without trust.
//!
//! Headers are decoded by the `tar` crate; the walk over them is here because an import must bound what a hostile archive
//! makes it keep (long names, extended headers) and what it makes it read. Formats: POSIX ustar and pax (IEEE 1003.1-2001),
//! GNU long names and base-256 numbers.

use std::io::{self, Read};

use tar::{EntryType, Header};

/// Longest path kept, bytes: Linux's `PATH_MAX`.
const PATH_MAX: u64 = 4096;
/// Longest extended header read, bytes; real ones are a few hundred.
const PAX_MAX: u64 = 64 << 10;
/// Tar's unit, bytes.
const BLOCK: u64 = 512;

/// What an entry is, as far as an import cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Link,
    Other,
}

/// One entry, before its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Normalised: relative, no `.` or `..` or empty parts.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// Content bytes that follow.
    pub(crate) size: u64,
}

/// A tar archive being read. After [`Tape::next`] returned an entry, [`Read`] gives its content and ends with it.
pub(crate) struct Tape<R> {
    input: R,
    /// Content bytes of the current entry not read yet.
    content_left: u64,
    /// Filler bytes after the content.
    filler_left: u64,
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Tape<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            content_left: 0,
            filler_left: 0,
        }
    }

    /// Goes on in the middle of an entry: `left` are the bytes of its content and of the filler behind it that are to come.
    pub(crate) fn resume(input: R, left: (u64, u64)) -> Self {
        Self {
            input,
            content_left: left.0,
            filler_left: left.1,
        }
    }

    /// Bytes of the current entry's content, and of the filler behind it, that were not read yet.
    pub(crate) const fn left(&self) -> (u64, u64) {
        (self.content_left, self.filler_left)
    }

    /// What lies under the archive.
    pub(crate) const fn input(&self) -> &R {
        &self.input
    }

    /// What lies under the archive; for reading on to the end of the stream.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; `None` at the end of the archive. An error of kind `InvalidData` means the archive is at fault.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut overrides = Overrides::default();
        // Each turn reads a header from the input, whose length is bounded: the walk ends.
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let mut size = header.entry_size().map_err(|_| bad("an entry has no valid size"))?;
            let kind = match header.entry_type() {
                EntryType::GNULongName => {
                    self.begin(size)?;
                    overrides.path = Some(self.small(size, PATH_MAX, "a file name")?);
                    continue;
                }
                EntryType::GNULongLink | EntryType::XGlobalHeader => {
                    self.begin(size)?;
                    continue;
                }
                EntryType::XHeader => {
                    self.begin(size)?;
                    let extended = self.small(size, PAX_MAX, "an extended header")?;
                    read_pax(&extended, &mut overrides)?;
                    continue;
                }
                EntryType::GNUSparse => {
                    return Err(bad("GNU sparse entries are not supported; pack with tar without -S"));
                }
                EntryType::Regular | EntryType::Continuous => Kind::File,
                EntryType::Link | EntryType::Symlink => Kind::Link,
                _ => Kind::Other,
            };
            if let Some(stated) = overrides.size {
                size = stated;
            }
            // Links, directories and devices have no content whatever their header says.
            let size = if kind == Kind::File { size } else { 0 };
            self.begin(size)?;
            let raw = overrides
                .path
                .take()
                .unwrap_or_else(|| header.path_bytes().into_owned());
            let path = normalise(&raw)?;
            return Ok(Some(Entry { path, kind, size }));
        }
    }

    fn begin(&mut self, size: u64) -> io::Result<()> {
        let padded = size
            .checked_next_multiple_of(BLOCK)
            .ok_or_else(|| bad("an entry's size is absurd"))?;
        self.content_left = size;
        self.filler_left = padded - size;
        Ok(())
    }

    /// Passes what is left of the current entry. Its content must be there; `umoci insert` leaves out the filler of the last
    /// entry, and the end mark too.
    fn skip(&mut self) -> io::Result<()> {
        let left = self.content_left.saturating_add(self.filler_left);
        let passed = io::copy(&mut (&mut self.input).take(left), &mut io::sink())?;
        if passed < self.content_left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content_left = 0;
        self.filler_left = 0;
        Ok(())
    }

    /// One header block; `None` at the end mark or the end of the input.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while let Some(rest) = block.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The checksum is the sum of all bytes with its own field (148..156) read as spaces.
        let sum = block
            .iter()
            .enumerate()
            .map(|(index, &byte)| {
                if (148..156).contains(&index) {
                    32
                } else {
                    u32::from(byte)
                }
            })
            .sum::<u32>();
        if header.cksum().ok() != Some(sum) {
            return Err(bad("a header's checksum is wrong: not a tar archive, or a damaged one"));
        }
        Ok(Some(header))
    }

    /// All content of a small entry.
    fn small(&mut self, size: u64, limit: u64, what: &str) -> io::Result<Vec<u8>> {
        if size > limit {
            return Err(bad(&format!("{what} is longer than {limit} bytes")));
        }
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        if (content.len() as u64) < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(content)
    }
}

impl<R: Read> Read for Tape<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.input).take(self.content_left).read(buffer)?;
        self.content_left -= count as u64;
        Ok(count)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Records of the form `LENGTH KEY=VALUE\n`; of interest are `path` and `size`.
fn read_pax(bytes: &[u8], overrides: &mut Overrides) -> io::Result<()> {
    for extension in tar::PaxExtensions::new(bytes) {
        let extension = extension.map_err(|_| bad("an extended header is malformed"))?;
        match extension.key_bytes() {
            b"path" => overrides.path = Some(extension.value_bytes().to_vec()),
            b"size" => {
                let size = extension.value().ok().and_then(|text| text.parse().ok());
                overrides.size = Some(size.ok_or_else(|| bad("an extended header's size is no number"))?);
            }
            key if key.starts_with(b"GNU.sparse") => {
                return Err(bad("GNU sparse entries are not supported; pack with tar without -S"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A leading `/` and `.` parts fall away; `..` is refused: nothing honest needs it.
fn normalise(raw: &[u8]) -> io::Result<String> {
    let raw = raw.split(|&byte| byte == 0).next().unwrap_or_default();
    if raw.len() as u64 > PATH_MAX {
        return Err(bad("a file name is too long"));
    }
    let text = String::from_utf8_lossy(raw);
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(bad(&format!("entry {text:?} climbs out of the archive"))),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn raw(name: &[u8], size: u64, kind: EntryType) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_size(size);
        header.set_entry_type(kind);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn walk(bytes: &[u8]) -> io::Result<Vec<(String, Kind, Vec<u8>)>> {
        let mut tape = Tape::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = tape.next()? {
            let mut content = Vec::new();
            tape.read_to_end(&mut content)?;
            found.push((entry.path, entry.kind, content));
        }
        Ok(found)
    }

    #[test]
    fn reads_entries_long_names_and_skips_unread_content() {
        let long = format!("disk/{}", "x".repeat(300));
        let bytes = archive(&[("a", b"one"), ("b", &[7; 1000]), (&long, b"three")]);
        let found = walk(&bytes).unwrap();
        assert_eq!(found[0], ("a".into(), Kind::File, b"one".to_vec()));
        assert_eq!(found[1].2.len(), 1000);
        assert_eq!(
            (found[2].0.as_str(), found[2].2.as_slice()),
            (long.as_str(), b"three".as_slice())
        );
        let mut tape = Tape::new(bytes.as_slice());
        let mut paths = Vec::new();
        while let Some(entry) = tape.next().unwrap() {
            paths.push(entry.path);
        }
        assert_eq!(paths, ["a".to_owned(), "b".to_owned(), long]);
    }

    #[test]
    fn pax_headers_override_path_and_size() {
        let pax = b"18 path=./big/one\n10 size=3\n";
        let mut bytes = raw(b"pax", pax.len() as u64, EntryType::XHeader);
        bytes.extend_from_slice(pax);
        bytes.resize(1024, 0);
        bytes.extend(raw(b"short", 0, EntryType::Regular));
        bytes.extend_from_slice(b"abc");
        bytes.resize(2048, 0);
        assert_eq!(walk(&bytes).unwrap(), [("big/one".into(), Kind::File, b"abc".to_vec())]);
    }

    #[test]
    fn refuses_what_is_hostile_or_cut() {
        let kind = |bytes: &[u8]| walk(bytes).unwrap_err().kind();
        let huge_name = raw(b"x", 1 << 40, EntryType::GNULongName);
        assert_eq!(kind(&huge_name), io::ErrorKind::InvalidData);
        assert_eq!(
            kind(&raw(b"x", 1 << 40, EntryType::XHeader)),
            io::ErrorKind::InvalidData
        );
        assert_eq!(
            kind(&raw(b"../../etc/passwd", 0, EntryType::Regular)),
            io::ErrorKind::InvalidData
        );
        assert_eq!(
            kind(&raw(b"disk/x", u64::MAX, EntryType::Regular)),
            io::ErrorKind::InvalidData
        );
        assert_eq!(
            kind(&raw(b"disk/x", 5, EntryType::GNUSparse)),
            io::ErrorKind::InvalidData
        );
        assert_eq!(kind(&[1; 512]), io::ErrorKind::InvalidData);
        let cut = archive(&[("a", &[1; 2000])]);
        assert_eq!(kind(&cut[..1000]), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&cut[..100]), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_archive_may_end_with_the_content_of_its_last_entry() {
        let bytes = archive(&[("a", b"one"), ("b", &[7; 700])]);
        let end = 512 + 512 + 512 + 700;
        assert_eq!(walk(&bytes[..end]).unwrap()[1].2.len(), 700);
        let mut tape = Tape::new(&bytes[..end]);
        tape.next().unwrap();
        tape.next().unwrap();
        assert_eq!(tape.next().unwrap(), None, "unread content is passed");
        let mut tape = Tape::new(&bytes[..end - 1]);
        tape.next().unwrap();
        tape.next().unwrap();
        assert_eq!(tape.next().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn links_carry_no_content_whatever_they_claim() {
        let mut bytes = raw(b"/disk/./l", 1 << 30, EntryType::Symlink);
        bytes.extend(archive(&[("a", b"one")]));
        let found = walk(&bytes).unwrap();
        assert_eq!(found[0], ("disk/l".into(), Kind::Link, vec![]));
        assert_eq!(found[1].0, "a");
    }

    proptest::proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..600), at in 0usize..2000, byte: u8) {
            let _ = walk(&noise);
            let mut bytes = archive(&[("disk/a", &[1; 600]), (&"n".repeat(200), b"x")]);
            let index = at % bytes.len();
            bytes[index] = byte;
            let _ = walk(&bytes);
        }
    }
}
