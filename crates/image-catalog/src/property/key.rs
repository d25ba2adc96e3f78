//! What is known of one property key.

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
