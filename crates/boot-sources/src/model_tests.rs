//! A source lived through at random: what must hold whatever servers, operators, machines and clocks do.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::*;

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    /// Time goes on, or the clock is set back.
    Clock(i64),
    /// The source changes to this content.
    Publish(u8),
    /// The next poll or import fails, in this way.
    Break(Option<FailureKind>),
    /// A machine is made from the current image, or from any.
    Use(u8),
    /// The machines made from this image end.
    Release(u8),
    /// An operator asks for a poll.
    Sync,
    /// The daemon ends and starts again.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1_i64..200_000).prop_map(Event::Clock),
        1 => (-400_000_i64..0).prop_map(Event::Clock),
        4 => (0..12_u8).prop_map(Event::Publish),
        1 => prop_oneof![
            Just(None),
            Just(Some(FailureKind::Transient)),
            Just(Some(FailureKind::Refused))
        ].prop_map(Event::Break),
        2 => (0..8_u8).prop_map(Event::Use),
        2 => (0..12_u8).prop_map(Event::Release),
        1 => Just(Event::Sync),
        1 => Just(Event::Restart),
    ]
}

fn source(keep: u32, schedule: &str, gc: GarbageCollect) -> BootSource {
    let wish = BootSourceWish {
        name: "s".into(),
        source: Some(SourceWish {
            registry: Some("r/s:1".into()),
            ..SourceWish::default()
        }),
        schedule: Some(schedule.into()),
        managed: Some("s".into()),
        imports_to_keep: Some(keep),
        garbage_collect: Some(gc),
        ..BootSourceWish::default()
    };
    BootSource::check(&wish, None, Origin::Custom).unwrap()
}

struct World {
    source: BootSource,
    state: SourceState,
    now: Timestamp,
    content: u8,
    broken: Option<Option<FailureKind>>,
    used: HashSet<String>,
    stored: HashSet<String>,
    polls: u32,
}

