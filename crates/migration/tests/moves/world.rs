//! A world with one machine that must run in one place: fake machines at both ends, and a referee who sees both.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration::{
    Arriving, Decision, Departing, Fault, Key, Ledger, LedgerError, PAGE_BYTES, PageSet, Resolver, Section,
    SourceMemory, StateCost, TargetMemory, Wanted,
};

/// What the referee knows.
#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) source_runs: bool,
    pub(crate) target_runs: bool,
    pub(crate) departed: bool,
    pub(crate) discarded: bool,
    /// Memory as the machine that runs must see it, once the source was paused for good.
    pub(crate) memory: Vec<u8>,
    pub(crate) faults: Vec<String>,
    ledger: HashMap<Key, Decision>,
}

#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<Truth>>);

impl World {
    pub(crate) fn new() -> Self {
        let world = Self::default();
        world.with(|truth| truth.source_runs = true);
        world
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Truth) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn check(&self) {
        self.with(|truth| {
            if truth.source_runs && truth.target_runs {
                truth.faults.push("two machines run".into());
            }
            if truth.source_runs && truth.departed {
                truth.faults.push("a departed machine runs".into());
            }
        });
    }

    pub(crate) fn ledger(&self) -> FakeLedger {
        FakeLedger {
            world: self.clone(),
            failures: 0,
            lies: false,
        }
    }
}

/// The ledger, and the way to it.
#[derive(Clone)]
pub(crate) struct FakeLedger {
    pub(crate) world: World,
    /// So many calls fail first.
    pub(crate) failures: u32,
    /// A call that fails has written all the same.
    pub(crate) lies: bool,
}

impl Ledger for FakeLedger {
    fn decide(&mut self, key: &Key, wanted: Decision) -> Result<Decision, LedgerError> {
        let fails = self.failures > 0;
        if fails {
            self.failures -= 1;
            if !self.lies {
                return Err("the disk is full".into());
            }
        }
        let decision = self.world.with(|truth| *truth.ledger.entry(*key).or_insert(wanted));
        if fails {
            Err("the disk went away".into())
        } else {
            Ok(decision)
        }
    }
}

impl Resolver for FakeLedger {
    fn ask(&mut self, key: &Key) -> Result<Decision, LedgerError> {
        self.decide(key, Decision::Stayed)
    }
}

/// Nobody answers.
pub(crate) struct Silent;

impl Resolver for Silent {
    fn ask(&mut self, _key: &Key) -> Result<Decision, LedgerError> {
        Err("nobody answers".into())
    }
}

pub(crate) struct Ram(pub Mutex<Vec<u8>>);

impl Ram {
    pub(crate) fn new(pages: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; usize::try_from(pages).unwrap() * PAGE_BYTES])))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) fn at(page: u64) -> usize {
    usize::try_from(page).unwrap() * PAGE_BYTES
}

impl SourceMemory for Ram {
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
        into.copy_from_slice(&self.0.lock().unwrap()[at(first)..][..into.len()]);
        Ok(())
    }
}

/// How the fake guest behaves.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) pages: u64,
    /// Pages that hold something at first; a page named twice is noise that does not compress.
    pub(crate) first: Vec<u64>,
    /// Pages written in each round; the last is repeated.
    pub(crate) writes: Vec<Vec<u64>>,
    /// Rounds in which the state is said to be too slow to hand over.
    pub(crate) slow_rounds: u32,
}

pub(crate) struct Source {
    world: World,
    ram: Arc<Ram>,
    guest: Guest,
    dirty: PageSet,
    round: usize,
    costs: u32,
    runs: bool,
    pub(crate) throttle: u8,
}

pub(crate) fn sections() -> Vec<Section> {
    vec![
        Section {
            name: "cpu/0".into(),
            version: 1,
            bytes: (0..40).collect(),
        },
        Section {
            name: "disk0".into(),
            version: 3,
            bytes: Vec::new(),
        },
    ]
}

