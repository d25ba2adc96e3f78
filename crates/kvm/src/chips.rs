//! Saving and loading what a machine has at KVM beside vCPUs: interrupt chips and clock.
#![expect(unsafe_code, reason = "the state of a chip is a union, of which the bytes are taken")]

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip};
use savestate::Bytes;

use crate::error::CallError;
use crate::state::ChipState;
use crate::vm::Vm;

/// In the order in which they are saved.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

impl Vm {
    /// Interrupt chips and clock, while no vCPU runs.
    pub fn save_chips(&self) -> Result<ChipState, CallError> {
        let chip = |chip_id: u32| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.fd()
                .get_irqchip(&mut chip)
                .map_err(CallError::on(format!("read interrupt chip {chip_id}")))?;
            // SAFETY: the bytes cover all of the union, which was zeroed when it was made.
            let bytes = unsafe { chip.chip.dummy };
            Ok(Bytes(bytes.iter().map(|byte| byte.cast_unsigned()).collect()))
        };
        let clock = self.fd().get_clock().map_err(CallError::on("read the guest's clock"))?;
        Ok(ChipState {
            chips: CHIPS.into_iter().map(chip).collect::<Result<_, _>>()?,
            clock_ns: clock.clock,
        })
    }

    /// The interrupt chips become what was saved. After devices, whose interrupts are in it already.
    pub fn load_chips(&self, saved: &ChipState) -> Result<(), CallError> {
        for (chip_id, bytes) in CHIPS.into_iter().zip(&saved.chips) {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            // SAFETY: the bytes cover all of the union, and any of them are a chip's state.
            let place = unsafe { &mut chip.chip.dummy };
            if saved.chips.len() != CHIPS.len() || bytes.0.len() != place.len() {
                return Err(CallError::unfit("load interrupt chips of another size"));
            }
            for (byte, &saved) in place.iter_mut().zip(&bytes.0) {
                *byte = saved.cast_signed();
            }
            self.fd()
                .set_irqchip(&chip)
                .map_err(CallError::on(format!("load interrupt chip {chip_id}")))?;
        }
        Ok(())
    }

    /// The guest's clock goes on from where it was saved: the time in between has not passed for the guest. Last of all, after
    /// the vCPUs have their TSCs, to which the kernel ties it.
    pub fn load_clock(&self, saved: &ChipState) -> Result<(), CallError> {
        let clock = kvm_clock_data {
            clock: saved.clock_ns,
            ..Default::default()
        };
        self.fd()
            .set_clock(&clock)
            .map_err(CallError::on("set the guest's clock"))
    }
}
