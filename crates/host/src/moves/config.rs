//! What an operator decides about moves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use client::{Remote, TlsFiles};

/// Settings of moves, all of them decided.
#[derive(Debug, Clone)]
pub struct MigrationConfig {
    /// Hosts that machines can be moved to, by name.
    pub hosts: BTreeMap<String, Remote>,
    /// Where this host's API is, for others.
    pub url: Option<String>,
    /// With what a host is asked that is known by its URL alone.
    pub files: Option<TlsFiles>,
    /// Where machines are received.
    pub bind: IpAddr,
    /// What is told of it to those who send them, where that is something else.
    pub advertise: Option<String>,
    /// Moves under way at once, in both directions.
    pub total_max: usize,
    /// Moves away from here at once.
    pub outbound_max: usize,
    /// Whether memory is sent as it is.
    pub plain: bool,
    /// How machines are moved when nobody says.
    pub defaults: MoveDefaults,
}

impl Default for MigrationConfig {
    /// 5 moves, 2 of them outbound: what KubeVirt allows in a cluster and on a node.
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            url: None,
            files: None,
            bind: Ipv4Addr::UNSPECIFIED.into(),
            advertise: None,
            total_max: 5,
            outbound_max: 2,
            plain: false,
            defaults: MoveDefaults::default(),
        }
    }
}

/// How machines are moved when nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveDefaults {
    /// Most bytes per second; 0 is no limit.
    pub bandwidth_bytes_per_s: u64,
    /// Seconds for each GiB; 0 is no limit.
    pub completion_timeout_per_gib_s: u32,
    /// Seconds without progress.
    pub progress_timeout_s: u32,
    /// Whether the machine may be started before all its memory is there.
    pub allow_post_copy: bool,
    /// Longest pause that is aimed at, milliseconds.
    pub downtime_ms: u32,
    /// Streams for memory, 1 to 16.
    pub streams: u8,
    /// Whether the guest is slowed.
    pub auto_converge: bool,
    /// Whether memory is compressed.
    pub zstd: bool,
}

impl Default for MoveDefaults {
    fn default() -> Self {
        Self {
            bandwidth_bytes_per_s: 0,
            completion_timeout_per_gib_s: 800,
            progress_timeout_s: 150,
            allow_post_copy: false,
            downtime_ms: 300,
            streams: 1,
            auto_converge: false,
            zstd: false,
        }
    }
}
