//! Formats, versions, and bytes that nobody wrote.

use proptest::prelude::*;

use crate::*;

record! {
    struct Point {
        x: u16,
        y: i64,
    }
}

section! {
    struct First = "figure", version 1 {
        points: Vec<Point>,
        name: String,
    }
}

section! {
    struct Second = "figure", version 2 after First { |older| Self { points: older.points, name: older.name, filled: true } } {
        points: Vec<Point>,
        name: String,
        filled: bool,
    }
}

section! {
    struct Third = "figure", version 3 after Second {
        |older| Self { points: older.points, name: older.name, colour: older.filled.then_some([0; 3]), raw: Bytes::default() }
    } {
        points: Vec<Point>,
        name: String,
        colour: Option<[u8; 3]>,
        raw: Bytes,
    }
}

fn first() -> First {
    First {
        points: vec![Point { x: 0x0102, y: -2 }],
        name: "ab".to_owned(),
    }
}

#[test]
fn the_encoding_is_the_documented_one() {
    let section = first().save("one");
    assert_eq!(
        (section.kind(), section.name(), section.version()),
        ("figure", "one", 1)
    );
    let fields = [
        &[1, 0, 0, 0, 2, 1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..],
        &[2, 0, 0, 0, b'a', b'b'],
    ]
    .concat();
    assert_eq!(section.body(), fields);
    let mut state = SavedState::new();
    state.add(section).unwrap();
    let file = state.encode();
    let head = [
        &b"KARATSAV"[..],
        &[1, 0, 0, 0, 1, 0, 0, 0],
        b"\x06figure\x03one",
        &[1, 0, 0, 0, 20, 0, 0, 0],
    ]
    .concat();
    assert_eq!(file[..head.len()], head);
    assert_eq!(file[head.len()..file.len() - 4], fields);
    assert_eq!(SavedState::parse(&file).unwrap(), state);
}

#[test]
fn older_versions_go_up_step_by_step_and_later_ones_are_refused() {
    let third = Third::load(&first().save("")).unwrap();
    assert_eq!(third.colour, Some([0; 3]), "by way of the second");
    assert_eq!((third.points, third.name), (first().points, first().name));
    let error = Second::load(&Third::upgrade(Second::upgrade(first())).save("x")).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Version {
                version: 3,
                newest: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("figure of x"), "{error}");
    let zero = Section::new("figure", "", 0, vec![]);
    assert!(matches!(Third::load(&zero), Err(LoadError::Version { version: 0, .. })));
    let other = Section::new("other", "", 1, vec![]);
    assert!(matches!(Third::load(&other), Err(LoadError::Kind { .. })));
}

#[test]
fn leftovers_and_truncation_are_errors_at_every_byte() {
    let whole = first().save("");
    for length in 0..whole.body().len() {
        let cut = Section::new("figure", "", 1, whole.body()[..length].to_vec());
        let error = First::load(&cut).unwrap_err();
        let truncated = matches!(
            error,
            LoadError::Fields {
                source: DecodeError::Truncated { .. },
                ..
            }
        );
        assert!(truncated, "{length} bytes: {error}");
    }
    let more = Section::new("figure", "", 1, [whole.body(), &[0]].concat());
    let LoadError::Fields { source, .. } = First::load(&more).unwrap_err() else {
        panic!("not an error of fields")
    };
    assert_eq!(source, DecodeError::Leftover { count: 1 });
}

#[test]
fn a_count_is_believed_only_as_far_as_there_are_bytes() {
    let huge = Section::new("figure", "", 1, vec![0xff; 64]);
    assert!(First::load(&huge).is_err());
    let mut from = Decoder::new(&[0xff, 0xff, 0xff, 0xff, 1]);
    assert!(matches!(from.field::<Bytes>(), Err(DecodeError::Truncated { .. })));
    for (bytes, offset) in [(&[2][..], 0), (&[1, 7], 1)] {
        let error = Decoder::new(bytes).field::<Option<bool>>().unwrap_err();
        assert!(
            matches!(error, DecodeError::BadValue { offset: at, .. } if at == offset),
            "{error}"
        );
    }
}

