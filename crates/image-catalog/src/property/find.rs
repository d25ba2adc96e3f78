//! The documented key that a text is.

use super::key::KeySpec;
use super::table::KEYS;

/// Largest index of an indexed key: as many nodes as a machine has vCPUs.
const INDEX_MAX: u32 = 63;

/// Every documented key, in alphabetical order.
pub fn known_keys() -> &'static [KeySpec] {
    KEYS
}

/// What is known of `key`, and its index if it has one.
pub fn find_key(key: &str) -> Option<(&'static KeySpec, Option<u32>)> {
    if let Some(spec) = KEYS.iter().find(|spec| !spec.indexed && spec.key == key) {
        return Some((spec, None));
    }
    let (stem, index) = key.split_once('.')?;
    let spec = KEYS.iter().find(|spec| spec.indexed && spec.key == stem)?;
    let canonical = index == "0" || (!index.starts_with('0') && index.bytes().all(|b| b.is_ascii_digit()));
    let index = index.parse().ok().filter(|n| canonical && *n <= INDEX_MAX)?;
    Some((spec, Some(index)))
}

#[cfg(test)]
mod tests {
    use super::super::key::Origin;
    use super::*;

    #[test]
    fn the_table_holds_the_28_of_the_reference() {
        // hw_numa_cpus and hw_numa_mem stand for two rows each: .0 and .1.
        let reference = KEYS.iter().filter(|spec| spec.origin == Origin::Reference);
        let rows: usize = reference.map(|spec| if spec.indexed { 2 } else { 1 }).sum();
        assert_eq!(rows, 28);
    }

    #[test]
    fn keys_are_sorted_and_told_apart() {
        assert!(KEYS.windows(2).all(|pair| pair[0].key < pair[1].key));
        for spec in KEYS {
            let key = if spec.indexed {
                format!("{}.1", spec.key)
            } else {
                spec.key.to_owned()
            };
            assert_eq!(find_key(&key).unwrap().0.key, spec.key);
        }
        for key in [
            "hw_numa_cpus",
            "hw_numa_cpus.",
            "hw_numa_cpus.00",
            "hw_numa_cpus.64",
            "hw_numa_cpus.+1",
            "hw_numa_nodes.0",
        ] {
            assert!(find_key(key).is_none(), "{key}");
        }
    }
}
