//! What registering files and buffers with a ring would save: the same 4 KiB reads with and without, in turns.
//!
//! `cargo run --release -p uring --example registered -- FILE`, a file of at least 64 MiB on the file system in question. It is
//! read from the page cache, then by direct I/O. Behind ADR 0011.
#![expect(
    unsafe_code,
    reason = "this measures the ring itself, below what the crate makes safe"
)]
#![expect(clippy::print_stdout, reason = "the report is what this program is for")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, opcode, squeue};

const DEPTH: usize = 32;
const BLOCK_BYTES: usize = 4096;
const REQUESTS: u64 = 400_000;
const ROUNDS: usize = 7;

/// What is registered.
#[derive(Clone, Copy)]
struct Way {
    file: bool,
    buffers: bool,
}

const WAYS: [Way; 4] = [
    Way {
        file: false,
        buffers: false,
    },
    Way {
        file: true,
        buffers: false,
    },
    Way {
        file: false,
        buffers: true,
    },
    Way {
        file: true,
        buffers: true,
    },
];

fn main() -> io::Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| io::Error::other("which FILE?"))?;
    for (name, flags, requests) in [("page cache", 0, REQUESTS), ("direct", libc::O_DIRECT, REQUESTS / 8)] {
        let file = File::options().read(true).custom_flags(flags).open(&path)?;
        let blocks = file.metadata()?.len() / BLOCK_BYTES as u64;
        let mut seconds: [Vec<f64>; 4] = Default::default();
        // The first round only fills the cache.
        for round in 0..=ROUNDS {
            for (way, seconds) in WAYS.iter().zip(&mut seconds) {
                let took = reads(&file, blocks, requests, *way)?;
                if round > 0 {
                    seconds.push(took);
                }
            }
        }
        let medians = seconds.map(|mut all| {
            all.sort_by(f64::total_cmp);
            all.get(ROUNDS / 2).copied().unwrap_or(f64::NAN) * 1e6
        });
        let [plain, ..] = medians;
        for (way, median) in WAYS.iter().zip(medians) {
            let Way { file, buffers } = way;
            println!(
                "{name}: file registered {file}, buffers registered {buffers}: {median:.3} us per read, {:.3} of plain",
                median / plain
            );
        }
    }
    Ok(())
}

/// Seconds per read.
fn reads(file: &File, blocks: u64, requests: u64, way: Way) -> io::Result<f64> {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(64)?;
    let mut memory = vec![0_u8; (DEPTH + 1) * BLOCK_BYTES];
    let start = memory.as_mut_ptr();
    let start = start.wrapping_add(start.align_offset(BLOCK_BYTES));
    let bufs: Vec<libc::iovec> = (0..DEPTH)
        .map(|index| libc::iovec {
            iov_base: start.wrapping_add(index * BLOCK_BYTES).cast(),
            iov_len: BLOCK_BYTES,
        })
        .collect();
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    // SAFETY: `memory` outlives the ring's use of it: every read is waited for below, and the ring is dropped before it.
    unsafe { ring.submitter().register_buffers(&bufs) }?;
    let begun = Instant::now();
    let (mut launched, mut landed, mut block) = (0_u64, 0_u64, 0_u64);
    let mut free: Vec<usize> = (0..DEPTH).collect();
    while landed < requests {
        while launched < requests
            && let Some(slot) = free.pop()
        {
            block = (block + 7919) % blocks;
            let at = start.wrapping_add(slot * BLOCK_BYTES);
            let entry = entry(file, way, slot, at, block * BLOCK_BYTES as u64);
            // SAFETY: the slot's memory is in no other operation until this one has landed.
            unsafe { ring.submission().push(&entry.user_data(slot as u64)) }
                .map_err(|_| io::Error::other("the queue is full"))?;
            launched += 1;
        }
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            if completion.result() < 0 {
                return Err(io::Error::from_raw_os_error(-completion.result()));
            }
            free.push(usize::try_from(completion.user_data()).unwrap_or(0));
            landed += 1;
        }
    }
    Ok(begun.elapsed().as_secs_f64() / requests as f64)
}

#[expect(clippy::cast_possible_truncation, reason = "4096 and less than 32")]
fn entry(file: &File, way: Way, slot: usize, at: *mut u8, offset: u64) -> squeue::Entry {
    let (len, slot) = (BLOCK_BYTES as u32, slot as u16);
    let fd = Fd(file.as_raw_fd());
    match way {
        Way {
            file: false,
            buffers: false,
        } => opcode::Read::new(fd, at, len).offset(offset).build(),
        Way {
            file: true,
            buffers: false,
        } => opcode::Read::new(Fixed(0), at, len).offset(offset).build(),
        Way {
            file: false,
            buffers: true,
        } => opcode::ReadFixed::new(fd, at, len, slot).offset(offset).build(),
        Way {
            file: true,
            buffers: true,
        } => opcode::ReadFixed::new(Fixed(0), at, len, slot).offset(offset).build(),
    }
}
