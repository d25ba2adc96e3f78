//! A machine in a directory: saved by one process, gone on with by another.
//!
//! ```text
//!   DIRECTORY/memory   the RAM, as long as it is, with holes where it is zero
//!   DIRECTORY/state    everything else, as `savestate` writes it; there last of all, so that where it is, all is
//! ```
//! A machine that moves to another process has the same state, and its memory goes another way.
//!
//! The disks are not in it. What the guest knows of its machine has to be the same in both processes: memory, vCPUs, slots and
//! what sits in them.

mod directory;
#[cfg(test)]
mod golden_tests;
mod memory;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use device::{Device, Migration, SaveError};
use guestmem::GuestMemory;
use kvm::{CallError, ChipState, LoadVcpuError, Vcpu, VcpuState, Vm};
use savestate::{LoadError, Problem, SaveState, SavedState, Sections};

use crate::files::SavedFiles;
use directory::Directory;
use memory::MemoryState;

savestate::section! {
    /// What a machine is, as far as its state depends on it.
    struct MachineState = "machine", version 1 {
        /// Version of the program that saved it, for people.
        program: String,
        vcpus: u32,
    }
}

/// Why a machine can not be saved. It is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveMachineError {
    /// A file in the directory.
    #[error("{file} can not be written in the directory of the saved machine")]
    File {
        /// Its name.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// There is one already.
    #[error("the directory holds a saved machine already: pass an empty one")]
    Occupied,
    /// Guest memory can not be read; a defect.
    #[error("guest memory can not be read")]
    Memory(#[source] guestmem::GuestMemoryError),
    /// A device.
    #[error(transparent)]
    Device(SaveError),
    /// Interrupt chips, clock or a vCPU.
    #[error(transparent)]
    Kvm(CallError),
    /// Sections that can not be written; a defect.
    #[error(transparent)]
    Sections(Problem),
}

impl SaveMachineError {
    /// Whether there is no room for its files.
    pub(crate) fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, Self::File { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}

/// Why a saved machine can not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file in the directory.
    #[error("{file} can not be read in the directory of the saved machine")]
    File {
        /// Its name.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What is in the file is no saved state.
    #[error(transparent)]
    Parse(Problem),
    /// It does not fit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The memory is not what was saved.
    #[error("memory of the saved machine is damaged: 1 MiB at {offset:#x} of its file has another checksum")]
    Damaged {
        /// Where in the file, bytes.
        offset: u64,
    },
    /// Guest memory can not be written; a defect.
    #[error("guest memory can not be written")]
    Memory(#[source] guestmem::GuestMemoryError),
    /// The memory file can not be mapped.
    #[error("memory of the saved machine can not be mapped")]
    Map(#[source] guestmem::CreateError),
    /// Interrupt chips or clock.
    #[error(transparent)]
    Chips(CallError),
    /// A vCPU.
    #[error("vcpu {index} can not go on")]
    Vcpu {
        /// Which.
        index: u32,
        /// Why.
        source: LoadVcpuError,
    },
    /// It has a device that can not be moved.
    #[error("{name} can not be restored: {why}")]
    Immovable {
        /// The device.
        name: String,
        /// Why.
        why: &'static str,
    },
}

/// The parts of a machine that stands still.
pub(crate) struct Parts<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) devices: &'a [Arc<dyn Device>],
    /// The state of each vCPU, in order.
    pub(crate) vcpus: Vec<VcpuState>,
}

/// Saves it into `directory`; all is durable when this returns. After an error, what was written is no saved machine.
pub(crate) fn save(parts: &Parts<'_>, directory: BorrowedFd<'_>) -> Result<(), SaveMachineError> {
    let directory = Directory::new(directory);
    directory.claim()?;
    let mut state = state_of(parts)?;
    let memory = directory.write_memory(parts.vm.memory())?;
    state.add(memory.save("")).map_err(SaveMachineError::Sections)?;
    directory.write_state(&state.encode())
}

/// All of it but memory and disks, as `savestate` writes it.
pub(crate) fn encode(parts: &Parts<'_>) -> Result<Vec<u8>, SaveMachineError> {
    Ok(state_of(parts)?.encode())
}

fn state_of(parts: &Parts<'_>) -> Result<SavedState, SaveMachineError> {
    let mut state = SavedState::new();
    let mut add = |section| state.add(section).map_err(SaveMachineError::Sections);
    let machine = MachineState {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        vcpus: u32::try_from(parts.vcpus.len()).unwrap_or(u32::MAX),
    };
    add(machine.save(""))?;
    for device in parts.devices {
        let name = || device.name().to_owned();
        let sections = match device.migration() {
            Migration::Stateless => continue,
            Migration::Sections(migrate) => migrate.save(),
            Migration::Immovable { why } => Err(SaveError::Immovable { name: name(), why }),
        };
        for section in sections.map_err(SaveMachineError::Device)? {
            add(section)?;
        }
    }
    add(parts.vm.save_chips().map_err(SaveMachineError::Kvm)?.save(""))?;
    for (index, vcpu) in parts.vcpus.iter().enumerate() {
        add(vcpu.save(&vcpu_name(index)))?;
    }
    Ok(state)
}

fn vcpu_name(index: usize) -> String {
    format!("cpu{index}")
}

/// What [`encode`] wrote. The parts of a new machine are given their state in the order of the methods.
pub(crate) struct State {
    sections: Sections,
    chips: ChipState,
}

impl State {
    /// Checks that it is of a machine with so many vCPUs.
    pub(crate) fn parse(bytes: &[u8], vcpus: u32) -> Result<Self, RestoreError> {
        let mut sections = SavedState::parse(bytes).map_err(RestoreError::Parse)?.into_sections();
        let (machine, section) = sections.take::<MachineState>("")?;
        if machine.vcpus != vcpus {
            let why = format!("it has {vcpus} vcpus, and had {}", machine.vcpus);
            return Err(LoadError::unfit(&section, why).into());
        }
        let (chips, _) = sections.take("")?;
        Ok(Self { sections, chips })
    }

    /// Devices before the interrupt chips: an edge that one of them raises on the way is in the saved chips, if the guest had not
    /// taken it.
    pub(crate) fn load_devices(&mut self, devices: &[Arc<dyn Device>], vm: &Vm) -> Result<(), RestoreError> {
        for device in devices {
            match device.migration() {
                Migration::Stateless => {}
                Migration::Sections(migrate) => migrate.load(&mut self.sections)?,
                Migration::Immovable { why } => {
                    let name = device.name().to_owned();
                    return Err(RestoreError::Immovable { name, why });
                }
            }
        }
        vm.load_chips(&self.chips).map_err(RestoreError::Chips)
    }

    /// vCPUs, with their local APICs, and the clock at last. Nothing may be left then.
    pub(crate) fn load_vcpus<V: Deref<Target = Vcpu>>(
        mut self,
        vcpus: impl IntoIterator<Item = V>,
        vm: &Vm,
    ) -> Result<(), RestoreError> {
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (state, _) = self.sections.take::<VcpuState>(&vcpu_name(index))?;
            let index = vcpu.index();
            vcpu.load(&state)
                .map_err(|source| RestoreError::Vcpu { index, source })?;
        }
        vm.load_clock(&self.chips).map_err(RestoreError::Chips)?;
        Ok(self.sections.finish()?)
    }
}

/// A saved machine that is being restored: memory, then [`Saved::into_state`].
pub(crate) struct Saved<'a> {
    directory: Directory<'a>,
    state: State,
    lazy: bool,
}

