//! VirtualBox disks (VDICore.h: pre-header, then header of version 1.1).

use disk::probe::Format;

use super::Refusal;
use super::found::Settled;
use crate::fields::{array, le32, le64};

/// Version 1.1, the only one in use since 2005.
const VERSION: u32 = 0x0001_0001;
/// Kinds of image that stand on their own: growing, fixed.
const WHOLE: [u32; 2] = [1, 2];

/// Judges the start of an image.
pub(super) fn judge(start: &[u8]) -> Result<Settled, Refusal> {
    let damaged = |what: String| Refusal::damaged(Format::Vdi, what);
    parse(start).ok_or_else(|| damaged("it ends within its header".to_owned()))?
}

fn parse(start: &[u8]) -> Option<Result<Settled, Refusal>> {
    let damaged = |what: String| Some(Err(Refusal::damaged(Format::Vdi, what)));
    let version = le32(start, 68)?;
    if version != VERSION {
        return damaged(format!("its version is {version:#x}"));
    }
    let kind = le32(start, 76)?;
    let (link, parent): ([u8; 16], [u8; 16]) = (array(start, 424)?, array(start, 440)?);
    if kind == 4 || kind == 3 || link != [0; 16] || parent != [0; 16] {
        return Some(Err(Refusal::Parent(Format::Vdi)));
    }
    if !WHOLE.contains(&kind) {
        return damaged(format!("its kind is {kind}"));
    }
    let (map_at, data_at) = (u64::from(le32(start, 340)?), u64::from(le32(start, 344)?));
    let size_bytes = le64(start, 368)?;
    let block = u64::from(le32(start, 376)?);
    let (blocks, allocated) = (u64::from(le32(start, 384)?), u64::from(le32(start, 388)?));
    if block == 0 || blocks.checked_mul(block).is_none_or(|room| room < size_bytes) || allocated > blocks {
        return damaged(format!(
            "{allocated} of {blocks} blocks of {block} bytes do not make {size_bytes} bytes"
        ));
    }
    let data_end = data_at.saturating_add(allocated.saturating_mul(block));
    Some(Ok(Settled {
        format: Format::Vdi,
        virtual_size_bytes: Some(size_bytes),
        least_bytes: data_end.max(map_at.saturating_add(blocks * 4)),
    }))
}
