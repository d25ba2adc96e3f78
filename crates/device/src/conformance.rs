//! What every device that is saved has to pass.

use std::sync::Arc;

use savestate::{SavedState, Section};

use crate::{Device, Migrate, Migration, SaveError};

/// The sections of `device`, which stands still.
pub fn save(device: &dyn Device) -> Vec<Section> {
    migrate(device).save().expect("a device that stands still is saved")
}

/// Loads `sections` into `device` by way of a file.
pub fn load(device: &dyn Device, sections: &[Section]) {
    let mut file = SavedState::new();
    for section in sections {
        file.add(section.clone())
            .expect("kinds and names are words, and different");
    }
    let file = SavedState::parse(&file.encode()).expect("what was encoded is parsed");
    let mut sections = file.into_sections();
    migrate(device).load(&mut sections).expect("what was saved is loaded");
    sections.finish().expect("a device takes all it has saved");
}

/// Checks `used`, a device that has been through something and stands still, against others of its making.
///
/// # Panics
/// It does not keep to [`Migrate`].
pub fn check(used: &dyn Device, fresh: impl Fn() -> Arc<dyn Device>) {
    let saved = save(used);
    assert_eq!(save(used), saved, "saving changes nothing");
    let copy = fresh();
    load(&*copy, &saved);
    assert_eq!(save(&*copy), saved, "saved, loaded and saved again is the same");
    check_running(&fresh, &saved);
    check_missing(&fresh, &saved);
    check_hostile(&fresh, &saved);
}

fn migrate(device: &dyn Device) -> &dyn Migrate {
    match device.migration() {
        Migration::Sections(migrate) => migrate,
        Migration::Stateless => panic!("{} says that it has no state", device.name()),
        Migration::Immovable { why } => panic!("{} can not be saved: {why}", device.name()),
    }
}

fn sections(saved: &[Section]) -> savestate::Sections {
    let mut state = SavedState::new();
    for section in saved {
        state
            .add(section.clone())
            .expect("kinds and names are words, and different");
    }
    state.into_sections()
}

fn check_running(fresh: &impl Fn() -> Arc<dyn Device>, saved: &[Section]) {
    let running = fresh();
    running.start();
    let loaded = migrate(&*running).load(&mut sections(saved));
    assert!(
        matches!(loaded, Err(savestate::LoadError::Running(_))),
        "loading while running: {loaded:?}"
    );
    assert!(
        matches!(migrate(&*running).save(), Err(SaveError::Running(_))),
        "saving while running"
    );
    running.pause().wait();
    load(&*running, saved);
    running.resume();
    assert!(migrate(&*running).save().is_err(), "runs again");
    running.pause().wait();
    let _ = save(&*running);
}

fn check_missing(fresh: &impl Fn() -> Arc<dyn Device>, saved: &[Section]) {
    for missing in 0..saved.len() {
        let others = saved.iter().enumerate().filter(|(index, _)| *index != missing);
        let others: Vec<Section> = others.map(|(_, section)| section.clone()).collect();
        let loaded = migrate(&*fresh()).load(&mut sections(&others));
        assert!(
            matches!(loaded, Err(savestate::LoadError::Missing(_))),
            "without {}: {loaded:?}",
            saved[missing].title()
        );
    }
}

/// Every cut, a byte too many, the next version, and bytes changed one at a time.
fn check_hostile(fresh: &impl Fn() -> Arc<dyn Device>, saved: &[Section]) {
    let try_one = |index: usize, version: u32, body: Vec<u8>| {
        let original = &saved[index];
        let mut others = saved.to_vec();
        others[index] = Section::new(original.kind(), original.name(), version, body);
        let device = fresh();
        let loaded = migrate(&*device).load(&mut sections(&others));
        if loaded.is_ok() {
            let _ = save(&*device);
            device.resume();
            device.pause().wait();
        }
        loaded
    };
    for (index, section) in saved.iter().enumerate() {
        let (body, version) = (section.body(), section.version());
        let step = (body.len() / 64).max(1);
        for cut in (0..body.len()).step_by(step) {
            let loaded = try_one(index, version, body[..cut].to_vec());
            assert!(loaded.is_err(), "{} cut to {cut} bytes", section.title());
        }
        assert!(
            try_one(index, version, [body, &[0]].concat()).is_err(),
            "a byte too many"
        );
        assert!(
            try_one(index, version + 1, body.to_vec()).is_err(),
            "of a later version"
        );
        for place in (0..body.len()).step_by((body.len() / 128).max(1)) {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = body.to_vec();
                changed[place] ^= flip;
                // Whether it is refused or not: no panic, and a device that can be used.
                let _ = try_one(index, version, changed);
            }
        }
    }
}
