//! The table of documented keys.
//!
//! Values and meanings of the rows with [`Origin::Reference`] are those of the reference's appendix; literal values are
//! lower case there. Rows with [`Origin::Beyond`] are documented by the image service in other places.

use super::key::{AppliesTo, KeySpec, Origin, PropertyUse};
use super::value::ValueRule;
use crate::architecture::Architecture;

use AppliesTo::{All, Kvm, Vmware, Xen};
use Origin::{Beyond, Reference};
use PropertyUse::{Machine, Provenance, Verification};
use ValueRule::{Choice, CpuList, ImageId, Integer, OsDistro, Text, Uuid};

/// Controllers that a disk can be said to hang on.
const BUSES: &[&str] = &["scsi", "virtio", "ide", "usb"];
/// Network cards, those of KVM first, then VMware's and Xen's.
const VIFS: &[&str] = &[
    "e1000",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "virtio",
    "e1000e",
    "VirtualE1000",
    "VirtualE1000e",
    "VirtualPCNet32",
    "VirtualSriovEthernetCard",
    "VirtualVmxnet",
    "netfront",
];
/// Most vCPUs, sockets, cores or threads a topology can ask for.
const CPUS: ValueRule = Integer { min: 1, max: 64 };
/// Longest kernel command line, bytes, without the terminating zero (x86 `COMMAND_LINE_SIZE`).
const CMDLINE: ValueRule = Text { max: 2047 };
const TRUE_FALSE: ValueRule = Choice(&["true", "false"]);
const YES_NO: ValueRule = Choice(&["yes", "no"]);

const fn row(
    key: &'static str,
    origin: Origin,
    applies_to: AppliesTo,
    used_for: PropertyUse,
    value: ValueRule,
    meaning: &'static str,
) -> KeySpec {
    KeySpec {
        key,
        indexed: false,
        origin,
        applies_to,
        used_for,
        value,
        meaning,
    }
}

const fn indexed(key: &'static str, value: ValueRule, meaning: &'static str) -> KeySpec {
    KeySpec {
        key,
        indexed: true,
        origin: Reference,
        applies_to: Kvm,
        used_for: Machine,
        value,
        meaning,
    }
}

