//! VMware disks ("Virtual Disk Format 5.0"): the header of a sparse extent, and the description within it.
//!
//! A description is text that may name any file of the host as an extent or as a parent, and readers go by it. So only the two
//! kinds of vmdk that are one file are taken, their description must name one sparse extent without a path, and a footer, which
//! some readers believe more than the header, must say the same.

use disk::probe::Format;

use super::Refusal;
use super::found::{Need, Settled};
use crate::fields::{array, le16, le64};

/// Unit of everything the header counts, bytes.
const SECTOR: u64 = 512;
/// Longest description, bytes; `qemu-img` and VMware's tools give it 10 KiB.
pub const DESCRIPTION_MAX: u64 = 64 << 10;
/// Farthest end of the description, bytes; it comes right behind the header.
const DESCRIPTION_END_MAX: u64 = 1 << 20;
/// The grain directory's place is told by the footer.
const DIRECTORY_AT_END: u64 = u64::MAX;
/// What one image in one file is made as.
const CREATE_TYPES: [&str; 2] = ["monolithicSparse", "streamOptimized"];
/// The footer, which is a header, begins this far before the end, bytes: it and the marker for the end follow.
const FOOTER_FROM_END: usize = 1024;
/// What a footer must have in common with the header, bytes: all up to the tables' places, and from the bytes that show a
/// transfer as text on. Between are the places of the two grain directories, the overhead and a flag for a crash.
const COMMON: [std::ops::Range<usize>; 2] = [0..48, 73..79];
/// Where the place of the grain directory is told, bytes.
const DIRECTORY_FIELD: usize = 56;
/// Fields of the header that matter, bytes.
const FIELDS_BYTES: usize = 79;
/// Least and most sectors of a grain: 4 KiB to 128 MiB.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=(1 << 18);

/// A sparse extent's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    fields: [u8; FIELDS_BYTES],
    /// Size of the disk, bytes.
    size_bytes: u64,
    grain_sectors: u64,
    /// Where its description is.
    pub(super) description: Need,
    directory_at: u64,
}

fn damaged(what: impl Into<String>) -> Refusal {
    Refusal::damaged(Format::Vmdk, what)
}

impl Header {
    /// Reads the header of an image that begins so.
    pub(super) fn parse(start: &[u8]) -> Result<Self, Refusal> {
        if start.starts_with(b"# Disk DescriptorFile") {
            let text = start.get(..start.len().min(4096)).unwrap_or_default();
            return Err(Refusal::ExternalExtent(first_extent(text)));
        }
        if !start.starts_with(b"KDMV") {
            return Err(Refusal::CreateType("COWD".to_owned()));
        }
        Self::fields(start).ok_or_else(|| damaged("it ends within its header"))?
    }

    fn fields(start: &[u8]) -> Option<Result<Self, Refusal>> {
        let (capacity, grain) = (le64(start, 12)?, le64(start, 20)?);
        let (at, len) = (le64(start, 28)?, le64(start, 36)?);
        if capacity == 0 {
            // A header around a description of other files: readers take the extents from there.
            return Some(Err(Refusal::ExternalExtent("its own extent is empty".to_owned())));
        }
        let Some(size_bytes) = capacity.checked_mul(SECTOR) else {
            return Some(Err(damaged(format!("it has {capacity} sectors"))));
        };
        if !GRAIN_SECTORS.contains(&grain) || !grain.is_power_of_two() {
            return Some(Err(damaged(format!("its grains have {grain} sectors"))));
        }
        let (at, len) = (at.saturating_mul(SECTOR), len.saturating_mul(SECTOR));
        if at == 0 || len == 0 {
            return Some(Err(damaged("it has no description within it")));
        }
        if len > DESCRIPTION_MAX || at.saturating_add(len) > DESCRIPTION_END_MAX {
            return Some(Err(damaged(format!("its description has {len} bytes at byte {at}"))));
        }
        // Bytes that a transfer as text would have changed.
        if array(start, 73)? != *b"\n \r\n" {
            return Some(Err(damaged("it was changed as if it were text")));
        }
        let description = Need {
            at,
            len: usize::try_from(len).ok()?,
        };
        Some(Ok(Self {
            fields: array(start, 0)?,
            size_bytes,
            grain_sectors: grain,
            description,
            directory_at: le64(start, DIRECTORY_FIELD)?,
        }))
    }

