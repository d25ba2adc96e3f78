//! Tiny guests on the machine's own `/dev/kvm`, whatever module is behind it. Hand-assembled, so that nothing but a CPU is
//! needed; skipped with a line on stderr where KVM cannot be used.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test's functions fail by panicking, and skip visibly"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use guestmem::{Bytes, GuestAddress, GuestMemory, MemoryConfig};
use kvm::{BootTables, Doorbell, EventFd, Exit, Kvm, MsiMessage, OpenError, Topology, Vcpu, VcpuState, Vm};
use savestate::SaveState;

/// Where the guests' code lies.
const CODE: u64 = 0x1000;
/// Port the guests report to; each report is one `out dx, eax` or smaller.
const PORT: u16 = 0x3f8;
/// RAM ends below the old VGA window, so that 0xA0000 is not RAM and even real mode reaches it.
const RAM: u64 = 512 << 10;
const VGA: u64 = 0xa_0000;
/// A guest that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(10);

fn open_or_skip() -> Option<Kvm> {
    match Kvm::open() {
        Ok(kvm) => Some(kvm),
        Err(OpenError::Missing | OpenError::NoAccess) => {
            eprintln!("skipped: no /dev/kvm");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

struct Guest {
    vm: Vm,
    cpu: Vcpu,
    memory: GuestMemory,
}

impl Guest {
    fn new(kvm: &Kvm, vcpus: u32, code: &[u8]) -> Self {
        let memory = GuestMemory::new(MemoryConfig {
            size_bytes: RAM,
            hugepages: None,
            prefault: false,
        })
        .unwrap();
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        let vm = Vm::create(kvm, &memory, Topology::flat(vcpus).unwrap()).unwrap();
        let cpu = vm.create_vcpu(0).unwrap();
        Self { vm, cpu, memory }
    }

    fn real_mode(kvm: &Kvm, code: &[u8]) -> Self {
        let guest = Self::new(kvm, 1, code);
        guest.cpu.set_real_mode_entry(0, u16::try_from(CODE).unwrap()).unwrap();
        guest
    }

    fn protected_mode(kvm: &Kvm, vcpus: u32, code: &[u8]) -> Self {
        let guest = Self::new(kvm, vcpus, code);
        guest.cpu.set_pvh_entry(CODE, 0x7000).unwrap();
        guest
    }
}

/// What a guest did, by value.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Out(u16, Vec<u8>),
    In(u16, usize),
    MmioWrite(u64, Vec<u8>),
    MmioRead(u64, usize),
    Shutdown,
}

/// Runs until the guest does something, and answers reads with `answer` in every byte. A guest that does nothing fails the
/// test.
fn next(cpu: &mut Vcpu, answer: u8) -> Seen {
    let deadline = Instant::now() + PATIENCE;
    let done = Arc::new(AtomicBool::new(false));
    let watchdog = {
        let (kicker, done) = (cpu.kicker(), Arc::clone(&done));
        thread::spawn(move || {
            while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                thread::park_timeout(Duration::from_millis(500));
            }
            if !done.load(Ordering::Relaxed) {
                kicker.kick();
            }
        })
    };
    let seen = loop {
        match cpu.run().unwrap() {
            Exit::IoOut { port, data, .. } => break Seen::Out(port, data.to_vec()),
            Exit::IoIn { port, data, .. } => {
                data.fill(answer);
                break Seen::In(port, data.len());
            }
            Exit::MmioWrite { address, data } => break Seen::MmioWrite(address, data.to_vec()),
            Exit::MmioRead { address, data } => {
                data.fill(answer);
                break Seen::MmioRead(address, data.len());
            }
            Exit::Shutdown => break Seen::Shutdown,
            Exit::Interrupted if Instant::now() < deadline => {}
            other => {
                let other = format!("{other:?}");
                panic!("{other}\n{}", cpu.registers().unwrap());
            }
        }
    };
    done.store(true, Ordering::Relaxed);
    watchdog.thread().unpark();
    watchdog.join().unwrap();
    seen
}

/// The next thing the guest does must be a report; its value.
fn report(cpu: &mut Vcpu) -> u32 {
    match next(cpu, 0) {
        Seen::Out(PORT, data) => {
            let mut value = [0; 4];
            value[..data.len()].copy_from_slice(&data);
            u32::from_le_bytes(value)
        }
        other => panic!("instead of a report: {other:x?}\n{}", cpu.registers().unwrap()),
    }
}

/// How a guest begins.
#[derive(Clone, Copy)]
enum Mode {
    Real,
    Protected,
}

/// A guest, and what it does in this order; each time it reads, every byte of the answer is the first number.
struct Case {
    name: &'static str,
    mode: Mode,
    code: &'static [u8],
    does: &'static [(u8, Does)],
}

enum Does {
    Out(&'static [u8]),
    In(usize),
    MmioWrite(u64, &'static [u8]),
    MmioRead(u64, usize),
    /// Reports a number that has this value under this mask.
    Report(u32, u32),
    Shutdown,
}

const CASES: &[Case] = &[
    Case {
        name: "ports carry bytes and words both ways",
        mode: Mode::Real,
        code: &[
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xb0, b'K', // mov al, 'K'
            0xee, // out dx, al
            0xed, // in ax, dx
            0x40, // inc ax
            0xef, // out dx, ax
        ],
        does: &[
            (0, Does::Out(b"K")),
            (0x42, Does::In(2)),
            (0, Does::Report(u32::MAX, 0x4243)),
        ],
    },
    Case {
        name: "addresses without RAM are MMIO",
        mode: Mode::Real,
        code: &[
            0xb8, 0x00, 0xa0, // mov ax, 0xa000
            0x8e, 0xd8, // mov ds, ax
            0xc6, 0x06, 0x10, 0x00, 0x5a, // mov byte [0x10], 0x5a
            0x66, 0xa1, 0x20, 0x00, // mov eax, [0x20]
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x66, 0xef, // out dx, eax
        ],
        does: &[
            (0, Does::MmioWrite(VGA + 0x10, &[0x5a])),
            (0x77, Does::MmioRead(VGA + 0x20, 4)),
            (0, Does::Report(u32::MAX, 0x7777_7777)),
        ],
    },
    Case {
        name: "a triple fault is a shutdown",
        mode: Mode::Protected,
        // nop; ud2, without an interrupt table
        code: &[0x90, 0x0f, 0x0b],
        does: &[(0, Does::Shutdown)],
    },
    Case {
        name: "PVH starts in flat protected mode, paging off, with the start info",
        mode: Mode::Protected,
        code: &[
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x89, 0xd8, // mov eax, ebx
            0xef, // out dx, eax
            0x0f, 0x20, 0xc0, // mov eax, cr0
            0xef, // out dx, eax
            0xa1, 0x00, 0x00, 0x0a, 0x00, // mov eax, [0xa0000]
        ],
        does: &[
            (0, Does::Report(u32::MAX, 0x7000)),
            (0, Does::Report(0x8000_0001, 1)),
            (0, Does::MmioRead(VGA, 4)),
        ],
    },
];

#[test]
fn what_a_guest_does_comes_out_as_it_was_done() {
    let Some(kvm) = open_or_skip() else { return };
    for Case { name, mode, code, does } in CASES {
        let mut guest = match mode {
            Mode::Real => Guest::real_mode(&kvm, code),
            Mode::Protected => Guest::protected_mode(&kvm, 1, code),
        };
        for (answer, does) in *does {
            let expected = match *does {
                Does::Report(mask, value) => {
                    assert_eq!(report(&mut guest.cpu) & mask, value, "{name}");
                    continue;
                }
                Does::Out(data) => Seen::Out(PORT, data.to_vec()),
                Does::In(length) => Seen::In(PORT, length),
                Does::MmioWrite(address, data) => Seen::MmioWrite(address, data.to_vec()),
                Does::MmioRead(address, length) => Seen::MmioRead(address, length),
                Does::Shutdown => Seen::Shutdown,
            };
            assert_eq!(next(&mut guest.cpu, *answer), expected, "{name}");
        }
    }
}

#[test]
fn ports_carry_strings() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::real_mode(
        &kvm,
        &[
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xbe, 0x00, 0x20, // mov si, 0x2000
            0xb9, 0x03, 0x00, // mov cx, 3
            0xf3, 0x6e, // rep outsb
        ],
    );
    guest.memory.write_slice(b"abc", GuestAddress(0x2000)).unwrap();
    let mut string = Vec::new();
    while string.len() < 3 {
        match next(&mut guest.cpu, 0) {
            Seen::Out(PORT, data) => string.extend(data),
            other => panic!("{other:x?}"),
        }
    }
    assert_eq!(string, b"abc");
}

#[test]
fn linux_starts_in_long_mode_with_the_zero_page() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::new(
        &kvm,
        1,
        &[
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x89, 0xf0, // mov eax, esi
            0xef, // out dx, eax
            0x48, 0xb8, 8, 7, 6, 5, 4, 3, 2, 1, // mov rax, 0x0102030405060708
            0x48, 0x89, 0x04, 0x25, 0x00, 0x60, 0x00, 0x00, // mov [0x6000], rax
            0xa0, 0x00, 0x00, 0x00, 0xd0, 0, 0, 0, 0,    // mov al, [0xd0000000]
            0xef, // out dx, eax
        ],
    );
    let tables = BootTables::write(&guest.memory, GuestAddress(0x10000)).unwrap();
    guest.cpu.set_linux64_entry(CODE, 0x7000, &tables).unwrap();
    assert_eq!(report(&mut guest.cpu), 0x7000);
    assert_eq!(next(&mut guest.cpu, 0x99), Seen::MmioRead(0xd000_0000, 1));
    assert_eq!(report(&mut guest.cpu), 0x0506_0799);
    assert_eq!(
        guest.memory.read_obj::<u64>(GuestAddress(0x6000)).unwrap(),
        0x0102_0304_0506_0708
    );
    let registers = guest.cpu.registers().unwrap();
    assert_eq!(registers.efer & 0x500, 0x500, "{registers}");
}

#[test]
fn cpuid_tells_of_the_hypervisor_and_the_place() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::protected_mode(
        &kvm,
        4,
        &[
            0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
            0x0f, 0xa2, // cpuid
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x89, 0xc8, // mov eax, ecx
            0xef, // out dx, eax
            0x89, 0xd8, // mov eax, ebx
            0xef, // out dx, eax
            0xb8, 0x00, 0x00, 0x00, 0x40, // mov eax, 0x40000000
            0x0f, 0xa2, // cpuid
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x89, 0xd8, // mov eax, ebx
            0xef, // out dx, eax
        ],
    );
    let features = report(&mut guest.cpu);
    assert_eq!(
        features & (1 << 31 | 1 << 21 | 1 << 5),
        1 << 31 | 1 << 21,
        "{features:#x}"
    );
    assert_eq!(features >> 24 & 1 == 1, kvm.capabilities().tsc_deadline);
    assert_eq!(report(&mut guest.cpu) >> 16, 4, "apic id 0 of 4");
    assert_eq!(report(&mut guest.cpu), u32::from_le_bytes(*b"KVMK"));
}

