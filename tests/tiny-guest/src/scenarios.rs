//! What can be asked for, by name.

use crate::acpi::Tables;
use crate::blk::{self, Disk, Request};
use crate::info::BootInfo;
use crate::outcome::Outcome;
use crate::{apic, console, cpu, interrupts, memory, pattern, println, smp};

type Scenario = fn(&BootInfo) -> Outcome;

/// The scenarios that come back.
const SCENARIOS: &[(&str, Scenario)] = &[
    ("serial", |_| Ok(())),
    ("acpi", |info| Tables::find(info.rsdp).map(drop)),
    ("memory", ram),
    ("initrd", initrd),
    ("pio", pio),
    ("mmio", mmio),
    ("rtc", rtc),
    ("irq", irq),
    ("smp", all_cpus),
    ("msix", msix),
    ("blk", disk),
    ("blk-verify", disk_verify),
    ("echo", echo),
    ("count", count),
    ("pattern", pattern::run),
    ("power-button", power_button),
];

/// The scenarios that do not come back, unless they fail.
const ENDS: &[(&str, fn())] = &[
    ("spin", || {
        loop {
            core::hint::spin_loop();
        }
    }),
    ("halt", || cpu::stop()),
    ("ticks", ticks),
    ("triple-fault", || cpu::triple_fault()),
    ("reset", || cpu::out8(RESET, 1)),
    ("reset-8042", || cpu::out8(0x64, 0xfe)),
    ("poweroff", || cpu::out8(SLEEP_CONTROL, 0x34)),
];

const SLEEP_CONTROL: u16 = 0x600;
const RESET: u16 = 0x602;
const EVENTS: u16 = 0x604;
const EVENT_PIN: u32 = 9;
const PM_TIMER: u16 = 0x608;
const PM_TIMER_HZ: u32 = 3_579_545;
const PIN_INTERRUPT: u8 = 0x42;
const SELF_INTERRUPT: u8 = 0x43;
const TIMER_INTERRUPT: u8 = 0x44;

/// Runs what the command line names; returns how many failed.
pub fn run(info: &BootInfo) -> u32 {
    let mut failures = 0;
    for name in info.option("test").unwrap_or("serial").split(',') {
        let outcome = if let Some((_, scenario)) = SCENARIOS.iter().find(|(known, _)| *known == name) {
            scenario(info)
        } else if let Some((_, end)) = ENDS.iter().find(|(known, _)| *known == name) {
            println!("READY {name}");
            end();
            // The machine may let a few more instructions run.
            cpu::wait_until(|| false);
            Err("still running")
        } else {
            Err("no such scenario")
        };
        match outcome {
            Ok(()) => println!("PASS {name}"),
            Err(why) => {
                println!("FAIL {name}: {why}");
                failures += 1;
            }
        }
    }
    failures
}

/// Writes to every 32 MiB of RAM (and the last page of each range), then reads all of it back.
fn ram(info: &BootInfo) -> Outcome {
    const STEP: usize = 32 << 20;
    let first = memory::program_end().next_multiple_of(4096);
    let places = || {
        info.ram()
            .iter()
            .filter(|range| range.start >= 0x10_0000)
            .flat_map(move |range| {
                let end = range.start + range.bytes;
                (range.start.max(first)..end).step_by(STEP).chain([end - 4096])
            })
    };
    let mut total = 0;
    for place in places() {
        memory::map(place);
        memory::write(place, !place);
        total += 1;
    }
    if total < 2 {
        return Err("no RAM in the memory map");
    }
    if places().any(|place| memory::read::<u64>(place) != !place) {
        return Err("RAM does not keep what was written");
    }
    let bytes: u64 = info.ram().iter().map(|range| range.bytes).sum();
    println!("ram_mib={}", bytes >> 20);
    Ok(())
}

fn initrd(info: &BootInfo) -> Outcome {
    let (start, bytes) = info.initrd;
    if bytes == 0 {
        return Err("none was given");
    }
    let sum = (0..bytes.min(65536)).fold(0_u32, |sum, offset| {
        sum.wrapping_add(u32::from(memory::read::<u8>(start + offset)))
    });
    println!("initrd_bytes={bytes} sum={sum}");
    Ok(())
}

fn pio(_: &BootInfo) -> Outcome {
    let scratch = 0x3f8 + 7;
    for value in [0x55, 0xaa] {
        cpu::out8(scratch, value);
        if cpu::in8(scratch) != value {
            return Err("the serial port's scratch register does not keep a byte");
        }
    }
    if cpu::in32(0x700) != u32::MAX {
        return Err("a port without a device does not read as all ones");
    }
    let start = cpu::in32(PM_TIMER);
    if !cpu::wait_until(|| cpu::in32(PM_TIMER) != start) {
        return Err("the power management timer stands still");
    }
    Ok(())
}

