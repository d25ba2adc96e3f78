//! What the machine hands over: command line, memory map, ACPI root pointer.

use crate::memory::read;

/// A range of the memory map.
#[derive(Clone, Copy)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length, bytes.
    pub bytes: u64,
}

/// What is wanted from either boot protocol.
pub struct BootInfo {
    command_line: &'static [u8],
    ranges: [Range; 16],
    range_count: usize,
    /// Address of the RSDP; 0 if none was given.
    pub rsdp: u64,
    /// First bytes of the initial RAM disk and its length; 0 if there is none.
    pub initrd: (u64, u64),
}

impl BootInfo {
    /// Reads `hvm_start_info` (protocol 0) or `boot_params` (protocol 1) at `at`.
    pub fn read(at: u64, protocol: u32) -> Self {
        let mut info = Self {
            command_line: &[],
            ranges: [Range { start: 0, bytes: 0 }; 16],
            range_count: 0,
            rsdp: 0,
            initrd: (0, 0),
        };
        if protocol == 0 {
            assert!(read::<u32>(at) == 0x336e_c578, "no PVH start info at {at:#x}");
            info.command_line = text(read(at + 24));
            info.rsdp = read(at + 32);
            if read::<u32>(at + 12) > 0 {
                let module: u64 = read(at + 16);
                info.initrd = (read(module), read(module + 8));
            }
            let (map, count) = (read::<u64>(at + 40), read::<u32>(at + 48));
            for entry in 0..u64::from(count) {
                info.add_range(map + entry * 24);
            }
        } else {
            info.command_line = text(u64::from(read::<u32>(at + 0x228)));
            info.rsdp = read(at + 0x70);
            info.initrd = (u64::from(read::<u32>(at + 0x218)), u64::from(read::<u32>(at + 0x21c)));
            for entry in 0..u64::from(read::<u8>(at + 0x1e8)) {
                info.add_range(at + 0x2d0 + entry * 20);
            }
        }
        info
    }

    /// Takes a map entry: start, length, type; of type RAM only.
    fn add_range(&mut self, entry: u64) {
        let halves = |at: u64| u64::from(read::<u32>(at)) | u64::from(read::<u32>(at + 4)) << 32;
        if read::<u32>(entry + 16) == 1 && self.range_count < self.ranges.len() {
            self.ranges[self.range_count] = Range {
                start: halves(entry),
                bytes: halves(entry + 8),
            };
            self.range_count += 1;
        }
    }

    /// Usable RAM.
    pub fn ram(&self) -> &[Range] {
        &self.ranges[..self.range_count]
    }

    /// What is behind `key=` on the command line.
    pub fn option(&self, key: &str) -> Option<&'static str> {
        let line = core::str::from_utf8(self.command_line).unwrap_or("");
        line.split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

fn text(at: u64) -> &'static [u8] {
    if at == 0 {
        return &[];
    }
    let length = (0..4096).take_while(|offset| read::<u8>(at + offset) != 0).count();
    // SAFETY: the machine put the command line there, and nothing here writes below 1 MiB but the page of the trampoline.
    unsafe { core::slice::from_raw_parts(at as *const u8, length) }
}
