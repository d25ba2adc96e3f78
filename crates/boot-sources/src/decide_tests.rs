//! Decisions, one at a time, on a clock that is passed in.

use jiff::{SignedDuration, Timestamp};

use crate::*;

fn source(json: &str) -> BootSource {
    let base = r#"{"name": "debian-12", "source": {"registry": "docker://r/debian:12"}, "schedule": "0 */12 * * *",
                   "managed": "debian12", "jitter_seconds": 0}"#;
    let base: BootSourceWish = serde_json::from_str(base).unwrap();
    let base = BootSource::check(&base, None, Origin::System).unwrap();
    let mut wish: BootSourceWish = serde_json::from_str(json).unwrap();
    wish.name = "debian-12".into();
    BootSource::check(&wish, Some(&base), Origin::Custom).unwrap()
}

fn at(text: &str) -> Timestamp {
    format!("2026-11-{text}Z").parse().unwrap()
}

fn digest(text: &str) -> SourceDigest {
    text.parse().unwrap()
}

/// A source that imported `digests`, oldest first, an hour apart; images are called as the digests.
fn imported(source: &BootSource, digests: &[&str]) -> SourceState {
    let mut state = SourceState::default();
    let mut now = at("01T00:00:00");
    for text in digests {
        assert_eq!(
            state.polled(source, digest(text), None, now),
            Finding::Import(digest(text))
        );
        state.imported(digest(text), (*text).to_owned(), source.place(), now);
        now += SignedDuration::from_hours(1);
    }
    state
}

fn images(imports: &[Import]) -> Vec<&str> {
    imports.iter().map(|import| import.image.as_str()).collect()
}

#[test]
fn a_new_source_is_polled_at_once_and_then_by_its_schedule() {
    let source = source("{}");
    let mut state = SourceState::default();
    let now = at("22T13:00:00");
    assert_eq!(state.step(&source, Gate::OPEN, now), Step::Poll);
    assert_eq!(
        state.polled(&source, digest("a"), None, now),
        Finding::Import(digest("a"))
    );
    assert_eq!(state.step(&source, Gate::OPEN, now), Step::Import(digest("a")));
    state.imported(digest("a"), "image-a".into(), source.place(), at("22T13:05:00"));
    assert_eq!(
        state.step(&source, Gate::OPEN, at("22T13:05:00")),
        Step::Wait(at("23T00:00:00"))
    );
    assert_eq!(state.step(&source, Gate::OPEN, at("23T00:00:00")), Step::Poll);
    assert_eq!(
        state.polled(&source, digest("a"), None, at("23T00:00:01")),
        Finding::Unchanged
    );
    assert_eq!(
        state.step(&source, Gate::OPEN, at("23T00:00:01")),
        Step::Wait(at("23T12:00:00"))
    );
    // Three slots were missed: one poll.
    assert_eq!(state.step(&source, Gate::OPEN, at("25T01:00:00")), Step::Poll);
    state.polled(&source, digest("a"), None, at("25T01:00:00"));
    assert_eq!(
        state.step(&source, Gate::OPEN, at("25T01:00:00")),
        Step::Wait(at("25T12:00:00"))
    );
}

