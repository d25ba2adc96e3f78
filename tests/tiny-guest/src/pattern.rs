//! A counter that goes through memory, for machines that move while it does.

use crate::info::BootInfo;
use crate::outcome::Outcome;
use crate::{apic, console, cpu, interrupts, memory, println};

/// 10 ms of the timer's clock, which KVM has run at 1 GHz.
const PERIOD: u32 = 10_000_000;
const INTERRUPT: u8 = 0x45;
/// Odd, so that multiples of it go through all pages of a power of two in an order that nobody guesses.
const STRIDE: u64 = 0x9e37_79b1;
/// Pages between two looks at the console, which are slow.
const LOOK: u64 = 1024;

/// Memory that the counter goes through.
struct Span {
    base: u64,
    pages: u64,
}

impl Span {
    /// The page that is number `step` of every pass.
    fn page(&self, step: u64) -> u64 {
        step.wrapping_mul(STRIDE) & (self.pages - 1)
    }

    /// Where the counter is in a page: elsewhere in each.
    fn place(&self, page: u64) -> u64 {
        self.base + page * 4096 + page % 512 * 8
    }

    fn holds(&self, pass: u64, page: u64) -> bool {
        memory::read::<u64>(self.place(page)) == value(pass, page)
    }

    fn write(&self, pass: u64, page: u64) {
        memory::write(self.place(page), value(pass, page));
    }
}

fn value(pass: u64, page: u64) -> u64 {
    (pass << 32 | page).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn number(info: &BootInfo, key: &str) -> u64 {
    info.option(key).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Goes through `mib` MiB (a power of two) again and again, page by page in a scattered order: looks whether a page holds what the
/// pass before has written, and writes the next. With `rate`, so many pages in 10 ms, else as fast as it can. `q` ends it with a
/// look at all pages; so does a page that holds something else.
pub fn run(info: &BootInfo) -> Outcome {
    let span = Span {
        base: memory::program_end().next_multiple_of(2 << 20),
        pages: number(info, "mib") << 8,
    };
    let end = span.base + span.pages * 4096;
    let fits = info.ram().iter().any(|ram| ram.start <= span.base && end <= ram.start + ram.bytes);
    if !span.pages.is_power_of_two() || !fits {
        return Err("mib= has to be a power of two that fits into memory");
    }
    (0..span.pages).for_each(|page| span.write(0, page));
    println!("READY pattern");
    let rate = number(info, "rate");
    if rate > 0 {
        apic::start_timer(INTERRUPT, PERIOD);
    }
    for pass in 1_u64.. {
        for step in 0..span.pages {
            let page = span.page(step);
            if !span.holds(pass - 1, page) {
                println!("pass {pass} page {page}: {:#x}", memory::read::<u64>(span.place(page)));
                return Err("a page does not hold what was written last");
            }
            span.write(pass, page);
            if step % LOOK == 0 && console::get() == Some(b'q') {
                return verify(&span, pass, step);
            }
            if rate > 0 && step % rate == 0 {
                let seen = interrupts::count(INTERRUPT);
                while interrupts::count(INTERRUPT) == seen {
                    cpu::wait_for_interrupt();
                }
            }
        }
        println!("pass {pass}");
    }
    Ok(())
}

/// All pages hold what they should after step `last` of `pass`.
fn verify(span: &Span, pass: u64, last: u64) -> Outcome {
    for step in 0..span.pages {
        let expected = if step <= last { pass } else { pass - 1 };
        if !span.holds(expected, span.page(step)) {
            return Err("a page does not hold what was written last, at the end");
        }
    }
    println!("verified {} pages in pass {pass}", span.pages);
    Ok(())
}
