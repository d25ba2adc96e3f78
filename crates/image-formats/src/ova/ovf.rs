//! The description in an OVA (DMTF DSP0243, "Open Virtualization Format"): which file is the disk.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use super::OvaError;

/// Most files and disks that are looked at.
const ENTRIES_MAX: usize = 64;
/// Deepest nesting of elements.
const DEPTH_MAX: usize = 64;

/// A file of the package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvfFile {
    /// What disks refer to it by.
    pub id: String,
    /// Its path in the archive.
    pub href: String,
    /// Its length, bytes, if told.
    pub size_bytes: Option<u64>,
    /// Whether it is compressed, or cut into chunks.
    pub is_packed: bool,
}

/// A disk of the package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvfDisk {
    /// The file it is in; `None` for one to be made empty.
    pub file_ref: Option<String>,
    /// Size of the disk, bytes, if told in a way that is understood.
    pub capacity_bytes: Option<u64>,
    /// What format it is said to be in: an address of a specification.
    pub format: Option<String>,
    /// Whether it holds the differences to another disk.
    pub has_parent: bool,
}

/// What a description says of files and disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Envelope {
    /// All files.
    pub files: Vec<OvfFile>,
    /// All disks.
    pub disks: Vec<OvfDisk>,
}

impl Envelope {
    /// Reads a description.
    ///
    /// # Errors
    /// It is no XML, or tells more than an OVA with a disk needs. Entities are not expanded: a document type is refused.
    pub fn parse(text: &[u8]) -> Result<Self, OvaError> {
        let damaged = |what: String| OvaError::Description(what);
        let text = std::str::from_utf8(text).map_err(|_| damaged("it is not UTF-8".to_owned()))?;
        let mut reader = Reader::from_str(text);
        let mut envelope = Self::default();
        let mut path: Vec<String> = Vec::new();
        loop {
            match reader.read_event().map_err(|error| damaged(error.to_string()))? {
                Event::Eof if path.is_empty() => return Ok(envelope),
                Event::Eof => return Err(damaged("it ends within an element".to_owned())),
                Event::DocType(_) => return Err(damaged("it has a document type".to_owned())),
                Event::Start(element) => {
                    envelope.take(&element, path.last().map(String::as_str))?;
                    if path.len() >= DEPTH_MAX {
                        return Err(damaged("its elements are nested too deep".to_owned()));
                    }
                    path.push(name_of(&element));
                }
                Event::Empty(element) => envelope.take(&element, path.last().map(String::as_str))?,
                Event::End(_) => {
                    path.pop();
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, element: &BytesStart<'_>, parent: Option<&str>) -> Result<(), OvaError> {
        match (parent, name_of(element).as_str()) {
            (Some("References"), "File") => self.files.push(OvfFile {
                id: attribute(element, "id")?.unwrap_or_default(),
                href: attribute(element, "href")?.unwrap_or_default(),
                size_bytes: attribute(element, "size")?.and_then(|text| text.trim().parse().ok()),
                is_packed: attribute(element, "compression")?.is_some_and(|method| method != "identity")
                    || attribute(element, "chunkSize")?.is_some(),
            }),
            (Some("DiskSection"), "Disk") => {
                let unit = attribute(element, "capacityAllocationUnits")?;
                let capacity = attribute(element, "capacity")?;
                self.disks.push(OvfDisk {
                    file_ref: attribute(element, "fileRef")?,
                    capacity_bytes: capacity.and_then(|number| bytes_of(&number, unit.as_deref())),
                    format: attribute(element, "format")?,
                    has_parent: attribute(element, "parentRef")?.is_some(),
                });
            }
            _ => {}
        }
        if self.files.len() > ENTRIES_MAX || self.disks.len() > ENTRIES_MAX {
            return Err(OvaError::Description(format!(
                "it names more than {ENTRIES_MAX} files or disks"
            )));
        }
        Ok(())
    }
}

fn name_of(element: &BytesStart<'_>) -> String {
    AsRef::<str>::as_ref(&element.local_name()).to_owned()
}

/// An attribute by its name without a prefix.
fn attribute(element: &BytesStart<'_>, wanted: &str) -> Result<Option<String>, OvaError> {
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|error| OvaError::Description(error.to_string()))?;
        if AsRef::<str>::as_ref(&attribute.key.local_name()) == wanted {
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            return value
                .map(|text| Some(text.into_owned()))
                .map_err(|error| OvaError::Description(error.to_string()));
        }
    }
    Ok(None)
}

/// `20` of `byte * 2^30` (DSP0004, programmatic units).
fn bytes_of(number: &str, unit: Option<&str>) -> Option<u64> {
    let number: u64 = number.trim().parse().ok()?;
    let mut factors = unit.unwrap_or("byte").split('*').map(str::trim);
    if factors.next()? != "byte" {
        return None;
    }
    factors.try_fold(number, |bytes, factor| {
        let factor = match factor.split_once('^') {
            Some((base, power)) => base
                .trim()
                .parse::<u64>()
                .ok()?
                .checked_pow(power.trim().parse().ok()?)?,
            None => factor.parse().ok()?,
        };
        bytes.checked_mul(factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_disks_are_found_whatever_their_prefix() {
        let text = r#"<?xml version="1.0"?><Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
            <References><File ovf:id="f1" ovf:href="a&amp;b.vmdk" ovf:size="12"/></References>
            <ovf:DiskSection><Info>x</Info><Disk ovf:capacity="20" ovf:capacityAllocationUnits="byte * 2^30"
              ovf:diskId="d" ovf:fileRef="f1" ovf:format="http://x#streamOptimized"/></ovf:DiskSection>
            <Other><File ovf:id="no" ovf:href="no"/><Disk/></Other></Envelope>"#;
        let envelope = Envelope::parse(text.as_bytes()).unwrap();
        assert_eq!(envelope.files.len(), 1);
        assert_eq!(
            (envelope.files[0].href.as_str(), envelope.files[0].size_bytes),
            ("a&b.vmdk", Some(12))
        );
        assert_eq!(envelope.disks.len(), 1);
        assert_eq!(envelope.disks[0].capacity_bytes, Some(20 << 30));
        assert_eq!(envelope.disks[0].file_ref.as_deref(), Some("f1"));
    }

    #[test]
    fn units_are_read_as_they_are_written() {
        assert_eq!(bytes_of("3", None), Some(3));
        assert_eq!(bytes_of("3", Some("byte*2^20")), Some(3 << 20));
        assert_eq!(bytes_of("3", Some("byte * 1024 * 1024")), Some(3 << 20));
        assert_eq!(bytes_of("3", Some("byte * 2^64")), None);
        assert_eq!(bytes_of("3", Some("bit")), None);
        assert_eq!(bytes_of("-3", None), None);
    }

    #[test]
    fn hostile_text_is_refused() {
        let bomb = r#"<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>"#;
        let deep = "<a>".repeat(70);
        let many = format!("<References>{}</References>", "<File/>".repeat(65));
        let twice = r#"<References><File id="1" id="2"/></References>"#;
        let entity = r#"<References><File id="&file;"/></References>"#;
        for text in [bomb, &deep, &many, twice, entity, "<a", "<a></b>", "<a>", "\u{0}<a"] {
            let error = Envelope::parse(text.as_bytes()).err();
            if let Some(error) = error {
                assert_eq!(error.code(), "ovf_damaged", "{text}");
            } else {
                assert_eq!(text, "\u{0}<a>", "{text} was taken");
            }
        }
        assert_eq!(Envelope::parse(b"\xff").unwrap_err().code(), "ovf_damaged");
    }
}
