//! What the guest starts with: kernel, initial RAM disk, command line, tables.

use boot::{Entry, Payload, Platform, RegisterValues};
use chipset::{GENERATION_EVENT, POWER_BUTTON_EVENT, RESET_VALUE, Rtc, SLEEP_TYPE_S5};
use kvm::Vm;

use super::BuildError;
use crate::hardware::Blueprint;
use crate::layout::Layout;

/// Writes all of it into RAM; returns how the first vCPU starts.
pub(super) fn build(blueprint: &Blueprint, layout: &Layout, vm: &Vm) -> Result<Entry, BuildError> {
    let Blueprint { spec, files, .. } = blueprint;
    let topology = vm.topology();
    let mmio64 = layout.mmio64();
    let platform = Platform {
        apic_ids: (0..topology.vcpus()).map(|index| topology.apic_id(index)).collect(),
        mmio64: mmio64.start..=mmio64.end - 1,
        uuid: *spec.id().as_bytes(),
        generation: *blueprint.generation.as_bytes(),
        registers: RegisterValues {
            reset: RESET_VALUE,
            sleep_type_s5: SLEEP_TYPE_S5,
            power_button_event: POWER_BUTTON_EVENT,
            generation_event: GENERATION_EVENT,
            rtc_century: Rtc::CENTURY_INDEX,
        },
        pm_timer: true,
    };
    let payload = Payload {
        kernel: &files.kernel,
        initrd: files.initrd.as_ref(),
        command_line: spec.cmdline(),
    };
    boot::prepare(vm.memory(), &platform, payload).map_err(BuildError::Boot)
}