impl Source {
    pub(crate) fn new(world: &World, guest: Guest) -> Self {
        let ram = Ram::new(guest.pages);
        let mut bytes = ram.0.lock().unwrap();
        for (index, page) in guest.first.iter().enumerate() {
            let noisy = guest.first[..index].contains(page);
            let mut noise = 1_u32;
            for byte in &mut bytes[at(*page)..][..PAGE_BYTES] {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = if noisy {
                    noise.to_le_bytes()[3]
                } else {
                    page.to_le_bytes()[0] | 1
                };
            }
        }
        drop(bytes);
        let dirty = PageSet::empty(guest.pages);
        Self {
            world: world.clone(),
            ram,
            guest,
            dirty,
            round: 0,
            costs: 0,
            runs: true,
            throttle: 0,
        }
    }

    pub(crate) fn ram(&self) -> Arc<Ram> {
        Arc::clone(&self.ram)
    }

    /// The guest counts in some pages, and turns one of them to zeros now and then.
    fn write(&mut self) {
        let Some(pages) = self.guest.writes.get(self.round).or(self.guest.writes.last()) else {
            return;
        };
        let mut bytes = self.ram.0.lock().unwrap();
        for page in pages {
            let page_bytes = &mut bytes[at(*page)..][..PAGE_BYTES];
            if (self.round as u64 + page) % 5 == 4 {
                page_bytes.fill(0);
            } else {
                let place = (self.round * 136 + 8) % (PAGE_BYTES - 8);
                page_bytes[place] = page_bytes[place].wrapping_add(1);
            }
            self.dirty.insert(*page);
        }
        self.round += 1;
    }
}

impl Departing for Source {
    type Memory = Ram;

    fn memory(&self) -> Arc<Ram> {
        Arc::clone(&self.ram)
    }

    fn begin(&mut self) -> Result<PageSet, Fault> {
        let mut populated = PageSet::empty(self.guest.pages);
        self.guest.first.iter().for_each(|page| populated.insert(*page));
        // A page that was touched and is zero.
        populated.insert(1);
        Ok(populated)
    }

    fn take_dirty(&mut self) -> Result<PageSet, Fault> {
        if self.runs {
            self.write();
        }
        Ok(std::mem::replace(&mut self.dirty, PageSet::empty(self.guest.pages)))
    }

    fn state_cost(&mut self) -> Result<StateCost, Fault> {
        self.costs += 1;
        let slow = self.costs <= self.guest.slow_rounds;
        Ok(StateCost {
            bytes: 40,
            time: if slow {
                Duration::from_secs(3600)
            } else {
                Duration::ZERO
            },
        })
    }

    fn throttle(&mut self, percent: u8) {
        self.throttle = percent;
    }

    fn pause(&mut self) -> Result<(), Fault> {
        self.write();
        self.runs = false;
        self.world.with(|truth| truth.source_runs = false);
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<Section>, Fault> {
        let memory = self.ram.bytes();
        self.world.with(|truth| truth.memory = memory);
        Ok(sections())
    }

    fn stay(&mut self) -> Result<(), Fault> {
        self.runs = true;
        self.world.with(|truth| truth.source_runs = true);
        self.world.check();
        Ok(())
    }

    fn departed(self) {
        self.world.with(|truth| {
            truth.departed = true;
            if self.runs {
                truth.faults.push("departed while running".into());
            }
        });
    }
}

pub(crate) struct TargetRam {
    world: World,
    ram: Mutex<Vec<u8>>,
    missing: Mutex<Option<PageSet>>,
    placed: Mutex<BTreeSet<u64>>,
}

impl TargetRam {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.ram.lock().unwrap().clone()
    }
}

impl TargetMemory for TargetRam {
    fn read(&self, first: u64, into: &mut [u8]) -> Result<(), Fault> {
        into.copy_from_slice(&self.ram.lock().unwrap()[at(first)..][..into.len()]);
        Ok(())
    }

