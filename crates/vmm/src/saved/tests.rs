//! Memory in files: what is written, left out, read and refused.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use guestmem::{Bytes, GuestAddress, MemoryConfig};
use tempfile::TempDir;

use super::*;

fn ram(size_bytes: u64) -> GuestMemory {
    GuestMemory::new(MemoryConfig {
        size_bytes,
        hugepages: None,
        prefault: false,
    })
    .unwrap()
}

struct Bench {
    folder: TempDir,
    fd: std::fs::File,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(folder.path()).unwrap();
        Self { folder, fd }
    }

    fn directory(&self) -> Directory<'_> {
        Directory::new(self.fd.as_fd())
    }

    fn file(&self) -> std::fs::File {
        let path = self.folder.path().join("memory");
        std::fs::File::options().read(true).write(true).open(path).unwrap()
    }

    fn read(&self, state: &MemoryState, memory: &GuestMemory) -> Result<(), RestoreError> {
        self.directory().read_memory(state, &state.save(""), memory)
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn memory_comes_back_and_zeroes_take_no_room() {
    let bench = Bench::new();
    // 3 GiB and a little, so that there are two regions; the second begins within nothing but its own piece.
    let size = (3 << 30) + 5 * MIB + 8192;
    let memory = ram(size);
    let places = [0, 5000, 7 * MIB - 1, (3 << 30) - 8, 1 << 32, (1 << 32) + 5 * MIB + 8184];
    for (value, place) in (1_u64..).zip(places) {
        memory.write_obj(value, GuestAddress(place)).unwrap_or_else(|_| {
            // Across the end of a piece is fine; across the end of RAM is not.
            panic!("{place:#x}")
        });
    }
    memory.write_slice(&[0; 4096], GuestAddress(900 * MIB)).unwrap();
    let state = bench.directory().write_memory(&memory).unwrap();
    let file = bench.file().metadata().unwrap();
    assert_eq!(file.len(), size);
    assert!(file.blocks() * 512 <= 16 * 4096, "{} blocks", file.blocks());
    let again = ram(size);
    bench.read(&state, &again).unwrap();
    for (value, place) in (1_u64..).zip(places) {
        assert_eq!(again.read_obj::<u64>(GuestAddress(place)).unwrap(), value, "{place:#x}");
    }
    let other = Bench::new();
    assert_eq!(other.directory().write_memory(&again).unwrap(), state, "same checksums");
}

#[test]
fn damage_and_other_sizes_are_refused() {
    let bench = Bench::new();
    let memory = ram(4 * MIB);
    memory.write_obj(7_u64, GuestAddress(2 * MIB + 100)).unwrap();
    let state = bench.directory().write_memory(&memory).unwrap();
    bench.file().write_all_at(&[1], 2 * MIB + 5000).unwrap();
    let error = bench.read(&state, &ram(4 * MIB)).unwrap_err();
    assert!(
        matches!(error, RestoreError::Damaged { offset } if offset == 2 * MIB),
        "{error}"
    );
    bench.file().write_all_at(&[0], 2 * MIB + 5000).unwrap();
    bench.read(&state, &ram(4 * MIB)).unwrap();
    bench.file().write_all_at(&[1], 3 * MIB + 5000).unwrap();
    let error = bench.read(&state, &ram(4 * MIB)).unwrap_err();
    assert!(
        matches!(error, RestoreError::Damaged { offset } if offset == 3 * MIB),
        "where nothing was: {error}"
    );
    bench.file().write_all_at(&[0], 3 * MIB + 5000).unwrap();
    let error = bench.read(&state, &ram(8 * MIB)).unwrap_err();
    assert!(error.to_string().contains("bytes of memory"), "{error}");
    bench.file().set_len(3 * MIB).unwrap();
    let error = bench.read(&state, &ram(4 * MIB)).unwrap_err();
    assert!(error.to_string().contains("memory file"), "{error}");
}

#[test]
fn mapped_memory_is_the_file_until_it_is_written_and_is_saved_whole() {
    let bench = Bench::new();
    let memory = ram(4 * MIB);
    memory.write_obj(7_u64, GuestAddress(2 * MIB + 100)).unwrap();
    let state = bench.directory().write_memory(&memory).unwrap();
    let mapped = bench.directory().map_memory(4 * MIB).unwrap();
    mapped.write_obj(9_u64, GuestAddress(MIB)).unwrap();
    bench.read(&state, &ram(4 * MIB)).expect("the file is as it was");
    let other = Bench::new();
    let saved = other.directory().write_memory(&mapped).unwrap();
    let again = ram(4 * MIB);
    other.read(&saved, &again).unwrap();
    let read = |place| again.read_obj::<u64>(GuestAddress(place)).unwrap();
    assert_eq!((read(2 * MIB + 100), read(MIB)), (7, 9));
}

#[test]
fn a_directory_takes_one_machine_and_what_is_no_state_is_refused() {
    let bench = Bench::new();
    bench.directory().claim().unwrap();
    assert!(matches!(
        bench.directory().read_state(),
        Err(RestoreError::File { file: "state", .. })
    ));
    bench.directory().write_state(b"something").unwrap();
    assert!(matches!(bench.directory().claim(), Err(SaveMachineError::Occupied)));
    let names: Vec<_> = std::fs::read_dir(bench.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["state"]);
    let files = SavedFiles {
        directory: bench.fd.try_clone().unwrap().into(),
        lazy: false,
        copy: false,
    };
    assert!(matches!(Saved::open(&files, 1), Err(RestoreError::Parse(_))));
}