    /// Judges the image by its description.
    pub(super) fn judge(&self, description: &[u8]) -> Result<Settled, Refusal> {
        let said = Descriptor::parse(description)?;
        // Some writers round the one, and not the other, to whole grains.
        if said.sectors.abs_diff(self.size_bytes / SECTOR) >= self.grain_sectors {
            return Err(damaged(format!(
                "its header tells {} sectors and its description {}",
                self.size_bytes / SECTOR,
                said.sectors
            )));
        }
        let directory = if self.directory_at == DIRECTORY_AT_END {
            0
        } else {
            self.directory_at
        };
        let description_end = self.description.at + self.description.len as u64;
        Ok(Settled {
            format: Format::Vmdk,
            virtual_size_bytes: Some(self.size_bytes),
            least_bytes: directory.saturating_add(1).saturating_mul(SECTOR).max(description_end),
        })
    }

    /// Compares with the image's end.
    pub(super) fn check_end(&self, end: &[u8]) -> Result<(), Refusal> {
        let footer = end
            .len()
            .checked_sub(FOOTER_FROM_END)
            .and_then(|at| end.get(at..at + FIELDS_BYTES));
        let Some(footer) = footer.filter(|footer| footer.starts_with(b"KDMV")) else {
            let wanted = self.directory_at == DIRECTORY_AT_END;
            return if wanted {
                Err(damaged("its footer is missing: it was cut short"))
            } else {
                Ok(())
            };
        };
        let same = |part: std::ops::Range<usize>| self.fields.get(part.clone()) == footer.get(part);
        let told = le64(footer, DIRECTORY_FIELD).is_some_and(|at| at != DIRECTORY_AT_END);
        if told && COMMON.into_iter().all(same) {
            Ok(())
        } else if self.directory_at == DIRECTORY_AT_END || le16(footer, 4).is_some_and(|version| version <= 3) {
            Err(Refusal::Footer)
        } else {
            Ok(()) // Data that looks a little like one, in an image that has none.
        }
    }
}

/// What a vmdk's description says of an image in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// How it was made.
    pub create_type: String,
    /// Size of its one extent, sectors of 512 bytes.
    pub sectors: u64,
    /// The file the extent says it is in: a plain name.
    pub file: String,
}

impl Descriptor {
    /// Reads a description, up to its first zero byte.
    ///
    /// # Errors
    /// It names a parent, a file by its path, several extents, or is of a kind that is not taken.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        if text.len() as u64 > DESCRIPTION_MAX {
            return Err(damaged("its description is too long"));
        }
        let text = String::from_utf8_lossy(text);
        // Readers look for this anywhere in the text, so nowhere may it be.
        if text.to_ascii_lowercase().contains("parentfilenamehint") {
            return Err(Refusal::Parent(Format::Vmdk));
        }
        let mut create_type = None;
        let mut extents = Vec::new();
        for line in text
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
        {
            let value = |(key, value): (&str, &str)| (key.trim().to_ascii_lowercase(), unquoted(value).to_owned());
            match line.split_once('=').map(value) {
                Some((key, _)) if key == "createtype" && create_type.is_some() => {
                    return Err(damaged("its description tells createType twice"));
                }
                Some((key, value)) if key == "createtype" => create_type = Some(value),
                Some((key, value)) if key == "parentcid" && !value.eq_ignore_ascii_case("ffffffff") => {
                    return Err(Refusal::Parent(Format::Vmdk));
                }
                _ if is_extent(line) => extents.push(line),
                _ => {}
            }
        }
        let create_type = create_type.unwrap_or_default();
        if !CREATE_TYPES.contains(&create_type.as_str()) {
            return Err(Refusal::CreateType(create_type.chars().take(64).collect()));
        }
        let [extent] = extents.as_slice() else {
            return Err(Refusal::SeveralExtents(extents.len()));
        };
        let (sectors, file) = extent_of(extent)?;
        Ok(Self {
            create_type,
            sectors,
            file,
        })
    }
}

/// An extent's line begins with its access (§ "The Extent Description").
fn is_extent(line: &str) -> bool {
    let word = line.split_whitespace().next().unwrap_or_default();
    ["RW", "RDONLY", "NOACCESS"]
        .iter()
        .any(|access| word.eq_ignore_ascii_case(access))
}

