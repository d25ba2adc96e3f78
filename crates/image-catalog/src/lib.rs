//! Image records as pure types: what may be written, what it means for a machine, and how an image lives.
//!
//! Nothing here reads an image or touches a store; the only I/O is reading the directories of metadata definitions.
//!
//! - [`ImageRecord`] is what passed of an [`ImageWish`]; every fault is told at once. [`ImageEdit`] changes one.
//! - [`known_keys`] is the table of documented properties. Keys that are not in it are kept as they are: with a note where they
//!   begin with `hw_` or `os_`, since they look as if they meant something. `os_glance_…` is refused: the service writes it.
//! - [`machine_hints`] turns properties into wishes for a machine, and into a [`Condition`] for each that can not be fulfilled.
//! - [`ImageState`] has the table of what is allowed when; [`SavedState`] is its stored form.
//! - [`Placement`] is in which stores an image is, and what becomes of one that fails.
//! - [`Catalogue`] holds the metadata definitions.
//!
//! # Codes
//!
//! Of an [`ImageRecord`] that is refused ([`FaultCode`]):
//!
//! | code | meaning |
//! |---|---|
//! | `name_invalid` | not 1–63 of `[a-z0-9-]`, or no name of a definition |
//! | `text_invalid` | control characters, or a word that is not known |
//! | `text_too_long` | longer than the field may be |
//! | `number_out_of_range` | outside of what the field takes |
//! | `disk_format_unknown` | none of the eleven disk formats |
//! | `container_format_unknown` | none of the seven container formats |
//! | `formats_conflict` | `aki`, `ari` or `ami` with another format |
//! | `architecture_unknown` | none of the 29 architectures |
//! | `visibility_unknown` | none of the four |
//! | `tag_invalid` | empty, longer than 255 bytes, or with control characters |
//! | `too_many_tags` | more than 128 |
//! | `property_key_invalid` | not 1–255 of `[A-Za-z0-9_.:-]` |
//! | `property_reserved` | begins with `os_glance_` |
//! | `property_value_invalid` | not among what the key takes |
//! | `property_too_long` | longer than 4096 bytes |
//! | `too_many_properties` | more than 128 |
//! | `properties_too_large` | more than 64 KiB of keys and values |
//! | `properties_conflict` | values that exclude each other |
//!
//! Remarks on what was accepted ([`Note`]): `property_unknown`, `value_unlisted`.
//!
//! Of a state ([`NotAllowed`], [`SavedStateError`]): `image_state_conflict`, `image_state_version_unknown`,
//! `image_state_damaged`.
//!
//! Of a machine that is too small ([`Shortfall`]) and of deletion ([`Protected`]): `image_min_disk`, `image_min_ram`,
//! `image_protected`.
//!
//! Of stores ([`PlacementError`]): `store_unknown`, `store_missing`, `store_twice`, `store_has_image`,
//! `image_not_in_default_store`, `image_copy_in_progress`, `image_last_copy`, `image_not_in_store`.
//!
//! Of the catalogue ([`MetadefError`], [`FileProblem`]): `metadef_invalid`, `metadef_exists`, `metadef_unknown`,
//! `metadef_protected`, `metadef_limit`, `metadef_file_invalid`.
//!
//! Of a machine that is made from an image ([`ConditionKind`]; *refused* means that no machine is made):
//!
//! | code | severity |
//! |---|---|
//! | `architecture_not_run` | refused |
//! | `hypervisor_not_kvm` | refused |
//! | `bus_not_available` | refused for disks, not applied for CD-ROM drives |
//! | `vif_model_not_available` | refused |
//! | `firmware_not_available` | refused |
//! | `secure_boot_not_available` | refused where required, not applied where optional |
//! | `feature_not_available` | refused for encrypted memory, not applied otherwise |
//! | `video_not_available`, `rng_not_available`, `watchdog_not_available`, `guest_agent_not_available`, `numa_not_available`, `topology_not_available`, `page_size_not_available`, `pinning_not_available`, `machine_type_not_available`, `ramdisk_without_kernel`, `windows_not_tuned`, `other_hypervisor` | not applied |

mod architecture;
mod demands;
mod fault;
mod field_rules;
mod format;
mod hints;
mod metadef;
mod placement;
#[cfg(test)]
mod placement_tests;
mod property;
mod record;
#[cfg(test)]
mod record_tests;
mod saved;
mod state;
mod wish;

pub use architecture::Architecture;
pub use demands::{Protected, Resource, Shortfall};
pub use fault::{Fault, FaultCode, Faults, Note};
pub use format::{ContainerFormat, DiskFormat, Handling, ImageId, Viewer, Visibility};
pub use hints::{
    Abilities, Condition, ConditionKind, Firmware, MachineHints, NumaNode, OsType, PageSize, Severity, TopologyHint,
    WatchdogAction, machine_hints,
};
pub use metadef::{
    Association, Catalogue, DEFINITIONS_MAX, FileProblem, MEMBERS_MAX, METADEF_NAME_MAX, METADEF_TEXT_MAX,
    MetadefError, MetadefObject, MetadefOperation, MetadefProperty, MetadefTag, MetadefType, NAMESPACES_MAX, Namespace,
    Policy, RESOURCE_TYPES, Role, Verdict,
};
pub use placement::{Placed, Placement, PlacementError, StoreWish, Stores};
pub use property::{
    AppliesTo, KEY_MAX, KeySpec, Origin, PROPERTIES_MAX, Properties, PropertyUse, RESERVED_PREFIX, TOTAL_MAX,
    VALUE_MAX, ValueRule, check_properties, find_key, known_keys,
};
pub use record::{Checked, ImageRecord};
pub use saved::{Failure, STATE_VERSION, SavedState, SavedStateError};
pub use state::{AtStart, ImageAction, ImageState, NotAllowed, Outcome};
pub use wish::{ImageEdit, ImageWish, MINIMUM_MAX, TAG_MAX, TAGS_MAX, TEXT_MAX};
