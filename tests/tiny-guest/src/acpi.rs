//! ACPI tables: found, summed up, and asked for what scenarios need.

use crate::memory::read;

const FIRST_AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;

/// The tables behind a checked RSDP.
pub struct Tables {
    xsdt: u64,
}

impl Tables {
    /// Takes the pointer that was handed over, or searches; checks every sum.
    pub fn find(rsdp: u64) -> Result<Self, &'static str> {
        let rsdp = if rsdp != 0 {
            rsdp
        } else {
            FIRST_AREA
                .step_by(16)
                .find(|&at| signature::<8>(at) == *b"RSD PTR ")
                .ok_or("no RSDP")?
        };
        if signature::<8>(rsdp) != *b"RSD PTR " || sum(rsdp, 20) != 0 || sum(rsdp, 36) != 0 {
            return Err("bad RSDP");
        }
        let tables = Self { xsdt: read(rsdp + 24) };
        if signature::<4>(tables.xsdt) != *b"XSDT" {
            return Err("bad XSDT");
        }
        for table in tables.all().chain([tables.xsdt]) {
            if sum(table, length(table)) != 0 {
                return Err("a table's checksum is wrong");
            }
        }
        Ok(tables)
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        let count = (length(self.xsdt) - 36) / 8;
        let first = self.xsdt + 36;
        // Entries are not aligned to 8 bytes.
        (0..count).map(move |entry| {
            u64::from(read::<u32>(first + entry * 8)) | u64::from(read::<u32>(first + entry * 8 + 4)) << 32
        })
    }

    /// Address of the table with this signature.
    pub fn table(&self, name: &[u8; 4]) -> Option<u64> {
        self.all().find(|&at| signature::<4>(at) == *name)
    }

    /// Address of bus 0 in the ECAM, from the MCFG.
    pub fn ecam(&self) -> Option<u64> {
        let mcfg = self.table(b"MCFG")?;
        Some(u64::from(read::<u32>(mcfg + 44)) | u64::from(read::<u32>(mcfg + 48)) << 32)
    }

    /// Calls `each` with the APIC id of every usable CPU, from the MADT.
    pub fn cpus(&self, mut each: impl FnMut(u32)) {
        let Some(madt) = self.table(b"APIC") else { return };
        let (mut at, end) = (madt + 44, madt + length(madt));
        while at < end {
            match read::<u8>(at) {
                0 if read::<u8>(at + 4) & 1 != 0 => each(u32::from(read::<u8>(at + 3))),
                9 if read::<u8>(at + 8) & 1 != 0 => each(read::<u32>(at + 4)),
                _ => {}
            }
            at += u64::from(read::<u8>(at + 1)).max(2);
        }
    }
}

fn signature<const N: usize>(at: u64) -> [u8; N] {
    core::array::from_fn(|index| read(at + index as u64))
}

fn length(table: u64) -> u64 {
    u64::from(read::<u32>(table + 4))
}

fn sum(at: u64, bytes: u64) -> u8 {
    (0..bytes).fold(0, |sum: u8, offset| sum.wrapping_add(read(at + offset)))
}