fn mmio(info: &BootInfo) -> Outcome {
    let ecam = Tables::find(info.rsdp)?.ecam().ok_or("no MCFG")?;
    let empty = ecam + (31 << 15);
    if memory::read::<u32>(empty) != u32::MAX {
        return Err("an empty slot does not read as all ones");
    }
    if memory::read::<u32>(ecam) == u32::MAX {
        return Err("there is no host bridge");
    }
    Ok(())
}

fn rtc(_: &BootInfo) -> Outcome {
    let read = |index: u8| {
        cpu::out8(0x70, index);
        cpu::in8(0x71)
    };
    let [century, year, month, day] = [0x32, 9, 8, 7].map(read);
    println!("date={century:02x}{year:02x}-{month:02x}-{day:02x}");
    if read(0x0d) & 0x80 == 0 {
        return Err("the clock says its battery is empty");
    }
    if century < 0x20 || !(1..=0x12).contains(&month) || !(1..=0x31).contains(&day) {
        return Err("the date is absurd");
    }
    Ok(())
}

/// An interrupt sent to itself, first polled for, then waited for in `hlt`.
fn irq(_: &BootInfo) -> Outcome {
    apic::send(apic::id(), u32::from(SELF_INTERRUPT) | 0x4000);
    cpu::enable_interrupts();
    let came = cpu::wait_until(|| interrupts::count(SELF_INTERRUPT) == 1);
    cpu::disable_interrupts();
    if !came {
        return Err("an interrupt to this CPU does not arrive");
    }
    apic::send(apic::id(), u32::from(SELF_INTERRUPT) | 0x4000);
    cpu::wait_for_interrupt();
    if interrupts::count(SELF_INTERRUPT) != 2 {
        return Err("hlt ended without the interrupt");
    }
    Ok(())
}

fn all_cpus(info: &BootInfo) -> Outcome {
    let mut ids = [0; smp::MOST];
    let mut count = 0;
    let own = apic::id();
    Tables::find(info.rsdp)?.cpus(|id| {
        if id != own && count < ids.len() {
            ids[count] = id;
            count += 1;
        }
    });
    smp::start(&ids[..count])?;
    println!("cpus={}", count + 1);
    Ok(())
}

fn start_disk(info: &BootInfo) -> Result<Disk, &'static str> {
    Disk::start(Tables::find(info.rsdp)?.ecam().ok_or("no MCFG")?)
}

/// Delivery, masking and pending bits of a disk's interrupt.
fn msix(info: &BootInfo) -> Outcome {
    let mut disk = start_disk(info)?;
    disk.run(Request::GetId)?;
    let before = interrupts::count(blk::INTERRUPT);
    disk.device.msix.mask(0, true);
    disk.submit(Request::GetId);
    cpu::enable_interrupts();
    let done = cpu::wait_until(|| disk.device.is_done() && disk.device.msix.is_pending(0));
    cpu::disable_interrupts();
    if !done {
        return Err("a masked vector does not become pending");
    }
    if interrupts::count(blk::INTERRUPT) != before {
        return Err("a masked vector interrupts");
    }
    disk.device.msix.mask(0, false);
    cpu::enable_interrupts();
    let came = cpu::wait_until(|| interrupts::count(blk::INTERRUPT) == before + 1);
    cpu::disable_interrupts();
    if !came {
        return Err("the pending interrupt is lost when unmasked");
    }
    if disk.device.msix.is_pending(0) {
        return Err("the vector is still pending");
    }
    disk.device.stop();
    Ok(())
}