impl<'a> Saved<'a> {
    /// Reads the state, and checks that it is of a machine with so many vCPUs.
    pub(crate) fn open(files: &'a SavedFiles, vcpus: u32) -> Result<Self, RestoreError> {
        let directory = Directory::new(files.directory.as_fd());
        let state = State::parse(&directory.read_state()?, vcpus)?;
        Ok(Self {
            directory,
            state,
            lazy: files.lazy,
        })
    }

    /// Memory is to be mapped, not read.
    pub(crate) const fn is_lazy(&self) -> bool {
        self.lazy
    }

    /// Instead of [`Saved::load_memory`]: RAM that is the file, until the guest writes it. In no time, and without a look at the
    /// checksums.
    pub(crate) fn map_memory(&mut self, ram_bytes: u64) -> Result<GuestMemory, RestoreError> {
        let (state, section) = self.state.sections.take::<MemoryState>("")?;
        state.check_size(ram_bytes, &section)?;
        self.directory.map_memory(ram_bytes)
    }

    /// RAM first: devices look into it.
    pub(crate) fn load_memory(&mut self, memory: &GuestMemory) -> Result<(), RestoreError> {
        let (state, section) = self.state.sections.take::<MemoryState>("")?;
        self.directory.read_memory(&state, &section, memory)
    }

    /// Everything else.
    pub(crate) fn into_state(self) -> State {
        self.state
    }
}
