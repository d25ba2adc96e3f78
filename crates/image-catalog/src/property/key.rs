//! What is known of one property key.

use super::table::KEYS;
use super::value::ValueRule;

/// Where a key is documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// One of the 28 rows of the reference's table of image configuration parameters.
    Reference,
    /// Documented by the image service elsewhere: signatures, and useful properties beyond the table.
    Beyond,
}

/// Whose machines a key speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppliesTo {
    /// Every hypervisor.
    All,
    /// KVM, as the reference's libvirt driver has it; so Karat too.
    Kvm,
    /// VMware alone.
    Vmware,
    /// Xen alone.
    Xen,
}

/// What Karat does with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropertyUse {
    /// It shapes the machine, or a condition says why it does not: see [`crate::MachineHints`].
    Machine,
    /// It says how the bytes are verified.
    Verification,
    /// It tells people and tools where the image comes from, and nothing else.
    Provenance,
}

/// One documented key.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    /// The key; of an indexed one, the part in front of the dot.
    pub key: &'static str,
    /// Whether the key is followed by a dot and a number, as `hw_numa_cpus.0`.
    pub indexed: bool,
    /// Where it is documented.
    pub origin: Origin,
    /// Whose machines it speaks of.
    pub applies_to: AppliesTo,
    /// What Karat does with it.
    pub used_for: PropertyUse,
    /// What its values are.
    pub value: ValueRule,
    /// What it means, one line.
    pub meaning: &'static str,
}

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
