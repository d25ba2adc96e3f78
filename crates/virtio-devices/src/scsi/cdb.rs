//! CDBs, parsed: every one is a command of this kind of unit, or sense data that says what is wrong with it.

mod groups;
#[cfg(test)]
mod tests;

use super::commands::{self, CDB_SIZE, Kind, Op};
use super::sense::Sense;

/// Control byte: NACA (SAM-5 §5.2), which asks for what is not here.
const NACA: u8 = 0x04;

/// Blocks, one after the other. Not checked against any medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) lba: u64,
    pub(super) blocks: u64,
    /// Byte of the CDB where the number of blocks is, for sense data.
    pub(super) field: u16,
}

/// MODE SENSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ModeSense {
    /// The ten-byte command, with its longer header.
    pub(super) long: bool,
    pub(super) descriptors: bool,
    /// Block descriptors with 64-bit counts may be used.
    pub(super) long_lba: bool,
    /// Which values: 0 current, 1 changeable, 2 default, 3 saved.
    pub(super) control: u8,
    pub(super) page: u8,
    pub(super) subpage: u8,
    pub(super) allocation: usize,
}

/// REPORT SUPPORTED OPERATION CODES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SupportedOpcodes {
    /// With how long commands may take: a promise that is not made, in its own descriptor.
    pub(super) timeouts: bool,
    /// 0 all, 1 one without service action, 2 one with, 3 one with or without.
    pub(super) options: u8,
    pub(super) opcode: u8,
    pub(super) action: u16,
    pub(super) allocation: usize,
}

/// A command and its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    TestUnitReady,
    RequestSense {
        allocation: usize,
    },
    Inquiry {
        page: Option<u8>,
        allocation: usize,
    },
    ModeSense(ModeSense),
    ModeSelect {
        long: bool,
        length: usize,
    },
    StartStop {
        start: bool,
        load_eject: bool,
    },
    PreventAllow {
        prevent: bool,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: usize,
    },
    Read {
        span: Span,
        fua: bool,
    },
    Write {
        span: Span,
        fua: bool,
    },
    Verify {
        span: Span,
    },
    Synchronize {
        span: Span,
    },
    WriteSame {
        span: Span,
        unmap: bool,
        no_data: bool,
    },
    Unmap {
        length: usize,
    },
    ReadToc {
        msf: bool,
        format: u8,
        track: u8,
        allocation: usize,
    },
    GetConfiguration {
        which: u8,
        first: u16,
        allocation: usize,
    },
    GetEvents {
        polled: bool,
        classes: u8,
        allocation: usize,
    },
    ReadDiscInformation {
        allocation: usize,
    },
    ReportLuns {
        select: u8,
        allocation: usize,
    },
    SupportedOpcodes(SupportedOpcodes),
}

/// Fields of a CDB; past its end there are zeroes.
struct Fields<'a>(&'a [u8; CDB_SIZE]);

impl Fields<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn bit(&self, at: usize, bit: u8) -> bool {
        self.byte(at) >> bit & 1 != 0
    }

    /// A big-endian number of `size` bytes, 8 at most.
    fn number(&self, at: usize, size: usize) -> u64 {
        self.0
            .iter()
            .skip(at)
            .take(size)
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    fn length(&self, at: usize, size: usize) -> usize {
        usize::try_from(self.number(at, size)).unwrap_or(usize::MAX)
    }

    fn short(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at + 1)])
    }

    /// Where and how many, by the length that the operation code tells.
    fn span(&self) -> Span {
        let (lba, blocks, field) = match self.byte(0) >> 5 {
            0 => {
                let blocks = self.number(4, 1);
                // Six bytes have no other way to say 256 (SBC-3 §5.8).
                let blocks = if blocks == 0 { 256 } else { blocks };
                (self.number(1, 3) & 0x1f_ffff, blocks, 4)
            }
            4 => (self.number(2, 8), self.number(10, 4), 10),
            5 => (self.number(2, 4), self.number(6, 4), 6),
            _ => (self.number(2, 4), self.number(7, 2), 7),
        };
        Span { lba, blocks, field }
    }

    fn is_six(&self) -> bool {
        self.byte(0) >> 5 == 0
    }

    /// Protection information is asked for.
    fn is_protected(&self) -> bool {
        !self.is_six() && self.byte(1) >> 5 != 0
    }

    fn fua(&self) -> bool {
        !self.is_six() && self.bit(1, 3)
    }

    /// The control byte: the last one of the CDB.
    fn control(&self) -> (u16, u8) {
        let at = match self.byte(0) >> 5 {
            0 => 5,
            4 => 15,
            5 => 11,
            _ => 9,
        };
        (at, self.byte(at.into()))
    }
}

impl Command {
    /// The command in `cdb`, for a unit of this kind.
    pub(super) fn parse(cdb: &[u8; CDB_SIZE], kind: Kind) -> Result<Self, Sense> {
        let entry = commands::find(cdb, kind).ok_or_else(|| missing(cdb, kind))?;
        let fields = Fields(cdb);
        let (at, control) = fields.control();
        if control & NACA != 0 {
            return Err(Sense::bad_field(at, Some(2)));
        }
        match entry.op {
            Op::Read | Op::Write | Op::Verify | Op::Synchronize | Op::WriteSame | Op::Unmap => fields.medium(entry.op),
            Op::Inquiry | Op::RequestSense | Op::ModeSense | Op::ModeSelect => fields.primary(entry.op),
            Op::ReadToc | Op::GetConfiguration | Op::GetEvents | Op::ReadDiscInformation => {
                Ok(fields.multimedia(entry.op))
            }
            Op::TestUnitReady => Ok(Self::TestUnitReady),
            Op::ReadCapacity10 => Ok(Self::ReadCapacity10),
            Op::ReadCapacity16 => Ok(Self::ReadCapacity16 {
                allocation: fields.length(10, 4),
            }),
            Op::StartStop if fields.byte(4) >> 4 != 0 => Err(Sense::bad_field(4, Some(7))),
            Op::StartStop => Ok(Self::StartStop {
                start: fields.bit(4, 0),
                load_eject: fields.bit(4, 1),
            }),
            Op::PreventAllow => Ok(Self::PreventAllow {
                prevent: fields.bit(4, 0),
            }),
            Op::ReportLuns => Ok(Self::ReportLuns {
                select: fields.byte(2),
                allocation: fields.length(6, 4),
            }),
            Op::SupportedOpcodes => Ok(Self::SupportedOpcodes(SupportedOpcodes {
                timeouts: fields.bit(2, 7),
                options: fields.byte(2) & 7,
                opcode: fields.byte(3),
                action: fields.short(4),
                allocation: fields.length(6, 4),
            })),
        }
    }
}

/// What is wrong with a CDB that is no command: its operation code, or only the service action of that.
fn missing(cdb: &[u8; CDB_SIZE], kind: Kind) -> Sense {
    let [opcode, ..] = *cdb;
    let known = commands::ENTRIES
        .iter()
        .any(|entry| entry.opcode() == opcode && entry.has_action && entry.is_on(kind));
    if known {
        Sense::bad_field(1, Some(4))
    } else {
        Sense::INVALID_OPCODE
    }
}
