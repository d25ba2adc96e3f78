//! qcow2: the engine's own parser reads the first cluster; here is what an import does not take.

use disk::probe::Format;
use disk_qcow2::meta::extension::{DATA_FILE, ENCRYPTION};
use disk_qcow2::meta::head::{Head, HeadError};
use disk_qcow2::meta::header::{Header, HeaderError, incompatible};

use super::Refusal;
use super::found::Settled;

/// Judges the start of an image.
pub(super) fn judge(start: &[u8]) -> Result<Settled, Refusal> {
    // Before anything else may fail: the two references are the worst there is, and are told by name.
    if let Ok(header) = Header::parse_fields(start) {
        references(&header)?;
    }
    let head = Head::parse(start).map_err(refusal)?;
    if head.extensions.get(DATA_FILE).is_some() {
        return Err(Refusal::DataFile);
    }
    if head.extensions.get(ENCRYPTION).is_some() {
        return Err(Refusal::Encrypted {
            format: Format::Qcow2,
            method: "LUKS".to_owned(),
        });
    }
    let header = head.header;
    if header.incompatible & incompatible::CORRUPT != 0 {
        let what = "it is marked corrupt; repair it with qemu-img check -r all";
        return Err(Refusal::damaged(Format::Qcow2, what));
    }
    // The tables a reader starts from must be there; a file that was cut short lacks one or the other.
    let l1_end = header.l1_offset.saturating_add(u64::from(header.l1_entries) * 8);
    let reftable_end = header.reftable_offset.saturating_add(8);
    Ok(Settled {
        format: Format::Qcow2,
        virtual_size_bytes: Some(header.size_bytes),
        least_bytes: l1_end.max(reftable_end),
    })
}

fn references(header: &Header) -> Result<(), Refusal> {
    if header.backing_offset != 0 || header.backing_len != 0 {
        return Err(Refusal::BackingFile);
    }
    if header.incompatible & incompatible::DATA_FILE != 0 {
        return Err(Refusal::DataFile);
    }
    Ok(())
}

fn refusal(error: HeadError) -> Refusal {
    match error {
        HeadError::Header(HeaderError::Features(names)) => Refusal::UnknownFeature(names.join(", ")),
        HeadError::Header(HeaderError::Version(version)) => Refusal::UnknownFeature(format!("version {version}")),
        HeadError::Header(HeaderError::Encrypted(method)) => Refusal::Encrypted {
            format: Format::Qcow2,
            method: method.to_owned(),
        },
        HeadError::Extension(cause) => Refusal::damaged(Format::Qcow2, cause.to_string()),
        other => Refusal::damaged(Format::Qcow2, other.to_string()),
    }
}
