//! Saving and loading a vCPU, in the orders that KVM needs.
//!
//! Saving: the run state comes first, since KVM takes an INIT or start-up IPI that waits when it is asked for it; events come
//! last, since nothing after them may change any more.
//!
//! Loading:
//!
//! | step            | has to come                                                                             |
//! |-----------------|-----------------------------------------------------------------------------------------|
//! | CPUID           | first: it decides which MSRs, XCRs and control bits there are                           |
//! | TSC rate        | before the TSC                                                                          |
//! | segments, CRs   | before the local APIC (the APIC base in it sets its mode) and before MSRs (EFER)        |
//! | registers       | before events: setting them forgets exceptions that are pending                         |
//! | XSAVE, XCRs     | after CPUID                                                                             |
//! | TSC             | before the deadline, which is a time of it                                              |
//! | local APIC      | before MSRs: in its timer's mode lies whether a TSC deadline is taken or dropped        |
//! | MSRs            | the TSC deadline last among them                                                        |
//! | run state       | after the local APIC: only a vCPU with an APIC can wait for a start-up IPI              |
//! | events          | last                                                                                    |
#![expect(unsafe_code, reason = "the XSAVE area has a length that only the kernel knows")]

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_sregs, kvm_xcrs,
};
use savestate::Bytes;

use crate::error::CallError;
use crate::savable::XSAVE_BYTES;
use crate::state::{Leaf, Msr, VcpuState, Xcr};
use crate::vcpu::Vcpu;

/// IA32_TIME_STAMP_COUNTER (Intel SDM vol. 4).
const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE (Intel SDM vol. 4).
const TSC_DEADLINE: u32 = 0x6e0;
/// Words of it.
const XSAVE_WORDS: usize = XSAVE_BYTES / 4;
/// A rate that differs less, in parts of a million, is the same to KVM.
const TSC_TOLERANCE_PPM: u64 = 250;

/// CPUID bits that follow from registers, not from the CPU: OSXSAVE, MONITOR; OSPKE; the APIC's.
const FOLLOWING: [(u32, [u32; 4]); 2] = [(1, [0, 0, 1 << 27 | 1 << 3, 1 << 9]), (7, [0, 0, 1 << 4, 0])];
/// Leaves whose bits are features: function, index, and which of EAX to EDX.
const FEATURES: [(u32, u32, [bool; 4]); 6] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, false, false, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
];

/// Why a vCPU can not become what was saved.
#[derive(Debug, thiserror::Error)]
pub enum LoadVcpuError {
    /// KVM refused a step.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The guest uses what this host has not.
    #[error("this host's cpu lacks features that the guest was shown: {}", .0.join(", "))]
    Features(Vec<String>),
    /// The state can not be that of a vCPU.
    #[error("saved vcpu {0}")]
    Unfit(&'static str),
}

impl Vcpu {
    /// All there is of it. It has [settled](Vcpu::settle), and does not run.
    pub fn save(&self) -> Result<VcpuState, CallError> {
        let fd = self.fd();
        let on = |what: &str| CallError::on(format!("read the {what} of vcpu {}", self.index()));
        let mp_state = fd.get_mp_state().map_err(on("run state"))?.mp_state;
        let sregs = fd.get_sregs().map_err(on("system registers"))?;
        let xcrs = fd.get_xcrs().map_err(on("extended control registers"))?;
        let lapic = fd.get_lapic().map_err(on("local apic"))?;
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(on("cpu features"))?;
        Ok(VcpuState {
            cpuid: cpuid.as_slice().iter().map(Leaf::from).collect(),
            tsc_khz: self.tsc_khz(),
            mp_state,
            registers: (&fd.get_regs().map_err(on("registers"))?).into(),
            segments: (&sregs).into(),
            control: (&sregs).into(),
            xsave: self.save_xsave().map_err(on("extended state"))?,
            xcrs: xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).map(Xcr::from).collect(),
            debug: (&fd.get_debug_regs().map_err(on("debug registers"))?).into(),
            lapic: Bytes(lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect()),
            msrs: self.save_msrs()?,
            events: (&fd.get_vcpu_events().map_err(on("events"))?).into(),
        })
    }

