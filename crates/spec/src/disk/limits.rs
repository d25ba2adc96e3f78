//! How much a guest may ask of a disk.

use serde::{Deserialize, Serialize};

use crate::problem::Problems;
use crate::quantity::ByteSize;

/// Longest burst, milliseconds.
const BURST_MS_MAX: u32 = 60_000;

/// Rates that are kept to; what is left out is not limited. All of them hold at the same time, and may be changed while the
/// machine runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskLimits {
    /// Bytes per second, read and written together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<ByteSize>,
    /// Bytes per second read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_s: Option<ByteSize>,
    /// Bytes per second written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_s: Option<ByteSize>,
    /// Operations per second of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Reads per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    /// Changes per second: writes, discards, write-zeroes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
    /// How much may be used at once after a pause, in milliseconds of each rate, 1–60000. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_ms: Option<u32>,
}

impl DiskLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        let unlimited = Self {
            burst_ms: self.burst_ms,
            ..Self::default()
        };
        *self == unlimited
    }

    /// Notes what is wrong with limits written in `field`.
    pub fn check(&self, field: &str, problems: &mut Problems) {
        let rates = [
            ("bytes_per_s", self.bytes_per_s.map(ByteSize::bytes)),
            ("read_bytes_per_s", self.read_bytes_per_s.map(ByteSize::bytes)),
            ("write_bytes_per_s", self.write_bytes_per_s.map(ByteSize::bytes)),
            ("iops", self.iops),
            ("read_iops", self.read_iops),
            ("write_iops", self.write_iops),
        ];
        for (name, _) in rates.into_iter().filter(|(_, rate)| *rate == Some(0)) {
            problems.add(
                format!("{field}.{name}"),
                "0 would stop the disk for ever; leave it out for no limit",
            );
        }
        if self.burst_ms.is_some_and(|ms| !(1..=BURST_MS_MAX).contains(&ms)) {
            problems.add(format!("{field}.burst_ms"), format_args!("take 1 to {BURST_MS_MAX}"));
        }
    }
}