/// Pattern written, flushed, read back; discard and write-zeroes; errors past the end.
fn disk(info: &BootInfo) -> Outcome {
    let mut disk = start_disk(info)?;
    let sectors = disk.sectors();
    println!("disk_sectors={sectors}");
    if sectors < 64 {
        return Err("the disk is too short for this test");
    }
    let chunk = blk::BUFFER / blk::SECTOR;
    let bytes = blk::BUFFER as u32;
    let places = [0, 17, sectors - chunk];
    for sector in places {
        blk::fill(blk::BUFFER, sector);
        disk.run(Request::Write(sector, bytes))?;
    }
    if disk.flushes() {
        disk.run(Request::Flush)?;
    }
    for sector in places {
        blk::fill(blk::BUFFER, !sector);
        disk.run(Request::Read(sector, bytes))?;
        if !blk::matches(blk::BUFFER, sector) {
            return Err("the disk does not hold what was written");
        }
    }
    if disk.writes_zeroes() {
        disk.run(Request::WriteZeroes(17, 2))?;
        disk.run(Request::Read(17, 2 * blk::SECTOR as u32))?;
        if !blk::is_zero(2 * blk::SECTOR) {
            return Err("write-zeroes left data");
        }
    }
    if disk.discards() {
        disk.run(Request::Discard(17, 8))?;
    }
    if disk.run(Request::Read(sectors - 1, 2 * blk::SECTOR as u32)).is_ok() {
        return Err("reading past the end succeeds");
    }
    disk.run(Request::Read(0, blk::SECTOR as u32))?;
    if !blk::matches(blk::SECTOR, 0) {
        return Err("an error disturbed the disk");
    }
    disk.device.stop();
    Ok(())
}

/// What `blk` left at the end of the disk is there, after whatever happened in between.
fn disk_verify(info: &BootInfo) -> Outcome {
    let mut disk = start_disk(info)?;
    let last = disk.sectors() - blk::BUFFER / blk::SECTOR;
    disk.run(Request::Read(last, blk::BUFFER as u32))?;
    disk.device.stop();
    if blk::matches(blk::BUFFER, last) {
        Ok(())
    } else {
        Err("the pattern is not on the disk")
    }
}

/// Sends back what comes in, up to and with a newline.
fn echo(_: &BootInfo) -> Outcome {
    println!("READY echo");
    loop {
        if let Some(byte) = console::get() {
            console::put(byte);
            if byte == b'\n' {
                return Ok(());
            }
        }
    }
}

/// Counts interrupts of its timer, in memory and aloud, until `q` comes in. Every count is written to a page of its own, and all
/// that were written are looked at again, a few each time, and at the end all of them.
fn count(info: &BootInfo) -> Outcome {
    /// 20 ms of the timer's clock, which KVM has run at 1 GHz.
    const PERIOD: u32 = 20_000_000;
    const PAGES: u64 = 1024;
    let base = memory::program_end().next_multiple_of(4096);
    let mut disk = None;
    if info.option("disk").is_some() {
        disk = Some(start_disk(info)?);
    }
    let place = |number: u64| base + number % PAGES * 4096 + number % 500 * 8;
    let right = |number: u64| memory::read::<u64>(place(number)) == number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    println!("READY count");
    apic::start_timer(TIMER_INTERRUPT, PERIOD);
    let mut seen = interrupts::count(TIMER_INTERRUPT);
    for number in 0_u64.. {
        memory::write(place(number), number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for back in [0, 1, 10, 100] {
            if number >= back && !right(number - back) {
                return Err("memory does not hold a count that was written");
            }
        }
        if let Some(disk) = &mut disk {
            blk::fill(blk::SECTOR, number);
            disk.run(Request::Write(number % 64, blk::SECTOR as u32))?;
            blk::fill(blk::SECTOR, !number);
            disk.run(Request::Read(number % 64, blk::SECTOR as u32))?;
            if !blk::matches(blk::SECTOR, number) {
                return Err("the disk does not hold a count that was written");
            }
        }
        println!("count {number}");
        while interrupts::count(TIMER_INTERRUPT) == seen {
            cpu::wait_for_interrupt();
        }
        seen = interrupts::count(TIMER_INTERRUPT);
        match console::get() {
            None => {}
            Some(b'q') if (number.saturating_sub(PAGES - 1)..=number).all(right) => return Ok(()),
            Some(b'q') => return Err("memory does not hold all counts"),
            Some(byte) => println!("typed {}", byte as char),
        }
    }
    Ok(())
}

/// A number every 20 ms, for ever.
fn ticks() {
    for tick in 0_u64.. {
        println!("tick {tick}");
        let start = cpu::in32(PM_TIMER);
        while cpu::in32(PM_TIMER).wrapping_sub(start) < PM_TIMER_HZ / 50 {
            core::hint::spin_loop();
        }
    }
}

/// Waits for the power button as an operating system does, by interrupt and event register.
fn power_button(_: &BootInfo) -> Outcome {
    apic::route_pin(EVENT_PIN, PIN_INTERRUPT);
    println!("READY power-button");
    while interrupts::count(PIN_INTERRUPT) == 0 {
        cpu::wait_for_interrupt();
    }
    if cpu::in32(EVENTS) & 1 == 0 {
        return Err("the event register does not name the power button");
    }
    Ok(())
}