    /// Becomes what was saved. It has not run yet.
    pub fn load(&self, saved: &VcpuState) -> Result<(), LoadVcpuError> {
        let fd = self.fd();
        let on = |what: &str| CallError::on(format!("set the {what} of vcpu {}", self.index()));
        self.load_cpuid(&saved.cpuid)?;
        self.load_tsc_rate(saved.tsc_khz)?;
        let sregs = kvm_sregs {
            interrupt_bitmap: saved.control.interrupt_bitmap,
            cr0: saved.control.cr0,
            cr2: saved.control.cr2,
            cr3: saved.control.cr3,
            cr4: saved.control.cr4,
            cr8: saved.control.cr8,
            efer: saved.control.efer,
            apic_base: saved.control.apic_base,
            ..kvm_sregs::from(&saved.segments)
        };
        fd.set_sregs(&sregs).map_err(on("system registers"))?;
        fd.set_regs(&(&saved.registers).into()).map_err(on("registers"))?;
        self.load_xsave(&saved.xsave.0)?;
        fd.set_xcrs(&xcrs(&saved.xcrs)?)
            .map_err(on("extended control registers"))?;
        fd.set_debug_regs(&(&saved.debug).into())
            .map_err(on("debug registers"))?;
        let (first, others): (Vec<&Msr>, Vec<&Msr>) = saved.msrs.iter().partition(|msr| msr.index == TSC);
        let (last, others): (Vec<&Msr>, Vec<&Msr>) = others.into_iter().partition(|msr| msr.index == TSC_DEADLINE);
        self.load_msrs(&first)?;
        fd.set_lapic(&lapic(&saved.lapic.0)?).map_err(on("local apic"))?;
        self.load_msrs(&others)?;
        self.load_msrs(&last)?;
        let mp_state = kvm_mp_state {
            mp_state: saved.mp_state,
        };
        fd.set_mp_state(mp_state).map_err(on("run state"))?;
        fd.set_vcpu_events(&(&saved.events).into()).map_err(on("events"))?;
        Ok(())
    }

    fn save_xsave(&self) -> Result<Bytes, kvm_ioctls::Error> {
        let size = self.xsave_size();
        let extra = (size.bytes - XSAVE_BYTES).div_ceil(4);
        // Fails for more entries than fit into memory, which KVM does not ask for.
        let Ok(mut area) = Xsave::new(extra) else {
            return Err(kvm_ioctls::Error::new(libc::ENOMEM));
        };
        if size.extended {
            // SAFETY: the area is as long as KVM_CAP_XSAVE2 says, and nothing in this process enables features that make it longer.
            unsafe { self.fd().get_xsave2(&mut area)? };
        } else {
            let plain = self.fd().get_xsave()?;
            return Ok(Bytes(words(&plain.region)));
        }
        let head = words(&area.as_fam_struct_ref().xsave.region);
        Ok(Bytes([head, words(area.as_slice())].concat()))
    }

    fn load_xsave(&self, saved: &[u8]) -> Result<(), LoadVcpuError> {
        let what = || format!("set the extended state of vcpu {}", self.index());
        let size = self.xsave_size();
        if saved.len() < XSAVE_BYTES || !saved.len().is_multiple_of(4) {
            return Err(LoadVcpuError::Unfit("has an extended state that is cut off"));
        }
        // What is there beyond this host's area has to be empty.
        let (fits, beyond) = saved.split_at(saved.len().min(size.bytes));
        if beyond.iter().any(|&byte| byte != 0) {
            return Err(LoadVcpuError::Unfit("uses more extended state than this host has"));
        }
        let extra = (size.bytes - XSAVE_BYTES).div_ceil(4);
        let mut area = Xsave::new(extra).map_err(|_| CallError::unfit(what()))?;
        let (numbers, _) = fits.as_chunks::<4>();
        let mut numbers = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let mut region = [0; XSAVE_WORDS];
        region.iter_mut().for_each(|word| *word = numbers.next().unwrap_or(0));
        area.as_mut_slice()
            .iter_mut()
            .for_each(|word| *word = numbers.next().unwrap_or(0));
        // SAFETY: the length of the flexible part is not touched, only the fixed part in front of it.
        let head = unsafe { area.as_mut_fam_struct() };
        head.xsave.region = region;
        // SAFETY: the area is as long as this kernel wants it, see `save_xsave`.
        unsafe { self.fd().set_xsave2(&area) }.map_err(CallError::on(what()))?;
        Ok(())
    }

