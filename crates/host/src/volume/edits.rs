//! What a machine's record says of its disks, and which machine has which volume.
//!
//! A volume that is written has one machine; one that is only read may have any number. Both is looked at in the transaction
//! that writes the machine down, so that of two who ask at once one is refused.

use std::sync::Arc;

use api_types::{ErrorCode, EventReason, VolumeState};
use spec::{DiskLimits, DiskWish, Problems, VmId, VmPlan, VmSpec};

use crate::context::Context;
use crate::failure::Failure;
use crate::machine::Edit;
use crate::registry::{About, Change, VolumeRecord};

/// What every refused disk is told first.
pub(super) const REFUSED: &str = "the disk can not be attached";

/// Writes another disk down.
pub(super) fn attaching(context: Arc<Context>, mut wish: DiskWish) -> Edit {
    Box::new(move |change, vm| {
        let mut spec = vm.spec.clone();
        name_disks(&mut spec);
        let volume = wish
            .volume
            .as_deref()
            .map(|name| change.volume(name))
            .transpose()?
            .flatten();
        if let (None, Some(volume)) = (&wish.name, &volume) {
            wish.name = Some(volume.name().to_owned());
        }
        spec.disks.push(wish);
        VmPlan::new(&spec, &context.limits).map_err(|problems| Failure::refused(REFUSED, &problems))?;
        check_disks(change, &spec, Some(vm.id))?;
        name_disks(&mut spec);
        if let Some(volume) = volume {
            let text = format!("attached to machine {}", spec.name);
            tell(change, &volume, EventReason::Attached, &text)?;
        }
        Ok(spec)
    })
}

/// Writes down that a disk is gone.
pub(super) fn detaching(disk: String) -> Edit {
    Box::new(move |change, vm| {
        let mut spec = vm.spec.clone();
        name_disks(&mut spec);
        let gone = spec.disks.remove(position(change, &spec, &disk)?);
        let volume = gone
            .volume
            .as_deref()
            .map(|name| change.volume(name))
            .transpose()?
            .flatten();
        if let Some(volume) = volume {
            let text = format!("detached from machine {}", spec.name);
            tell(change, &volume, EventReason::Detached, &text)?;
        }
        Ok(spec)
    })
}

/// Writes other limits of a disk down.
pub(super) fn limiting(disk: String, limits: DiskLimits) -> Edit {
    Box::new(move |change, vm| {
        let mut spec = vm.spec.clone();
        let index = position(change, &spec, &disk)?;
        if let Some(wish) = spec.disks.get_mut(index) {
            wish.limits = limits;
        }
        Ok(spec)
    })
}

/// The place of a disk in a machine: by its volume, else by its name.
pub(crate) fn position(change: &Change<'_>, spec: &VmSpec, wanted: &str) -> Result<usize, Failure> {
    let mut named = spec.clone();
    name_disks(&mut named);
    let volume = change.volume(wanted)?;
    let of_volume = |disk: &DiskWish| {
        let name = disk.volume.as_deref();
        name.zip(volume.as_ref())
            .is_some_and(|(name, volume)| volume.is_called(name))
    };
    let disks = &named.disks;
    let found = disks
        .iter()
        .position(of_volume)
        .or_else(|| disks.iter().position(|disk| disk.name.as_deref() == Some(wanted)));
    found.ok_or_else(|| {
        let has: Vec<_> = disks.iter().filter_map(|disk| disk.name.as_deref()).collect();
        let has = if has.is_empty() {
            "none".to_owned()
        } else {
            has.join(", ")
        };
        let text = format!(
            "machine {} has no disk {wanted:?} that could be detached or changed; it has: {has}",
            spec.name
        );
        Failure::new(ErrorCode::NotFound, text)
    })
}

/// Disks without a name are called by their place; they keep that name when the places change.
fn name_disks(spec: &mut VmSpec) {
    for (index, disk) in spec.disks.iter_mut().enumerate() {
        disk.name.get_or_insert_with(|| format!("disk{}", index + 1));
    }
}

/// Fails unless every volume a machine names is there and free for it. `vm` is the machine's id, if it has one yet.
pub(crate) fn check_disks(change: &Change<'_>, spec: &VmSpec, vm: Option<VmId>) -> Result<(), Failure> {
    let mut problems = Problems::new();
    let mut seen = Vec::new();
    for (index, disk) in spec.disks.iter().enumerate() {
        let Some(name) = &disk.volume else { continue };
        let field = format!("disks[{index}].volume");
        let Some(volume) = change.volume(name)? else {
            problems.add(
                field,
                format_args!("no volume {name:?} on this host; karat volume ls has all"),
            );
            continue;
        };
        match volume.state {
            VolumeState::Failed | VolumeState::Deleting => {
                problems.add(
                    &field,
                    format_args!("volume {name} is {:?}; it can not be attached", volume.state),
                );
            }
            VolumeState::Creating | VolumeState::Ready => {}
        }
        if seen.contains(&volume.id) {
            problems.add(&field, format_args!("volume {name} is named twice"));
        }
        seen.push(volume.id);
        check_holders(change, &volume, disk, vm)?;
    }
    problems
        .into_result(())
        .map_err(|problems| Failure::refused("the machine's volumes can not be used", &problems))
}

/// Fails when another machine has the volume in a way that leaves no room for `disk`.
fn check_holders(change: &Change<'_>, volume: &VolumeRecord, disk: &DiskWish, vm: Option<VmId>) -> Result<(), Failure> {
    let reads_only = disk.read_only || disk.cdrom;
    for holder in change.holders(volume)? {
        if Some(holder.id) != vm && !(reads_only && holder.read_only) {
            let name = volume.name();
            return Err(Failure::new(
                ErrorCode::InUse,
                format!(
                    "volume {name} is a disk of machine {} already; detach it there (karat volume detach {name} {}), or attach it \
                     read-only to both",
                    holder.vm, holder.vm
                ),
            ));
        }
    }
    Ok(())
}

fn tell(change: &Change<'_>, volume: &VolumeRecord, reason: EventReason, what: &str) -> Result<(), Failure> {
    let text = format!("volume {} was {what}", volume.name());
    Ok(change.event(&About::Volume(volume.id, volume.name()), reason, &text)?)
}
