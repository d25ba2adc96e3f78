//! From specification and files to a machine that stands still: one file per part, called once each, in this order.
//!
//! ```text
//!   memory ─▶ cpus::vm ─▶ chipset ─▶ pci ─▶ rng, disks, nets ─▶ firmware (kernel, tables) ─▶ cpus ─▶ Machine
//! ```
//! A machine that was saved is put together alike, but not booted: instead of `firmware`, memory, devices and vCPUs get the
//! state they had; one that comes from elsewhere gets it later.
//!
//! Building has no effect outside of this process, so a reset builds again from the same blueprint.

mod chipset;
mod cpus;
mod disks;
mod error;
mod firmware;
mod memory;
mod nets;
mod pci;

use std::sync::Arc;

use device::Device;

pub use error::BuildError;

use crate::Console;
use crate::action::Reporter;
use crate::hardware::{Blueprint, Hardware, Origin};
use crate::layout::Layout;
use crate::machine::Machine;
use crate::saved::Saved;
use crate::vcpu::{Buses, VcpuThreads};

/// Builds the machine of `blueprint`, with its serial port connected to `console`. What its guest does is told by `reporter`.
pub(crate) fn build(
    blueprint: &Blueprint,
    console: &Arc<dyn Console>,
    reporter: &Reporter,
    origin: Origin<'_>,
) -> Result<Box<dyn Hardware>, BuildError> {
    let Blueprint { spec, files, disks, .. } = blueprint;
    let layout = Layout::new(spec);
    let (mut saved, is_copy) = match origin {
        Origin::Saved(files) => {
            let saved = Saved::open(files, spec.cpus().count()).map_err(BuildError::Restore)?;
            (Some(saved), files.copy)
        }
        Origin::Boot | Origin::Elsewhere => (None, false),
    };
    let memory = memory::build(spec.memory(), saved.as_mut())?;
    let vm = cpus::vm(spec.cpus(), &memory)?;
    let buses = Buses::default();
    let chipset = chipset::build(spec, vm.irq_routing(), &buses.pio, console, reporter)?;
    let slots = pci::build(&layout, &vm, &memory, &buses)?;
    let mut devices: Vec<Arc<dyn Device>> = chipset.devices();
    devices.push(pci::entropy(&slots)?);
    let (disk_devices, plugged) = disks::build(disks, &layout, &slots)?;
    devices.extend(plugged);
    devices.extend(nets::build(spec.nets(), &files.taps, &layout, &slots)?);
    // The last: what it maps goes when no device needs it any more.
    devices.push(slots.root());
    let vcpus = match saved {
        None if matches!(origin, Origin::Elsewhere) => cpus::all(&vm)?,
        None => {
            let entry = firmware::build(blueprint, &layout, &vm)?;
            cpus::vcpus(&vm, &entry)?
        }
        Some(saved) => {
            let vcpus = cpus::all(&vm)?;
            let mut state = saved.into_state();
            state.load_devices(&devices, &vm).map_err(BuildError::Restore)?;
            if is_copy {
                let generation = *blueprint.generation.as_bytes();
                let written = boot::write_generation(vm.memory(), generation);
                written.map_err(|error| BuildError::Boot(error.into()))?;
                chipset.events.tell_generation();
            }
            state.load_vcpus(&vcpus, &vm).map_err(BuildError::Restore)?;
            vcpus
        }
    };
    let threads = VcpuThreads::spawn(vcpus, &buses, reporter).map_err(BuildError::Threads)?;
    Ok(Box::new(Machine::new(
        threads,
        vm,
        devices,
        disk_devices,
        chipset.events,
        buses,
    )))
}
