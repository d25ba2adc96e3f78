//! What an image is, told from its bytes; and the way from any accepted format to one that machines run on.
//!
//! ```text
//!  source ─► Decompress ─► Inspector ──► raw, ISO, qcow2: stored as they pass
//!            one level      told so far   vmdk, vhd, vhdx, vdi: convert::Conversion, a confined qemu-img
//!                                         tar: ova::Ova ─► Inspector, as above
//! ```
//!
//! Nothing here trusts a name, a claim or a length: every parser is total, keeps a bounded amount and follows no place a file
//! names without a check. Reading is synchronous; whoever calls sits on a thread that may block.
//!
//! # Codes
//!
//! Stable names for programs; the text beside them is for people.
//!
//! | code | what was refused |
//! |---|---|
//! | `backing_file` `data_file` | a qcow2 that names another file |
//! | `unknown_feature` `encrypted` | a qcow2 that needs what is not there |
//! | `vmdk_parent` `vhd_parent` `vhdx_parent` `vdi_parent` | a differencing image |
//! | `vmdk_external_extent` `vmdk_several_extents` `vmdk_create_type` `vmdk_footer` | a vmdk that names other files, or shows two faces |
//! | `nested_compression` `nested_archive` | packed twice |
//! | `polyglot` `polyglot_partition_table` | two formats at once |
//! | `format_mismatch` `format_not_allowed` | not what was claimed, not what is taken |
//! | `virtual_size_beyond_quota` `bytes_beyond_quota` | too large |
//! | `damaged` `truncated` `empty` | no image |
//! | `compression_unsupported` | LZ4, ZIP: unpack it first |
//! | `output_beyond_limit` `ratio_beyond_limit` `memory_beyond_limit` | a decompression bomb |
//! | `compressed_truncated` `compressed_damaged` `trailing_garbage` | a compressed stream that is not whole, or more than that |
//! | `source_unreadable` | the bytes could not be read, or the caller's writer failed |
//! | `archive_damaged` `archive_truncated` `archive_unsupported` | a tape archive that can not be read |
//! | `archive_unsafe_path` `archive_link` | an archive that reaches out of itself |
//! | `archive_too_many_entries` `archive_duplicate` `archive_unlisted` `archive_entry_too_large` | an archive beyond its description |
//! | `ovf_missing` `ovf_damaged` `ovf_external_file` | an OVA without a usable description |
//! | `ova_no_disk` `ova_several_disks` `ova_disk_compressed` `ova_disk_parent` `ova_disk_too_large` | an OVA whose disk can not be taken |
//! | `manifest_missing` `manifest_damaged` `manifest_digest` | an OVA that is not what its manifest says |
//! | `no_converter` `not_convertible` `converter_failed` `converter_too_slow` `converter_killed` | the conversion did not work out |
//! | `size_disagreement` `output_wrong` `disk_full` `cancelled` `file_unusable` | as they say |
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod convert;
pub mod decompress;
mod fields;
pub mod inspect;
pub mod ova;
pub mod tape;

pub use decompress::{Decompress, DecompressError, DecompressLimits};
pub use disk::probe::{Format, Packing};
pub use inspect::{Expectations, InspectError, Inspection, Inspector, Partitions, Refusal, Wrapping};
