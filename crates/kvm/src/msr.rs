//! Model-specific registers at power-on, where KVM's own reset values do not suit a machine without firmware.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::error::CallError;

/// IA32_MISC_ENABLE (Intel SDM vol. 4).
const MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations on.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE (Intel SDM vol. 3A §11.11.2.1).
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on (bit 11), everything write-back (type 6): what firmware leaves behind for RAM.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets them. The TSC needs nothing: KVM starts every vCPU's at 0 and keeps those created together in step.
pub(crate) fn set_boot_msrs(vcpu: &VcpuFd, index: u32) -> Result<(), CallError> {
    for (register, data) in [(MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MTRR_DEF_TYPE, MTRR_WRITE_BACK)] {
        let what = || format!("set msr {register:#x} of vcpu {index}");
        let entry = kvm_msr_entry {
            index: register,
            data,
            ..Default::default()
        };
        let one = Msrs::from_entries(&[entry]).map_err(|_| CallError::unfit(what()))?;
        if vcpu.set_msrs(&one).map_err(CallError::on(what()))? != 1 {
            return Err(CallError::unfit(what()));
        }
    }
    Ok(())
}