    /// All that KVM lists and this vCPU has.
    fn save_msrs(&self) -> Result<Vec<Msr>, CallError> {
        let mut saved = Vec::new();
        let mut rest = self.msr_list();
        while !rest.is_empty() {
            let chunk = rest.get(..KVM_MAX_MSR_ENTRIES).unwrap_or(rest);
            let entries: Vec<_> = chunk.iter().map(|&index| entry(index, 0)).collect();
            let what = || format!("read the msrs of vcpu {}", self.index());
            let mut msrs = Msrs::from_entries(&entries).map_err(|_| CallError::unfit(what()))?;
            let read = self.fd().get_msrs(&mut msrs).map_err(CallError::on(what()))?;
            let got = msrs.as_slice().iter().take(read);
            saved.extend(got.map(|msr| Msr {
                index: msr.index,
                data: msr.data,
            }));
            // The one that could not be read is there on other CPUs only.
            let skip = if read < chunk.len() { read + 1 } else { read };
            rest = rest.get(skip..).unwrap_or_default();
        }
        Ok(saved)
    }

    /// One that can not be set has to have its value already.
    fn load_msrs(&self, saved: &[&Msr]) -> Result<(), CallError> {
        let mut rest = saved;
        while !rest.is_empty() {
            let chunk = rest.get(..KVM_MAX_MSR_ENTRIES).unwrap_or(rest);
            let entries: Vec<_> = chunk.iter().map(|msr| entry(msr.index, msr.data)).collect();
            let what = || format!("set the msrs of vcpu {}", self.index());
            let msrs = Msrs::from_entries(&entries).map_err(|_| CallError::unfit(what()))?;
            let done = self.fd().set_msrs(&msrs).map_err(CallError::on(what()))?;
            if let Some(refused) = chunk.get(done) {
                self.check_msr(refused)?;
            }
            let skip = if done < chunk.len() { done + 1 } else { done };
            rest = rest.get(skip..).unwrap_or_default();
        }
        Ok(())
    }

    fn check_msr(&self, wanted: &Msr) -> Result<(), CallError> {
        let (index, data) = (wanted.index, wanted.data);
        let what = || format!("set msr {index:#x} of vcpu {} to {data:#x}", self.index());
        let mut one = Msrs::from_entries(&[entry(index, 0)]).map_err(|_| CallError::unfit(what()))?;
        let read = self.fd().get_msrs(&mut one).map_err(CallError::on(what()))?;
        // One that this host has not at all, and that was zero, was of no use to the guest.
        let same = match one.as_slice().first() {
            Some(msr) if read == 1 => msr.data == data,
            _ => data == 0,
        };
        if same { Ok(()) } else { Err(CallError::unfit(what())) }
    }

    fn load_cpuid(&self, saved: &[Leaf]) -> Result<(), LoadVcpuError> {
        let what = || format!("show vcpu {} the cpu features it had", self.index());
        let own = self
            .fd()
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(CallError::on(what()))?;
        let missing = missing_features(saved, own.as_slice());
        if !missing.is_empty() {
            return Err(LoadVcpuError::Features(missing));
        }
        let entries: Vec<kvm_cpuid_entry2> = saved.iter().map(Into::into).collect();
        let table = CpuId::from_entries(&entries).map_err(|_| LoadVcpuError::Unfit("has too many cpuid leaves"))?;
        self.fd().set_cpuid2(&table).map_err(CallError::on(what()))?;
        Ok(())
    }

