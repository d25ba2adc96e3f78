//! What earlier releases saved is loaded: see `tests/golden/README.md`.

use std::path::PathBuf;

use chipset::{EventRegister, PmTimer, Rtc, Serial, SerialPeer};
use device::{BusHandler, IrqLine, MapError, MsiMessage, MsiRoutes};
use disk::{Geometry, InMemory};
use guestmem::MemoryConfig;
use pci::Root;
use virtio::{VirtioDevice, VirtioPci};
use virtio_devices::{Blk, BlkOptions, Lun, LunOptions, Medium, Rng, RngOptions, Scsi, ScsiOptions};

use super::*;
use crate::layout::{FIRST_DISK_SLOT, RNG_SLOT, SCSI_SLOT};

/// Everything around devices, and nothing behind it.
struct Nothing;

impl IrqLine for Nothing {
    fn trigger(&self) {}
}

impl SerialPeer for Nothing {
    fn output(&self, _bytes: &[u8]) {}
    fn input_wanted(&self) {}
}

impl MsiRoutes for Nothing {
    fn route(&self, _vector: u16, _message: Option<MsiMessage>) {}
    fn deliver(&self, _vector: u16) {}
}

impl pci::BarSpace for Nothing {
    fn map(&self, _base: u64, _size: u64, _handler: Arc<dyn BusHandler>) -> Result<(), MapError> {
        Ok(())
    }
    fn unmap(&self, _base: u64, _size: u64, _handler: &Arc<dyn BusHandler>) {}
}

/// The devices of the golden machine, as they are when it is built.
fn devices() -> Vec<Arc<dyn Device>> {
    let memory = GuestMemory::new(MemoryConfig {
        size_bytes: 32 << 20,
        hugepages: None,
        prefault: false,
    });
    let memory = memory.unwrap();
    let window = boot::layout::MMIO32_START..boot::layout::MMIO32_START + boot::layout::MMIO32_BYTES;
    let root = Root::new(Arc::new(Nothing), Vec::from_iter([window]));
    let mut devices: Vec<Arc<dyn Device>> = vec![
        Arc::new(Serial::new("serial", Arc::new(Nothing), Arc::new(Nothing))),
        Arc::new(Rtc::new()),
        Arc::new(EventRegister::new(Arc::new(Nothing))),
        Arc::new(PmTimer::new()),
    ];
    let disk = || Arc::new(InMemory::new(Geometry::of_size(1 << 20)));
    let blk = BlkOptions {
        name: "disk0".to_owned(),
        serial: String::new(),
        queues: 1,
        queue_size: 256,
    };
    let scsi = Scsi::new(ScsiOptions {
        name: "scsi0".to_owned(),
        request_queues: 2,
        queue_size: 256,
    });
    let unit = LunOptions {
        serial: String::new(),
        medium: Medium::Disk,
    };
    scsi.attach(Lun::new(0, 0).unwrap(), disk(), unit).unwrap();
    let plugged: [(u8, Arc<dyn VirtioDevice>); 3] = [
        (RNG_SLOT, Arc::new(Rng::new(RngOptions::named("rng0")))),
        (FIRST_DISK_SLOT, Arc::new(Blk::new(disk(), blk))),
        (SCSI_SLOT, Arc::new(scsi)),
    ];
    for (slot, device) in plugged {
        let (transport, endpoint) = VirtioPci::new(device, memory.clone(), Arc::new(Nothing)).unwrap();
        root.plug(slot, endpoint).unwrap();
        devices.push(transport);
    }
    devices.push(root);
    devices
}

fn golden() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries
        .map(|path| path.join("state"))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found
}

#[test]
fn what_every_release_saved_is_loaded_and_nothing_is_left() {
    let golden = golden();
    assert!(!golden.is_empty(), "tests/golden is there");
    for path in golden {
        let file = std::fs::read(&path).unwrap();
        let state = SavedState::parse(&file).unwrap();
        let mut sections = state.clone().into_sections();
        let (machine, _) = sections.take::<MachineState>("").unwrap();
        assert_eq!(machine.vcpus, 2, "{}", path.display());
        let (memory, _) = sections.take::<MemoryState>("").unwrap();
        assert!(!memory.is_empty(), "{}", path.display());
        let (_chips, _) = sections.take::<ChipState>("").unwrap();
        for index in 0..2 {
            let (_vcpu, _) = sections.take::<VcpuState>(&vcpu_name(index)).unwrap();
        }
        let devices = devices();
        for device in &devices {
            let Migration::Sections(migrate) = device.migration() else {
                continue;
            };
            migrate
                .load(&mut sections)
                .unwrap_or_else(|error| panic!("{}: {}", path.display(), crate::story::whole(&error)));
        }
        sections.finish().unwrap();
        // Saved again, every device says what it said, unless the file is of an older version.
        for section in devices.iter().flat_map(|device| device::conformance::save(&**device)) {
            let old = state.sections().iter();
            let mut old = old.filter(|old| (old.kind(), old.name()) == (section.kind(), section.name()));
            let old = old.next().unwrap();
            if old.version() == section.version() {
                assert_eq!(&section, old, "{}", path.display());
            }
        }
    }
}
