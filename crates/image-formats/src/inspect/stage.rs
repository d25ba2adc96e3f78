//! How far an inspection is: which bytes it waits for, and what it does with them.
//!
//! ```text
//!            ┌─ vmdk ──► Description ──┐
//!   Head ────┼─ vhdx ──► RegionTable ──► Metadata ──┼──► Settled
//!            └─ all others ────────────┘
//! ```

use disk::probe::{Format, Packing};

use super::found::{Need, Settled};
use super::partitions::{self, Partitions};
use super::{Expectations, Refusal, Wrapping, marks, qcow2, vdi, vhd, vhdx, vmdk};

/// How much of the beginning is judged first, bytes: everything up to a CD-ROM's mark, and the header extensions of a qcow2.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// What is waited for.
#[derive(Debug)]
pub(super) enum Stage {
    Head,
    Description(vmdk::Header),
    RegionTable,
    Metadata(vhdx::Regions),
    /// The header of a vmdk is kept, to be compared with the footer.
    Settled(Settled, Option<vmdk::Header>),
}

impl Stage {
    const fn settled(found: Settled) -> Self {
        Self::Settled(found, None)
    }

    pub(super) fn need(&self) -> Option<Need> {
        match self {
            Self::Head => Some(Need { at: 0, len: HEAD_BYTES }),
            Self::Description(header) => Some(header.description),
            Self::RegionTable => Some(vhdx::REGION_TABLE),
            Self::Metadata(regions) => Some(regions.metadata),
            Self::Settled(..) => None,
        }
    }

    /// What the image is as far as this is known.
    pub(super) fn format(&self) -> Option<Format> {
        match self {
            Self::Head => None,
            Self::Description(_) => Some(Format::Vmdk),
            Self::RegionTable | Self::Metadata(_) => Some(Format::Vhdx),
            Self::Settled(settled, _) => Some(settled.format),
        }
    }

    /// The next stage of one whose bytes are there. Not for [`Stage::Head`].
    pub(super) fn next(self, bytes: &[u8]) -> Result<Self, Refusal> {
        match self {
            Self::Description(header) => header.judge(bytes).map(|settled| Self::Settled(settled, Some(header))),
            Self::RegionTable => vhdx::regions(bytes).map(Self::Metadata),
            Self::Metadata(regions) => Ok(Self::settled(vhdx::judge(regions, bytes)?)),
            Self::Head | Self::Settled(..) => Ok(self),
        }
    }
}

/// What the head tells.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) stage: Stage,
    pub(super) partitions: Option<Partitions>,
}

/// Judges the first [`HEAD_BYTES`], or all there are.
pub(super) fn judge_head(head: &[u8], expected: &Expectations) -> Result<Verdict, Refusal> {
    let found = marks::all(head, &[], u64::MAX);
    let partitions = partitions::of(head);
    let format = match found.as_slice() {
        [] => Format::Raw,
        [one] => *one,
        [one, other, ..] => return Err(Refusal::Polyglot(*one, *other)),
    };
    // The salts of a LUKS header may look like a boot record's signature; all others have zeros or text there.
    let bootable = format != Format::Luks && partitions::is_bootable(head);
    if !format.is_plain() && (partitions.is_some() || bootable) {
        return Err(Refusal::PolyglotPartitions(format));
    }
    if let Format::Packed(packing) = format {
        packed(packing, expected.wrapping)?;
    }
    check_kind(format, partitions, expected)?;
    let stage = match format {
        Format::Qcow2 => Stage::settled(qcow2::judge(head)?),
        Format::Vmdk => Stage::Description(vmdk::Header::parse(head)?),
        Format::Vhdx => Stage::RegionTable,
        Format::Vdi => Stage::settled(vdi::judge(head)?),
        Format::Vhd if vhd::begins_with_footer(head) => Stage::settled(vhd::judge_start(head)?),
        plain => Stage::settled(Settled {
            format: plain,
            virtual_size_bytes: None,
            least_bytes: 0,
        }),
    };
    Ok(Verdict { stage, partitions })
}

fn packed(packing: Packing, wrapping: Wrapping) -> Result<(), Refusal> {
    match (packing, wrapping) {
        (Packing::Tar | Packing::Zip, Wrapping::Archive) => Err(Refusal::NestedArchive),
        (Packing::Tar, Wrapping::None | Wrapping::Compression) | (_, Wrapping::None) => Ok(()),
        (packing, Wrapping::Compression | Wrapping::Archive) => {
            Err(Refusal::NestedCompression(Format::Packed(packing)))
        }
    }
}

/// Whether the format is taken, and is what was claimed.
pub(super) fn check_kind(
    format: Format,
    partitions: Option<Partitions>,
    expected: &Expectations,
) -> Result<(), Refusal> {
    if let Some(claimed) = expected.claimed {
        // An ISO with a partition table is a disk's image as well, made to be.
        let hybrid = format == Format::Iso9660 && claimed == Format::Raw && partitions.is_some();
        // A fixed VHD shows at its end only.
        let undecided = format == Format::Raw && claimed == Format::Vhd;
        if claimed != format && !hybrid && !undecided {
            return Err(Refusal::Mismatch { claimed, found: format });
        }
    }
    let undecided = format == Format::Raw && expected.allowed.contains(&Format::Vhd);
    if expected.allowed.contains(&format) || undecided {
        Ok(())
    } else {
        Err(Refusal::NotAllowed(format))
    }
}
