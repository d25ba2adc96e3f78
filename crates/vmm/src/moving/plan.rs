//! From the daemon's words to those of `migration`.

use std::time::Duration;

use control::{MigrationKey, MoveOptions, OnMoveTimeout, PostCopyWish};
use guestmem::GuestMemory;
use migration::{AutoConverge, Key, LayoutError, MachineId, OnTimeout, Options, PostCopy, RamLayout};
use spec::VmId;

/// The token is 16 bytes on the wire; the last eight are zero.
pub(super) fn key(key: &MigrationKey) -> Key {
    let mut token = [0; 16];
    for (byte, value) in token.iter_mut().zip(key.token.to_le_bytes()) {
        *byte = value;
    }
    Key {
        migration: *key.id.as_bytes(),
        token,
    }
}

pub(super) const fn machine(id: VmId) -> MachineId {
    MachineId(*id.as_bytes())
}

pub(super) fn layout(memory: &GuestMemory) -> Result<RamLayout, LayoutError> {
    let regions: Vec<_> = memory.regions().map(|region| (region.gpa.0, region.len)).collect();
    RamLayout::new(&regions)
}

pub(super) fn options(wish: &MoveOptions) -> Options {
    Options {
        streams: wish.streams,
        bandwidth_bytes_per_s: wish.bandwidth_bytes_per_s,
        downtime: Duration::from_millis(wish.downtime_ms),
        completion_timeout_per_gib: wish.completion_timeout_per_gib_ms.map(Duration::from_millis),
        disk_bytes: wish.disk_bytes,
        progress_timeout: Duration::from_millis(wish.progress_timeout_ms),
        on_timeout: match wish.on_timeout {
            OnMoveTimeout::Fail => OnTimeout::Fail,
            OnMoveTimeout::Finish => OnTimeout::Finish,
        },
        post_copy: match wish.post_copy {
            PostCopyWish::Off => PostCopy::Off,
            PostCopyWish::AfterTimeout => PostCopy::AfterTimeout,
            PostCopyWish::AfterRounds { rounds } => PostCopy::AfterRounds(rounds),
        },
        auto_converge: wish.auto_converge.map(|steps| AutoConverge {
            initial_percent: steps.initial_percent,
            step_percent: steps.step_percent,
            max_percent: steps.max_percent.min(99),
        }),
        zstd: wish.zstd,
        delta_cache_bytes: usize::try_from(wish.delta_cache_bytes).unwrap_or(usize::MAX),
        handover_timeout: Duration::from_millis(wish.handover_timeout_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_chose_is_the_same_on_both_sides() {
        assert_eq!(options(&MoveOptions::default()), Options::default());
    }

    #[test]
    fn keys_differ_where_tokens_do() {
        let id = spec::MigrationId::random();
        let keys = [1, u64::MAX].map(|token| key(&MigrationKey { id, token }));
        assert_ne!(keys[0], keys[1]);
        assert_eq!(keys[0].migration, *id.as_bytes());
    }
}
