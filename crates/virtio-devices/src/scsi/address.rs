//! Which logical unit: the one form of the eight bytes that virtio-scsi has (virtio 1.2 §5.6.6.1), and no other.

/// First byte of an address: a target of this device.
const DEVICE: u8 = 1;
/// The two bytes of the well-known logical unit REPORT LUNS (SPC-4 §8).
const REPORT_LUNS: [u8; 2] = [0xc1, 0x01];
/// Upper bits of a byte pair in flat space addressing (SAM-5 §4.7.7.3).
const FLAT: u8 = 0x40;

/// A logical unit of a SCSI host: target 0–255, unit 0–16383.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lun {
    target: u8,
    unit: u16,
}

impl Lun {
    /// Largest unit number: what flat space addressing has.
    pub const UNIT_MAX: u16 = 0x3fff;

    /// Unit `unit` of `target`; `None` beyond [`Lun::UNIT_MAX`].
    pub const fn new(target: u8, unit: u16) -> Option<Self> {
        if unit <= Self::UNIT_MAX {
            Some(Self { target, unit })
        } else {
            None
        }
    }

    /// The target.
    pub const fn target(self) -> u8 {
        self.target
    }

    /// The unit of the target.
    pub const fn unit(self) -> u16 {
        self.unit
    }

    /// As drivers write it into requests, and devices into events.
    pub(super) const fn bytes(self) -> [u8; 8] {
        let [high, low] = self.unit.to_be_bytes();
        [DEVICE, self.target, FLAT | high, low, 0, 0, 0, 0]
    }

    /// As events tell of it: drivers look the unit up by the number they know from REPORT LUNS (Linux `virtscsi_handle_param_change`
    /// takes the two bytes as they are).
    pub(super) const fn told(self) -> [u8; 8] {
        let [high, low, ..] = self.listed();
        [DEVICE, self.target, high, low, 0, 0, 0, 0]
    }

    /// As REPORT LUNS of its target lists it: peripheral addressing as long as that will do, as old drivers expect.
    pub(super) const fn listed(self) -> [u8; 8] {
        let [high, low] = self.unit.to_be_bytes();
        let high = if high == 0 { 0 } else { FLAT | high };
        [high, low, 0, 0, 0, 0, 0, 0]
    }
}

impl std::fmt::Display for Lun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.target, self.unit)
    }
}

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    Unit(Lun),
    /// REPORT LUNS of one target, or of the whole device.
    ReportLuns(Option<u8>),
}

impl Address {
    /// `None` for what is no address here.
    pub(super) fn parse(bytes: [u8; 8]) -> Option<Self> {
        let [first, second, high, low, rest @ ..] = bytes;
        if rest != [0; 4] {
            return None;
        }
        if [first, second] == REPORT_LUNS && [high, low] == [0, 0] {
            return Some(Self::ReportLuns(None));
        }
        if first != DEVICE {
            return None;
        }
        if [high, low] == REPORT_LUNS {
            return Some(Self::ReportLuns(Some(second)));
        }
        let unit = match high {
            0 => low.into(),
            0x40..0x80 => u16::from_be_bytes([high & !FLAT, low]),
            _ => return None,
        };
        Lun::new(second, unit).map(Self::Unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        for (target, unit) in [(0, 0), (255, 1), (3, 255), (3, 256), (9, 16383)] {
            let lun = Lun::new(target, unit).unwrap();
            assert_eq!(Address::parse(lun.bytes()), Some(Address::Unit(lun)));
            let [high, low, ..] = lun.listed();
            assert_eq!(
                Address::parse([1, target, high, low, 0, 0, 0, 0]),
                Some(Address::Unit(lun))
            );
        }
        assert_eq!(Lun::new(0, 16384), None);
        assert_eq!(
            Address::parse([0xc1, 1, 0, 0, 0, 0, 0, 0]),
            Some(Address::ReportLuns(None))
        );
        assert_eq!(
            Address::parse([1, 7, 0xc1, 1, 0, 0, 0, 0]),
            Some(Address::ReportLuns(Some(7)))
        );
        for odd in [
            [0; 8],
            [2, 0, 0, 0, 0, 0, 0, 0],
            [1, 0, 1, 0, 0, 0, 0, 0],
            [1, 0, 0x80, 0, 0, 0, 0, 0],
            [1, 0, 0xc1, 2, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 1],
        ] {
            assert_eq!(Address::parse(odd), None, "{odd:x?}");
        }
    }
}
