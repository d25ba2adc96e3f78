//! From what was written to what it means: the one place that interprets a [`VmSpec`].

use std::path::PathBuf;

use crate::disk::{self, DISKS_MAX, DiskBus, DiskPlan};
use crate::host::{HostLimits, check_path};
use crate::id::{MacAddress, VmId};
use crate::machine::{
    CPUS_MAX, Cpus, HugePages, MEMORY_MIN, MachineParts, MachineSpec, Memory, NETS_MAX, NetSpec, QUEUE_PAIRS_MAX,
};
use crate::name::Name;
use crate::problem::Problems;
use crate::quantity::ByteSize;
use crate::vm::{HugePagesWish, NetworkWish, VmSpec};

/// Kernel command line where neither user nor image names one.
const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// Longest name of a network device, bytes, without the terminating zero (Linux `IFNAMSIZ` − 1).
const TAP_NAME_MAX: usize = 15;
/// Default number of queues of a disk: one per vCPU, but no more threads than pay off.
const DISK_QUEUES_DEFAULT_MAX: u32 = 4;

/// A machine that was checked against the host, with the sources of its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPlan {
    /// Its name.
    pub name: Name,
    /// The golden image of the root disk, as written; the image store decides whether it exists.
    pub image: Option<String>,
    /// Size of the root disk, where one was asked for.
    pub root_size: Option<ByteSize>,
    /// How the guest reaches the root disk.
    pub root_bus: DiskBus,
    /// What it boots.
    pub boot: BootPlan,
    /// vCPUs.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Memory,
    /// Disks after the root disk, in the order in which the guest finds them.
    pub disks: Vec<DiskPlan>,
    /// Interfaces.
    pub nets: Vec<NetPlan>,
}

/// What a machine boots; `None` means the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootPlan {
    /// Kernel file, beneath one of the host's `file_roots`.
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system, likewise.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: Option<String>,
}

/// An interface and the tap it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetPlan {
    /// Name of the tap device.
    pub tap: String,
    /// Its address, if one was written.
    pub mac: Option<MacAddress>,
    /// Pairs of queues.
    pub queue_pairs: u16,
}

impl VmPlan {
    /// Checks everything that can be checked without touching the host, and reports all that is wrong.
    pub fn new(spec: &VmSpec, host: &HostLimits) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let name = problems.take("name", spec.name.parse());
        let cpus = check_cpus(spec, &mut problems);
        let memory = check_memory(spec, host, &mut problems);
        let boot = check_boot(spec, host, &mut problems);
        if spec.image.as_ref().is_some_and(|image| image.trim().is_empty()) {
            problems.add("image", "empty; leave it out for a machine without a root disk");
        }
        if spec.image.is_none() && spec.disk_size.is_some() {
            problems.add("disk_size", "there is no root disk without an image");
        }
        if spec.image.is_none() && spec.disk_bus.is_some() {
            problems.add(
                "disk_bus",
                "there is no root disk without an image; other disks name a bus of their own",
            );
        }
        if spec.image.is_none() && boot.kernel.is_none() {
            problems.add("boot.kernel", "needed, since no image is named that could bring one");
        }
        let root_disks = usize::from(spec.image.is_some());
        if spec.disks.len() + root_disks > DISKS_MAX {
            problems.add(
                "disks",
                format_args!("a machine has at most {DISKS_MAX} disks, the root disk included"),
            );
        }
        if spec.networks.len() > NETS_MAX {
            problems.add("networks", format_args!("a machine has at most {NETS_MAX} interfaces"));
        }
        let disks = disk::plan(&spec.disks, default_queues(cpus), host, &mut problems);
        let nets = check_networks(&spec.networks, &mut problems);
        let image = spec.image.clone();
        match name {
            Some(name) => problems.into_result(Self {
                name,
                image,
                root_size: spec.disk_size,
                root_bus: spec.disk_bus.unwrap_or_default(),
                boot,
                cpus,
                memory,
                disks,
                nets,
            }),
            None => Err(problems),
        }
    }

    /// The machine this plan makes: `image_cmdline` is the image's own command line, if it has one.
    pub fn machine(&self, id: VmId, image_cmdline: Option<&str>) -> Result<MachineSpec, Problems> {
        let cmdline = self
            .boot
            .cmdline
            .as_deref()
            .or(image_cmdline)
            .map_or_else(|| self.default_cmdline(), str::to_owned);
        let root = self
            .image
            .as_ref()
            .and_then(|_| disk::root_disk(self.root_bus, default_queues(self.cpus)));
        let nets = self.nets.iter().zip(0..).map(|(net, index)| NetSpec {
            mac: net.mac.unwrap_or_else(|| MacAddress::derived(id, index)),
            queue_pairs: net.queue_pairs,
        });
        MachineSpec::try_from(MachineParts {
            id,
            name: self.name.clone(),
            cpus: self.cpus,
            memory: self.memory,
            cmdline,
            disks: root
                .into_iter()
                .chain(self.disks.iter().map(|plan| plan.disk.clone()))
                .collect(),
            nets: nets.collect(),
            debug_exit: false,
        })
    }

    /// Where nobody names one: with the first disk in the boot order, as Linux names it, for its root.
    fn default_cmdline(&self) -> String {
        let first = self.disks.first().filter(|plan| plan.boot_order.is_some());
        let root = first.filter(|_| self.image.is_none()).map(|plan| match plan.disk.bus {
            _ if plan.disk.cdrom => "/dev/sr0 ro",
            DiskBus::Virtio => "/dev/vda",
            DiskBus::Scsi => "/dev/sda",
        });
        root.map_or_else(
            || DEFAULT_CMDLINE.to_owned(),
            |root| format!("{DEFAULT_CMDLINE} root={root}"),
        )
    }
}