    fn write(&self, first: u64, bytes: &[u8]) -> Result<(), Fault> {
        if self.world.with(|truth| truth.target_runs) {
            self.world
                .with(|truth| truth.faults.push("written under a running guest".into()));
        }
        self.ram.lock().unwrap()[at(first)..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn place(&self, page: u64, bytes: Option<&[u8; PAGE_BYTES]>) -> Result<(), Fault> {
        let first = self.placed.lock().unwrap().insert(page);
        if !first
            || !self
                .missing
                .lock()
                .unwrap()
                .as_ref()
                .is_some_and(|missing| missing.contains(page))
        {
            self.world
                .with(|truth| truth.faults.push(format!("page {page} placed twice or not missing")));
        }
        let mut ram = self.ram.lock().unwrap();
        let room = &mut ram[at(page)..][..PAGE_BYTES];
        match bytes {
            Some(bytes) => room.copy_from_slice(bytes),
            None => room.fill(0),
        }
        // The guest was waiting for it, and writes at once: whoever places it again loses that.
        room[17] = room[17].wrapping_add(3);
        self.world
            .with(|truth| truth.memory[at(page) + 17] = truth.memory[at(page) + 17].wrapping_add(3));
        Ok(())
    }
}

pub(crate) struct Target {
    world: World,
    ram: Arc<TargetRam>,
    wanted: Option<(Wanted, PageSet)>,
    post_copy: bool,
    loaded: bool,
    /// So many starts fail.
    pub(crate) start_failures: u32,
}

impl Target {
    pub(crate) fn new(world: &World, pages: u64) -> Self {
        let ram = Arc::new(TargetRam {
            world: world.clone(),
            ram: Mutex::new(Ram::new(pages).bytes()),
            missing: Mutex::default(),
            placed: Mutex::default(),
        });
        Self {
            world: world.clone(),
            ram,
            wanted: None,
            post_copy: true,
            loaded: false,
            start_failures: 0,
        }
    }

    pub(crate) fn ram(&self) -> Arc<TargetRam> {
        Arc::clone(&self.ram)
    }
}

impl Arriving for Target {
    type Memory = TargetRam;

    fn memory(&self) -> Arc<TargetRam> {
        Arc::clone(&self.ram)
    }

    fn can_post_copy(&self) -> bool {
        self.post_copy
    }

    fn withhold(&mut self, missing: &PageSet, wanted: Wanted) -> Result<(), Fault> {
        let mut ram = self.ram.ram.lock().unwrap();
        for (chunk, mask) in missing.chunks() {
            for bit in (0..64).filter(|bit| mask & (1 << bit) != 0) {
                ram[at(chunk * 64 + bit)..][..PAGE_BYTES].fill(0xee);
            }
        }
        *self.ram.missing.lock().unwrap() = Some(missing.clone());
        self.wanted = Some((wanted, missing.clone()));
        Ok(())
    }

    fn load(&mut self, loaded: Vec<Section>) -> Result<(), Fault> {
        assert_eq!(loaded, sections());
        self.loaded = true;
        Ok(())
    }

    fn start(&mut self) -> Result<(), Fault> {
        assert!(self.loaded);
        if self.start_failures > 0 {
            self.start_failures -= 1;
            return Err("the lock of its disk is held".into());
        }
        self.world.with(|truth| {
            truth.target_runs = true;
            if !truth.ledger.values().any(|decision| *decision == Decision::Departed) {
                truth.faults.push("started before the departure was recorded".into());
            }
        });
        self.world.check();
        if let Some((wanted, missing)) = &self.wanted {
            // The guest touches what it misses from the end, some of it twice, and something it has.
            let pages: Vec<u64> = (0..missing.pages()).filter(|page| missing.contains(*page)).collect();
            pages.iter().rev().take(3).for_each(|page| wanted.page(*page));
            pages.iter().rev().take(1).for_each(|page| wanted.page(*page));
            wanted.page(0);
        }
        Ok(())
    }

    fn discard(self) {
        self.world.with(|truth| {
            truth.discarded = true;
            if truth.target_runs {
                truth.faults.push("a running machine was thrown away".into());
            }
        });
    }
}