#[test]
fn switches_stop_it_and_custom_sources_mind_only_their_own() {
    let mut state = SourceState::default();
    let now = at("22T13:00:00");
    let closed = Gate {
        system_sources: false,
        ..Gate::OPEN
    };
    let system = source("{}");
    assert_eq!(state.step(&system, closed, now), Step::Off);
    assert_eq!(state.step(&source(r#"{"enabled": false}"#), Gate::OPEN, now), Step::Off);
    let custom = BootSource {
        origin: Origin::Custom,
        ..system.clone()
    };
    assert_eq!(state.step(&custom, closed, now), Step::Poll);
    let storeless = Gate {
        has_store: false,
        ..Gate::OPEN
    };
    assert_eq!(state.step(&system, storeless, now), Step::NoStore);
}

#[test]
fn what_was_there_before_is_not_fetched_again() {
    let source = source("{}");
    let mut state = imported(&source, &["a", "b"]);
    let Finding::AlreadyThere(import) = state.polled(&source, digest("a"), None, at("22T00:00:00")) else {
        panic!("fetched again")
    };
    assert_eq!(import.image, "a");
    assert_eq!(images(state.imports()), ["a", "b"]);
    let Finding::AlreadyThere(import) = state.polled(&source, digest("c"), Some("from-elsewhere"), at("22T01:00:00"))
    else {
        panic!("fetched again")
    };
    assert_eq!(import.image, "from-elsewhere");
    assert_eq!(images(state.imports()), ["from-elsewhere", "a", "b"]);
}

#[test]
fn failures_are_tried_again_later_and_later() {
    let source = source("{}");
    let mut state = imported(&source, &["a"]);
    let mut now = at("22T12:00:00");
    let mut waits = Vec::new();
    for _ in 0..9 {
        state.poll_failed(&source, ("timeout", "the server was silent"), now);
        let Step::Wait(next) = state.step(&source, Gate::OPEN, now) else {
            panic!("no wait")
        };
        waits.push((next - now).get_seconds());
        now = next;
        assert_eq!(state.step(&source, Gate::OPEN, now), Step::Poll);
    }
    assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
    assert_eq!(backoff(u32::MAX), SignedDuration::from_hours(1));
    assert_eq!(state.last_error().unwrap().code, "timeout");
    assert_eq!(state.polled(&source, digest("a"), None, now), Finding::Unchanged);
    assert_eq!((state.failures(), state.last_error()), (0, None));
}

#[test]
fn a_refused_image_is_not_fetched_again_until_somebody_asks() {
    let source = source("{}");
    let mut state = imported(&source, &["a"]);
    state.polled(&source, digest("bad"), None, at("22T12:00:00"));
    state.import_failed(
        FailureKind::Refused,
        ("signature_wrong", "no key signed this"),
        at("22T12:01:00"),
    );
    assert_eq!(
        state.step(&source, Gate::OPEN, at("22T12:02:00")),
        Step::Wait(at("23T00:00:00"))
    );
    assert_eq!(
        state.polled(&source, digest("bad"), None, at("23T00:00:00")),
        Finding::Refused(digest("bad"))
    );
    assert_eq!(state.last_error().unwrap().code, "signature_wrong");
    assert_eq!(images(state.imports()), ["a"]);
    // The source is silent for a while: that is tried again soon, and then the refusal is what is told again.
    let mut silent = state.clone();
    silent.poll_failed(&source, ("timeout", "silent"), at("23T12:00:00"));
    assert!(
        matches!(silent.step(&source, Gate::OPEN, at("23T12:00:00")), Step::Wait(until) if until < at("23T12:05:00"))
    );
    assert_eq!(
        silent.polled(&source, digest("bad"), None, at("23T12:05:00")),
        Finding::Refused(digest("bad"))
    );
    assert_eq!(silent.last_error().unwrap().code, "signature_wrong");
    assert_eq!(
        silent.step(&source, Gate::OPEN, at("23T12:05:00")),
        Step::Wait(at("24T00:00:00"))
    );
    // Something else comes.
    let mut other = state.clone();
    assert_eq!(
        other.polled(&source, digest("c"), None, at("23T12:00:00")),
        Finding::Import(digest("c"))
    );
    // Or an operator asks.
    state.sync();
    assert_eq!(state.step(&source, Gate::OPEN, at("23T00:00:01")), Step::Poll);
    assert_eq!(
        state.polled(&source, digest("bad"), None, at("23T00:00:01")),
        Finding::Import(digest("bad"))
    );
}

#[test]
fn an_import_that_failed_for_now_is_tried_again_soon() {
    let source = source("{}");
    let mut state = SourceState::default();
    state.polled(&source, digest("a"), None, at("22T12:00:00"));
    state.import_failed(FailureKind::Transient, ("disk_full", "no room"), at("22T12:00:30"));
    assert_eq!(
        state.step(&source, Gate::OPEN, at("22T12:00:30")),
        Step::Wait(at("22T12:01:30"))
    );
    assert_eq!(state.step(&source, Gate::OPEN, at("22T12:01:30")), Step::Poll);
}

#[test]
fn a_tag_that_moves_during_the_import_is_no_surprise() {
    let source = source("{}");
    let mut state = SourceState::default();
    state.polled(&source, digest("a"), None, at("22T12:00:00"));
    state.imported(digest("b"), "image-b".into(), source.place(), at("22T12:01:00"));
    assert_eq!(outdated(&source, &state, Gate::OPEN), (false, false));
    assert_eq!(
        state.polled(&source, digest("b"), None, at("23T00:00:00")),
        Finding::Unchanged
    );
}

#[test]
fn a_daemon_that_ended_while_importing_goes_on() {
    let source = source("{}");
    let mut state = SourceState::default();
    state.polled(&source, digest("a"), None, at("22T12:00:00"));
    let text = serde_json::to_string(&state).unwrap();
    let mut again: SourceState = serde_json::from_str(&text).unwrap();
    assert_eq!(
        again.step(&source, Gate::OPEN, at("22T13:00:00")),
        Step::Import(digest("a"))
    );
    again.import_cancelled();
    assert_eq!(again.step(&source, Gate::OPEN, at("22T13:00:00")), Step::Poll);
}

#[test]
fn the_fourth_import_removes_the_oldest_that_nothing_uses() {
    let source = source("{}");
    let state = imported(&source, &["a", "b", "c", "d"]);
    assert_eq!(images(state.imports()), ["d", "c", "b", "a"]);
    assert_eq!(images(&state.removals(&source, |_| false)), ["a"]);
    assert_eq!(images(&state.removals(&source, |image| image == "a")), ["b"]);
    assert!(state.removals(&source, |image| image != "d").is_empty());
    let three = imported(&source, &["a", "b", "c"]);
    assert!(three.removals(&source, |_| false).is_empty());
}

#[test]
fn never_means_never_and_the_newest_stays() {
    let many = ["a", "b", "c", "d", "e"];
    let never = source(r#"{"garbage_collect": "Never", "imports_to_keep": 1}"#);
    assert!(imported(&never, &many).removals(&never, |_| false).is_empty());
    let one = source(r#"{"imports_to_keep": 1}"#);
    let mut state = imported(&one, &many);
    let removed = state.removals(&one, |_| false);
    assert_eq!(images(&removed), ["a", "b", "c", "d"]);
    for import in removed {
        state.forget(&import.image);
    }
    assert_eq!(images(state.imports()), ["e"]);
    // An older one that became current again is the newest.
    let mut state = imported(&one, &["a", "b"]);
    state.polled(&one, digest("a"), None, at("22T00:00:00"));
    assert_eq!(images(&state.removals(&one, |_| false)), ["b"]);
}

#[test]
fn the_newest_image_is_fetched_again_when_it_is_lost() {
    let source = source("{}");
    let mut state = imported(&source, &["a", "b"]);
    state.forget("b");
    assert_eq!(state.step(&source, Gate::OPEN, at("01T02:00:00")), Step::Poll);
    assert_eq!(
        state.polled(&source, digest("b"), None, at("01T02:00:00")),
        Finding::Import(digest("b"))
    );
}

#[test]
fn another_store_is_imported_to_anew_and_what_was_in_the_old_one_goes() {
    let (old, new) = (source("{}"), source(r#"{"store": "archive"}"#));
    let mut state = imported(&old, &["a", "b"]);
    let now = at("02T00:00:00");
    assert_eq!(state.step(&new, Gate::OPEN, now), Step::Poll);
    assert_eq!(state.polled(&new, digest("b"), None, now), Finding::Import(digest("b")));
    state.import_failed(FailureKind::Transient, ("disk_full", "no room"), now);
    // It is tried again with the usual wait, and the old one is the current one as long.
    assert_eq!(state.step(&new, Gate::OPEN, now), Step::Wait(at("02T00:01:00")));
    assert_eq!(state.removals(&new, |_| false), []);
    state.polled(&new, digest("b"), None, at("02T00:01:00"));
    state.imported(digest("b"), "b-too".into(), new.place(), at("02T00:01:01"));
    assert_eq!(images(state.imports()), ["b-too", "b", "a"]);
    assert_eq!(images(&state.removals(&new, |_| false)), ["b"]);
    assert_eq!(state.removals(&new, |image| image == "b"), []);
    assert_eq!(
        state.polled(&new, digest("b"), None, at("03T00:00:00")),
        Finding::Unchanged
    );
    // The stored form keeps both.
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<SourceState>(&text).unwrap(), state);
    // By its name or by none, the default store is the same.
    assert_eq!(source(r#"{"store": "default"}"#).place(), old.place());
}

#[test]
fn what_another_server_calls_the_same_is_not_the_same() {
    let (old, new) = (
        source(r#"{"source": {"url": "https://a/b.qcow2"}}"#),
        source(r#"{"source": {"url": "https://c/b.qcow2"}}"#),
    );
    let mut state = imported(&old, &["etag:1"]);
    let now = at("02T00:00:00");
    assert_eq!(
        state.polled(&new, digest("etag:1"), None, now),
        Finding::Import(digest("etag:1"))
    );
    state.imported(digest("etag:1"), "other".into(), new.place(), now);
    assert_eq!(images(state.imports()), ["other", "etag:1"]);
    // Both are versions of their own, and kept as such.
    assert_eq!(state.removals(&new, |_| false), []);
}

#[test]
fn another_place_is_polled_at_once_and_starts_afresh() {
    let (old, new) = (
        source("{}"),
        source(r#"{"source": {"url": "https://a/b.qcow2"}, "managed": "d12"}"#),
    );
    let mut state = imported(&old, &["a"]);
    state.polled(&old, digest("bad"), None, at("22T12:00:00"));
    let change = source_changed(&old, &new);
    assert!(change.cancel_import && !change.collect);
    assert_eq!(
        change.alias,
        Alias::Rename("debian12".parse().unwrap(), "d12".parse().unwrap())
    );
    state.import_failed(FailureKind::Refused, ("x", "y"), at("22T12:00:01"));
    assert_eq!(state.step(&new, Gate::OPEN, at("22T12:00:02")), Step::Poll);
    assert_eq!(
        state.polled(&new, digest("bad"), None, at("22T12:00:02")),
        Finding::Import(digest("bad"))
    );
    assert_eq!(images(state.imports()), ["a"]);
    // Another place that does not answer is held off like any other.
    let mut state = imported(&old, &["a"]);
    state.poll_failed(&new, ("refused", "connection refused"), at("22T12:00:00"));
    assert_eq!(
        state.step(&new, Gate::OPEN, at("22T12:00:00")),
        Step::Wait(at("22T12:01:00"))
    );
}

#[test]
fn deletion_keeps_or_removes_what_nothing_uses() {
    let keeps = source("{}");
    assert_eq!(source_deleted(&keeps).alias, Alias::Keep);
    assert!(
        imported(&keeps, &["a", "b"])
            .removals_on_deletion(&keeps, |_| false)
            .is_empty()
    );
    let goes = source(r#"{"retention": "None"}"#);
    let change = source_deleted(&goes);
    assert!(change.cancel_import && change.collect);
    assert_eq!(change.alias, Alias::Unset("debian12".parse().unwrap()));
    let state = imported(&goes, &["a", "b", "c"]);
    assert_eq!(
        images(&state.removals_on_deletion(&goes, |image| image == "b")),
        ["a", "c"]
    );
}

#[test]
fn the_switch_for_all_unsets_aliases_and_keeps_imports() {
    let system = source("{}");
    let state = imported(&system, &["a"]);
    let closed = Gate {
        system_sources: false,
        ..Gate::OPEN
    };
    let change = gate_changed(&system, &state, Gate::OPEN, closed);
    assert_eq!(change.alias, Alias::Unset("debian12".parse().unwrap()));
    assert!(!change.collect);
    let change = gate_changed(&system, &state, closed, Gate::OPEN);
    assert_eq!(change.alias, Alias::Lead("debian12".parse().unwrap()));
    let custom = BootSource {
        origin: Origin::Custom,
        ..system.clone()
    };
    assert_eq!(gate_changed(&custom, &state, Gate::OPEN, closed).alias, Alias::Keep);
    let fewer = source(r#"{"imports_to_keep": 2}"#);
    assert!(source_changed(&system, &fewer).collect && !source_changed(&fewer, &system).collect);
    assert!(source_changed(&system, &source(r#"{"enabled": false}"#)).cancel_import);
}

fn told(source: &BootSource, state: &SourceState, gate: Gate) -> Vec<String> {
    let (conditions, _) = conditions(source, state, gate, &[], at("22T00:00:00"));
    let word = |c: &Condition| format!("{:?}={:?} {:?}", c.kind, c.status, c.reason);
    conditions.iter().map(word).collect()
}

#[test]
fn conditions_follow_the_life_of_a_source() {
    let source = source("{}");
    let mut state = SourceState::default();
    let now = at("22T12:00:00");
    let tell = |state: &SourceState| told(&source, state, Gate::OPEN);
    assert_eq!(tell(&state), ["UpToDate=False NoDigest", "Progressing=False NoImport"]);
    state.polled(&source, digest("a"), None, now);
    assert_eq!(
        tell(&state),
        ["UpToDate=False ImportProgressing", "Progressing=True ImportProgressing"]
    );
    state.import_failed(FailureKind::Transient, ("disk_full", "no room"), now);
    assert_eq!(
        tell(&state),
        ["UpToDate=False ImportFailed", "Progressing=False ImportScheduled"]
    );
    state.polled(&source, digest("a"), None, now);
    state.imported(digest("a"), "a".into(), source.place(), now);
    assert_eq!(tell(&state), ["UpToDate=True UpToDate", "Progressing=False NoImport"]);
    assert_eq!(outdated(&source, &state, Gate::OPEN), (false, false));
    state.polled(&source, digest("b"), None, now);
    assert_eq!(
        tell(&state),
        ["UpToDate=False Outdated", "Progressing=True ImportProgressing"]
    );
    state.import_failed(FailureKind::Refused, ("signature_wrong", "no key"), now);
    assert_eq!(
        tell(&state),
        ["UpToDate=False ImportFailed", "Progressing=False NoImport"]
    );
    assert_eq!(outdated(&source, &state, Gate::OPEN), (true, false));
    state.poll_failed(&source, ("timeout", "silent"), now);
    assert_eq!(tell(&state)[0], "UpToDate=Unknown PollFailed");
    let closed = Gate {
        system_sources: false,
        ..Gate::OPEN
    };
    assert_eq!(
        told(&source, &state, closed),
        ["UpToDate=Unknown Disabled", "Progressing=False Disabled"]
    );
    assert_eq!(outdated(&source, &state, closed), (false, false));
    let storeless = Gate {
        has_store: false,
        ..Gate::OPEN
    };
    assert_eq!(told(&source, &state, storeless)[0], "UpToDate=False NoDefaultStore");
    assert_eq!(outdated(&source, &state, storeless), (true, true));
}

#[test]
fn a_transition_is_told_once() {
    let source = source("{}");
    let mut state = imported(&source, &["a"]);
    let (first, changed) = conditions(&source, &state, Gate::OPEN, &[], at("22T00:00:00"));
    assert_eq!(changed, [ConditionKind::UpToDate, ConditionKind::Progressing]);
    let (second, changed) = conditions(&source, &state, Gate::OPEN, &first, at("22T01:00:00"));
    assert!(changed.is_empty());
    assert_eq!(second, first);
    state.poll_failed(&source, ("timeout", "silent"), at("22T02:00:00"));
    let (third, changed) = conditions(&source, &state, Gate::OPEN, &second, at("22T02:00:00"));
    assert_eq!(changed, [ConditionKind::UpToDate]);
    assert_eq!(
        (third[0].last_transition, third[1].last_transition),
        (at("22T02:00:00"), at("22T00:00:00"))
    );
    let text = serde_json::to_string(&third[0]).unwrap();
    assert!(
        text.starts_with(r#"{"type":"UpToDate","status":"Unknown","reason":"PollFailed""#),
        "{text}"
    );
}
