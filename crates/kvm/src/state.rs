//! The state of vCPUs and of the interrupt chips, as it is saved.
//!
//! Where a layout is the processor's or the chip's own (XSAVE area, local APIC page, chips as KVM's ABI has them), it is kept
//! as bytes; all else has fields of its own. Nested guests there are none: CPUID offers neither VMX nor SVM.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcr,
};
use savestate::Bytes;

/// Declares a record with the fields of a KVM struct, and the way there and back.
macro_rules! mirror {
    ($(#[$outer:meta])* $name:ident of $kvm:ident { $($field:ident: $type:ty,)+ }) => {
        savestate::record! {
            $(#[$outer])*
            pub(crate) struct $name {
                $(pub(crate) $field: $type,)+
            }
        }

        impl From<&$kvm> for $name {
            fn from(kvm: &$kvm) -> Self {
                Self { $($field: (&kvm.$field).into(),)+ }
            }
        }

        impl From<&$name> for $kvm {
            fn from(saved: &$name) -> Self {
                Self { $($field: (&saved.$field).into(),)+ ..Default::default() }
            }
        }
    };
}

/// The same for structs of numbers alone.
macro_rules! numbers {
    ($(#[$outer:meta])* $name:ident of $kvm:ident { $($field:ident: $type:ty,)+ }) => {
        savestate::record! {
            $(#[$outer])*
            pub(crate) struct $name {
                $(pub(crate) $field: $type,)+
            }
        }

        impl From<&$kvm> for $name {
            fn from(kvm: &$kvm) -> Self {
                Self { $($field: kvm.$field,)+ }
            }
        }

        impl From<&$name> for $kvm {
            #[allow(clippy::needless_update, reason = "some of the structs are padded")]
            fn from(saved: &$name) -> Self {
                Self { $($field: saved.$field,)+ ..Default::default() }
            }
        }
    };
}

numbers! {
    Registers of kvm_regs {
        rax: u64, rbx: u64, rcx: u64, rdx: u64, rsi: u64, rdi: u64, rsp: u64, rbp: u64,
        r8: u64, r9: u64, r10: u64, r11: u64, r12: u64, r13: u64, r14: u64, r15: u64,
        rip: u64, rflags: u64,
    }
}

numbers! {
    Segment of kvm_segment {
        base: u64, limit: u32, selector: u16, type_: u8, present: u8, dpl: u8, db: u8, s: u8, l: u8, g: u8, avl: u8,
        unusable: u8,
    }
}

numbers! {
    DescriptorTable of kvm_dtable {
        base: u64, limit: u16,
    }
}

mirror! {
    Segments of kvm_sregs {
        cs: Segment, ds: Segment, es: Segment, fs: Segment, gs: Segment, ss: Segment, tr: Segment, ldt: Segment,
        gdt: DescriptorTable, idt: DescriptorTable,
    }
}

numbers! {
    ControlRegisters of kvm_sregs {
        cr0: u64, cr2: u64, cr3: u64, cr4: u64, cr8: u64, efer: u64, apic_base: u64, interrupt_bitmap: [u64; 4],
    }
}

numbers! {
    DebugRegisters of kvm_debugregs {
        db: [u64; 4], dr6: u64, dr7: u64, flags: u64,
    }
}

numbers! {
    Xcr of kvm_xcr {
        xcr: u32, value: u64,
    }
}

numbers! {
    Leaf of kvm_cpuid_entry2 {
        function: u32, index: u32, flags: u32, eax: u32, ebx: u32, ecx: u32, edx: u32,
    }
}

savestate::record! {
    pub(crate) struct Msr {
        pub(crate) index: u32,
        pub(crate) data: u64,
    }
}

savestate::record! {
    /// What is on its way into the vCPU (KVM API, `struct kvm_vcpu_events`).
    pub(crate) struct Events {
        flags: u32,
        /// Injected, number, has an error code, pending.
        exception: [u8; 4],
        exception_error_code: u32,
        exception_has_payload: u8,
        exception_payload: u64,
        /// Injected, number, soft, shadow.
        interrupt: [u8; 4],
        /// Injected, pending, masked.
        nmi: [u8; 3],
        sipi_vector: u32,
        /// In SMM, pending, inside of an NMI, latched INIT.
        smi: [u8; 4],
        triple_fault: u8,
    }
}

impl From<&kvm_vcpu_events> for Events {
    fn from(kvm: &kvm_vcpu_events) -> Self {
        let (exception, interrupt, nmi, smi) = (&kvm.exception, &kvm.interrupt, &kvm.nmi, &kvm.smi);
        Self {
            flags: kvm.flags,
            exception: [
                exception.injected,
                exception.nr,
                exception.has_error_code,
                exception.pending,
            ],
            exception_error_code: exception.error_code,
            exception_has_payload: kvm.exception_has_payload,
            exception_payload: kvm.exception_payload,
            interrupt: [interrupt.injected, interrupt.nr, interrupt.soft, interrupt.shadow],
            nmi: [nmi.injected, nmi.pending, nmi.masked],
            sipi_vector: kvm.sipi_vector,
            smi: [smi.smm, smi.pending, smi.smm_inside_nmi, smi.latched_init],
            triple_fault: kvm.triple_fault.pending,
        }
    }
}

impl From<&Events> for kvm_vcpu_events {
    fn from(saved: &Events) -> Self {
        let mut kvm = Self {
            flags: saved.flags,
            sipi_vector: saved.sipi_vector,
            exception_has_payload: saved.exception_has_payload,
            exception_payload: saved.exception_payload,
            ..Default::default()
        };
        let exception = &mut kvm.exception;
        [
            exception.injected,
            exception.nr,
            exception.has_error_code,
            exception.pending,
        ] = saved.exception;
        exception.error_code = saved.exception_error_code;
        let interrupt = &mut kvm.interrupt;
        [interrupt.injected, interrupt.nr, interrupt.soft, interrupt.shadow] = saved.interrupt;
        [kvm.nmi.injected, kvm.nmi.pending, kvm.nmi.masked] = saved.nmi;
        let smi = &mut kvm.smi;
        [smi.smm, smi.pending, smi.smm_inside_nmi, smi.latched_init] = saved.smi;
        kvm.triple_fault.pending = saved.triple_fault;
        kvm
    }
}

savestate::section! {
    /// All there is of a vCPU that stands still.
    pub struct VcpuState = "vcpu", version 1 {
        pub(crate) cpuid: Vec<Leaf>,
        pub(crate) tsc_khz: Option<u32>,
        pub(crate) mp_state: u32,
        pub(crate) registers: Registers,
        pub(crate) segments: Segments,
        pub(crate) control: ControlRegisters,
        /// In the format of the XSAVE instruction that is not compacted.
        pub(crate) xsave: Bytes,
        pub(crate) xcrs: Vec<Xcr>,
        pub(crate) debug: DebugRegisters,
        /// The registers page.
        pub(crate) lapic: Bytes,
        pub(crate) msrs: Vec<Msr>,
        pub(crate) events: Events,
    }
}

savestate::section! {
    /// What a machine has at KVM beside vCPUs and memory. Interrupt routes are no part of it: they follow from the devices.
    pub struct ChipState = "kvm-chips", version 1 {
        /// Both PICs and the IOAPIC, as `struct kvm_irqchip` has them.
        pub(crate) chips: Vec<Bytes>,
        /// Guest time of kvmclock, nanoseconds.
        pub(crate) clock_ns: u64,
    }
}

impl ChipState {
    /// Guest time of kvmclock, nanoseconds.
    pub const fn clock_ns(&self) -> u64 {
        self.clock_ns
    }
}