#[test]
fn a_doorbell_rings_without_an_exit() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::real_mode(
        &kvm,
        &[
            0xb8, 0x00, 0xa0, // mov ax, 0xa000
            0x8e, 0xd8, // mov ds, ax
            0xc6, 0x06, 0x10, 0x00, 0x5a, // mov byte [0x10], 0x5a
            0xc7, 0x06, 0x10, 0x00, 0x34, 0x12, // mov word [0x10], 0x1234
            0xe6, 0x90, // out 0x90, al
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xee, // out dx, al
            0xc6, 0x06, 0x10, 0x00, 0x5b, // mov byte [0x10], 0x5b
        ],
    );
    let (memory_bell, port_bell) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    let at = Doorbell::Mmio(VGA + 0x10);
    guest.vm.add_doorbell(at, &memory_bell).unwrap();
    guest.vm.add_doorbell(Doorbell::Port(0x90), &port_bell).unwrap();
    report(&mut guest.cpu);
    assert_eq!((memory_bell.read().unwrap(), port_bell.read().unwrap()), (2, 1));
    guest.vm.remove_doorbell(at, &memory_bell).unwrap();
    assert_eq!(next(&mut guest.cpu, 0), Seen::MmioWrite(VGA + 0x10, vec![0x5b]));
    assert!(guest.vm.remove_doorbell(at, &memory_bell).is_err());
}

