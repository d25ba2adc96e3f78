//! One look at all sources: what changed, what is to be done, what is to be removed, how they are doing.

use std::collections::{BTreeSet, HashSet};

use api_types::EventReason;
use boot_sources::{
    Alias, BootSource, Change as Consequence, Gate, Step, conditions, gate_changed, source_changed, source_deleted,
};
use image_catalog::{ImageId, ImageState};
use jiff::Timestamp;

use super::definitions::Definitions;
use crate::failure::Failure;
use crate::registry::{About, Change, ImageRow, Known, SourceRow};

/// What a look at all sources comes to.
#[derive(Default)]
pub(super) struct Todo {
    /// Sources to poll or to import from.
    pub(super) work: Vec<(BootSource, Step)>,
    /// Sources whose poll or import is called off.
    pub(super) cancel: Vec<String>,
    /// Images to be removed.
    pub(super) remove: Vec<ImageId>,
    /// When the next poll is due.
    pub(super) next: Option<Timestamp>,
}

/// The switches that hold now.
pub(super) const fn gate(system_sources: bool) -> Gate {
    Gate {
        system_sources,
        has_store: true,
    }
}

/// One look; `working` are the sources that are polled or imported from just now.
pub(super) fn settle(
    change: &Change<'_>,
    defined: &Definitions,
    rows: &[SourceRow],
    gate: Gate,
    working: &HashSet<String>,
) -> Result<Todo, Failure> {
    let mut todo = Todo::default();
    let mut names: BTreeSet<String> = defined.keys().cloned().collect();
    names.extend(rows.iter().map(|row| row.name.clone()));
    for name in names {
        let before = rows.iter().find(|row| row.name == name).cloned();
        let mut look = Look {
            change,
            gate,
            row: before.clone().unwrap_or_else(|| SourceRow::new(&name)),
            busy: working.contains(&name),
            todo: &mut todo,
        };
        let keep = look.at(defined.get(&name).map(|defined| &defined.source))?;
        let row = look.row;
        if !keep {
            change.delete_boot_source(&name)?;
        } else if before.as_ref() != Some(&row) {
            change.put_boot_source(&row)?;
        }
    }
    sweep(change, working, &mut todo)?;
    Ok(todo)
}

/// Records of imports that no source waits for any more.
fn sweep(change: &Change<'_>, working: &HashSet<String>, todo: &mut Todo) -> Result<(), Failure> {
    for row in change.images()? {
        let Some(name) = &row.boot_source else { continue };
        let half_done = matches!(
            row.state.state,
            ImageState::Importing | ImageState::Failed | ImageState::Queued
        );
        if !half_done || working.contains(name) {
            continue;
        }
        let source = change.boot_source(name)?;
        let goes_on = source.is_some_and(|source| source.state.importing().is_some());
        if !goes_on || row.state.state != ImageState::Importing {
            todo.remove.push(row.id);
        }
    }
    Ok(())
}

/// The look at one source.
struct Look<'a, 'c> {
    change: &'a Change<'c>,
    gate: Gate,
    row: SourceRow,
    /// Whether it is polled or imported from just now.
    busy: bool,
    todo: &'a mut Todo,
}

impl Look<'_, '_> {
    /// Whether anything is to be kept of it.
    fn at(&mut self, source: Option<&BootSource>) -> Result<bool, Failure> {
        let old = self.row.known.as_ref().and_then(Known::source);
        let Some(source) = source else {
            if let Some(old) = old {
                self.gone(&old)?;
            }
            self.row.known = None;
            return Ok(self.row.wish.is_some());
        };
        let consequence = match &old {
            Some(old) if old != source => Some(source_changed(old, source)),
            _ => None,
        };
        if let Some(consequence) = consequence {
            self.follow(&consequence)?;
        }
        let before = gate(self.row.system_sources);
        let turned = gate_changed(source, &self.row.state, before, self.gate);
        if old.is_some() {
            self.follow(&turned)?;
        }
        self.row.known = Some(Known::of(source));
        self.row.system_sources = self.gate.system_sources;
        self.forget_lost()?;
        self.step(source);
        for import in self.row.state.removals(source, |image| self.in_use(image)) {
            self.todo.remove.extend(import.image.parse::<ImageId>().ok());
        }
        self.tell(source)?;
        Ok(true)
    }

