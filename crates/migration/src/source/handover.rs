//! From the pause to the target's word that it runs.

use std::time::Duration;

use super::rounds::Rounds;
use super::wires::{Event, Job, Wires};
use crate::error::Failure;
use crate::machine::{Departing, Fault};
use crate::page_set::{PageSet, SharedPages};
use crate::section::Sections;
use crate::steering::Step;
use crate::wire::{Message, Seal};

/// Chunks in one frame of missing pages.
pub(crate) const MISSING_PER_FRAME: usize = 4096;

fn fault(what: &'static str) -> impl Fn(Fault) -> Failure {
    move |error| Failure::Machine { what, error }
}

/// Pauses the machine and sends what is left of it. Returns the pages that follow the start.
pub(super) fn seal<D: Departing>(
    machine: &mut D,
    rounds: &mut Rounds<'_>,
    mut set: PageSet,
    step: Step,
) -> Result<PageSet, Failure> {
    rounds.wires.paused_at = rounds.wires.clock.now();
    machine.pause().map_err(fault("pause"))?;
    set.union(&machine.take_dirty().map_err(fault("say which pages it wrote"))?);
    let missing = if step == Step::PostCopy {
        set
    } else {
        rounds.send(&set, false)?;
        PageSet::empty(set.pages())
    };
    let mut sections = Sections::default();
    for section in machine.save().map_err(fault("save its state"))? {
        sections.push(section)?;
    }
    let outbox = &rounds.wires.outbox;
    for section in sections.list() {
        outbox.send(&Message::Section(section.clone()));
    }
    let pairs: Vec<_> = missing.chunks().collect();
    for pairs in pairs.chunks(MISSING_PER_FRAME) {
        outbox.send(&Message::Missing(pairs.to_vec()));
    }
    outbox.send(&Message::Seal(Seal {
        sections: sections.count(),
        digest: sections.digest(),
        missing: missing.len(),
    }));
    Ok(missing)
}

/// Waits for the target's word that it could start. The guest stands still.
pub(super) fn await_ready(wires: &mut Wires, missing: u64, patience: Duration) -> Result<(), Failure> {
    let until = wires.clock.now().saturating_add(patience);
    match wires.message(until)? {
        Some(Message::Ready { key, missing: theirs }) if key == wires.key && theirs == missing => Ok(()),
        Some(_) => Err(Failure::Protocol("something else than ready")),
        None => Err(Failure::Handover(patience)),
    }
}

/// Tells the target to start. The departure is on record.
pub(super) fn start(wires: &mut Wires, patience: Duration) -> Result<(), Failure> {
    wires.set_departed();
    wires.outbox.send(&Message::Start(wires.key));
    let until = wires.clock.now().saturating_add(patience);
    match wires.message(until)? {
        Some(Message::Started(key)) if key == wires.key => Ok(()),
        Some(_) => Err(Failure::Protocol("something else than started")),
        None => Err(Failure::Handover(patience)),
    }
}

/// Sends what the started machine misses, what it waits for first.
pub(super) fn push(wires: &mut Wires, memory: &dyn crate::SourceMemory, missing: &PageSet) -> Result<(), Failure> {
    let owed = std::sync::Arc::new(SharedPages::new(missing));
    let mut packer = super::packer::Packer::new(wires.offers, 0);
    wires.handle.update(|progress| progress.post_copy = true);
    wires.assign(|| Job::Push {
        owed: std::sync::Arc::clone(&owed),
    });
    loop {
        match wires.next()? {
            Some(Event::Control(Message::Wanted(pages))) => {
                for page in pages {
                    if owed.take(page) {
                        let packed = packer
                            .pack(memory, page / 64, 1 << (page % 64), 0)
                            .map_err(fault("read its memory"))?;
                        wires.counters.add(&packed, 1);
                        wires.outbox.send_frame(packed.frame.to_vec());
                    }
                }
            }
            Some(Event::Control(Message::Complete(key))) if key == wires.key => return Ok(()),
            Some(Event::Control(_)) => return Err(Failure::Protocol("something else than requests for pages")),
            Some(_) => {}
            None => {
                let remaining = super::wires::ram_bytes(owed.len());
                wires.handle.update(|progress| progress.remaining_bytes = remaining);
            }
        }
    }
}
