//! How large an image will be.

use serde::{Deserialize, Serialize};

use super::create::{CreateError, CreateOptions, head_of};
use super::plan::Plan;

/// Sizes of an image's file, with the names of `qemu-img measure --output=json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measure {
    /// What the image needs for the data it is to hold, bytes.
    pub required: u64,
    /// What it needs once every cluster has been written, bytes.
    pub fully_allocated: u64,
}

/// Measures an image to be created with these options that is to hold data in `data_clusters` of its clusters (uncompressed,
/// without internal snapshots; tables for the whole disk are counted).
///
/// # Errors
/// The options exclude each other.
pub fn measure(options: &CreateOptions, data_clusters: u64) -> Result<Measure, CreateError> {
    let head = head_of(options)?;
    let layout = head.header.layout();
    let plan = Plan::new(layout, head.header.size_bytes, true);
    let tables = plan.end - plan.data_clusters;
    let data = data_clusters.min(plan.data_clusters);
    Ok(Measure {
        required: (tables + data) << layout.cluster_bits,
        fully_allocated: plan.end << layout.cluster_bits,
    })
}