/// Request queues of a disk where none were asked for.
fn default_queues(cpus: Cpus) -> u16 {
    u16::try_from(cpus.count().clamp(1, DISK_QUEUES_DEFAULT_MAX)).unwrap_or(1)
}

fn check_cpus(spec: &VmSpec, problems: &mut Problems) -> Cpus {
    if !(1..=CPUS_MAX).contains(&spec.cpus) {
        problems.add("cpus", format_args!("{} vCPUs; take 1 to {CPUS_MAX}", spec.cpus));
    }
    let Some(topology) = spec.topology else {
        return Cpus {
            sockets: 1,
            cores: spec.cpus,
            threads: 1,
        };
    };
    let cpus = Cpus {
        sockets: topology.sockets,
        cores: topology.cores,
        threads: topology.threads,
    };
    if cpus.count() != spec.cpus {
        problems.add(
            "topology",
            format_args!(
                "sockets × cores × threads is {}, but cpus is {}",
                cpus.count(),
                spec.cpus
            ),
        );
    }
    cpus
}

fn check_memory(spec: &VmSpec, host: &HostLimits, problems: &mut Problems) -> Memory {
    let size_bytes = spec.memory.bytes();
    let hugepages = spec
        .memory_backing
        .and_then(|backing| backing.hugepages)
        .map(|wish| match wish {
            HugePagesWish::Mib2 => HugePages::Mib2,
            HugePagesWish::Gib1 => HugePages::Gib1,
        });
    let page = hugepages.map_or(4096, HugePages::bytes);
    if size_bytes < MEMORY_MIN {
        problems.add("memory", format_args!("{}; a machine needs at least 16Mi", spec.memory));
    } else if size_bytes > host.memory_bytes {
        let has = host.memory_bytes >> 20;
        problems.add("memory", format_args!("{}; the host has {has}Mi in all", spec.memory));
    } else if !size_bytes.is_multiple_of(page) {
        problems.add(
            "memory",
            format_args!(
                "{} is no multiple of the page size, {}",
                spec.memory,
                ByteSize::from_bytes(page)
            ),
        );
    }
    Memory {
        size_bytes,
        hugepages,
        prefault: spec.memory_backing.is_some_and(|backing| backing.prefault),
    }
}

fn check_boot(spec: &VmSpec, host: &HostLimits, problems: &mut Problems) -> BootPlan {
    let Some(boot) = &spec.boot else {
        return BootPlan::default();
    };
    let mut path =
        |field: &str, text: &Option<String>| text.as_deref().and_then(|text| check_path(field, text, host, problems));
    let kernel = path("boot.kernel", &boot.kernel);
    let initrd = path("boot.initrd", &boot.initrd);
    BootPlan {
        kernel,
        initrd,
        cmdline: boot.cmdline.clone(),
    }
}

