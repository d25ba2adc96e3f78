//! What only drives for CDs and DVDs are asked (MMC-6): one session of one data track, and a tray.

use std::sync::atomic::Ordering;

use super::sense::Sense;
use super::unit::{CD_BLOCK, Unit};

/// Frames of lead-in before block 0, and frames per second.
const LEAD_IN: u32 = 150;
const FRAMES: u32 = 75;
/// Control and ADR of a data track.
const DATA_TRACK: u8 = 0x14;
/// Number of the lead-out in a table of contents.
const LEAD_OUT: u8 = 0xaa;
/// What is longer is a DVD. Blocks: 99 minutes 59 seconds, as many as a CD can address.
const CD_BLOCKS_MAX: u64 = 450_000;
const PROFILE_CD: u16 = 0x0008;
const PROFILE_DVD: u16 = 0x0010;
/// Event class: media (MMC-6 §6.7).
const MEDIA: u8 = 4;

fn has_medium(unit: &Unit) -> bool {
    !unit.ejected.load(Ordering::Relaxed)
}

/// Minutes, seconds, frames; the last there can be for what is longer.
fn msf(block: u32) -> [u8; 3] {
    let frames = block.saturating_add(LEAD_IN);
    let part = |value: u32, most: u8| u8::try_from(value).unwrap_or(most).min(most);
    [
        part(frames / FRAMES / 60, 99),
        part(frames / FRAMES % 60, 59),
        part(frames % FRAMES, 74),
    ]
}

fn address(block: u32, as_msf: bool) -> [u8; 4] {
    if as_msf {
        let [minute, second, frame] = msf(block);
        [0, minute, second, frame]
    } else {
        block.to_be_bytes()
    }
}

/// READ TOC/PMA/ATIP (§6.25): the table of contents, sessions, and the raw table.
pub(super) fn contents(unit: &Unit, as_msf: bool, format: u8, track: u8) -> Result<Vec<u8>, Sense> {
    let end = u32::try_from(unit.blocks()).unwrap_or(u32::MAX);
    let mut list = Vec::new();
    let mut add = |number: u8, block: u32| {
        list.extend([0, DATA_TRACK, number, 0]);
        list.extend(address(block, as_msf));
    };
    match format {
        0 if track > 1 && track != LEAD_OUT => return Err(Sense::bad_field(6, None)),
        0 => {
            if track <= 1 {
                add(1, 0);
            }
            add(LEAD_OUT, end);
        }
        1 => add(1, 0),
        2 => {
            for (point, [minute, second, frame]) in
                [(0xa0, [1, 0, 0]), (0xa1, [1, 0, 0]), (0xa2, msf(end)), (0x01, msf(0))]
            {
                list.extend([1, DATA_TRACK, 0, point, 0, 0, 0, 0, minute, second, frame]);
            }
        }
        _ => return Err(Sense::bad_field(2, Some(3))),
    }
    let length = u16::try_from(list.len() + 2).unwrap_or(u16::MAX).to_be_bytes();
    // First and last track, or session.
    Ok([&length[..], &[1, 1], &list].concat())
}

/// READ DISC INFORMATION (§6.21): one session, finished, never to be written.
pub(super) fn disc_information() -> Vec<u8> {
    let mut data = vec![0, 32, 0x0e, 1, 1, 1, 1, 0x20];
    data.resize(34, 0);
    data
}

/// GET CONFIGURATION (§6.6): features from `first` on: all (0), those of the medium (1), or just the one (2).
pub(super) fn configuration(unit: &Unit, which: u8, first: u16) -> Result<Vec<u8>, Sense> {
    if which > 2 {
        return Err(Sense::bad_field(1, Some(1)));
    }
    let loaded = has_medium(unit);
    let is_dvd = unit.blocks() > CD_BLOCKS_MAX;
    let profile = match (loaded, is_dvd) {
        (false, _) => 0,
        (true, true) => PROFILE_DVD,
        (true, false) => PROFILE_CD,
    };
    let mut profiles = Vec::new();
    for one in [PROFILE_DVD, PROFILE_CD] {
        profiles.extend(one.to_be_bytes());
        profiles.extend([u8::from(one == profile), 0]);
    }
    let mut readable = CD_BLOCK.to_be_bytes().to_vec();
    // A DVD is read by 16 blocks at once.
    readable.extend([0, if is_dvd { 16 } else { 1 }, 0, 0]);
    // Number, version and persistence, whether it is current, its own data.
    let features: [(u16, u8, bool, Vec<u8>); 7] = [
        (0x0000, 0x02, true, profiles),
        // Core, on SCSI. Morphing: media events by polling. Removable: a tray, locked and ejected by command.
        (0x0001, 0x0a, true, vec![0, 0, 0, 1, 0, 0, 0, 0]),
        (0x0002, 0x06, true, vec![0x02, 0, 0, 0]),
        (0x0003, 0x02, true, vec![0x29, 0, 0, 0]),
        (0x0010, 0x00, loaded, readable),
        (0x001e, 0x08, loaded && !is_dvd, vec![0; 4]),
        (0x001f, 0x00, loaded && is_dvd, vec![0; 4]),
    ];
    let mut list = Vec::new();
    for (number, version, current, body) in features {
        let wanted = match which {
            0 => number >= first,
            1 => number >= first && current,
            _ => number == first,
        };
        if wanted {
            list.extend(number.to_be_bytes());
            list.extend([version | u8::from(current), u8::try_from(body.len()).unwrap_or(0)]);
            list.extend(body);
        }
    }
    let length = u32::try_from(list.len() + 4).unwrap_or(u32::MAX).to_be_bytes();
    Ok([&length[..], &[0, 0], &profile.to_be_bytes(), &list].concat())
}

/// GET EVENT STATUS NOTIFICATION (§6.7), by polling only. Tells each arrival of a medium once.
pub(super) fn events(unit: &Unit, polled: bool, classes: u8) -> Result<Vec<u8>, Sense> {
    if !polled {
        return Err(Sense::bad_field(1, Some(0)));
    }
    if classes & 1 << MEDIA == 0 {
        // No event available.
        return Ok(vec![0, 2, 0x80, 1 << MEDIA]);
    }
    let event = if unit.arrived.swap(false, Ordering::SeqCst) {
        2
    } else {
        0
    };
    // Medium present, or tray open.
    let status = if has_medium(unit) { 0x02 } else { 0x01 };
    Ok(vec![0, 6, MEDIA, 1 << MEDIA, event, status, 0, 0])
}
