//! ACPI 6.5 tables of a hardware-reduced machine: RSDP, XSDT, FADT, MADT, MCFG; the DSDT is in [`super::dsdt`].

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::dsdt;
use super::oem::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout;
use crate::platform::Platform;

/// Local APIC ids below this fit the 8-bit MADT entry; 255 is its broadcast.
const APIC_IDS_8_BIT: u32 = 255;
/// MADT entry types and lengths (ACPI 6.5 §5.2.12).
const MADT_LOCAL_APIC: [u8; 2] = [0, 8];
const MADT_IOAPIC: [u8; 2] = [1, 12];
const MADT_LOCAL_X2APIC: [u8; 2] = [9, 16];
/// MADT flag of a processor that may be used.
const ENABLED: u32 = 1;
/// Id of the IOAPIC; above those of vCPUs is not required in ACPI.
const IOAPIC_ID: u8 = 0;

/// The tables as bytes.
pub(super) struct Acpi {
    pub(super) rsdp: Vec<u8>,
    /// All other tables, for the address they were built for.
    pub(super) tables: Vec<u8>,
}

/// Builds the tables to lie at `base`.
pub(super) fn build(platform: &Platform, base: u64) -> Acpi {
    let mut tables = Vec::new();
    let mut place = |bytes: Vec<u8>| {
        let address = base + tables.len() as u64;
        tables.extend(bytes);
        tables.resize(tables.len().next_multiple_of(16), 0);
        address
    };
    let dsdt = place(dsdt::build(platform));
    let others = [fadt(platform, dsdt), madt(platform), mcfg()].map(&mut place);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for address in others {
        xsdt.add_entry(address);
    }
    let xsdt = place(bytes_of(&xsdt));
    Acpi {
        rsdp: bytes_of(&Rsdp::new(OEM, xsdt)),
        tables,
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A byte-wide register in port space.
fn port_register(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(platform: &Platform, dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // The button is a control method device, not a fixed one; there is no sleep button; the clock does not wake.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless);
    fadt.reset_reg = port_register(layout::POWER_PORT + layout::RESET_REGISTER);
    fadt.reset_value = platform.registers.reset;
    fadt.sleep_control_reg = port_register(layout::POWER_PORT);
    fadt.sleep_status_reg = port_register(layout::POWER_PORT + 1);
    fadt.century = platform.registers.rtc_century;
    if platform.pm_timer {
        let port = u32::from(layout::PM_TIMER_PORT);
        fadt.pm_tmr_blk = port.into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, u64::from(port));
        fadt = fadt.flag(Flags::TmrValExt);
    }
    bytes_of(&fadt.finalize())
}

fn madt(platform: &Platform) -> Vec<u8> {
    // Header, address of the local APICs, flags: no pair of 8259 behind them.
    let mut body = layout::LAPIC_BASE.to_le_bytes().to_vec();
    body.extend([0; 4]);
    for (uid, &id) in (0_u32..).zip(&platform.apic_ids) {
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(id8)) if id < APIC_IDS_8_BIT => {
                body.extend(MADT_LOCAL_APIC);
                body.extend([uid, id8]);
                body.extend(ENABLED.to_le_bytes());
            }
            _ => {
                body.extend(MADT_LOCAL_X2APIC);
                body.extend([0; 2]);
                body.extend([id, ENABLED, uid].map(u32::to_le_bytes).concat());
            }
        }
    }
    body.extend(MADT_IOAPIC);
    body.extend([IOAPIC_ID, 0]);
    body.extend([layout::IOAPIC_BASE, 0].map(u32::to_le_bytes).concat());
    // Revision 5: that of ACPI 6.3 and later.
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_BASE, 0, 0, layout::ECAM_BUSES - 1);
    bytes_of(&mcfg)
}