    fn load_tsc_rate(&self, saved: Option<u32>) -> Result<(), CallError> {
        let (Some(wanted), Some(own)) = (saved, self.tsc_khz()) else {
            return Ok(());
        };
        let apart = u64::from(wanted.abs_diff(own)) * 1_000_000;
        if apart <= u64::from(own) * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        self.set_tsc_khz(wanted)
    }
}

/// Features that the guest was shown and this host has not, as "leaf 0x7.0 ebx bits 0x20".
fn missing_features(saved: &[Leaf], own: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    for (function, index, registers) in FEATURES {
        let Some(saved) = saved
            .iter()
            .find(|leaf| (leaf.function, leaf.index) == (function, index))
        else {
            continue;
        };
        let own = own.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
        let own = own.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
        let following = FOLLOWING.iter().find(|(leaf, _)| *leaf == function && index == 0);
        let following = following.map_or([0; 4], |(_, bits)| *bits);
        let shown = [saved.eax, saved.ebx, saved.ecx, saved.edx];
        let names = ["eax", "ebx", "ecx", "edx"];
        for ((((shown, own), following), counts), name) in
            shown.iter().zip(own).zip(following).zip(registers).zip(names)
        {
            let lacking = shown & !own & !following;
            if counts && lacking != 0 {
                missing.push(format!("leaf {function:#x}.{index} {name} bits {lacking:#x}"));
            }
        }
    }
    missing
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn xcrs(saved: &[Xcr]) -> Result<kvm_xcrs, LoadVcpuError> {
    let mut xcrs = kvm_xcrs::default();
    if saved.len() > xcrs.xcrs.len() {
        return Err(LoadVcpuError::Unfit(
            "has more extended control registers than there are",
        ));
    }
    for (place, xcr) in xcrs.xcrs.iter_mut().zip(saved) {
        *place = xcr.into();
        xcrs.nr_xcrs += 1;
    }
    Ok(xcrs)
}

fn lapic(saved: &[u8]) -> Result<kvm_lapic_state, LoadVcpuError> {
    let mut apic = kvm_lapic_state::default();
    if saved.len() != apic.regs.len() {
        return Err(LoadVcpuError::Unfit("has a local apic of another size"));
    }
    for (register, &byte) in apic.regs.iter_mut().zip(saved) {
        *register = byte.cast_signed();
    }
    Ok(apic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ecx: u32, edx: u32) -> Leaf {
        Leaf {
            function,
            index: 0,
            flags: 0,
            eax: 0,
            ebx: 0,
            ecx,
            edx,
        }
    }

    #[test]
    fn features_that_are_missing_are_named_and_following_bits_are_none() {
        let own: Vec<kvm_cpuid_entry2> = [leaf(1, 0b100, 0), leaf(7, 0, 0)].iter().map(Into::into).collect();
        assert!(missing_features(&[leaf(1, 0b100 | 1 << 27, 1 << 9), leaf(7, 1 << 4, 0)], &own).is_empty());
        let missing = missing_features(&[leaf(1, 0b110, 0), leaf(0x8000_0001, 0, 1 << 29)], &own);
        assert_eq!(
            missing,
            ["leaf 0x1.0 ecx bits 0x2", "leaf 0x80000001.0 edx bits 0x20000000"]
        );
    }

    #[test]
    fn state_of_no_vcpu_is_refused() {
        let xcr = Xcr { xcr: 0, value: 1 };
        assert!(xcrs(&vec![xcr.clone(); 17]).is_err());
        assert_eq!(xcrs(&[xcr]).unwrap().nr_xcrs, 1);
        assert!(lapic(&[0; 1023]).is_err());
    }
}
