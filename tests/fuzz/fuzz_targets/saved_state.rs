//! Saved state: what is parsed has one encoding, and devices take sections or refuse them.
//!
//! Bytes are tried as they are, and once more with the checksum that belongs to them, so that what is behind it is reached.
#![no_main]

use std::sync::Arc;

use chipset::{EventRegister, PmTimer, Rtc, Serial, SerialPeer};
use device::{Device, IrqLine, Migration};
use libfuzzer_sys::fuzz_target;
use savestate::{SavedState, Section};

struct Nothing;

impl IrqLine for Nothing {
    fn trigger(&self) {}
}

impl SerialPeer for Nothing {
    fn output(&self, _bytes: &[u8]) {}
    fn input_wanted(&self) {}
}

const SUM: usize = 4;

fn devices() -> [Arc<dyn Device>; 4] {
    [
        Arc::new(Serial::new("serial", Arc::new(Nothing), Arc::new(Nothing))),
        Arc::new(Rtc::new()),
        Arc::new(EventRegister::new(Arc::new(Nothing))),
        Arc::new(PmTimer::new()),
    ]
}

fn look(bytes: &[u8]) {
    let Ok(state) = SavedState::parse(bytes) else { return };
    assert_eq!(state.encode(), bytes);
    let mut sections = state.into_sections();
    for device in devices() {
        let Migration::Sections(migrate) = device.migration() else {
            continue;
        };
        if migrate.load(&mut sections).is_ok() {
            let saved = migrate.save().expect("it stands still");
            device.resume();
            device.pause().wait();
            assert_eq!(saved.len(), 1);
        }
    }
    let _ = sections.finish();
}

/// One section's fields, for each device in turn.
fn fields(kind: u8, body: &[u8]) {
    let words = [
        ("serial", "serial"),
        ("rtc", "rtc"),
        ("acpi-events", "events"),
        ("pm-timer", "pm-timer"),
    ];
    let (kind, name) = words[usize::from(kind) % words.len()];
    let mut state = SavedState::new();
    state
        .add(Section::new(kind, name, 1, body.to_vec()))
        .expect("the words are words");
    look(&state.encode());
}

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    if let Some(covered) = bytes.len().checked_sub(SUM).and_then(|length| bytes.get(..length)) {
        look(&SavedState::seal(covered));
    }
    if let [kind, body @ ..] = bytes {
        fields(*kind, body);
    }
});
