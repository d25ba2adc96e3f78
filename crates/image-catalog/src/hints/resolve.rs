//! From properties to wishes and conditions, one property at a time.

use spec::DiskBus;

use super::condition::{Condition, ConditionKind, Severity};
use super::{Abilities, Firmware, MachineHints, NumaNode, OsType, PageSize, WatchdogAction};
use crate::architecture::Architecture;
use crate::property::{AppliesTo, Properties, PropertyUse, cpu_list, find_key, number};

/// Longest host name a Windows guest takes, bytes: shorter than 16, as the reference has it for `os_type`.
const WINDOWS_HOSTNAME_MAX: usize = 15;

/// What was found so far.
struct Resolver<'a> {
    abilities: &'a Abilities,
    hints: MachineHints,
    conditions: Vec<Condition>,
}

/// What `properties` ask of a machine, and what of it a machine with `abilities` can not give. Conditions come in the order
/// of the properties, which is by key.
pub fn machine_hints(properties: &Properties, abilities: &Abilities) -> (MachineHints, Vec<Condition>) {
    let mut resolver = Resolver {
        abilities,
        hints: MachineHints::default(),
        conditions: Vec::new(),
    };
    for (key, value) in properties.iter() {
        let Some((spec, index)) = find_key(key) else { continue };
        match (spec.used_for, spec.applies_to) {
            (PropertyUse::Verification | PropertyUse::Provenance, _) => {}
            (PropertyUse::Machine, AppliesTo::Vmware | AppliesTo::Xen) => {
                let message = format!("{value} is for machines of another hypervisor and is kept for them");
                resolver.lacks(ConditionKind::OtherHypervisor, key, message);
            }
            (PropertyUse::Machine, _) => match index {
                Some(index) => resolver.numa(spec.key, index, key, value),
                None => resolver.one(key, value, properties),
            },
        }
    }
    (resolver.hints, resolver.conditions)
}

