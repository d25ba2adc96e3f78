//! Sense data: why a command failed, in fixed format (SPC-4 §4.5.3).

use disk::{DiskError, DiskErrorKind, DiskOp};

/// Bytes of sense data in fixed format, all of which are told.
pub(super) const SENSE_SIZE: usize = 18;

/// Sense keys (SPC-4 table 48), those that occur here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Key {
    NoSense = 0x0,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    AbortedCommand = 0xb,
}

/// Where the mistake is: in the CDB, or else in the parameters behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pointer {
    in_cdb: bool,
    byte: u16,
    bit: Option<u8>,
}

/// One reason, as a guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sense {
    pub(super) key: Key,
    /// Additional sense code and its qualifier (SPC-4 annex F).
    pub(super) code: (u8, u8),
    pointer: Option<Pointer>,
    /// INFORMATION: the first block that failed.
    block: Option<u32>,
}

impl Sense {
    pub(super) const NONE: Self = Self::new(Key::NoSense, (0x00, 0x00));
    pub(super) const INVALID_OPCODE: Self = Self::new(Key::IllegalRequest, (0x20, 0x00)).in_cdb(0, None);
    pub(super) const OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, (0x21, 0x00));
    pub(super) const NO_SUCH_UNIT: Self = Self::new(Key::IllegalRequest, (0x25, 0x00));
    pub(super) const PARAMETERS_TOO_SHORT: Self = Self::new(Key::IllegalRequest, (0x1a, 0x00));
    pub(super) const NOT_SAVED: Self = Self::new(Key::IllegalRequest, (0x39, 0x00));
    pub(super) const REMOVAL_PREVENTED: Self = Self::new(Key::IllegalRequest, (0x53, 0x02));
    pub(super) const WRITE_PROTECTED: Self = Self::new(Key::DataProtect, (0x27, 0x00));
    pub(super) const STOPPED: Self = Self::new(Key::NotReady, (0x04, 0x02));
    pub(super) const NO_MEDIUM: Self = Self::new(Key::NotReady, (0x3a, 0x02));
    pub(super) const UNREACHABLE: Self = Self::new(Key::HardwareError, (0x44, 0x00));

    pub(super) const fn new(key: Key, code: (u8, u8)) -> Self {
        Self {
            key,
            code,
            pointer: None,
            block: None,
        }
    }

    /// INVALID FIELD IN CDB: `byte`, and the most significant bit of the field where it is not the whole byte.
    pub(super) const fn bad_field(byte: u16, bit: Option<u8>) -> Self {
        Self::new(Key::IllegalRequest, (0x24, 0x00)).in_cdb(byte, bit)
    }

    /// INVALID FIELD IN PARAMETER LIST.
    pub(super) fn bad_parameter(byte: usize) -> Self {
        Self {
            pointer: Some(Pointer {
                in_cdb: false,
                byte: u16::try_from(byte).unwrap_or(u16::MAX),
                bit: None,
            }),
            ..Self::new(Key::IllegalRequest, (0x26, 0x00))
        }
    }

    const fn in_cdb(mut self, byte: u16, bit: Option<u8>) -> Self {
        let in_cdb = true;
        self.pointer = Some(Pointer { in_cdb, byte, bit });
        self
    }

    /// Names the block that failed, where four bytes can.
    pub(super) fn at_block(mut self, block: u64) -> Self {
        self.block = u32::try_from(block).ok();
        self
    }

    /// What a failure of the disk is to the guest.
    pub(super) fn of_disk(error: &DiskError) -> Self {
        let medium = |code| Self::new(Key::MediumError, code);
        match error.kind() {
            DiskErrorKind::OutOfRange => Self::OUT_OF_RANGE,
            DiskErrorKind::Misaligned => Self::bad_field(2, None),
            DiskErrorKind::ReadOnly => Self::WRITE_PROTECTED,
            // SPACE ALLOCATION FAILED WRITE PROTECT.
            DiskErrorKind::NoSpace => Self::new(Key::DataProtect, (0x27, 0x07)),
            DiskErrorKind::Unsupported => Self::INVALID_OPCODE,
            DiskErrorKind::Corrupt => medium((0x31, 0x00)),
            DiskErrorKind::Cancelled => Self::new(Key::AbortedCommand, (0x00, 0x00)),
            DiskErrorKind::Io if error.op() == DiskOp::Read => medium((0x11, 0x00)),
            DiskErrorKind::Io => medium((0x0c, 0x00)),
        }
    }

    /// As it goes to the guest.
    pub(super) fn bytes(self) -> [u8; SENSE_SIZE] {
        let valid = if self.block.is_some() { 0x80 } else { 0 };
        let [i0, i1, i2, i3] = self.block.unwrap_or(0).to_be_bytes();
        let specific = self.pointer.map_or([0; 3], |pointer| {
            let [high, low] = pointer.byte.to_be_bytes();
            let bit = pointer.bit.map_or(0, |bit| 0x08 | bit & 7);
            [0x80 | if pointer.in_cdb { 0x40 } else { 0 } | bit, high, low]
        });
        let [s0, s1, s2] = specific;
        let additional = 10;
        let (asc, ascq) = self.code;
        [
            valid | 0x70,
            0,
            self.key as u8,
            i0,
            i1,
            i2,
            i3,
            additional,
            0,
            0,
            0,
            0,
            asc,
            ascq,
            0,
            s0,
            s1,
            s2,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_at_fields_and_names_blocks() {
        let bytes = Sense::bad_field(1, Some(7)).bytes();
        assert_eq!(bytes, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1]);
        assert_eq!(Sense::bad_parameter(300).bytes()[15..], [0x80, 1, 44]);
        let bytes = Sense::OUT_OF_RANGE.at_block(0x0102_0304).bytes();
        assert_eq!(bytes[..8], [0xf0, 0, 5, 1, 2, 3, 4, 10]);
        assert_eq!(Sense::OUT_OF_RANGE.at_block(1 << 32).bytes()[0], 0x70);
    }
}