/// `RW 204800 SPARSE "name.vmdk"`: sectors and name.
fn extent_of(line: &str) -> Result<(u64, String), Refusal> {
    let strange = || damaged("its description's extent makes no sense");
    let (before, rest) = line.split_once('"').ok_or_else(strange)?;
    let (name, after) = rest.split_once('"').ok_or_else(strange)?;
    let words: Vec<&str> = before.split_whitespace().collect();
    let external = || Refusal::ExternalExtent(name.chars().take(128).collect());
    let ["RW" | "RDONLY", sectors, kind] = words.as_slice() else {
        return Err(strange());
    };
    let plain = !name.is_empty() && name != ".." && !name.contains(['/', '\\', ':']);
    if *kind != "SPARSE" || !plain || !after.trim().is_empty() {
        return Err(external());
    }
    let sectors = sectors.parse().map_err(|_| strange())?;
    Ok((sectors, name.to_owned()))
}

fn unquoted(value: &str) -> &str {
    value.trim().trim_matches('"')
}

/// What a description on its own names, for the message.
fn first_extent(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| is_extent(line))
        .unwrap_or("a description alone");
    line.chars().filter(|c| !c.is_control()).take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\
                        # Extent description\nRW 2048 SPARSE \"a.vmdk\"\nddb.adapterType = \"ide\"\n\0\0RW 1 FLAT \"x\"";

    fn code(from: &str, to: &str) -> &'static str {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD);
        Descriptor::parse(text.as_bytes()).unwrap_err().code()
    }

    #[test]
    fn a_description_of_one_file_is_taken() {
        let descriptor = Descriptor::parse(GOOD.as_bytes()).unwrap();
        assert_eq!((descriptor.sectors, descriptor.file.as_str()), (2048, "a.vmdk"));
        assert_eq!(descriptor.create_type, "monolithicSparse");
        let windows = GOOD.replace('\n', "\r\n");
        assert_eq!(Descriptor::parse(windows.as_bytes()).unwrap(), descriptor);
    }

    #[test]
    fn what_reaches_out_is_refused_by_name() {
        for (name, expected) in [
            ("/etc/shadow", "vmdk_external_extent"),
            ("..", "vmdk_external_extent"),
            ("..\\\\x", "vmdk_external_extent"),
            ("nbd:host", "vmdk_external_extent"),
            ("", "vmdk_external_extent"),
        ] {
            assert_eq!(code("a.vmdk", name), expected, "{name}");
        }
        assert_eq!(code("SPARSE \"a", "FLAT \"a"), "vmdk_external_extent");
        assert_eq!(code("\"a.vmdk\"", "\"a.vmdk\" 0"), "vmdk_external_extent");
        assert_eq!(code("ddb.", "RW 2048 SPARSE \"b.vmdk\"\nddb."), "vmdk_several_extents");
        assert_eq!(code("RW 2048", "# RW 2048"), "vmdk_several_extents");
        assert_eq!(code("monolithicSparse", "monolithicFlat"), "vmdk_create_type");
        assert_eq!(code("createType=", "ddb.createType="), "vmdk_create_type");
        assert_eq!(code("parentCID=ffffffff", "parentCID=12345678"), "vmdk_parent");
        assert_eq!(code("ddb.", "#parentFileNameHint=\"/etc/shadow\"\nddb."), "vmdk_parent");
        assert_eq!(code("RW 2048 SPARSE", "RW -1 SPARSE"), "damaged");
        assert_eq!(code("ddb.", "createType=\"monolithicSparse\"\nddb."), "damaged");
    }

    #[test]
    fn a_description_alone_is_refused() {
        let refusal = Header::parse(b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n").unwrap_err();
        assert_eq!(
            refusal,
            Refusal::ExternalExtent("RW 1 FLAT \"/etc/shadow\" 0".to_owned())
        );
        assert_eq!(Header::parse(b"COWD").unwrap_err().code(), "vmdk_create_type");
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in "[a-zA-Z0-9 =\"#\\n/RWSPARSE]{0,200}", bytes: Vec<u8>) {
            let _ = Descriptor::parse(text.as_bytes());
            let _ = Descriptor::parse(&bytes);
            let _ = Header::parse(&[b"KDMV".as_slice(), &bytes].concat());
        }
    }
}
