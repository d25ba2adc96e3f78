//! Virtual PC disks (Microsoft, "Virtual Hard Disk Image Format Specification", 2006).

use disk::probe::Format;

use super::Refusal;
use super::found::Settled;
use crate::fields::{be32, be64};

/// Length of the footer, bytes.
pub(super) const FOOTER_BYTES: usize = 512;
/// Kinds of disk in the footer.
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// Largest offset of the dynamic disk header that is followed, bytes: it comes right behind the first footer.
const DYNAMIC_HEADER_MAX: u64 = 32 << 10;

/// Whether the footer's copy is at the start: a dynamic or differencing disk.
pub(super) fn begins_with_footer(start: &[u8]) -> bool {
    start.starts_with(b"conectix")
}

/// Judges the start of a dynamic disk.
pub(super) fn judge_start(start: &[u8]) -> Result<Settled, Refusal> {
    let damaged = |what: &str| Refusal::damaged(Format::Vhd, what);
    let short = || damaged("it ends within its header");
    match be32(start, 60).ok_or_else(short)? {
        DYNAMIC => {}
        DIFFERENCING => return Err(Refusal::Parent(Format::Vhd)),
        _ => return Err(damaged("a footer at its start is not that of a dynamic disk")),
    }
    let size_bytes = be64(start, 48).ok_or_else(short)?;
    let at = be64(start, 16).filter(|&at| (512..=DYNAMIC_HEADER_MAX).contains(&at));
    let at = at.and_then(|at| usize::try_from(at).ok());
    let at = at.ok_or_else(|| damaged("its dynamic header is far from where it belongs"))?;
    let header = start.get(at..at + 1024).ok_or_else(short)?;
    if !header.starts_with(b"cxsparse") {
        return Err(damaged("its dynamic header is missing"));
    }
    let table_at = be64(header, 16).ok_or_else(short)?;
    let entries = u64::from(be32(header, 28).ok_or_else(short)?);
    let block = u64::from(be32(header, 32).ok_or_else(short)?);
    if !block.is_power_of_two() || entries.checked_mul(block).is_none_or(|room| room < size_bytes) {
        return Err(damaged("its blocks do not make its size"));
    }
    Ok(Settled {
        format: Format::Vhd,
        virtual_size_bytes: Some(size_bytes),
        least_bytes: table_at.saturating_add(entries * 4).saturating_add(FOOTER_BYTES as u64),
    })
}

/// Judges the end of a disk whose format is told by its footer there; `settled` is what its start was found to be, if
/// anything. `size_bytes` is the length of the file.
pub(super) fn judge_end(end: &[u8], size_bytes: u64, settled: Option<Settled>) -> Result<Settled, Refusal> {
    let damaged = |what: &str| Refusal::damaged(Format::Vhd, what);
    let at = end.len().saturating_sub(FOOTER_BYTES);
    let footer = end.get(at..).filter(|footer| footer.starts_with(b"conectix"));
    let said = footer.and_then(|footer| Some((be32(footer, 60)?, be64(footer, 48)?)));
    match (settled, said) {
        (Some(settled), Some((DYNAMIC, size))) if settled.virtual_size_bytes == Some(size) => Ok(settled),
        (Some(_), Some(_)) => Err(damaged("its footer contradicts the copy at its start")),
        (Some(settled), None) => Err(Refusal::Truncated {
            format: Format::Vhd,
            needed_bytes: settled.least_bytes.max(size_bytes.saturating_add(FOOTER_BYTES as u64)),
            found_bytes: size_bytes,
        }),
        (None, Some((FIXED, size))) => {
            let there = size_bytes.saturating_sub(FOOTER_BYTES as u64);
            if size > there {
                return Err(Refusal::Truncated {
                    format: Format::Vhd,
                    needed_bytes: size.saturating_add(FOOTER_BYTES as u64),
                    found_bytes: size_bytes,
                });
            }
            if size < there {
                return Err(damaged("its footer tells a smaller disk than there is"));
            }
            Ok(Settled {
                format: Format::Vhd,
                virtual_size_bytes: Some(size),
                least_bytes: size_bytes,
            })
        }
        (None, Some((DIFFERENCING, _))) => Err(Refusal::Parent(Format::Vhd)),
        (None, _) => Err(damaged("its footer is that of a dynamic disk, and its start is not")),
    }
}
