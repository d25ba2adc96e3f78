//! Whole-crate tests: images made here, guest memory looked at afterwards.

use std::io::{Read, Write};

use guestmem::MemoryConfig;

use super::*;

const MIB: u64 = 1 << 20;
/// Where the test kernel lies and begins.
const LOAD: u64 = 16 * MIB;
const ELF_ENTRY: u64 = LOAD + 0x10;
const PVH_ENTRY: u32 = 16 << 20 | 0x20;
const CODE: &[u8] = &[0x90; 0x100];

/// A machine with `vcpus` vCPUs.
pub(crate) fn platform(vcpus: u32) -> Platform {
    Platform {
        apic_ids: (0..vcpus).collect(),
        mmio64: 0x10_0000_0000..=0x1f_ffff_ffff,
        uuid: *b"0123456789abcdef",
        generation: *b"fedcba9876543210",
        registers: RegisterValues {
            reset: 1,
            sleep_type_s5: 5,
            power_button_event: 1,
            generation_event: 2,
            rtc_century: 0x32,
        },
        pm_timer: true,
    }
}

fn memory(bytes: u64) -> GuestMemory {
    GuestMemory::new(MemoryConfig {
        size_bytes: bytes,
        hugepages: None,
        prefault: false,
    })
    .unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An ELF kernel: 0x100 bytes of code at [`LOAD`] with 0x1000 in memory, and a PVH note if `pvh`.
fn elf(pvh: bool) -> Vec<u8> {
    let segments: u16 = if pvh { 2 } else { 1 };
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1_u32.to_le_bytes());
    image.extend([ELF_ENTRY, 64, 0].map(u64::to_le_bytes).concat());
    image.extend(0_u32.to_le_bytes());
    image.extend([64, 56, segments, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut segment = |kind: u32, offset: u64, file: u64, memory: u64| {
        image.extend([kind, 5].map(u32::to_le_bytes).concat());
        image.extend(
            [offset, LOAD, LOAD, file, memory, 0x1000]
                .map(u64::to_le_bytes)
                .concat(),
        );
    };
    segment(1, 0x200, 0x100, 0x1000);
    if pvh {
        segment(4, 0x180, 20, 20);
    }
    image.resize(0x180, 0);
    image.extend([4, 4, 18].map(u32::to_le_bytes).concat());
    image.extend(b"Xen\0");
    image.extend(PVH_ENTRY.to_le_bytes());
    image.resize(0x200, 0);
    image.extend(CODE);
    image
}

/// A bzImage whose protected-mode code is `payload` behind 0x400 bytes of something.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x201] = 0x6a;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    let mut word = |at: usize, value: u32| image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    word(0x214, 0x10_0000);
    word(0x22c, 0x7fff_ffff);
    word(0x238, 100);
    word(0x248, 0x400);
    word(0x24c, u32::try_from(payload.len()).unwrap());
    word(0x258, 0x100_0000);
    word(0x260, 0x20_0000);
    image.extend([0xcc; 0x400]);
    image.extend(payload);
    image
}

/// As `lz4 -l` and Linux's build make it.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(bytes);
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    out.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
    out.extend(block);
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}

fn boot(memory: &GuestMemory, kernel: &[u8], initrd: Option<&[u8]>, line: &str) -> Result<Entry, BootError> {
    let kernel = file(kernel);
    let initrd = initrd.map(file);
    let payload = Payload {
        kernel: &kernel,
        initrd: initrd.as_ref(),
        command_line: line,
    };
    prepare(memory, &platform(2), payload)
}