#[test]
fn guest_writes_show_in_the_dirty_log_once() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::real_mode(
        &kvm,
        &[
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xee, // out dx, al
            0xc6, 0x06, 0x00, 0x30, 0x01, // mov byte [0x3000], 1
            0xc6, 0x06, 0xff, 0x4f, 0x01, // mov byte [0x4fff], 1
            0xee, // out dx, al
            0xc6, 0x06, 0x00, 0x60, 0x01, // mov byte [0x6000], 1
            0xee, // out dx, al
            0xee, // out dx, al
        ],
    );
    assert!(guest.vm.take_dirty_log(0).is_err(), "the log is off at first");
    report(&mut guest.cpu);
    guest.vm.set_dirty_log(true).unwrap();
    report(&mut guest.cpu);
    assert_eq!(guest.vm.take_dirty_log(0).unwrap(), [0b1_1000, 0]);
    report(&mut guest.cpu);
    assert_eq!(guest.vm.take_dirty_log(0).unwrap(), [0b100_0000, 0]);
    guest.vm.set_dirty_log(false).unwrap();
    report(&mut guest.cpu);
    assert!(guest.vm.take_dirty_log(0).is_err());
    assert!(guest.vm.take_dirty_log(1).is_err(), "there is one slot");
}

#[test]
fn a_kick_gets_a_spinning_vcpu_out_every_time() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::real_mode(&kvm, &[0xeb, 0xfe]); // jmp $
    let kicker = guest.cpu.kicker();
    let (to_runner, rounds) = mpsc::channel();
    let (answer, answers) = mpsc::channel();
    let spinning = thread::spawn(move || {
        // One round per request: run until kicked, say so.
        while rounds.recv().is_ok() {
            assert_eq!(guest.cpu.run().unwrap(), Exit::Interrupted);
            answer.send(()).unwrap();
        }
    });
    kicker.kick(); // before the run: counts
    to_runner.send(()).unwrap();
    answers.recv_timeout(PATIENCE).expect("an early kick was lost");
    for round in 0..200_u64 {
        to_runner.send(()).unwrap();
        // From "before the run" to "well inside".
        thread::sleep(Duration::from_micros(round % 50 * 10));
        kicker.kick();
        answers.recv_timeout(PATIENCE).expect("a kick was lost");
    }
    drop(to_runner);
    spinning.join().unwrap();
    kicker.kick(); // after the vCPU is gone: nothing to do
}