impl World {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Clock(seconds) => self.now += SignedDuration::from_secs(*seconds),
            Event::Publish(content) => self.content = *content,
            Event::Break(kind) => self.broken = Some(*kind),
            Event::Use(index) => {
                let images = self.state.imports();
                self.used
                    .extend(images.get(usize::from(*index)).map(|import| import.image.clone()));
            }
            Event::Release(content) => drop(self.used.remove(&format!("image-{content}"))),
            Event::Sync => self.state.sync(),
            Event::Restart => {
                let text = serde_json::to_string(&self.state).unwrap();
                self.state = serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// Does what the state says until it says to wait; each step once.
    fn settle(&mut self) -> Timestamp {
        self.collect();
        for _ in 0..4 {
            match self.state.step(&self.source, Gate::OPEN, self.now) {
                Step::Wait(until) => return until,
                Step::Poll => self.poll(),
                Step::Import(digest) => self.import(digest),
                other => panic!("{other:?}"),
            }
            self.collect();
        }
        panic!("it never waits: {:?}", self.state)
    }

    fn poll(&mut self) {
        self.polls += 1;
        if self.broken == Some(None) {
            self.broken = None;
            return self.state.poll_failed(&self.source, ("down", "no answer"), self.now);
        }
        let digest: SourceDigest = format!("sha256:{}", self.content).parse().unwrap();
        let stored = format!("image-{}", self.content);
        let stored = self.stored.contains(&stored).then_some(stored.as_str());
        self.state.polled(&self.source, digest, stored, self.now);
    }

    fn import(&mut self, digest: SourceDigest) {
        if let Some(Some(kind)) = self.broken.take() {
            return self.state.import_failed(kind, ("broken", "no image"), self.now);
        }
        let image = digest.to_string().replace("sha256:", "image-");
        assert!(
            self.stored.insert(image.clone()),
            "{image} is fetched though it is there"
        );
        self.state.imported(digest, image, self.source.place(), self.now);
    }

    fn collect(&mut self) {
        let removals = self.state.removals(&self.source, |image| self.used.contains(image));
        let newest = self.state.current().map(|import| import.image.clone());
        let ages: Vec<_> = removals.iter().map(|import| self.age(&import.image)).collect();
        assert!(
            ages.windows(2).all(|pair| pair[0] > pair[1]),
            "not oldest first: {removals:?}"
        );
        for import in removals {
            assert!(!self.used.contains(&import.image), "{} is in use", import.image);
            assert_ne!(Some(&import.image), newest.as_ref());
            assert!(self.stored.remove(&import.image));
            self.state.forget(&import.image);
        }
    }

    fn age(&self, image: &str) -> usize {
        self.state
            .imports()
            .iter()
            .position(|import| import.image == image)
            .unwrap()
    }

    fn check(&self) {
        let imports = self.state.imports();
        let images: HashSet<_> = imports.iter().map(|import| import.image.clone()).collect();
        assert_eq!(images.len(), imports.len());
        assert_eq!(images, self.stored, "what is recorded is what is stored");
        assert!(
            self.used.iter().all(|image| images.contains(image)),
            "an image in use is gone"
        );
        if self.source.garbage_collect == GarbageCollect::Outdated {
            let keep = self.source.imports_to_keep as usize;
            let unused = images.iter().filter(|image| !self.used.contains(*image)).count();
            assert!(unused <= keep, "{unused} unused ones of {keep}");
            let used_or_newest = self.used.len() + 1;
            assert!(imports.len() <= keep.max(used_or_newest), "{} kept", imports.len());
        }
    }
}

proptest! {
    // Each case is a life of up to eighty events; more of them take longer than a second.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens(
        events in proptest::collection::vec(event(), 1..80),
        keep in 1..5_u32,
        schedule in prop_oneof![Just("0 */12 * * *"), Just("*/10 * * * *"), Just("55 8/12 * * *"), Just("@weekly")],
        never in prop::bool::weighted(0.1),
    ) {
        let gc = if never { GarbageCollect::Never } else { GarbageCollect::Outdated };
        let mut world = World {
            source: source(keep, schedule, gc),
            state: SourceState::default(),
            now: "2026-11-22T12:00:00Z".parse().unwrap(),
            content: 0,
            broken: None,
            used: HashSet::new(),
            stored: HashSet::new(),
            polls: 0,
        };
        for event in &events {
            world.apply(event);
            let before = world.polls;
            let until = world.settle();
            world.check();
            // It waits for something that comes: no longer than a week, the longest gap of these schedules, and the jitter.
            let wait = (until - world.now).get_seconds();
            prop_assert!(wait > 0 && wait <= 7 * 86_400 + i64::from(JITTER_DEFAULT_S), "{wait}");
            // One event, at most one poll; the clock alone decides nothing twice.
            prop_assert!(world.polls - before <= 1);
            prop_assert_eq!(world.settle(), until);
            // And a second earlier it would still wait.
            let almost = until - SignedDuration::from_secs(1);
            if almost >= world.now {
                let step = world.state.clone().step(&world.source, Gate::OPEN, almost);
                prop_assert_eq!(step, Step::Wait(until));
            }
            let step = world.state.clone().step(&world.source, Gate::OPEN, until);
            prop_assert_eq!(step, Step::Poll);
        }
        // Left alone with a source that works, it has what the source has.
        world.broken = None;
        world.state.sync();
        world.settle();
        let content = format!("image-{}", world.content);
        prop_assert_eq!(&world.state.current().unwrap().image, &content);
    }

    #[test]
    fn a_clock_set_back_delays_by_one_gap_only(back in 1_i64..10_000_000, second in 0_i64..100_000) {
        let source = source(3, "0 */12 * * *", GarbageCollect::Outdated);
        let mut state = SourceState::default();
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        state.polled(&source, "a".parse().unwrap(), Some("a"), now + SignedDuration::from_secs(second));
        let earlier = now - SignedDuration::from_secs(back);
        let Step::Wait(until) = state.step(&source, Gate::OPEN, earlier) else { panic!("polls at once") };
        prop_assert!((until - earlier).get_seconds() <= 43_200 + i64::from(JITTER_DEFAULT_S));
        // The wait is kept to while time goes on.
        prop_assert_eq!(state.step(&source, Gate::OPEN, until), Step::Poll);
    }
}
