//! Power loss: a run over a recorded file, then the states that a power cut may leave of it, each checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use disk::{DiskErrorKind, DiskIo, ZeroMode};
use guestmem::IoBuf;
use uring::Ring;

use crate::engine::Engine;
use crate::header;
use crate::kind::Kind;
use crate::ledger::Ledger;
use crate::make::make;
use crate::random::Random;
use crate::recorder::{Change, Event, Mark, Recorder, apply};
use crate::shadow::{SECTOR, Shadow};
use crate::tools;
use crate::transfer::{alone, read_all};

/// What one recorded run is like.
#[derive(Debug, Clone, Copy)]
pub struct Power<'a> {
    /// Of everything.
    pub seed: u64,
    /// Requests.
    pub requests: u32,
    /// Requests in flight at once.
    pub depth: u32,
    /// States to check.
    pub states: u32,
    /// An empty directory, best in memory.
    pub dir: &'a Path,
    /// Whether contents are read back by QEMU instead of the engine, and the engine need not open the states.
    pub by_qemu: bool,
}

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// States checked.
    pub states: u64,
    /// Those with contradicting metadata.
    pub corrupt: u64,
    /// Those without data that was flushed.
    pub lost: u64,
    /// Those that can not be opened or used again.
    pub unusable: u64,
    /// What the first bad one was.
    pub words: Vec<String>,
}

/// Makes an image, runs requests on it, and checks states that a power cut may leave.
pub fn run(engine: &dyn Engine, kind: &Kind, power: &Power) -> Result<Found> {
    let made = make(kind, power.seed, power.dir)?;
    ensure!(
        made.stack.layers.len() <= 2 && made.stack.data_file.is_none(),
        "kinds for power loss have at most one backing file"
    );
    let backing = made.stack.layers.get(1).map(|layer| layer.path.clone());
    let before = fs::read(made.stack.top())?;
    let recorder = Recorder::new(before.clone(), power.seed);
    alone(record(
        engine,
        &recorder,
        backing.clone(),
        (made.contents.clone(), *power),
    ))?;
    let events = recorder.take_events();
    let mut replay = Replay {
        engine,
        kind,
        power,
        backing,
        top: made.stack.top().to_path_buf(),
        random: Random::of(power.seed, 5),
        found: Found::default(),
    };
    replay.all(before, &made.contents, &events)?;
    Ok(replay.found)
}