#[test]
fn an_answered_read_is_finished_by_settle() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::real_mode(&kvm, &[0xe4, 0x60, 0xeb, 0xfe]); // in al, 0x60; jmp $
    assert_eq!(next(&mut guest.cpu, 0x5a), Seen::In(0x60, 1));
    let (answer, answers) = mpsc::channel();
    thread::spawn(move || {
        guest.cpu.settle().unwrap();
        answer.send(guest.cpu.registers().unwrap()).unwrap();
    });
    let registers = answers.recv_timeout(PATIENCE).expect("settle ran the guest on");
    assert_eq!((registers.rax & 0xff, registers.rip), (0x5a, CODE + 2));
}

/// Switches the local APIC on and programs IOAPIC pin 5 to vector 0x42, reports, waits for bit `vector % 32` of the request
/// register that holds `vector`, reports again. Interrupts stay off: what arrives stays pending.
fn wait_for_vector(vector: u8) -> Vec<u8> {
    let register = 0x200 + u32::from(vector / 32) * 0x10;
    let bit = vector % 32;
    let mut code = vec![
        0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, 0x1ff
        0xa3, 0xf0, 0x00, 0xe0, 0xfe, // mov [0xfee000f0], eax      ; enabled, spurious vector 0xff
        0xb8, 0x1a, 0x00, 0x00, 0x00, // mov eax, 0x10 + 2 * 5
        0xa3, 0x00, 0x00, 0xc0, 0xfe, // mov [0xfec00000], eax
        0xb8, 0x42, 0x00, 0x00, 0x00, // mov eax, 0x42              ; fixed, edge, unmasked, to apic 0
        0xa3, 0x10, 0x00, 0xc0, 0xfe, // mov [0xfec00010], eax
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xa1, // mov eax, [register]                               ; <- loop
    ];
    code.extend((0xfee0_0000 + register).to_le_bytes());
    code.extend([
        0x0f, 0xba, 0xe0, bit, // bt eax, bit
        0x73, 0xf5, // jnc loop
        0xee, // out dx, al
        0xeb, 0xfe, // jmp $
    ]);
    code
}