#[test]
fn sections_are_taken_once_and_all() {
    let mut state = SavedState::new();
    state.add(first().save("a")).unwrap();
    state.add(first().save("b")).unwrap();
    assert_eq!(
        state.add(first().save("a")),
        Err(Problem::Doubled("figure of a".to_owned()))
    );
    assert!(matches!(state.add(first().save("No")), Err(Problem::BadName { .. })));
    let mut sections = state.into_sections();
    assert_eq!(sections.take::<First>("a").unwrap().0, first());
    assert_eq!(
        sections.take::<First>("a").unwrap_err(),
        LoadError::Missing("figure of a".to_owned())
    );
    let left = sections.finish().unwrap_err();
    assert_eq!(left, LoadError::Untaken(vec!["figure of b".to_owned()]));
}

#[test]
fn every_damaged_bit_of_a_file_is_found() {
    let mut state = SavedState::new();
    state.add(first().save("a")).unwrap();
    let file = state.encode();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(SavedState::parse(&damaged).is_err(), "bit {bit}");
    }
    for length in 0..file.len() {
        assert!(SavedState::parse(&file[..length]).is_err(), "{length} bytes");
    }
    assert!(SavedState::parse(&[&file[..], &[0]].concat()).is_err());
}

/// A file around `inner` that has a right checksum.
fn sealed(count: u32, inner: &[u8]) -> Vec<u8> {
    let mut file = [&b"KARATSAV"[..], &1_u32.to_le_bytes(), &count.to_le_bytes(), inner].concat();
    let sum = crc32fast::hash(&file);
    file.extend(sum.to_le_bytes());
    file
}

#[test]
fn a_hostile_file_with_a_right_checksum_is_an_error() {
    assert!(matches!(
        SavedState::parse(&sealed(u32::MAX, &[])),
        Err(Problem::TooMany(_))
    ));
    assert!(matches!(SavedState::parse(&sealed(1, &[])), Err(Problem::Structure(_))));
    assert!(matches!(
        SavedState::parse(&sealed(0, &[0])),
        Err(Problem::Structure(_))
    ));
    assert!(matches!(
        SavedState::parse(&sealed(1, b"\x00\x00\x01\0\0\0\0\0\0\0")),
        Err(Problem::BadName { .. })
    ));
    let twice = b"\x01a\x00\x01\0\0\0\0\0\0\0".repeat(2);
    assert!(matches!(
        SavedState::parse(&sealed(2, &twice)),
        Err(Problem::Doubled(_))
    ));
    let long = b"\x01a\x00\x01\0\0\0\xff\xff\xff\xff";
    assert!(matches!(
        SavedState::parse(&sealed(1, long)),
        Err(Problem::Structure(_))
    ));
}

fn any_third() -> impl Strategy<Value = Third> {
    let point = (any::<u16>(), any::<i64>()).prop_map(|(x, y)| Point { x, y });
    let points = prop::collection::vec(point, 0..20);
    let raw = prop::collection::vec(any::<u8>(), 0..100);
    (points, ".{0,20}", any::<Option<[u8; 3]>>(), raw).prop_map(|(points, name, colour, raw)| Third {
        points,
        name,
        colour,
        raw: Bytes(raw),
    })
}

proptest! {
    #[test]
    fn what_is_saved_is_loaded_and_saved_the_same(state in any_third()) {
        let section = state.save("a");
        let again = Third::load(&section).unwrap();
        prop_assert_eq!(&again, &state);
        prop_assert_eq!(again.save("a"), section);
    }

    #[test]
    fn whatever_is_accepted_has_one_encoding(version in 1_u32..5, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let section = Section::new("figure", "", version, body);
        if let Ok(state) = Third::load(&section) && version == Third::VERSION {
            prop_assert_eq!(state.save(""), section);
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_file(count in 0_u32..4, inner in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = sealed(count, &inner);
        if let Ok(state) = SavedState::parse(&file) {
            prop_assert_eq!(state.encode(), file);
        }
        let _ = SavedState::parse(&inner);
    }
}