    fn step(&mut self, source: &BootSource) {
        let step = self.row.state.step(source, self.gate, self.change.now());
        match step {
            _ if self.busy => {}
            Step::Poll | Step::Import(_) => self.todo.work.push((source.clone(), step)),
            Step::Wait(due) => self.todo.next = Some(self.todo.next.map_or(due, |next| next.min(due))),
            Step::Off | Step::NoStore | Step::Never => {}
        }
    }

    fn gone(&mut self, old: &BootSource) -> Result<(), Failure> {
        let consequence = source_deleted(old);
        self.follow(&consequence)?;
        if consequence.collect {
            for import in self.row.state.removals_on_deletion(old, |image| self.in_use(image)) {
                self.todo.remove.extend(import.image.parse::<ImageId>().ok());
            }
        }
        Ok(())
    }

    fn follow(&mut self, consequence: &Consequence) -> Result<(), Failure> {
        if consequence.cancel_import {
            self.todo.cancel.push(self.row.name.clone());
            if !self.busy {
                self.row.state.import_cancelled();
            }
        }
        if consequence.retry {
            self.row.state.sync();
        }
        let current = self.row.state.current().map(|import| import.image.clone());
        match (&consequence.alias, current) {
            (Alias::Lead(alias), Some(image)) => self.change.lead_alias(alias.as_str(), &image)?,
            (Alias::Unset(alias), _) => self.change.unset_alias(alias.as_str())?,
            (Alias::Rename(old, new), current) => {
                self.change.unset_alias(old.as_str())?;
                if let Some(image) = current {
                    self.change.lead_alias(new.as_str(), &image)?;
                }
            }
            (Alias::Keep, _) | (Alias::Lead(_), None) => {}
        }
        Ok(())
    }

    /// Imports whose image somebody removed.
    fn forget_lost(&mut self) -> Result<(), Failure> {
        let images: Vec<_> = self
            .row
            .state
            .imports()
            .iter()
            .map(|import| import.image.clone())
            .collect();
        for image in images {
            if self.change.image(&image)?.is_none() {
                self.row.state.forget(&image);
            }
        }
        Ok(())
    }

    /// Whether anything but this source needs an image. What can not be told is taken for a yes.
    fn in_use(&self, image: &str) -> bool {
        let needed = || -> Result<bool, Failure> {
            let Some(row) = self.change.image(image)? else {
                return Ok(false);
            };
            Ok(self.needed(&row)?)
        };
        needed().unwrap_or(true)
    }

    fn needed(&self, row: &ImageRow) -> Result<bool, crate::registry::RegistryError> {
        let own = row.boot_source.as_deref() == Some(self.row.name.as_str());
        if !own || row.record.protected() || row.state.state == ImageState::Importing {
            return Ok(true);
        }
        let digest = row.digest.as_deref().unwrap_or_default();
        if !self.change.image_users(digest)?.is_empty() || !self.change.image_volumes(digest)?.is_empty() {
            return Ok(true);
        }
        let id = row.id.to_string();
        let others = self.change.boot_sources()?;
        let mut others = others.iter().filter(|other| other.name != self.row.name);
        Ok(others.any(|other| other.state.imports().iter().any(|import| import.image == id)))
    }

    fn tell(&mut self, source: &BootSource) -> Result<(), Failure> {
        let before = std::mem::take(&mut self.row.conditions);
        let (now, changed) = conditions(source, &self.row.state, self.gate, &before, self.change.now());
        for condition in now.iter().filter(|condition| changed.contains(&condition.kind)) {
            let text = format!(
                "boot source {}: {:?} is {:?} ({:?}): {}",
                self.row.name, condition.kind, condition.status, condition.reason, condition.message
            );
            let about = About::BootSource(&self.row.name);
            self.change.event(&about, EventReason::ConditionChanged, &text)?;
        }
        self.row.conditions = now.to_vec();
        Ok(())
    }
}
