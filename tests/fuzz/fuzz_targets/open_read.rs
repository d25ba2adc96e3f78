//! A whole image: opened, read from.
#![no_main]

use karat_fuzz::{FILE_BYTES, Memory, open_and_read, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| run(open_and_read(Memory::holding(bytes, FILE_BYTES))));