/// Sorted by key.
#[rustfmt::skip]
pub(super) const KEYS: &[KeySpec] = &[
    row("architecture", Reference, All, Machine, Choice(Architecture::TEXTS), "processor the image is made for"),
    row("auto_disk_config", Reference, Xen, Machine, TRUE_FALSE, "whether the root partition is resized before boot"),
    row("hw_boot_menu", Beyond, Kvm, Machine, TRUE_FALSE, "whether the firmware shows a boot menu"),
    row("hw_cdrom_bus", Reference, Kvm, Machine, Choice(BUSES), "controller of CD-ROM drives"),
    row("hw_cpu_cores", Beyond, Kvm, Machine, CPUS, "preferred cores per socket"),
    row("hw_cpu_max_cores", Beyond, Kvm, Machine, CPUS, "most cores per socket the guest supports"),
    row("hw_cpu_max_sockets", Beyond, Kvm, Machine, CPUS, "most sockets the guest supports"),
    row("hw_cpu_max_threads", Beyond, Kvm, Machine, CPUS, "most threads per core the guest supports"),
    row("hw_cpu_policy", Beyond, Kvm, Machine, Choice(&["shared", "dedicated"]), "whether vCPUs are pinned to host processors"),
    row("hw_cpu_sockets", Beyond, Kvm, Machine, CPUS, "preferred number of sockets"),
    row("hw_cpu_threads", Beyond, Kvm, Machine, CPUS, "preferred threads per core"),
    row("hw_disk_bus", Reference, Kvm, Machine, Choice(BUSES), "controller of disks; scsi needs hw_scsi_model virtio-scsi"),
    row("hw_firmware_type", Beyond, Kvm, Machine, Choice(&["bios", "uefi"]), "firmware the image boots with"),
    row("hw_machine_type", Beyond, Kvm, Machine, Text { max: 255 }, "machine type of another monitor program"),
    row("hw_mem_encryption", Beyond, Kvm, Machine, TRUE_FALSE, "whether guest memory must be encrypted"),
    row("hw_mem_page_size", Beyond, Kvm, Machine, Choice(&["small", "large", "any", "2MB", "1GB"]), "size of the pages behind guest memory"),
    indexed("hw_numa_cpus", CpuList, "vCPUs of a NUMA node, comma separated, ranges with a hyphen"),
    indexed("hw_numa_mem", Integer { min: 1, max: i32::MAX as u32 }, "memory of a NUMA node, MB"),
    row("hw_numa_nodes", Reference, Kvm, Machine, Integer { min: 1, max: 64 }, "number of NUMA nodes shown to the guest"),
    row("hw_pointer_model", Beyond, Kvm, Machine, Choice(&["usbtablet"]), "pointing device"),
    row("hw_qemu_guest_agent", Reference, Kvm, Machine, YES_NO, "whether the guest runs the agent, so that it can be quiesced"),
    row("hw_rng_model", Reference, Kvm, Machine, Choice(&["virtio"]), "source of randomness for the guest"),
    row("hw_scsi_model", Reference, Kvm, Machine, Choice(&["virtio-scsi"]), "SCSI controller; disks then are its logical units"),
    row("hw_tpm_model", Beyond, Kvm, Machine, Choice(&["tpm-tis", "tpm-crb"]), "emulated TPM the image needs"),
    row("hw_tpm_version", Beyond, Kvm, Machine, Choice(&["1.2", "2.0"]), "version of the emulated TPM the image needs"),
    row("hw_video_model", Reference, Kvm, Machine, Choice(&["virtio", "qxl", "cirrus", "vga", "gop", "xen", "vmvga", "none"]), "video card"),
    row("hw_video_ram", Reference, Kvm, Machine, Integer { min: 0, max: 16_384 }, "most memory of the video card, MB"),
    row("hw_vif_model", Reference, Kvm, Machine, Choice(VIFS), "network card"),
    row("hw_vif_multiqueue_enabled", Beyond, Kvm, Machine, TRUE_FALSE, "a pair of queues per vCPU on each network card"),
    row("hw_watchdog_action", Reference, Kvm, Machine, Choice(&["disabled", "reset", "poweroff", "pause", "none"]), "what a watchdog does when the guest hangs"),
    row("hypervisor_type", Reference, All, Machine, Choice(&["kvm", "vmware"]), "hypervisor the image is made for"),
    row("img_signature", Beyond, All, Verification, Text { max: 4096 }, "signature of the image, base64"),
    row("img_signature_certificate_uuid", Beyond, All, Verification, Uuid, "certificate the signature is checked with"),
    row("img_signature_hash_method", Beyond, All, Verification, Choice(&["SHA-224", "SHA-256", "SHA-384", "SHA-512"]), "digest that was signed"),
    row("img_signature_key_type", Beyond, All, Verification, Choice(&["RSA-PSS", "DSA", "ECC_SECT571K1", "ECC_SECT409K1", "ECC_SECT571R1", "ECC_SECT409R1", "ECC_SECP521R1", "ECC_SECP384R1"]), "kind of the key that signed"),
    row("instance_uuid", Reference, All, Provenance, Uuid, "machine that a snapshot image was made from"),
    row("kernel_id", Reference, All, Machine, ImageId, "image that is the kernel of machines made from this one"),
    row("os_admin_user", Beyond, All, Provenance, Text { max: 255 }, "name of the administrator's account in the guest"),
    row("os_command_line", Reference, Kvm, Machine, CMDLINE, "kernel command line; for aki, ari and ami images only"),
    row("os_distro", Reference, All, Machine, OsDistro, "distribution of the operating system, lower case"),
    row("os_require_quiesce", Beyond, Kvm, Machine, YES_NO, "refuse snapshots that could not quiesce the guest"),
    row("os_secure_boot", Beyond, Kvm, Machine, Choice(&["required", "disabled", "optional"]), "whether only signed code may boot"),
    row("os_type", Reference, Kvm, Machine, Choice(&["linux", "windows"]), "family of the operating system"),
    row("os_version", Reference, All, Provenance, Text { max: 255 }, "version of the operating system, as its makers write it"),
    row("ramdisk_id", Reference, All, Machine, ImageId, "image that is the ramdisk of machines made from this one"),
    row("verify_on_boot", Beyond, All, Verification, TRUE_FALSE, "whether the image is compared with its digest before each start of a machine"),
    row("vm_mode", Reference, All, Machine, Choice(&["hvm", "xen", "uml", "exe"]), "interface between guest and host; KVM has hvm"),
    row("vmware_adaptertype", Reference, Vmware, Machine, Choice(&["lsiLogic", "busLogic", "ide"]), "VMware's disk controller"),
    row("vmware_image_version", Reference, Vmware, Machine, Choice(&["1"]), "not used by VMware either"),
    row("vmware_ostype", Reference, Vmware, Machine, Text { max: 255 }, "VMware's name of the guest, otherGuest by default"),
];
