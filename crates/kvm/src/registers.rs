//! The registers a report needs.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};

/// What a vCPU was doing, for reports. Printed over several lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are the registers' own")]
pub struct RegisterDump {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs_selector: u16,
    pub cs_base: u64,
    pub ss_selector: u16,
    pub gdt_base: u64,
    pub idt_base: u64,
}

impl RegisterDump {
    pub(crate) fn new(regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        Self {
            rip: regs.rip,
            rsp: regs.rsp,
            rflags: regs.rflags,
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rbp: regs.rbp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cs_selector: sregs.cs.selector,
            cs_base: sregs.cs.base,
            ss_selector: sregs.ss.selector,
            gdt_base: sregs.gdt.base,
            idt_base: sregs.idt.base,
        }
    }
}

impl fmt::Display for RegisterDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "rip={:#018x} rsp={:#018x} rflags={:#010x}",
            self.rip, self.rsp, self.rflags
        )?;
        writeln!(
            f,
            "rax={:#018x} rbx={:#018x} rcx={:#018x} rdx={:#018x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "rsi={:#018x} rdi={:#018x} rbp={:#018x} r8 ={:#018x}",
            self.rsi, self.rdi, self.rbp, self.r8
        )?;
        writeln!(
            f,
            "r9 ={:#018x} r10={:#018x} r11={:#018x} r12={:#018x}",
            self.r9, self.r10, self.r11, self.r12
        )?;
        writeln!(
            f,
            "r13={:#018x} r14={:#018x} r15={:#018x}",
            self.r13, self.r14, self.r15
        )?;
        writeln!(
            f,
            "cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
            self.cr0, self.cr2, self.cr3, self.cr4, self.efer
        )?;
        write!(
            f,
            "cs={:#x} (base {:#x}) ss={:#x} gdt={:#x} idt={:#x}",
            self.cs_selector, self.cs_base, self.ss_selector, self.gdt_base, self.idt_base
        )
    }
}
