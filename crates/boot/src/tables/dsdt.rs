//! The DSDT: root bus, fixed devices, processors, power button and the device that brings events.

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace,
    Package, Path, ResourceTemplate, Scope, Store,
};
use acpi_tables::sdt::Sdt;

use super::oem::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout;
use crate::platform::Platform;

/// Notification that a control method power button was pressed (ACPI 6.5 §4.8.2.2.1.2).
const BUTTON_PRESSED: u8 = 0x80;
/// Notification that the generation id is another one ("Virtual Machine Generation ID", Microsoft, 2018).
const GENERATION_CHANGED: u8 = 0x80;
/// `_STA` of what is there, works and is decoded.
const PRESENT: u8 = 0x0f;
/// Ports of the configuration mechanism that PCI keeps for itself (PCI 3.0 §3.2.2.3.2).
const PCI_CONFIG_PORTS: u16 = 0xcf8;

/// The whole table.
pub(super) fn build(platform: &Platform) -> Vec<u8> {
    let mut body = Vec::new();
    soft_off(platform).to_aml_bytes(&mut body);
    root_bus(platform, &mut body);
    reserved(&mut body);
    serial(&mut body);
    clock(&mut body);
    processors(platform, &mut body);
    generation(&mut body);
    events(platform, &mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

/// A name of at most four letters, as a path.
fn path(name: &str) -> Path {
    Path::new(name)
}

/// The resources a device uses now.
fn resources(list: Vec<&dyn Aml>) -> Name {
    Name::new(path("_CRS"), &ResourceTemplate::new(list))
}

fn soft_off(platform: &Platform) -> Name {
    let sleep_type = platform.registers.sleep_type_s5;
    Name::new(path("_S5_"), &Package::new(vec![&sleep_type, &0_u8, &0_u8, &0_u8]))
}

/// Puts `device` below `\_SB`.
fn below_system_bus(device: &dyn Aml, body: &mut Vec<u8>) {
    Scope::new(path("\\_SB_"), vec![device]).to_aml_bytes(body);
}

fn root_bus(platform: &Platform, body: &mut Vec<u8>) {
    let mmio32_end = layout::MMIO32_START + layout::MMIO32_BYTES - 1;
    let as_u32 = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let resources = resources(vec![
        &AddressSpace::new_bus_number(0_u16, u16::from(layout::ECAM_BUSES - 1)),
        &aml::IO::new(PCI_CONFIG_PORTS, PCI_CONFIG_PORTS, 1, 8),
        &AddressSpace::new_memory(uncached, true, as_u32(layout::MMIO32_START), as_u32(mmio32_end), None),
        &AddressSpace::new_memory(uncached, true, *platform.mmio64.start(), *platform.mmio64.end(), None),
    ]);
    below_system_bus(
        &Device::new(
            path("PCI0"),
            vec![
                &Name::new(path("_HID"), &EISAName::new("PNP0A08")),
                &Name::new(path("_CID"), &EISAName::new("PNP0A03")),
                &Name::new(path("_UID"), &aml::ZERO),
                &Name::new(path("_SEG"), &aml::ZERO),
                &Name::new(path("_BBN"), &aml::ZERO),
                &Name::new(path("_CCA"), &aml::ONE),
                &resources,
            ],
        ),
        body,
    );
}

/// The ECAM as motherboard resource, else Linux does not trust it.
fn reserved(body: &mut Vec<u8>) {
    let base = u32::try_from(layout::ECAM_BASE).unwrap_or(0);
    let bytes = u32::try_from(layout::ECAM_BYTES).unwrap_or(0);
    below_system_bus(
        &Device::new(
            path("MBRD"),
            vec![
                &Name::new(path("_HID"), &EISAName::new("PNP0C02")),
                &Name::new(path("_UID"), &aml::ZERO),
                &resources(vec![&Memory32Fixed::new(true, base, bytes)]),
            ],
        ),
        body,
    );
}

fn serial(body: &mut Vec<u8>) {
    let resources = resources(vec![
        &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8),
        &Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
    ]);
    below_system_bus(
        &Device::new(
            path("COM1"),
            vec![
                &Name::new(path("_HID"), &EISAName::new("PNP0501")),
                &Name::new(path("_UID"), &aml::ZERO),
                &Name::new(path("_DDN"), &"COM1"),
                &Name::new(path("_STA"), &PRESENT),
                &resources,
            ],
        ),
        body,
    );
}

/// Without an interrupt: this clock has no alarm.
fn clock(body: &mut Vec<u8>) {
    let resources = resources(vec![&aml::IO::new(layout::RTC_PORT, layout::RTC_PORT, 1, 2)]);
    below_system_bus(
        &Device::new(
            path("RTC0"),
            vec![
                &Name::new(path("_HID"), &EISAName::new("PNP0B00")),
                &Name::new(path("_STA"), &PRESENT),
                &resources,
            ],
        ),
        body,
    );
}

fn processors(platform: &Platform, body: &mut Vec<u8>) {
    for uid in 0..platform.apic_ids.len() {
        below_system_bus(
            &Device::new(
                path(&format!("C{uid:03X}")),
                vec![
                    &Name::new(path("_HID"), &"ACPI0007"),
                    &Name::new(path("_UID"), &uid),
                    &Name::new(path("_STA"), &PRESENT),
                ],
            ),
            body,
        );
    }
}

/// The generation id of the machine: where it is, low and high half of its address. Guests know the device by its compatible ids: Linux by
/// either, others by the second ("Virtual Machine Generation ID", Microsoft, 2018).
fn generation(body: &mut Vec<u8>) {
    let halves = [layout::GENERATION_ID & u64::from(u32::MAX), layout::GENERATION_ID >> 32];
    let [low, high] = halves.map(|half| u32::try_from(half).unwrap_or(0));
    below_system_bus(
        &Device::new(
            path("VGEN"),
            vec![
                &Name::new(path("_HID"), &"KRAT0001"),
                &Name::new(path("_CID"), &Package::new(vec![&"VMGENCTR", &"VM_Gen_Counter"])),
                &Name::new(path("_DDN"), &"VM_Gen_Counter"),
                &Name::new(path("_STA"), &PRESENT),
                &Name::new(path("ADDR"), &Package::new(vec![&low, &high])),
            ],
        ),
        body,
    );
}

/// Power button and generic event device (ACPI 6.5 §5.6.9): the event register says which events came, and reading clears it.
fn events(platform: &Platform, body: &mut Vec<u8>) {
    below_system_bus(
        &Device::new(
            path("PWRB"),
            vec![
                &Name::new(path("_HID"), &EISAName::new("PNP0C0C")),
                &Name::new(path("_UID"), &aml::ZERO),
            ],
        ),
        body,
    );
    let interrupt = Interrupt::new(true, true, false, false, layout::EVENT_GSI);
    let button = platform.registers.power_button_event;
    let pressed = And::new(&aml::ZERO, &Local(0), &button);
    let is_pressed = Equal::new(&pressed, &button);
    let button_path = path("\\_SB_.PWRB");
    let register = path("EVTS");
    let read = Store::new(&Local(0), &register);
    let notify = Notify::new(&button_path, &BUTTON_PRESSED);
    let if_pressed = If::new(&is_pressed, vec![&notify]);
    let generation = platform.registers.generation_event;
    let told = And::new(&aml::ZERO, &Local(0), &generation);
    let is_told = Equal::new(&told, &generation);
    let generation_path = path("\\_SB_.VGEN");
    let notify_generation = Notify::new(&generation_path, &GENERATION_CHANGED);
    let if_told = If::new(&is_told, vec![&notify_generation]);
    let is_ours = Equal::new(&Arg(0), &layout::EVENT_GSI);
    below_system_bus(
        &Device::new(
            path("GED_"),
            vec![
                &Name::new(path("_HID"), &"ACPI0013"),
                &Name::new(path("_UID"), &aml::ZERO),
                &resources(vec![&interrupt]),
                &OpRegion::new(path("EVTR"), OpRegionSpace::SystemIO, &layout::EVENT_PORT, &4_u8),
                &Field::new(
                    path("EVTR"),
                    FieldAccessType::DWord,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::WriteAsZeroes,
                    vec![FieldEntry::Named(*b"EVTS", 32)],
                ),
                &Method::new(
                    path("_EVT"),
                    1,
                    true,
                    vec![&If::new(&is_ours, vec![&read, &if_pressed, &if_told])],
                ),
            ],
        ),
        body,
    );
}