/// Requests of a few tasks, told to the recorder.
async fn record(
    engine: &dyn Engine,
    recorder: &Arc<Recorder>,
    backing: Option<PathBuf>,
    (contents, power): (Vec<u8>, Power<'_>),
) -> Result<()> {
    let opened = engine.open_recorded(Arc::clone(recorder), backing).await?;
    let shadow = Arc::new(Shadow::new(contents));
    let ring = Ring::current()?;
    let abilities = engine.abilities();
    let mut tasks = Vec::new();
    for task in 0..u64::from(power.depth.max(1)) {
        let mut requests = Requests {
            io: opened.disk.open_queue()?,
            shadow: Arc::clone(&shadow),
            recorder: Arc::clone(recorder),
            random: Random::of(power.seed, 100 + task),
            number: task << 32,
            zero: abilities.zero,
        };
        let count = power.requests / power.depth.max(1);
        tasks.push(ring.spawn(async move {
            for _ in 0..count {
                requests.one().await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await.context("recorded run")?;
    }
    if power.seed % 2 == 0 {
        (opened.close)().await?;
    }
    Ok(())
}

struct Requests {
    io: Rc<dyn DiskIo>,
    shadow: Arc<Shadow>,
    recorder: Arc<Recorder>,
    random: Random,
    number: u64,
    zero: bool,
}

impl Requests {
    async fn one(&mut self) -> Result<()> {
        self.number += 1;
        let number = self.number;
        if self.random.chance(14) {
            self.recorder.mark(Mark::FlushBegun(number));
            self.io.flush().await?;
            self.recorder.mark(Mark::FlushDone(number));
            return Ok(());
        }
        let Some((offset, len)) = self.shadow.reserve(&mut self.random, 48 << 10, 4096) else {
            return Ok(());
        };
        let what = if self.zero { self.random.below(10) } else { 0 };
        let bytes = if what < 8 { self.random.bytes(len) } else { vec![0; len] };
        let hint = what == 9;
        self.recorder.mark(Mark::WriteBegun {
            number,
            offset,
            bytes: bytes.clone(),
            hint,
        });
        let (at, count) = (offset as u64, len as u64);
        match what {
            8 => self.io.write_zeroes(at, count, ZeroMode::MayUnmap).await?,
            9 => match self.io.discard(at, count).await {
                Err(error) if error.kind() == DiskErrorKind::Unsupported => {}
                result => result?,
            },
            _ => self.io.write(at, vec![IoBuf::from_bytes(&bytes)?]).await.0?,
        }
        self.recorder.mark(Mark::WriteDone(number));
        self.shadow.release(offset, len, None);
        Ok(())
    }
}

/// A change of the file whose fate is open.
struct Pending {
    number: u64,
    change: Change,
    done: bool,
}

struct Replay<'a> {
    engine: &'a dyn Engine,
    kind: &'a Kind,
    power: &'a Power<'a>,
    backing: Option<PathBuf>,
    top: PathBuf,
    random: Random,
    found: Found,
}

impl Replay<'_> {
    /// Walks the events and cuts the power at some of them.
    fn all(&mut self, mut durable: Vec<u8>, contents: &[u8], events: &[Event]) -> Result<()> {
        let mut pending: Vec<Pending> = Vec::new();
        let mut syncs: Vec<(u64, Vec<u64>)> = Vec::new();
        let mut ledger = Ledger::new(contents.to_vec());
        let mut left = u64::from(self.power.states);
        for (index, event) in events.iter().enumerate() {
            match event {
                Event::Begun(number, change) => pending.push(Pending {
                    number: *number,
                    change: change.clone(),
                    done: false,
                }),
                Event::Done(number) => {
                    for change in pending.iter_mut().filter(|change| change.number == *number) {
                        change.done = true;
                    }
                }
                Event::SyncBegun(number) => {
                    let covered = pending.iter().filter(|change| change.done);
                    syncs.push((*number, covered.map(|change| change.number).collect()));
                }
                Event::SyncDone(number) => {
                    let at = syncs.iter().position(|(sync, _)| sync == number);
                    let (_, covered) = syncs.remove(at.context("a sync that never began")?);
                    settle(&mut durable, &mut pending, &covered);
                }
                Event::Mark(mark) => note(&mut ledger, mark),
            }
            // As many states as are left to the share of events that are; more of them where a sync is near.
            let ahead = (events.len() - index) as u64;
            let near = matches!(event, Event::SyncDone(_) | Event::SyncBegun(_));
            let due = if near { 4 * left } else { left };
            if left > 0 && self.random.below(ahead) < due {
                left -= 1;
                self.cut(&durable, &pending, &ledger)
                    .with_context(|| format!("power cut after event {index} of {}", events.len()))?;
            }
        }
        Ok(())
    }

    /// One state: what is durable, and some of the rest.
    fn cut(&mut self, durable: &[u8], pending: &[Pending], ledger: &Ledger) -> Result<()> {
        let mut bytes = durable.to_vec();
        let how = self.random.below(8);
        let share = self.random.below(101);
        let only = self.random.below(pending.len() as u64);
        let until = self.random.below(pending.len() as u64 + 1);
        for (index, pending) in pending.iter().enumerate() {
            let index = index as u64;
            let whole = match how {
                // All, none, a prefix, one alone, all but one, whole ones at random, torn ones.
                0 => true,
                1 => false,
                2 => index < until,
                3 => index == only,
                4 => index != only,
                _ => self.random.chance(share),
            };
            let torn = how >= 6;
            let random = &mut self.random;
            apply(&mut bytes, &pending.change, |_| {
                if torn { random.chance(share) } else { whole }
            });
        }
        self.found.states += 1;
        self.check(bytes, ledger, how)
    }

    fn check(&mut self, bytes: Vec<u8>, ledger: &Ledger, how: u64) -> Result<()> {
        fs::write(&self.top, &bytes)?;
        let dirty = self.kind.lazy() && header::is_dirty(&self.top)?;
        if !dirty {
            match tools::check(&self.top) {
                Ok(checked) if checked.corruptions == 0 => {}
                Ok(_) => {
                    let words = tools::check_words(&self.top);
                    self.found.corrupt += 1;
                    self.bad(how, &words)?;
                    return Ok(());
                }
                Err(error) => {
                    self.found.corrupt += 1;
                    self.bad(how, &format!("{error:#}"))?;
                    return Ok(());
                }
            }
        }
        if self.power.by_qemu || self.found.states.is_multiple_of(5) {
            let raw = self.top.with_file_name("state.raw");
            let read = tools::to_raw(&self.top, &raw).and_then(|()| Ok(fs::read(&raw)?));
            if let Err(error) = read.and_then(|contents| ledger.check(&contents)) {
                self.found.lost += 1;
                self.bad(how, &format!("as QEMU reads it: {error:#}"))?;
                return Ok(());
            }
        }
        if self.power.by_qemu {
            return Ok(());
        }
        match self.use_again(bytes, ledger) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.found.lost += 1;
                self.bad(how, &format!("as the engine reads it: {error:#}"))?;
            }
            Err(error) => {
                self.found.unusable += 1;
                self.bad(how, &format!("used again: {error:#}"))?;
            }
        }
        Ok(())
    }

    /// Opens a state, reads it, goes on with it and closes it. The inner result is about its contents.
    fn use_again(&mut self, bytes: Vec<u8>, ledger: &Ledger) -> Result<Result<()>> {
        let seed = self.random.number();
        let recorder = Recorder::new(bytes, seed);
        let (engine, backing) = (self.engine, self.backing.clone());
        let file = Arc::clone(&recorder);
        let read = alone(async move {
            let opened = engine.open_recorded(file, backing).await.context("open")?;
            let mut contents = read_all(&opened.disk).await?;
            let asread = contents.clone();
            let io = opened.disk.open_queue()?;
            let mut random = Random::new(seed);
            for _ in 0..3 {
                let len = usize::try_from(random.below(40) + 1)? * SECTOR;
                let offset = usize::try_from(random.below(((contents.len() - len) / SECTOR) as u64))? * SECTOR;
                let new = random.bytes(len);
                io.write(offset as u64, vec![IoBuf::from_bytes(&new)?]).await.0?;
                let place = contents.get_mut(offset..offset + len);
                place.context("a range outside of the disk")?.copy_from_slice(&new);
            }
            let again = read_all(&opened.disk).await?;
            ensure!(again == contents, "what was written after the crash reads otherwise");
            drop(io);
            (opened.close)().await.context("close")?;
            Ok((asread, contents))
        });
        let (read, written) = read?;
        let judged = ledger.check(&read);
        if judged.is_ok() && (self.found.states.is_multiple_of(4) || self.kind.lazy()) {
            fs::write(&self.top, recorder.contents())?;
            let checked = tools::check(&self.top)?;
            ensure!(
                checked.corruptions == 0,
                "corrupt after the next use: {}",
                tools::check_words(&self.top)
            );
            let raw = self.top.with_file_name("state.raw");
            fs::write(&raw, &written)?;
            tools::compare(&self.top, &raw).map_err(|error| anyhow!("after the next use: {error}"))?;
        }
        Ok(judged)
    }

    /// Keeps the first bad states, to be looked at.
    fn bad(&mut self, how: u64, words: &str) -> Result<()> {
        if self.found.words.len() < 3 {
            let name = format!("bad-{}.qcow2", self.found.states);
            fs::copy(&self.top, self.top.with_file_name(&name))?;
            let words: String = words.chars().take(600).collect();
            self.found.words.push(format!("{name} (choice {how}): {words}"));
        }
        Ok(())
    }
}

/// Covered changes become durable, in the order in which they were made. So does what they overwrote: the page cache holds one
/// version of a page, the last, and it was that which was synced.
fn settle(durable: &mut Vec<u8>, pending: &mut Vec<Pending>, covered: &[u64]) {
    let ranges: Vec<(u64, (usize, usize))> = pending
        .iter()
        .filter(|change| covered.contains(&change.number))
        .map(|change| (change.number, extent(&change.change)))
        .collect();
    pending.retain(|change| {
        let (start, end) = extent(&change.change);
        let overwritten =
            |&(number, (from, to)): &(u64, (usize, usize))| number > change.number && start < to && from < end;
        let settled = covered.contains(&change.number) || ranges.iter().any(overwritten);
        if settled {
            apply(durable, &change.change, |_| true);
        }
        !settled
    });
}

/// First byte of a change, and the one behind its last.
fn extent(change: &Change) -> (usize, usize) {
    match change {
        Change::Write(offset, bytes) => (*offset, offset + bytes.len()),
        Change::Zero(offset, len) => (*offset, offset + len),
        Change::Grow(size) => (*size, *size),
    }
}

fn note(ledger: &mut Ledger, mark: &Mark) {
    match mark {
        Mark::WriteBegun {
            number,
            offset,
            bytes,
            hint,
        } => ledger.begin(*number, *offset, bytes.clone(), *hint),
        Mark::WriteDone(number) => ledger.done(*number),
        Mark::FlushBegun(number) => ledger.begin_flush(*number),
        Mark::FlushDone(number) => ledger.flush_done(*number),
    }
}