impl Resolver<'_> {
    /// The machine is made without it.
    fn lacks(&mut self, kind: ConditionKind, property: &str, message: impl Into<String>) {
        self.note(kind, Severity::NotApplied, property, message.into());
    }

    /// No machine is made.
    fn refuses(&mut self, kind: ConditionKind, property: &str, message: impl Into<String>) {
        self.note(kind, Severity::Refused, property, message.into());
    }

    fn note(&mut self, kind: ConditionKind, severity: Severity, property: &str, message: String) {
        self.conditions.push(Condition {
            kind,
            severity,
            property: property.to_owned(),
            message,
        });
    }

    /// A property without an index.
    fn one(&mut self, key: &str, value: &str, properties: &Properties) {
        match key {
            "architecture" | "hypervisor_type" | "vm_mode" => self.host(key, value),
            "hw_disk_bus" | "hw_cdrom_bus" | "hw_scsi_model" => self.bus(key, value, properties),
            "hw_vif_model" | "hw_vif_multiqueue_enabled" => self.network(key, value),
            "hw_video_model" | "hw_video_ram" => self.video(key, value),
            "hw_rng_model" | "hw_watchdog_action" | "hw_qemu_guest_agent" | "os_require_quiesce" => {
                self.device(key, value);
            }
            "os_type" | "os_distro" => self.system(key, value),
            "kernel_id" | "ramdisk_id" | "os_command_line" => self.boot(key, value, properties),
            "hw_firmware_type" | "os_secure_boot" | "hw_machine_type" | "hw_boot_menu" => self.firmware(key, value),
            "hw_numa_nodes" => self.nodes(key, value),
            "hw_mem_page_size" | "hw_cpu_policy" => self.placement(key, value),
            "hw_mem_encryption" | "hw_tpm_model" | "hw_tpm_version" | "hw_pointer_model" => self.feature(key, value),
            _ if key.starts_with("hw_cpu_") => self.topology(key, value),
            _ => self.lacks(
                ConditionKind::FeatureNotAvailable,
                key,
                "machines here know nothing of it",
            ),
        }
    }

    fn host(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("architecture", _) => {
                self.hints.architecture = Architecture::of(value);
                let host = self.abilities.architecture;
                if !self.hints.architecture.is_some_and(|arch| arch.runs_on(host)) {
                    let message =
                        format!("the image is made for {value} and this host is {host}: take an image for {host}");
                    self.refuses(ConditionKind::ArchitectureNotRun, key, message);
                }
            }
            ("hypervisor_type", "kvm") => self.hints.kvm = true,
            ("vm_mode", "hvm") => self.hints.hvm = true,
            _ => {
                let message = format!("the image is made for {value}: take one for KVM, fully virtualised");
                self.refuses(ConditionKind::HypervisorNotKvm, key, message);
            }
        }
    }

    fn bus(&mut self, key: &str, value: &str, properties: &Properties) {
        let bus = match value {
            "virtio" => Some(DiskBus::Virtio),
            "scsi" | "virtio-scsi" if self.abilities.scsi => Some(DiskBus::Scsi),
            _ => None,
        };
        match (key, bus) {
            ("hw_cdrom_bus", Some(bus)) => self.hints.cdrom_bus = Some(bus),
            ("hw_cdrom_bus", None) => {
                let message = format!("there is no {value} here; CD-ROM drives hang on the bus Karat gives them");
                self.lacks(ConditionKind::BusNotAvailable, key, message);
            }
            // The model alone asks for SCSI; beside a bus it only says which SCSI.
            ("hw_scsi_model", Some(bus)) if properties.get("hw_disk_bus").is_none_or(|disk| disk == "scsi") => {
                self.hints.disk_bus = Some(bus);
            }
            ("hw_scsi_model", Some(_)) if properties.get("hw_cdrom_bus") == Some("scsi") => {}
            ("hw_scsi_model", Some(_)) => {
                let message = "hw_disk_bus puts the disks elsewhere, so that there may be no SCSI controller";
                self.lacks(ConditionKind::BusNotAvailable, key, message);
            }
            ("hw_disk_bus", Some(bus)) => self.hints.disk_bus = Some(bus),
            _ => {
                let message = format!("machines here have no {value} disks: set hw_disk_bus to virtio");
                self.refuses(ConditionKind::BusNotAvailable, key, message);
            }
        }
    }

    fn network(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("hw_vif_model", "virtio") => self.hints.virtio_net = true,
            ("hw_vif_model", _) => {
                let message = format!("machines here have no {value}: set hw_vif_model to virtio");
                self.refuses(ConditionKind::VifModelNotAvailable, key, message);
            }
            (_, "true") if !self.abilities.multiqueue => {
                self.lacks(
                    ConditionKind::FeatureNotAvailable,
                    key,
                    "network cards have one pair of queues",
                );
            }
            (_, value) => self.hints.multiqueue = Some(value == "true"),
        }
    }

    fn video(&mut self, key: &str, value: &str) {
        if value == "none" || value == "0" {
            self.hints.headless = true;
        } else {
            let message = format!("{value}: machines here have a serial console and no video card");
            self.lacks(ConditionKind::VideoNotAvailable, key, message);
        }
    }

    fn device(&mut self, key: &str, value: &str) {
        let yes = value == "yes";
        match key {
            "hw_rng_model" if self.abilities.rng => self.hints.rng = true,
            "hw_rng_model" => {
                self.lacks(
                    ConditionKind::RngNotAvailable,
                    key,
                    "machines here have no source of randomness",
                );
            }
            "hw_watchdog_action" => match WatchdogAction::of(value) {
                None => {}
                Some(action) if self.abilities.watchdog => self.hints.watchdog = Some(action),
                Some(_) => {
                    let message = "machines here have no watchdog: a guest that hangs stays so until it is stopped";
                    self.lacks(ConditionKind::WatchdogNotAvailable, key, message);
                }
            },
            "os_require_quiesce" if yes && !self.abilities.guest_agent => {
                let message =
                    "snapshots can not quiesce the guest, and the image refuses others: take none, or set it to no";
                self.lacks(ConditionKind::GuestAgentNotAvailable, key, message);
                self.hints.require_quiesce = Some(true);
            }
            "os_require_quiesce" => self.hints.require_quiesce = Some(yes),
            _ if yes && !self.abilities.guest_agent => {
                let message = "machines here have no channel to it: snapshots are taken without quiescing the guest";
                self.lacks(ConditionKind::GuestAgentNotAvailable, key, message);
            }
            _ => self.hints.guest_agent = Some(yes),
        }
    }

    fn system(&mut self, key: &str, value: &str) {
        if key == "os_distro" {
            self.hints.os_distro = Some(value.to_owned());
            return;
        }
        self.hints.os_type = OsType::of(value);
        if self.hints.os_type == Some(OsType::Windows) {
            self.hints.hostname_max = Some(WINDOWS_HOSTNAME_MAX);
            self.hints.windows_tuning = self.abilities.windows;
            if !self.abilities.windows {
                let message = "the clock runs in UTC and nothing is offered that Windows knows of KVM";
                self.lacks(ConditionKind::WindowsNotTuned, key, message);
            }
        }
    }

    fn boot(&mut self, key: &str, value: &str, properties: &Properties) {
        match key {
            "kernel_id" => self.hints.kernel = value.parse().ok(),
            "ramdisk_id" if properties.get("kernel_id").is_none() => {
                self.lacks(
                    ConditionKind::RamdiskWithoutKernel,
                    key,
                    "set kernel_id too, or take it away",
                );
            }
            "ramdisk_id" => self.hints.ramdisk = value.parse().ok(),
            _ => self.hints.command_line = Some(value.to_owned()),
        }
    }

    fn firmware(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("hw_firmware_type", _) => {
                match Firmware::of(value).filter(|wish| self.abilities.firmware.contains(wish)) {
                    Some(firmware) => self.hints.firmware = Some(firmware),
                    None => {
                        let message =
                            format!("machines here can not begin with {value}: name a kernel, or take another image");
                        self.refuses(ConditionKind::FirmwareNotAvailable, key, message);
                    }
                }
            }
            ("os_secure_boot", "disabled") => self.hints.secure_boot = Some(false),
            ("os_secure_boot", _) if self.abilities.secure_boot => self.hints.secure_boot = Some(true),
            ("os_secure_boot", "optional") => {
                self.lacks(
                    ConditionKind::SecureBootNotAvailable,
                    key,
                    "the machine boots whatever is on its disk",
                );
            }
            ("os_secure_boot", _) => {
                let message = "the image demands it and nothing here checks what boots: take another image or host";
                self.refuses(ConditionKind::SecureBootNotAvailable, key, message);
            }
            ("hw_machine_type", _) => {
                let message = format!("{value}: Karat has one kind of machine, with modern virtio on PCI Express");
                self.lacks(ConditionKind::MachineTypeNotAvailable, key, message);
            }
            (_, "true") => self.lacks(ConditionKind::FeatureNotAvailable, key, "there is no boot menu"),
            _ => {}
        }
    }

    fn nodes(&mut self, key: &str, value: &str) {
        let nodes = number(value).unwrap_or(1).clamp(1, 64);
        if self.abilities.numa {
            let wanted = usize::try_from(nodes).unwrap_or(1);
            if self.hints.numa.len() < wanted {
                self.hints.numa.resize(wanted, NumaNode::default());
            }
        } else if nodes > 1 {
            self.lacks(
                ConditionKind::NumaNotAvailable,
                key,
                format!("{nodes} nodes: the guest sees one"),
            );
        }
    }

    fn numa(&mut self, stem: &str, index: u32, key: &str, value: &str) {
        if !self.abilities.numa {
            self.lacks(ConditionKind::NumaNotAvailable, key, "the guest sees one node");
            return;
        }
        let index = usize::try_from(index).unwrap_or(0);
        if self.hints.numa.len() <= index {
            self.hints.numa.resize(index + 1, NumaNode::default());
        }
        let Some(node) = self.hints.numa.get_mut(index) else {
            return;
        };
        match stem {
            "hw_numa_cpus" => node.cpus = cpu_list(value).unwrap_or(0),
            _ => node.memory_mib = number(value),
        }
    }

    fn placement(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("hw_cpu_policy", "dedicated") if !self.abilities.pinning => {
                self.lacks(
                    ConditionKind::PinningNotAvailable,
                    key,
                    "vCPUs share the host's processors",
                );
            }
            ("hw_cpu_policy", _) => self.hints.pinned = Some(value == "dedicated"),
            (_, "large" | "2MB" | "1GB") if !self.abilities.hugepages => {
                let message = format!("{value}: guest memory is made of the host's base pages");
                self.lacks(ConditionKind::PageSizeNotAvailable, key, message);
            }
            _ => self.hints.page_size = PageSize::of(value),
        }
    }

    fn feature(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("hw_mem_encryption", "false") => {}
            ("hw_mem_encryption", _) => {
                let message = "the image demands encrypted memory, which machines here have not: take another host";
                self.refuses(ConditionKind::FeatureNotAvailable, key, message);
            }
            ("hw_pointer_model", _) => {
                self.lacks(
                    ConditionKind::FeatureNotAvailable,
                    key,
                    "machines here have no pointing device",
                );
            }
            _ => {
                let message = format!("{value}: machines here have no TPM, and what is sealed to one does not open");
                self.lacks(ConditionKind::FeatureNotAvailable, key, message);
            }
        }
    }

    fn topology(&mut self, key: &str, value: &str) {
        if !self.abilities.topology {
            let message = "the layout of vCPUs is not chosen here";
            self.lacks(ConditionKind::TopologyNotAvailable, key, message);
            return;
        }
        let topology = &mut self.hints.topology;
        let slot = match key {
            "hw_cpu_sockets" => &mut topology.sockets,
            "hw_cpu_cores" => &mut topology.cores,
            "hw_cpu_threads" => &mut topology.threads,
            "hw_cpu_max_sockets" => &mut topology.max_sockets,
            "hw_cpu_max_cores" => &mut topology.max_cores,
            _ => &mut topology.max_threads,
        };
        *slot = number(value);
    }
}