fn check_networks(wishes: &[NetworkWish], problems: &mut Problems) -> Vec<NetPlan> {
    let mut plans = Vec::new();
    for (index, wish) in wishes.iter().enumerate() {
        let queue_pairs = wish.queue_pairs.unwrap_or(1);
        if !(1..=QUEUE_PAIRS_MAX).contains(&queue_pairs) {
            problems.add(
                format!("networks[{index}].queue_pairs"),
                format_args!("{queue_pairs}; take 1 to {QUEUE_PAIRS_MAX}"),
            );
        }
        let fits = (1..=TAP_NAME_MAX).contains(&wish.tap.len());
        if !fits
            || wish
                .tap
                .bytes()
                .any(|b| !b.is_ascii_graphic() || b == b'/' || b == b':' || b == b'%')
            || wish.tap == "."
            || wish.tap == ".."
        {
            problems.add(
                format!("networks[{index}].tap"),
                format_args!("{:?} is no name of a network device", wish.tap),
            );
        }
        if wishes.iter().take(index).any(|earlier| earlier.tap == wish.tap) {
            problems.add(
                format!("networks[{index}].tap"),
                format_args!("{:?} is named twice", wish.tap),
            );
        }
        let mac = wish
            .mac
            .as_deref()
            .and_then(|text| problems.take(&format!("networks[{index}].mac"), text.parse()));
        plans.push(NetPlan {
            tap: wish.tap.clone(),
            mac,
            queue_pairs,
        });
    }
    plans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostLimits {
        HostLimits {
            memory_bytes: 8 << 30,
            file_roots: vec![PathBuf::from("/var/lib/karat/files")],
        }
    }

    fn plan(json: &str) -> Result<VmPlan, Problems> {
        VmPlan::new(&serde_json::from_str(json).unwrap(), &host())
    }

    fn fields(json: &str) -> Vec<String> {
        plan(json)
            .unwrap_err()
            .list()
            .iter()
            .map(|problem| problem.field.clone())
            .collect()
    }

    #[test]
    fn the_smallest_machine_needs_an_image_or_a_kernel() {
        plan(r#"{"name": "a", "image": "debian:12"}"#).unwrap();
        plan(r#"{"name": "a", "boot": {"kernel": "/var/lib/karat/files/vmlinux"}}"#).unwrap();
        assert_eq!(fields(r#"{"name": "a"}"#), ["boot.kernel"]);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let told = fields(
            r#"{"name": "A", "image": "x", "cpus": 65, "memory": "16Gi", "topology": {"sockets": 1, "cores": 1, "threads": 1},
                "disks": [{"path": "/etc/shadow"}, {"path": "/var/lib/karat/files/../secret"}, {"path": "relative", "queues": 17}],
                "networks": [{"tap": "a/b"}, {"tap": "a/b", "mac": "x", "queue_pairs": 9}]}"#,
        );
        let wanted = [
            "name",
            "cpus",
            "topology",
            "memory",
            "disks[0].path",
            "disks[1].path",
            "disks[2].path",
            "disks[2].queues",
            "networks[0].tap",
            "networks[1].queue_pairs",
            "networks[1].tap",
            "networks[1].tap",
            "networks[1].mac",
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn memory_is_held_against_the_host_and_the_page_size() {
        assert_eq!(fields(r#"{"name": "a", "image": "x", "memory": "8Mi"}"#), ["memory"]);
        assert_eq!(fields(r#"{"name": "a", "image": "x", "memory": "9Gi"}"#), ["memory"]);
        assert_eq!(
            fields(r#"{"name": "a", "image": "x", "memory": "513Mi", "memory_backing": {"hugepages": "2Mi"}}"#),
            ["memory"]
        );
        assert_eq!(
            plan(r#"{"name": "a", "image": "x", "memory": "8Gi"}"#)
                .unwrap()
                .memory
                .size_bytes,
            8 << 30
        );
    }

    #[test]
    fn the_machine_has_the_root_disk_first_and_the_command_line_nearest_to_the_user() {
        let id = VmId::random();
        let written = plan(
            r#"{"name": "a", "image": "x", "cpus": 8, "disks": [{"path": "/var/lib/karat/files/d"}], "networks": [{"tap": "t0"}]}"#,
        )
        .unwrap();
        let machine = written.machine(id, Some("quiet")).unwrap();
        assert_eq!(
            machine
                .disks()
                .iter()
                .map(|disk| disk.serial.as_str())
                .collect::<Vec<_>>(),
            ["root", "disk1"]
        );
        assert_eq!((machine.cmdline(), machine.disks()[0].queues), ("quiet", 4));
        assert_eq!(machine.nets()[0].mac, MacAddress::derived(id, 0));
        assert_eq!(written.machine(id, None).unwrap().cmdline(), DEFAULT_CMDLINE);
        let own = plan(r#"{"name": "a", "image": "x", "boot": {"cmdline": "mine"}}"#).unwrap();
        assert_eq!(own.machine(id, Some("quiet")).unwrap().cmdline(), "mine");
    }

    #[test]
    fn the_root_disk_is_on_the_bus_that_is_written_and_before_others_there() {
        let buses = |json: &str| -> Vec<_> {
            let machine = plan(json).unwrap().machine(VmId::random(), None).unwrap();
            let disks = machine.disks().iter();
            disks.map(|disk| (disk.name.as_str().to_owned(), disk.bus)).collect()
        };
        let of = |name: &str, bus| (name.to_owned(), bus);
        assert_eq!(buses(r#"{"name": "a", "image": "x"}"#), [of("root", DiskBus::Virtio)]);
        assert_eq!(
            buses(
                r#"{"name": "a", "image": "x", "disk_bus": "scsi",
                    "disks": [{"volume": "v"}, {"volume": "w", "bus": "scsi", "boot_order": 1}]}"#
            ),
            [
                of("root", DiskBus::Scsi),
                of("disk2", DiskBus::Scsi),
                of("disk1", DiskBus::Virtio)
            ]
        );
        assert_eq!(
            fields(r#"{"name": "a", "boot": {"kernel": "/var/lib/karat/files/k"}, "disk_bus": "scsi"}"#),
            ["disk_bus"]
        );
    }
}
