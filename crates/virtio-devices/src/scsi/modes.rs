//! MODE SENSE and MODE SELECT: pages, and the one bit of them that can be changed, the write cache (SPC-4 §6.9–6.12, §7.5).

use std::sync::atomic::Ordering;

use super::cdb::ModeSense;
use super::config::Medium;
use super::sense::Sense;
use super::unit::Unit;

/// Page code: all there are.
const ALL_PAGES: u8 = 0x3f;
/// Subpage code: all there are.
const ALL_SUBPAGES: u8 = 0xff;
const ERROR_RECOVERY: u8 = 0x01;
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const CAPABILITIES: u8 = 0x2a;
/// WCE, in byte 2 of the caching page.
const WRITE_CACHE: u8 = 0x04;
/// Device-specific parameter of disks: read-only.
const WRITE_PROTECT: u8 = 0x80;
/// Device-specific parameter of disks: DPO and FUA are understood.
const DPO_FUA: u8 = 0x10;
/// Speed of the drive, kB/s: 50 times that of the first ones.
const SPEED: u16 = 50 * 176;

/// Which values of a page (SPC-4 table 145).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

/// The pages of a unit, with their headers.
fn page(unit: &Unit, code: u8, values: Values) -> Option<Vec<u8>> {
    let fixed = |byte: u8| if values == Values::Changeable { 0 } else { byte };
    let page = match (code, unit.medium) {
        (ERROR_RECOVERY, _) => vec![code, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        (CACHING, Medium::Disk) => {
            let on = match values {
                Values::Current => unit.has_write_cache(),
                Values::Changeable | Values::Default => unit.is_writable(),
            };
            let mut page = vec![code, 18, if on { WRITE_CACHE } else { 0 }];
            page.resize(20, 0);
            page
        }
        // Commands may be reordered at will; busy for as long as it takes.
        (CONTROL, _) => vec![code, 10, 0, fixed(0x10), 0, 0, 0, 0, fixed(0xff), fixed(0xff), 0, 0],
        (CAPABILITIES, Medium::CdRom) => {
            let locked = if unit.locked.load(Ordering::Relaxed) { 0x02 } else { 0 };
            let [high, low] = SPEED.to_be_bytes();
            // Reads CD-R, CD-RW, DVD-ROM; a tray that can be locked and ejected.
            let mut page = vec![code, 18, fixed(0x0b), 0, 0, 0, fixed(0x29 | locked), 0];
            page.extend([fixed(high), fixed(low), 0, 0, 0, 0, fixed(high), fixed(low)]);
            page.resize(20, 0);
            page
        }
        _ => return None,
    };
    Some(page)
}

/// The answer to MODE SENSE.
pub(super) fn sense(unit: &Unit, ask: &ModeSense) -> Result<Vec<u8>, Sense> {
    let values = match ask.control {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::NOT_SAVED),
    };
    if ask.subpage != 0 && ask.subpage != ALL_SUBPAGES {
        return Err(Sense::bad_field(3, None));
    }
    let pages = match ask.page {
        ALL_PAGES => [ERROR_RECOVERY, CACHING, CONTROL, CAPABILITIES]
            .into_iter()
            .filter_map(|code| page(unit, code, values))
            .flatten()
            .collect(),
        code => page(unit, code, values).ok_or(Sense::bad_field(2, Some(5)))?,
    };
    let descriptor = if ask.descriptors {
        descriptor(unit, ask.long_lba, values)
    } else {
        Vec::new()
    };
    let specific = match unit.medium {
        Medium::CdRom => 0,
        Medium::Disk if unit.is_writable() => DPO_FUA,
        Medium::Disk => DPO_FUA | WRITE_PROTECT,
    };
    // At most 24 bytes before the pages, and those are few: one byte holds the length.
    let size = |length: usize| u8::try_from(length).unwrap_or(u8::MAX);
    let total = descriptor.len() + pages.len();
    let mut data = if ask.long {
        let long = u8::from(ask.long_lba && ask.descriptors);
        vec![0, size(total + 6), 0, specific, long, 0, 0, size(descriptor.len())]
    } else {
        vec![size(total + 3), 0, specific, size(descriptor.len())]
    };
    data.extend(descriptor);
    data.extend(pages);
    Ok(data)
}

/// How many blocks of what size: 8 or 16 bytes (SBC-3 §6.5.2).
fn descriptor(unit: &Unit, long: bool, values: Values) -> Vec<u8> {
    if values == Values::Changeable {
        return vec![0; if long { 16 } else { 8 }];
    }
    let (blocks, block) = (unit.blocks(), unit.block_bytes().to_be_bytes());
    if long {
        return [&blocks.to_be_bytes()[..], &[0; 4], &block].concat();
    }
    // The first byte is the density of a CD.
    let most = match unit.medium {
        Medium::Disk => u32::MAX,
        Medium::CdRom => 0xff_ffff,
    };
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).min(most);
    let [_, block @ ..] = block;
    [&blocks.to_be_bytes()[..], &[0], &block].concat()
}

/// Checks the parameters of MODE SELECT. What the write cache shall be, if they say so.
pub(super) fn select(unit: &Unit, long: bool, data: &[u8]) -> Result<Option<bool>, Sense> {
    if data.is_empty() {
        return Ok(None);
    }
    let header = if long { 8 } else { 4 };
    let (wide, length) = match *data {
        [_, _, _, _, wide, _, high, low, ..] if long => (wide & 1 != 0, u16::from_be_bytes([high, low])),
        [_, _, _, length, ..] if !long => (false, length.into()),
        _ => return Err(Sense::PARAMETERS_TOO_SHORT),
    };
    let expected = descriptor(unit, wide, Values::Current);
    let start = header + usize::from(length);
    let descriptor = data.get(header..start).ok_or(Sense::PARAMETERS_TOO_SHORT)?;
    if !descriptor.is_empty() && !is_unchanged(descriptor, &expected) {
        return Err(Sense::bad_parameter(header));
    }
    let mut write_cache = None;
    let mut at = start;
    while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
        let &[code, length, ..] = rest else {
            return Err(Sense::PARAMETERS_TOO_SHORT);
        };
        let known = page(unit, code & 0x7f, Values::Current).zip(page(unit, code & 0x7f, Values::Changeable));
        let (current, changeable) = known.ok_or(Sense::bad_parameter(at))?;
        if usize::from(length) + 2 != current.len() {
            return Err(Sense::bad_parameter(at + 1));
        }
        let new = rest.get(..current.len()).ok_or(Sense::PARAMETERS_TOO_SHORT)?;
        let fields = new.iter().zip(&current).zip(&changeable).enumerate().skip(2);
        for (place, ((new, current), changeable)) in fields {
            if (new ^ current) & !changeable != 0 {
                return Err(Sense::bad_parameter(at + place));
            }
        }
        if let (CACHING, Some(flags)) = (code & 0x7f, new.get(2)) {
            write_cache = Some(flags & WRITE_CACHE != 0);
        }
        at += current.len();
    }
    Ok(write_cache)
}

/// A descriptor that says what is, or leaves the number of blocks open by zero (SBC-3 §6.5.2.2).
fn is_unchanged(new: &[u8], current: &[u8]) -> bool {
    let counted = current.len() / 2;
    let same = |from: usize| new.get(from..) == current.get(from..);
    let open = new.iter().take(counted).all(|&byte| byte == 0);
    new.len() == current.len() && (same(0) || open && same(counted))
}
