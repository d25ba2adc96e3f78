//! Answers that are tables: which units there are, which commands, and how much a unit holds.

use super::cdb::SupportedOpcodes;
use super::commands::{ENTRIES, Entry, Kind};
use super::sense::Sense;
use super::unit::{Unit, Units};

/// Fewest bytes a driver may make room for in REPORT LUNS (SPC-4 §6.33).
const UNITS_ROOM_MIN: usize = 16;
/// REPORT LUNS in its own list.
const WELL_KNOWN: [u8; 8] = [0xc1, 0x01, 0, 0, 0, 0, 0, 0];
/// Command timeouts descriptor (SPC-4 §6.27.4): no promises.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// REPORT LUNS of one target, or of all: then as drivers address them.
pub(super) fn units(units: &Units, target: Option<u8>, select: u8, room: usize) -> Result<Vec<u8>, Sense> {
    if room < UNITS_ROOM_MIN {
        return Err(Sense::bad_field(6, None));
    }
    let mut list: Vec<u8> = Vec::new();
    if matches!(select, 0 | 2) {
        list = units.read(|table| {
            let chosen = table
                .keys()
                .filter(|lun| target.is_none_or(|target| lun.target() == target));
            let listed = chosen.map(|lun| match target {
                Some(_) => lun.listed(),
                None => lun.bytes(),
            });
            listed.flatten().collect()
        });
    }
    match select {
        0 => {}
        1 | 2 => list.extend(WELL_KNOWN),
        _ => return Err(Sense::bad_field(2, None)),
    }
    let length = u32::try_from(list.len()).unwrap_or(u32::MAX);
    Ok([&length.to_be_bytes()[..], &[0; 4], &list].concat())
}

/// REPORT SUPPORTED OPERATION CODES.
pub(super) fn opcodes(kind: Kind, ask: &SupportedOpcodes) -> Result<Vec<u8>, Sense> {
    let here = || ENTRIES.iter().filter(|entry| entry.is_on(kind));
    let actions = here().any(|entry| entry.opcode() == ask.opcode && entry.has_action);
    let matching = |entry: &&Entry| {
        let action = if entry.has_action { entry.action() } else { 0 };
        entry.opcode() == ask.opcode && action == ask.action
    };
    match ask.options {
        0 => Ok(all(here(), ask.timeouts)),
        // Asked without a service action for what has some, or the other way round.
        1 if actions => Err(Sense::bad_field(2, Some(2))),
        2 if !actions && here().any(|entry| entry.opcode() == ask.opcode) => Err(Sense::bad_field(2, Some(2))),
        1 => Ok(one(here().find(|entry| entry.opcode() == ask.opcode), ask.timeouts)),
        2 | 3 => Ok(one(here().find(matching), ask.timeouts)),
        _ => Err(Sense::bad_field(2, Some(2))),
    }
}

fn all(entries: impl Iterator<Item = &'static Entry>, timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for entry in entries {
        let [high, low] = entry.action().to_be_bytes();
        let flags = u8::from(entry.has_action) | u8::from(timeouts) << 1;
        let length = u8::try_from(entry.usage.len()).unwrap_or(0);
        data.extend([entry.opcode(), 0, high, low, 0, flags, 0, length]);
        if timeouts {
            data.extend(TIMEOUTS);
        }
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(u32::MAX).to_be_bytes();
    data.iter_mut().zip(length).for_each(|(place, byte)| *place = byte);
    data
}

fn one(entry: Option<&Entry>, timeouts: bool) -> Vec<u8> {
    let Some(entry) = entry else {
        // Not supported.
        return vec![0, 1, 0, 0];
    };
    let length = u8::try_from(entry.usage.len()).unwrap_or(0);
    // Supported as in the standard.
    let mut data = vec![0, 3 | u8::from(timeouts) << 7, 0, length];
    data.extend(entry.usage);
    if timeouts {
        data.extend(TIMEOUTS);
    }
    data
}

/// READ CAPACITY (10): all ones says "ask with the longer command".
pub(super) fn capacity_short(unit: &Unit) -> Result<Vec<u8>, Sense> {
    let last = unit.blocks().checked_sub(1).ok_or(Sense::NO_MEDIUM)?;
    let last = u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes();
    Ok([last, unit.block_bytes().to_be_bytes()].concat())
}

/// READ CAPACITY (16).
pub(super) fn capacity_long(unit: &Unit) -> Result<Vec<u8>, Sense> {
    let last = unit.blocks().checked_sub(1).ok_or(Sense::NO_MEDIUM)?;
    // LBPME; LBPRZ stays clear, as in VPD page 0xb2.
    let provisioned = if unit.unmap_granularity().is_some() { 0x80 } else { 0 };
    let exponent = u8::try_from(unit.physical_exponent().min(15)).unwrap_or(0);
    let mut data = last.to_be_bytes().to_vec();
    data.extend(unit.block_bytes().to_be_bytes());
    data.extend([0, exponent, provisioned, 0]);
    data.resize(32, 0);
    Ok(data)
}
