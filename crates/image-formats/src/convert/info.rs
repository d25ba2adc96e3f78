//! What `qemu-img info` says, compared with what was found before.

use disk::probe::Format;
use serde::Deserialize;

use super::ConvertError;
use crate::inspect::{Inspection, Refusal};

/// Most text that is read, bytes: an image's snapshots and names make it long.
pub(super) const TEXT_MAX: usize = 256 << 10;
/// A VHD's size is also told in cylinders, heads and sectors, and programs differ in which they believe: at most one cylinder
/// of 16 heads and 255 sectors apart, and not beyond 127 GiB where the geometry ends.
const VHD_SLACK_BYTES: u64 = 16 * 255 * 512;

/// The fields that matter.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Info {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
}

impl Info {
    pub(super) fn parse(text: &[u8]) -> Result<Self, ConvertError> {
        serde_json::from_slice(text)
            .map_err(|error| ConvertError::Disagreement(format!("its answer can not be read: {error}")))
    }

    /// The size of the disk, bytes, if both agree and it is allowed.
    pub(super) fn checked(&self, driver: &str, found: Inspection, limit_bytes: u64) -> Result<u64, ConvertError> {
        let differ = |what: String| Err(ConvertError::Disagreement(what));
        if self.format != driver {
            return differ(format!("its format is {} and was found to be {driver}", self.format));
        }
        if let Some(name) = self.backing_filename.as_ref().or(self.full_backing_filename.as_ref()) {
            return differ(format!("it refers to {name:?}"));
        }
        if self.encrypted {
            return differ("it is encrypted".to_owned());
        }
        let size_bytes = self.virtual_size;
        if size_bytes > limit_bytes {
            return Err(ConvertError::Refused(Refusal::VirtualSize {
                size_bytes,
                limit_bytes,
            }));
        }
        let before = found.virtual_size_bytes.unwrap_or(0);
        let slack = if found.format == Format::Vhd {
            VHD_SLACK_BYTES
        } else {
            0
        };
        if size_bytes == 0 || size_bytes.abs_diff(before) > slack {
            return differ(format!(
                "its disk has {size_bytes} bytes and was found to have {before}"
            ));
        }
        Ok(size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(format: Format) -> Inspection {
        Inspection {
            format,
            virtual_size_bytes: Some(1 << 20),
            size_bytes: 9999,
            partitions: None,
        }
    }

    fn code(text: &str, format: Format) -> Result<u64, &'static str> {
        let info = Info::parse(text.as_bytes()).unwrap();
        info.checked("vmdk", found(format), 2 << 20)
            .map_err(|error| error.code())
    }

    #[test]
    fn only_agreement_goes_on() {
        let text = r#"{"format":"vmdk","virtual-size":1048576,"dirty-flag":false}"#;
        assert_eq!(code(text, Format::Vmdk), Ok(1 << 20));
        let other = text.replace("1048576", "1048577");
        assert_eq!(code(&other, Format::Vmdk), Err("size_disagreement"));
        assert_eq!(code(&other, Format::Vhd), Ok((1 << 20) + 1));
        assert_eq!(
            code(&text.replace("1048576", "9999999"), Format::Vmdk),
            Err("virtual_size_beyond_quota")
        );
        assert_eq!(
            code(&text.replace("vmdk", "raw"), Format::Vmdk),
            Err("size_disagreement")
        );
        let backed = text.replace("\"dirty-flag\":false", "\"backing-filename\":\"x\"");
        assert_eq!(code(&backed, Format::Vmdk), Err("size_disagreement"));
        assert_eq!(
            code(&text.replace("dirty-flag\":false", "encrypted\":true"), Format::Vmdk),
            Err("size_disagreement")
        );
        assert_eq!(Info::parse(b"{").unwrap_err().code(), "size_disagreement");
    }
}
