# Ways in: PVH (32-bit), the 64-bit boot protocol, and start-up of further CPUs in real mode.
# All end in long mode on this image's own tables, with a stack, in Rust.

        .section .note.pvh, "a", @note
        .balign 4
        .long 4, 4, 18                  # lengths of name and value; XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long pvh_start

        .section .text.entry, "ax"

        .code32
        .global pvh_start
pvh_start:
        cli
        cld
        movl $boot_stack_end, %esp
        movl %ebx, %edi                 # first argument: hvm_start_info
        xorl %esi, %esi                 # second argument: 0 is PVH
enter_long_mode:
        lgdtl gdt_pointer
        movl %cr4, %eax
        orl $0x20, %eax                 # PAE
        movl %eax, %cr4
        movl $page_root, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx          # EFER
        rdmsr
        orl $0x100, %eax                # LME
        wrmsr
        movl %cr0, %eax
        orl $0x80000001, %eax           # PG, PE
        movl %eax, %cr0
        ljmpl $0x08, $long_mode

        .code64
        .global linux64_start
linux64_start:
        cli
        cld
        movq %rsi, %rdi                 # first argument: boot_params
        movl $1, %esi                   # second argument: 1 is the 64-bit boot protocol
        movl $page_root, %eax
        movq %rax, %cr3
        lgdtq gdt_pointer
        movl $boot_stack_end, %esp
        pushq $0x08
        pushq $long_mode
        lretq

long_mode:
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl $boot_stack_end, %esp
        call boot_main
1:      cli
        hlt
        jmp 1b

# Copied to 0x8000 and started there by start-up IPIs. Only absolute references out of it.
        .code16
        .global ap_trampoline, ap_trampoline_end
ap_trampoline:
        cli
        xorw %ax, %ax
        movw %ax, %ds
        lgdtl 0x8000 + ap_gdt_pointer - ap_trampoline
        movl %cr4, %eax
        orl $0x20, %eax
        movl %eax, %cr4
        movl $page_root, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x100, %eax
        wrmsr
        movl %cr0, %eax
        orl $0x80000001, %eax
        movl %eax, %cr0
        ljmpl $0x08, $ap_long_mode
        .balign 8
ap_gdt_pointer:
        .word gdt_end - gdt - 1
        .long gdt
ap_trampoline_end:

        .code64
ap_long_mode:
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl $1, %edi
        lock xaddl %edi, ap_next        # first argument: which one this is, from 0
        movl %edi, %eax
        incl %eax
        shll $12, %eax
        addl $ap_stacks, %eax
        movl %eax, %esp
        call ap_main
1:      cli
        hlt
        jmp 1b

# Interrupt entries, 16 bytes each, vectors 0 to 79.
        .balign 16
        .global interrupt_entries
interrupt_entries:
        .set vector, 0
        .rept 80
        .balign 16
        .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
        pushq $0                        # where the CPU pushes no error code
        .endif
        pushq $vector
        jmp interrupt_entered
        .set vector, vector + 1
        .endr

interrupt_entered:
        pushq %rax
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
        cld
        movq 72(%rsp), %rdi             # vector
        movq 80(%rsp), %rsi             # error code
        movq 88(%rsp), %rdx             # interrupted instruction
        call interrupt_main
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rdi
        popq %rsi
        popq %rdx
        popq %rcx
        popq %rax
        addq $16, %rsp
        iretq

        .section .data
        .balign 16
gdt:
        .quad 0
        .quad 0x00af9b000000ffff        # 0x08: code, 64-bit
        .quad 0x00cf93000000ffff        # 0x10: data
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt
        .global ap_next
        .balign 4
ap_next:
        .long 0

# The low 4 GiB, mapped to themselves in pages of 2 MiB.
        .balign 4096
        .global page_root
page_root:
        .quad page_pointers + 3
        .fill 511, 8, 0
page_pointers:
        .quad page_directories + 3
        .quad page_directories + 0x1003
        .quad page_directories + 0x2003
        .quad page_directories + 0x3003
        .fill 508, 8, 0
page_directories:
        .set frame, 0
        .rept 2048
        .quad (frame << 21) + 0x83
        .set frame, frame + 1
        .endr

        .section .bss
        .balign 4096
        .skip 32768
boot_stack_end:
        .global ap_stacks
ap_stacks:
        .skip 64 * 4096