fn read<const N: usize>(memory: &GuestMemory, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn read_u64(memory: &GuestMemory, at: u64) -> u64 {
    u64::from_le_bytes(read(memory, at))
}

fn read_u32(memory: &GuestMemory, at: u64) -> u32 {
    u32::from_le_bytes(read(memory, at))
}

#[test]
fn elf_with_note_enters_by_pvh_with_all_it_was_given() {
    let memory = memory(64 * MIB);
    let entry = boot(&memory, &elf(true), Some(b"initrd!"), "console=ttyS0").unwrap();
    let Entry::Pvh { rip, start_info } = entry else {
        panic!("{entry:?}");
    };
    assert_eq!(rip, PVH_ENTRY);
    assert_eq!(&read::<0x100>(&memory, LOAD), CODE);
    // mov dx, 0x602; mov al, 1; out dx, al
    assert_eq!(read(&memory, 0xf_fff0), [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee]);
    let info = u64::from(start_info);
    assert_eq!(read_u32(&memory, info), 0x336e_c578);
    assert_eq!(&read::<14>(&memory, read_u64(&memory, info + 24)), b"console=ttyS0\0");
    let rsdp = read_u64(&memory, info + 32);
    assert_eq!(&read::<8>(&memory, rsdp), b"RSD PTR ");
    let modules = read_u64(&memory, info + 16);
    assert_eq!((read_u32(&memory, info + 12), read_u64(&memory, modules + 8)), (1, 7));
    let initrd = read_u64(&memory, modules);
    assert_eq!(&read::<7>(&memory, initrd), b"initrd!");
    assert_eq!(initrd, 64 * MIB - 4096);
    let (map, count) = (read_u64(&memory, info + 40), read_u32(&memory, info + 48));
    let last = map + u64::from(count - 1) * 24;
    assert_eq!(read_u64(&memory, last), layout::ECAM_BASE);
}

#[test]
fn elf_without_note_enters_in_long_mode() {
    let memory = memory(64 * MIB);
    let entry = boot(&memory, &elf(false), Some(b"initrd!"), "quiet").unwrap();
    let Entry::Linux64 { rip, zero_page } = entry else {
        panic!("{entry:?}");
    };
    assert_eq!(rip, ELF_ENTRY);
    assert_eq!(&read::<4>(&memory, zero_page + 0x202), b"HdrS");
    assert_eq!(read_u64(&memory, zero_page + 0x70), layout::RSDP);
    assert_eq!(
        &read::<6>(&memory, u64::from(read_u32(&memory, zero_page + 0x228))),
        b"quiet\0"
    );
    assert_eq!(read_u32(&memory, zero_page + 0x21c), 7);
    assert!(read::<1>(&memory, zero_page + 0x1e8)[0] >= 4);
}

#[test]
fn bzimage_with_known_compression_boots_its_vmlinux() {
    let memory = memory(64 * MIB);
    let entry = boot(&memory, &bzimage(&lz4(&elf(true))), None, "").unwrap();
    assert!(matches!(entry, Entry::Pvh { rip: PVH_ENTRY, .. }), "{entry:?}");
    assert_eq!(&read::<0x100>(&memory, LOAD), CODE);
    let entry = boot(&memory, &bzimage(&lz4(&elf(false))), None, "").unwrap();
    assert!(matches!(entry, Entry::Linux64 { rip: ELF_ENTRY, .. }), "{entry:?}");
    assert_eq!(u16::from_le_bytes(read(&memory, layout::ZERO_PAGE + 0x206)), 0x020f);
}

#[test]
fn a_compressed_kernel_is_bounded_by_the_machines_memory() {
    let mut vmlinux = elf(true);
    vmlinux.resize(24 << 20, 0);
    let mut packed = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(vmlinux.as_slice(), flate2::Compression::fast());
    encoder.read_to_end(&mut packed).unwrap();
    let mut image = bzimage(&packed);
    image[0x260..0x264].fill(0xff);
    let error = boot(&memory(20 * MIB), &image, None, "").unwrap_err().to_string();
    assert!(
        error.contains("25165824 bytes decompressed where 20971520 are allowed"),
        "{error}"
    );
    boot(&memory(32 * MIB), &image, None, "").unwrap();
}

#[test]
fn bzimage_with_other_compression_is_left_to_the_guest() {
    let memory = memory(64 * MIB);
    let image = bzimage(&[b"\xfd7zXZ\0".as_slice(), &[7; 1000]].concat());
    let entry = boot(&memory, &image, Some(&[1; 5000]), "").unwrap();
    let Entry::Linux64 { rip, zero_page } = entry else {
        panic!("{entry:?}");
    };
    assert_eq!(rip, 0x10_0200);
    assert_eq!(read::<6>(&memory, 0x10_0400), *b"\xfd7zXZ\0");
    assert_eq!(read_u64(&memory, zero_page + 0x258), 0x100_0000);
    assert_eq!(read_u32(&memory, zero_page + 0x218), 64 * (1 << 20) - 8192);
}

#[test]
fn refusals_say_what_to_do() {
    let memory = memory(20 * MIB);
    let say =
        |kernel: &[u8], initrd: Option<&[u8]>, line: &str| boot(&memory, kernel, initrd, line).unwrap_err().to_string();
    assert_eq!(
        say(b"#!/bin/sh\nexit 0\n", None, ""),
        "kernel is neither an ELF file (vmlinux) nor a bzImage: it begins with 23 21 2f 62 69 6e 2f 73"
    );
    assert!(say(b"", None, "").ends_with("nothing, it is empty"));
    assert!(say(&elf(true)[..0x250], None, "").contains("truncated: an ELF segment ends at byte 768, the file at 592"));
    assert!(say(&bzimage(&lz4(&elf(true)))[..0x800], None, "").contains("truncated"));
    assert!(say(&elf(true), Some(&vec![0; 4 << 20]), "").contains("does not fit below 0x1400000 and above the kernel"));
    assert!(say(&elf(true), Some(b""), "").contains("empty"));
    assert!(say(&elf(true), None, &"x".repeat(3000)).contains("3000 bytes, this kernel takes at most 2047"));
    assert!(say(&bzimage(&lz4(&elf(true))), None, &"x".repeat(101)).contains("at most 100"));
    assert!(say(&elf(true), None, "a\0b").contains("NUL"));
    let small = self::memory(8 * MIB);
    assert!(
        boot(&small, &elf(true), None, "")
            .unwrap_err()
            .to_string()
            .contains("more memory")
    );
}

#[test]
fn tables_of_many_vcpus_fit_and_their_sums_are_zero() {
    for vcpus in [1, 64, 300] {
        let memory = memory(2 * MIB);
        tables::write(&memory, &platform(vcpus)).unwrap();
        let rsdp: [u8; 36] = read(&memory, layout::RSDP);
        assert_eq!([sum(&rsdp[..20]), sum(&rsdp)], [0, 0]);
        let xsdt = table(&memory, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        let mut found = vec![];
        for pointer in xsdt[36..].chunks_exact(8) {
            let table = table(&memory, u64::from_le_bytes(pointer.try_into().unwrap()));
            found.push(String::from_utf8(table[..4].to_vec()).unwrap());
            if table.starts_with(b"FACP") {
                let dsdt = u64::from_le_bytes(table[140..148].try_into().unwrap());
                assert!(self::table(&memory, dsdt).starts_with(b"DSDT"));
            }
        }
        assert_eq!(found, ["FACP", "APIC", "MCFG"]);
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(read_u32(memory, at + 4)).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    assert_eq!(sum(&bytes), 0, "{:?}", &bytes[..4]);
    bytes
}

/// Every table through Intel's compiler, which disassembles it and compiles the result again.
#[test]
fn tables_survive_disassembly_by_iasl() {
    use std::process::Command;
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: no iasl here (Debian: acpica-tools)");
        return;
    }
    let memory = memory(2 * MIB);
    tables::write(&memory, &platform(4)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let xsdt = table(&memory, read_u64(&memory, layout::RSDP + 24));
    let mut tables: Vec<_> = xsdt[36..]
        .chunks_exact(8)
        .map(|pointer| table(&memory, u64::from_le_bytes(pointer.try_into().unwrap())))
        .collect();
    let dsdt = u64::from_le_bytes(tables[0][140..148].try_into().unwrap());
    tables.push(table(&memory, dsdt));
    tables.push(xsdt);
    for table in tables {
        let name = String::from_utf8(table[..4].to_ascii_lowercase()).unwrap();
        std::fs::write(folder.path().join(format!("{name}.dat")), &table).unwrap();
        let iasl = |arguments: &[&str]| {
            let output = Command::new("iasl")
                .args(arguments)
                .current_dir(&folder)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "iasl {arguments:?}: {text}");
            text
        };
        let disassembly = iasl(&["-d", &format!("{name}.dat")]);
        let source = std::fs::read_to_string(folder.path().join(format!("{name}.dsl"))).unwrap();
        assert!(
            !disassembly.contains("rror") && !source.contains("**** "),
            "{disassembly}\n{source}"
        );
        let compiled = iasl(&[&format!("{name}.dsl")]);
        assert!(
            compiled.contains(" 0 Errors, 0 Warnings") || name != "dsdt",
            "{compiled}"
        );
    }
}

mod mutated {
    //! Images with bytes overwritten: whatever comes of it, no panic and no large allocation.

    use super::*;

    fn mutate(mut image: Vec<u8>, changes: &[(usize, u64, usize)]) -> Vec<u8> {
        for &(at, value, width) in changes {
            let at = at % image.len();
            let bytes = value.to_le_bytes();
            let width = width.min(image.len() - at);
            image[at..at + width].copy_from_slice(&bytes[..width]);
        }
        image
    }

    fn interesting() -> impl proptest::strategy::Strategy<Value = u64> {
        use proptest::prelude::*;
        prop_oneof![
            any::<u64>(),
            0_u64..0x400,
            Just(u64::MAX),
            Just(1 << 63),
            Just(LOAD),
            (0_u32..64).prop_map(|bit| 1 << bit)
        ]
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, ..Default::default() })]

        #[test]
        fn elf_headers(changes in proptest::collection::vec((0_usize..0x200, interesting(), 1_usize..9), 1..4), cut in 0_usize..0x600) {
            let memory = memory(32 * MIB);
            let mut image = mutate(elf(true), &changes);
            image.truncate(cut.max(1));
            if let Ok(Entry::Pvh { rip, .. }) = boot(&memory, &image, None, "") {
                proptest::prop_assert!(u64::from(rip) >= layout::HIGH_MEMORY && u64::from(rip) < 32 * MIB);
            }
        }

        #[test]
        fn bzimage_headers(changes in proptest::collection::vec((0x1f0_usize..0x280, interesting(), 1_usize..9), 1..4), packed in proptest::bool::ANY, cut in 0_usize..0x2000) {
            let memory = memory(32 * MIB);
            let payload = if packed { lz4(&elf(true)) } else { vec![9; 100] };
            let mut image = mutate(bzimage(&payload), &changes);
            image.truncate(cut.max(1));
            let _ = boot(&memory, &image, Some(b"disk"), "");
        }
    }
}
