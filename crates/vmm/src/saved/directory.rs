//! The files of a saved machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use guestmem::GuestMemory;
use rustix::fs::{Mode, OFlags, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;
use savestate::Section;

use super::memory::{self, MemoryState};
use super::{RestoreError, SaveMachineError};

/// Everything but memory.
const STATE: &str = "state";
/// The same while it is being written.
const UNFINISHED: &str = "state.part";
/// RAM.
const MEMORY: &str = "memory";
/// Longest state that is read, bytes: many times that of the largest machine.
const STATE_MAX: u64 = 256 << 20;
/// Only whoever runs machines reads their memory.
const MODE: Mode = Mode::from_raw_mode(0o600);

/// The directory, which somebody else opened.
pub(super) struct Directory<'a>(BorrowedFd<'a>);

fn unwritable(file: &'static str) -> impl Fn(io::Error) -> SaveMachineError {
    move |source| SaveMachineError::File { file, source }
}

fn unreadable(file: &'static str) -> impl Fn(io::Error) -> RestoreError {
    move |source| RestoreError::File { file, source }
}

impl<'a> Directory<'a> {
    pub(super) const fn new(directory: BorrowedFd<'a>) -> Self {
        Self(directory)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(openat(self.0, name, flags, MODE)?.into())
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(openat(self.0, name, flags, Mode::empty())?.into())
    }

    /// There is no saved machine in it yet.
    pub(super) fn claim(&self) -> Result<(), SaveMachineError> {
        match self.open(STATE) {
            Ok(_) => Err(SaveMachineError::Occupied),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(unwritable(STATE)(error)),
        }
    }

    pub(super) fn write_memory(&self, memory: &GuestMemory) -> Result<MemoryState, SaveMachineError> {
        let file = self.create(MEMORY).map_err(unwritable(MEMORY))?;
        let state = memory::write(memory, &file).map_err(|error| match error {
            memory::WriteError::Memory(error) => SaveMachineError::Memory(error),
            memory::WriteError::File(error) => unwritable(MEMORY)(error),
        })?;
        file.sync_all().map_err(unwritable(MEMORY))?;
        Ok(state)
    }

    /// It appears at once, and after everything else is durable.
    pub(super) fn write_state(&self, bytes: &[u8]) -> Result<(), SaveMachineError> {
        let written = self.create(UNFINISHED).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            renameat(self.0, UNFINISHED, self.0, STATE)?;
            Ok(fsync(self.0)?)
        });
        written.map_err(|error| {
            match unlinkat(self.0, UNFINISHED, rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => tracing::warn!(%errno, "{UNFINISHED} stays behind in the directory of a saved machine"),
            }
            unwritable(STATE)(error)
        })
    }

    pub(super) fn read_state(&self) -> Result<Vec<u8>, RestoreError> {
        let read = self.open(STATE).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(STATE_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        read.map_err(unreadable(STATE))
    }

    pub(super) fn map_memory(&self, ram_bytes: u64) -> Result<GuestMemory, RestoreError> {
        let file = self.open(MEMORY).map_err(unreadable(MEMORY))?;
        GuestMemory::over(file, ram_bytes).map_err(RestoreError::Map)
    }

    pub(super) fn read_memory(
        &self,
        state: &MemoryState,
        section: &Section,
        memory: &GuestMemory,
    ) -> Result<(), RestoreError> {
        let file = self.open(MEMORY).map_err(unreadable(MEMORY))?;
        memory::read(state, section, &file, memory).map_err(|error| match error {
            memory::ReadError::File(error) => unreadable(MEMORY)(error),
            memory::ReadError::Other(error) => error,
        })
    }
}