/// Fails unless a guest finds `vector` pending after `deliver`, and not before. What that returns lives until then.
fn arrives<T>(vector: u8, deliver: impl FnOnce(&Vm) -> T) {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::protected_mode(&kvm, 1, &wait_for_vector(vector));
    report(&mut guest.cpu);
    let _kept = deliver(&guest.vm);
    report(&mut guest.cpu);
}

/// To the only CPU.
const fn message(vector: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: vector,
    }
}

#[test]
fn a_routed_message_reaches_the_local_apic() {
    arrives(0x61, |vm| {
        let irq = vm.irq_routing().message().unwrap();
        irq.trigger(); // no route yet: lost, and harmless
        irq.route(Some(message(0x51))).unwrap();
        irq.route(Some(message(0x61))).unwrap();
        irq.trigger();
        irq
    });
}

#[test]
fn an_edge_on_an_ioapic_pin_survives_message_routes() {
    arrives(0x42, |vm| {
        let routing = vm.irq_routing();
        let line = routing.line(5).unwrap();
        assert!(routing.line(24).is_err());
        let irq = routing.message().unwrap();
        irq.route(Some(message(0x61))).unwrap();
        drop(irq);
        line.trigger();
        line
    });
}

#[test]
fn a_message_without_a_route_can_be_signalled() {
    arrives(0x71, |vm| assert!(vm.signal_msi(message(0x71)).unwrap()));
}

#[test]
fn message_interrupts_by_the_hundred() {
    let Some(kvm) = open_or_skip() else { return };
    let guest = Guest::new(&kvm, 1, &[]);
    let routing = guest.vm.irq_routing();
    let all: Vec<_> = (0..300).map(|_| routing.message().unwrap()).collect();
    for irq in &all {
        irq.route(Some(message(0x61))).unwrap();
    }
    let first = all[0].gsi();
    drop(all);
    assert_eq!(routing.message().unwrap().gsi(), first);
}

