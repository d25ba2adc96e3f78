//! Imports into several stores, copies between them.

use proptest::prelude::*;

use crate::*;

fn names(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn name(text: &str) -> String {
    text.to_owned()
}

const ACTIVE: Option<ImageAction> = Some(ImageAction::Activate);
const FAILED: Option<ImageAction> = Some(ImageAction::Fail);

fn with<T>(test: impl FnOnce(Stores<'_>) -> T) -> T {
    let all = names("central dcn0 dcn1");
    test(Stores {
        all: &all,
        default: &all[0],
    })
}

fn import(wish: &StoreWish, allow_failure: bool) -> Result<Placement, PlacementError> {
    with(|stores| Placement::import(wish, stores, allow_failure))
}

#[test]
fn one_store_may_fail_s17_10_and_11() {
    let mut placement = import(&StoreWish::All, true).unwrap();
    assert_eq!(placement.importing_to_stores, names("central dcn0 dcn1"));
    assert!(placement.failed_import.is_empty());
    assert_eq!(placement.succeeded(&name("central"), false).action, ACTIVE);
    assert_eq!(placement.importing_to_stores, names("dcn0 dcn1"));
    assert_eq!(placement.failed(&name("dcn0")), Placed::default());
    assert_eq!(
        (&placement.importing_to_stores, &placement.failed_import),
        (&names("dcn1"), &names("dcn0"))
    );
    assert_eq!(placement.succeeded(&name("dcn1"), false), Placed::default());
    assert!(placement.importing_to_stores.is_empty());
    assert_eq!(placement.stores, names("central dcn1"));
}

#[test]
fn no_store_may_fail_s17_10() {
    let mut placement = import(&StoreWish::All, false).unwrap();
    assert_eq!(placement.succeeded(&name("central"), false), Placed::default());
    let placed = placement.failed(&name("dcn0"));
    assert_eq!((placed.action, placed.take_back), (FAILED, names("central")));
    assert!(placement.stores.is_empty() && placement.importing_to_stores.is_empty());
    assert_eq!(placement.succeeded(&name("dcn1"), false), Placed::default());
    assert!(placement.stores.is_empty(), "one that comes late is not taken");

    let mut placement = import(&StoreWish::Named(names("dcn0 dcn1")), false).unwrap();
    assert_eq!(placement.succeeded(&name("dcn1"), false).action, None);
    assert_eq!(placement.succeeded(&name("dcn0"), false).action, ACTIVE);
}

#[test]
fn copies_go_where_it_is_not_s17_12() {
    let mut placement = import(&StoreWish::Default, true).unwrap();
    placement.succeeded(&name("central"), false);
    let copy = |placement: &Placement, wish| with(|stores| placement.copy(&wish, stores, true));
    let refused = copy(&placement, StoreWish::Named(names("dcn0 central"))).unwrap_err();
    assert_eq!(refused.code(), "store_has_image");
    let mut all = copy(&placement, StoreWish::All).unwrap();
    assert_eq!(all.importing_to_stores, names("dcn0 dcn1"));
    assert_eq!(copy(&all, StoreWish::All).unwrap_err().code(), "image_copy_in_progress");
    assert_eq!(all.failed(&name("dcn0")), Placed::default());
    assert_eq!(all.succeeded(&name("dcn1"), false), Placed::default());
    assert_eq!(all.stores, names("central dcn1"));

    let mut edge = import(&StoreWish::Named(names("dcn0")), true).unwrap();
    edge.succeeded(&name("dcn0"), false);
    assert_eq!(
        copy(&edge, StoreWish::Named(names("dcn1"))).unwrap_err().code(),
        "image_not_in_default_store"
    );
    // Which can be mended.
    let mended = copy(&edge, StoreWish::Named(names("central"))).unwrap();
    assert_eq!(mended.importing_to_stores, names("central"));
}

#[test]
fn a_strict_copy_takes_back_its_own_only_s17_13() {
    let mut placement = import(&StoreWish::Default, true).unwrap();
    placement.succeeded(&name("central"), false);
    let mut copy = with(|stores| placement.copy(&StoreWish::All, stores, false)).unwrap();
    assert_eq!(copy.succeeded(&name("dcn0"), false), Placed::default());
    let placed = copy.failed(&name("dcn1"));
    assert_eq!((placed.action, placed.take_back), (None, names("dcn0")));
    assert_eq!(copy.stores, names("central"));
    // What somebody else brought there before is not its own.
    let mut copy = with(|stores| placement.copy(&StoreWish::All, stores, false)).unwrap();
    copy.succeeded(&name("dcn0"), true);
    assert_eq!(copy.failed(&name("dcn1")).take_back, names(""));
    let mut copy = with(|stores| placement.copy(&StoreWish::All, stores, false)).unwrap();
    copy.succeeded(&name("dcn0"), false);
    assert_eq!(copy.call_off(), names("dcn0"));
    assert!(copy.importing_to_stores.is_empty());
}

#[test]
fn one_copy_goes_and_the_last_stays_s17_14() {
    let mut placement = import(&StoreWish::Named(names("central dcn0")), true).unwrap();
    placement.succeeded(&name("central"), false);
    assert_eq!(
        placement.remove(&name("central")).unwrap_err().code(),
        "image_copy_in_progress"
    );
    placement.succeeded(&name("dcn0"), false);
    assert_eq!(
        placement.remove(&name("dcn1")).unwrap_err().code(),
        "image_not_in_store"
    );
    placement.remove(&name("central")).unwrap();
    assert_eq!(placement.remove(&name("dcn0")).unwrap_err().code(), "image_last_copy");
}

#[test]
fn wrong_wishes_are_told_apart() {
    for (wish, code) in [
        ("", "store_missing"),
        ("dcn0 dcn0", "store_twice"),
        ("mars", "store_unknown"),
    ] {
        assert_eq!(import(&StoreWish::Named(names(wish)), true).unwrap_err().code(), code);
    }
}

proptest! {
    /// Whatever the order and the outcome: the image is active exactly once if it is anywhere, and failed if it is nowhere.
    #[test]
    fn ends_active_or_failed(outcomes in prop::array::uniform3(any::<bool>()), order in Just(vec![0_usize, 1, 2]).prop_shuffle(), allow: bool) {
        let all = names("central dcn0 dcn1");
        let mut placement = import(&StoreWish::All, allow).unwrap();
        let (mut activated, mut failed) = (0, 0);
        for index in order {
            let text = serde_json::to_string(&placement).unwrap();
            placement = serde_json::from_str(&text).unwrap();
            let store = &all[index];
            let placed = if outcomes[index] { placement.succeeded(store, false) } else { placement.failed(store) };
            activated += u32::from(placed.action == ACTIVE);
            failed += u32::from(placed.action == FAILED);
            for taken in &placed.take_back {
                prop_assert!(!placement.stores.contains(taken));
            }
        }
        let good = if allow { outcomes.contains(&true) } else { outcomes == [true; 3] };
        prop_assert_eq!((activated, failed), if good { (1, 0) } else { (0, 1) });
        prop_assert_eq!(placement.stores.is_empty(), !good);
        prop_assert!(placement.importing_to_stores.is_empty());
    }
}
