//! What an image asks of a machine that is made from it. What users wrote in the machine wins.

use api_types::ErrorCode;
use image_catalog::{Abilities, Condition, MachineHints, PageSize, Resource, Severity, machine_hints};
use spec::{BootWish, HugePagesWish, MemoryBacking, Problem, VmSpec};

use super::Usable;
use crate::failure::Failure;

/// Most pairs of queues of an interface.
const QUEUE_PAIRS_MAX: u32 = 8;

/// The machine as its image would have it, and what of that it can not be given. Fails with everything for which no machine is made:
/// too little memory or disk, and demands that can not be met. `refused` is what is told first then.
pub(crate) fn shape(mut spec: VmSpec, image: &Usable, refused: &str) -> Result<(VmSpec, Vec<Condition>), Failure> {
    let record = &image.row.record;
    let disk_bytes = spec
        .disk_size
        .map_or(image.sealed.disk.virtual_bytes, spec::ByteSize::bytes);
    let mut problems = Vec::new();
    for shortfall in record.shortfalls(disk_bytes, spec.memory.bytes()) {
        let field = match shortfall.resource {
            Resource::Disk => "disk_size",
            Resource::Memory => "memory",
        };
        problems.push(Problem {
            field: field.to_owned(),
            message: format!("{shortfall} ({})", shortfall.code()),
        });
    }
    let (hints, conditions) = machine_hints(record.properties(), &Abilities::x86_64());
    for condition in conditions.iter().filter(|one| one.severity == Severity::Refused) {
        problems.push(Problem {
            field: "image".to_owned(),
            message: format!("{}: {} ({})", condition.property, condition.message, condition.code()),
        });
    }
    if !problems.is_empty() {
        return Err(Failure {
            code: ErrorCode::InvalidSpec,
            detail: refused.to_owned(),
            problems,
        });
    }
    apply(&mut spec, &hints);
    Ok((spec, conditions))
}

fn apply(spec: &mut VmSpec, hints: &MachineHints) {
    spec.disk_bus = spec.disk_bus.or(hints.disk_bus);
    if spec.topology.is_none() && hints.topology != image_catalog::TopologyHint::default() {
        spec.topology = hints.topology.for_cpus(spec.cpus);
    }
    let hugepages = match hints.page_size {
        Some(PageSize::Large | PageSize::Mib2) => Some(HugePagesWish::Mib2),
        Some(PageSize::Gib1) => Some(HugePagesWish::Gib1),
        _ => None,
    };
    if spec.memory_backing.is_none() && hugepages.is_some() {
        spec.memory_backing = Some(MemoryBacking {
            hugepages,
            prefault: false,
        });
    }
    if let Some(cmdline) = &hints.command_line {
        let boot = spec.boot.get_or_insert_with(BootWish::default);
        boot.cmdline.get_or_insert_with(|| cmdline.clone());
    }
    if hints.multiqueue == Some(true) {
        let pairs = u16::try_from(spec.cpus.clamp(1, QUEUE_PAIRS_MAX)).unwrap_or(1);
        for network in &mut spec.networks {
            network.queue_pairs.get_or_insert(pairs);
        }
    }
}
