//! All formats the bytes could be taken for, not only the first.

use disk::probe::{END_BYTES, Format, Packing, START_BYTES, Sample};

/// More marks than this do not fit into a file at once: one at the start, VDI, tape archive, ISO, VHD at the end.
const MARKS_MAX: usize = 6;

/// Every format whose marks the image carries, the one [`Sample::format`] prefers first; none for a raw disk.
///
/// `size_bytes` is `u64::MAX` while the end has not been seen.
pub(super) fn all(start: &[u8], end: &[u8], size_bytes: u64) -> Vec<Format> {
    let mut start = first(start, START_BYTES).to_vec();
    let end_at = end
        .len()
        .saturating_sub(usize::try_from(END_BYTES).unwrap_or(usize::MAX));
    let mut end = end.get(end_at..).unwrap_or_default().to_vec();
    let mut found = Vec::new();
    while found.len() < MARKS_MAX {
        let format = Sample::new(&start, &end, size_bytes).format();
        if format == Format::Raw || found.contains(&format) {
            break;
        }
        found.push(format);
        take_mark_away(format, &mut start, &mut end);
    }
    found
}

fn first(bytes: &[u8], count: u64) -> &[u8] {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    bytes.get(..count).unwrap_or(bytes)
}

/// What the format is known by is gone: what else it is shows now. Places as in `disk::probe`.
fn take_mark_away(format: Format, start: &mut [u8], end: &mut [u8]) {
    let place = match format {
        Format::Vdi => 64..68,
        Format::Packed(Packing::Tar) => 257..262,
        Format::Iso9660 => 32_769..32_775,
        _ => 0..16,
    };
    let len = start.len();
    let place = place.start.min(len)..place.end.min(len);
    if let Some(mark) = start.get_mut(place) {
        mark.fill(0);
    }
    if format == Format::Vhd
        && let Some(mark) = end.get_mut(..8)
    {
        mark.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_shows_once() {
        let mut bytes = vec![0; 40_000];
        assert_eq!(all(&bytes, &bytes, 40_000), []);
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        bytes[257..262].copy_from_slice(b"ustar");
        bytes[32_769..32_775].copy_from_slice(b"CD001\x01");
        let mut found = all(&bytes, &bytes, u64::MAX);
        found.sort_by_key(ToString::to_string);
        let expected = [
            Format::Iso9660,
            Format::Qcow2,
            Format::Packed(Packing::Tar),
            Format::Vdi,
        ];
        assert_eq!(found, expected);
    }
}
