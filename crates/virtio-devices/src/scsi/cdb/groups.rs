//! The fields of commands, by what they are about: the medium (SBC-3), any unit (SPC-4), CDs (MMC-6).

use super::super::commands::Op;
use super::super::sense::Sense;
use super::{Command, Fields, ModeSense};

impl Fields<'_> {
    pub(super) fn medium(&self, op: Op) -> Result<Command, Sense> {
        if op == Op::Unmap {
            // ANCHOR.
            return match self.bit(1, 0) {
                true => Err(Sense::bad_field(1, Some(0))),
                false => Ok(Command::Unmap {
                    length: self.length(7, 2),
                }),
            };
        }
        let span = self.span();
        if op == Op::Synchronize {
            return Ok(Command::Synchronize { span });
        }
        if self.is_protected() {
            return Err(Sense::bad_field(1, Some(7)));
        }
        let fua = self.fua();
        match op {
            Op::Read => Ok(Command::Read { span, fua }),
            Op::Write => Ok(Command::Write { span, fua }),
            // BYTCHK: comparing with data from the driver is not here.
            Op::Verify if self.byte(1) & 0x06 != 0 => Err(Sense::bad_field(1, Some(2))),
            Op::Verify => Ok(Command::Verify { span }),
            // ANCHOR, and the obsolete PBDATA and LBDATA.
            _ if self.bit(1, 4) => Err(Sense::bad_field(1, Some(4))),
            _ if self.byte(1) & 0x06 != 0 => Err(Sense::bad_field(1, Some(2))),
            _ => Ok(Command::WriteSame {
                span,
                unmap: self.bit(1, 3),
                no_data: self.byte(0) >> 5 == 4 && self.bit(1, 0),
            }),
        }
    }

    pub(super) fn primary(&self, op: Op) -> Result<Command, Sense> {
        let long = !self.is_six();
        match op {
            // Sense data in descriptor format; parameters that are saved.
            Op::RequestSense | Op::ModeSelect if self.bit(1, 0) => Err(Sense::bad_field(1, Some(0))),
            Op::RequestSense => Ok(Command::RequestSense {
                allocation: self.length(4, 1),
            }),
            // The obsolete CMDDT.
            Op::Inquiry if self.bit(1, 1) => Err(Sense::bad_field(1, Some(1))),
            Op::Inquiry if !self.bit(1, 0) && self.byte(2) != 0 => Err(Sense::bad_field(2, None)),
            Op::Inquiry => Ok(Command::Inquiry {
                page: self.bit(1, 0).then(|| self.byte(2)),
                allocation: self.length(3, 2),
            }),
            // Pages in a format of their vendor.
            Op::ModeSelect if !self.bit(1, 4) => Err(Sense::bad_field(1, Some(4))),
            Op::ModeSelect => Ok(Command::ModeSelect {
                long,
                length: if long { self.length(7, 2) } else { self.length(4, 1) },
            }),
            _ => Ok(Command::ModeSense(ModeSense {
                long,
                descriptors: !self.bit(1, 3),
                long_lba: long && self.bit(1, 4),
                control: self.byte(2) >> 6,
                page: self.byte(2) & 0x3f,
                subpage: self.byte(3),
                allocation: if long { self.length(7, 2) } else { self.length(4, 1) },
            })),
        }
    }

    pub(super) fn multimedia(&self, op: Op) -> Command {
        let allocation = self.length(7, 2);
        match op {
            Op::ReadToc => Command::ReadToc {
                msf: self.bit(1, 1),
                // Where it is now, or where it was before there were ten formats: some drivers still write it there.
                format: match self.byte(2) & 0x0f {
                    0 => self.byte(9) >> 6,
                    format => format,
                },
                track: self.byte(6),
                allocation,
            },
            Op::GetConfiguration => Command::GetConfiguration {
                which: self.byte(1) & 3,
                first: self.short(2),
                allocation,
            },
            Op::GetEvents => Command::GetEvents {
                polled: self.bit(1, 0),
                classes: self.byte(4),
                allocation,
            },
            _ => Command::ReadDiscInformation { allocation },
        }
    }
}
