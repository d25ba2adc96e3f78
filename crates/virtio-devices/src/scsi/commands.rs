//! The commands there are, by operation code: which kinds of unit have them, and which bits of their CDBs mean something.

use super::config::Medium;

/// Bytes of the longest CDB here. Longer ones (variable length) are no command here; shorter ones are padded with zeroes.
pub(super) const CDB_SIZE: usize = 16;

/// What a command does, whatever the length of its CDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSelect,
    ModeSense,
    StartStop,
    PreventAllow,
    ReadCapacity10,
    ReadCapacity16,
    Read,
    Write,
    Verify,
    Synchronize,
    WriteSame,
    Unmap,
    ReadToc,
    GetConfiguration,
    GetEvents,
    ReadDiscInformation,
    ReportLuns,
    SupportedOpcodes,
}

/// What answers commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A unit with a medium.
    Unit(Medium),
    /// The well-known unit REPORT LUNS.
    WellKnown,
}

const DISK: u8 = 1;
const CD_ROM: u8 = 2;
const WELL_KNOWN: u8 = 4;
const BOTH: u8 = DISK | CD_ROM;
const ALL: u8 = BOTH | WELL_KNOWN;

/// One operation code, or one service action of one.
pub(super) struct Entry {
    pub(super) op: Op,
    /// Whether byte 1 of the CDB chooses a service action.
    pub(super) has_action: bool,
    on: u8,
    /// CDB usage data (SPC-4 §6.27.3): the operation code, then a mask of the bits that mean something; where there is a
    /// service action, its number instead of its mask.
    pub(super) usage: &'static [u8],
}

impl Entry {
    pub(super) fn opcode(&self) -> u8 {
        self.usage.first().copied().unwrap_or(0)
    }

    /// Zero where there is none.
    pub(super) fn action(&self) -> u16 {
        match self.usage {
            [_, action, ..] if self.has_action => (*action).into(),
            _ => 0,
        }
    }

    pub(super) const fn is_on(&self, kind: Kind) -> bool {
        let bit = match kind {
            Kind::Unit(Medium::Disk) => DISK,
            Kind::Unit(Medium::CdRom) => CD_ROM,
            Kind::WellKnown => WELL_KNOWN,
        };
        self.on & bit != 0
    }
}

const fn entry(op: Op, on: u8, usage: &'static [u8]) -> Entry {
    let has_action = matches!(op, Op::ReadCapacity16 | Op::SupportedOpcodes);
    Entry {
        op,
        has_action,
        on,
        usage,
    }
}

/// Every command, by operation code.
pub(super) static ENTRIES: &[Entry] = &[
    entry(Op::TestUnitReady, ALL, &[0x00, 0, 0, 0, 0, 0]),
    entry(Op::RequestSense, ALL, &[0x03, 0x01, 0, 0, 0xff, 0]),
    entry(Op::Read, BOTH, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    entry(Op::Write, DISK, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
    entry(Op::Inquiry, ALL, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
    entry(Op::ModeSelect, DISK, &[0x15, 0x11, 0, 0, 0xff, 0]),
    entry(Op::ModeSense, BOTH, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    entry(Op::StartStop, BOTH, &[0x1b, 0x01, 0, 0, 0xf3, 0]),
    entry(Op::PreventAllow, BOTH, &[0x1e, 0, 0, 0, 0x01, 0]),
    entry(Op::ReadCapacity10, BOTH, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    entry(Op::Read, BOTH, &[0x28, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    entry(Op::Write, DISK, &[0x2a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    entry(
        Op::Verify,
        BOTH,
        &[0x2f, 0xf6, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
    ),
    entry(
        Op::Synchronize,
        DISK,
        &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
    ),
    entry(
        Op::WriteSame,
        DISK,
        &[0x41, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
    ),
    entry(Op::Unmap, DISK, &[0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    entry(
        Op::ReadToc,
        CD_ROM,
        &[0x43, 0x02, 0x0f, 0, 0, 0, 0xff, 0xff, 0xff, 0xc0],
    ),
    entry(
        Op::GetConfiguration,
        CD_ROM,
        &[0x46, 0x03, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0],
    ),
    entry(Op::GetEvents, CD_ROM, &[0x4a, 0x01, 0, 0, 0xff, 0, 0, 0xff, 0xff, 0]),
    entry(
        Op::ReadDiscInformation,
        CD_ROM,
        &[0x51, 0x07, 0, 0, 0, 0, 0, 0xff, 0xff, 0],
    ),
    entry(Op::ModeSelect, DISK, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    entry(Op::ModeSense, BOTH, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    entry(
        Op::Read,
        BOTH,
        &[
            0x88, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ],
    ),
    entry(
        Op::Write,
        DISK,
        &[
            0x8a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ],
    ),
    entry(
        Op::Verify,
        DISK,
        &[
            0x8f, 0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ],
    ),
    entry(
        Op::Synchronize,
        DISK,
        &[
            0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ],
    ),
    entry(
        Op::WriteSame,
        DISK,
        &[
            0x93, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ],
    ),
    entry(
        Op::ReadCapacity16,
        DISK,
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    entry(
        Op::ReportLuns,
        ALL,
        &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    entry(
        Op::SupportedOpcodes,
        BOTH,
        &[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    entry(
        Op::Read,
        BOTH,
        &[0xa8, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    entry(
        Op::Write,
        DISK,
        &[0xaa, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
];

/// The command in a CDB, if this kind of unit has it.
pub(super) fn find(cdb: &[u8; CDB_SIZE], kind: Kind) -> Option<&'static Entry> {
    let [opcode, second, ..] = *cdb;
    ENTRIES.iter().find(|entry| {
        let here = entry.opcode() == opcode && entry.is_on(kind);
        here && (!entry.has_action || entry.action() == u16::from(second & 0x1f))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_as_long_as_the_cdb() {
        for entry in ENTRIES {
            let length = match entry.opcode() >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("group {group}"),
            };
            assert_eq!(entry.usage.len(), length, "{:#x}", entry.opcode());
        }
        assert!(ENTRIES.is_sorted_by_key(|entry| (entry.opcode(), entry.action())));
    }
}