#[test]
fn other_vcpus_wait_for_their_start_up_ipi() {
    let Some(kvm) = open_or_skip() else { return };
    let mut guest = Guest::protected_mode(
        &kvm,
        2,
        &[
            0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0, 0, 0, 0x01, // mov dword [0xfee00310], 1 << 24  ; to apic 1
            0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0, 0, // mov dword [0xfee00300], 0x4500 ; init
            0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x02, 0x46, 0,
            0, // mov dword [0xfee00300], 0x4602 ; start at 0x2000
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xee, // out dx, al
        ],
    );
    // Real mode: mov al, 'A'; mov dx, 0x3f8; out dx, al
    let second = [0xb0, b'A', 0xba, 0xf8, 0x03, 0xee];
    guest.memory.write_slice(&second, GuestAddress(0x2000)).unwrap();
    let mut other = guest.vm.create_vcpu(1).unwrap();
    assert!(other.is_waiting_for_startup().unwrap());
    assert!(!guest.cpu.is_waiting_for_startup().unwrap());
    let kicker = other.kicker();
    kicker.kick();
    let (interrupted, interruptions) = mpsc::channel();
    let waiting = thread::spawn(move || {
        assert_eq!(other.run().unwrap(), Exit::Interrupted);
        interrupted.send(()).unwrap();
        report(&mut other)
    });
    interruptions
        .recv_timeout(PATIENCE)
        .expect("a waiting vcpu cannot be kicked");
    thread::sleep(Duration::from_millis(20));
    kicker.kick(); // and goes on waiting when run again
    report(&mut guest.cpu);
    assert_eq!(waiting.join().unwrap(), u32::from(b'A'));
}

#[test]
fn a_machine_has_up_to_64_vcpus() {
    let Some(kvm) = open_or_skip() else { return };
    if kvm.capabilities().max_vcpus < 64 {
        eprintln!(
            "skipped: this KVM gives a machine {} vcpus",
            kvm.capabilities().max_vcpus
        );
        return;
    }
    let guest = Guest::new(&kvm, 64, &[]);
    let others: Vec<_> = (1..64).map(|index| guest.vm.create_vcpu(index).unwrap()).collect();
    assert_eq!(others.last().unwrap().index(), 63);
    assert!(guest.vm.create_vcpu(63).is_err(), "an id is taken once");
}

#[test]
fn the_clock_rate_is_known_and_can_be_confirmed() {
    let Some(kvm) = open_or_skip() else { return };
    eprintln!("{:?}", kvm.capabilities());
    let guest = Guest::new(&kvm, 1, &[]);
    match guest.cpu.tsc_khz() {
        Some(khz) => {
            assert!(khz > 100_000, "{khz} kHz");
            guest.cpu.set_tsc_khz(khz).unwrap();
        }
        None => assert!(!kvm.capabilities().tsc_khz),
    }
    guest.cpu.tell_paused();
}

#[test]
fn a_vcpu_goes_on_in_another_machine() {
    let Some(kvm) = open_or_skip() else { return };
    let code = [
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xff, 0x05, 0x00, 0x80, 0x00, 0x00, // inc dword [0x8000]
        0xa1, 0x00, 0x80, 0x00, 0x00, // mov eax, [0x8000]
        0x41, // inc ecx
        0xef, // out dx, eax
        0x91, // xchg eax, ecx
        0xef, // out dx, eax
        0x91, // xchg eax, ecx
        0xeb, 0xee, // jmp to inc
    ];
    let mut guest = Guest::protected_mode(&kvm, 1, &code);
    for round in 1..=20 {
        assert_eq!((report(&mut guest.cpu), report(&mut guest.cpu)), (round, round));
        guest.cpu.settle().unwrap();
        let (cpu, chips) = (guest.cpu.save().unwrap(), guest.vm.save_chips().unwrap());
        let bytes = SaveState::save(&cpu, "cpu0");
        let cpu = VcpuState::load(&bytes).unwrap();
        let next = Guest::new(&kvm, 1, &code);
        let mut ram = vec![0; usize::try_from(RAM).unwrap()];
        guest.memory.read_slice(&mut ram, GuestAddress(0)).unwrap();
        next.memory.write_slice(&ram, GuestAddress(0)).unwrap();
        next.vm.load_chips(&chips).unwrap();
        next.cpu.load(&cpu).unwrap();
        next.vm.load_clock(&chips).unwrap();
        let again = next.vm.save_chips().unwrap();
        let since = again
            .clock_ns()
            .checked_sub(chips.clock_ns())
            .expect("the clock does not go back");
        assert!(since < 5_000_000_000, "the clock jumps by {since} ns");
        guest = next;
    }
}
