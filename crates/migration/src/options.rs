//! What may be chosen for one migration.

use std::time::Duration;

use crate::wire::Offers;

/// Most page streams.
pub const STREAMS_MAX: u8 = 16;
/// Bytes of a GiB, by which deadlines are counted.
const GIB: u64 = 1 << 30;

/// When the machine is started at the target before all of its memory is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostCopy {
    /// Never.
    Off,
    /// When the completion timeout has passed, instead of giving up.
    AfterTimeout,
    /// After this many rounds over memory: 0 moves nothing before the start.
    AfterRounds(u32),
}

/// What to do when the completion timeout has passed and post-copy is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// Give up: the machine stays.
    Fail,
    /// Pause the machine for as long as the rest takes.
    Finish,
}

/// Slowing the guest's processors until it dirties less than is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoConverge {
    /// First step, percent of processor time taken away.
    pub initial_percent: u8,
    /// Each further step.
    pub step_percent: u8,
    /// Never more than this.
    pub max_percent: u8,
}

impl Default for AutoConverge {
    /// 20 %, then 10 % more at a time, to 99 %: what libvirt and QEMU begin with.
    fn default() -> Self {
        Self {
            initial_percent: 20,
            step_percent: 10,
            max_percent: 99,
        }
    }
}

/// How one machine is moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Page streams, 1 to [`STREAMS_MAX`].
    pub streams: u8,
    /// Bytes per second over all streams; 0 is no limit. Changed later by [`crate::Handle::set_bandwidth`].
    pub bandwidth_bytes_per_s: u64,
    /// Longest pause that is aimed at.
    pub downtime: Duration,
    /// For each GiB of guest memory and of `disk_bytes`; none waits for ever.
    pub completion_timeout_per_gib: Option<Duration>,
    /// Bytes besides guest RAM that the deadline is counted from: those of disks that are mirrored.
    pub disk_bytes: u64,
    /// Given up after this long without progress.
    pub progress_timeout: Duration,
    /// What happens when there is no more time.
    pub on_timeout: OnTimeout,
    /// Whether and when to start early.
    pub post_copy: PostCopy,
    /// Whether to slow the guest.
    pub auto_converge: Option<AutoConverge>,
    /// Compress pages.
    pub zstd: bool,
    /// Bytes of pages kept to send only what changed in them; 0 is off.
    pub delta_cache_bytes: usize,
    /// Longest wait for the target's word that it has everything: the guest stands still meanwhile.
    pub handover_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            streams: 1,
            bandwidth_bytes_per_s: 0,
            downtime: Duration::from_millis(300),
            completion_timeout_per_gib: Some(Duration::from_secs(800)),
            disk_bytes: 0,
            progress_timeout: Duration::from_secs(150),
            on_timeout: OnTimeout::Fail,
            post_copy: PostCopy::Off,
            auto_converge: None,
            zstd: false,
            delta_cache_bytes: 0,
            handover_timeout: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// How long a machine with this much RAM may take.
    pub fn deadline(&self, ram_bytes: u64) -> Option<Duration> {
        let bytes = u128::from(ram_bytes.saturating_add(self.disk_bytes));
        let nanos = self.completion_timeout_per_gib?.as_nanos() * bytes / u128::from(GIB);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// What a hello offers.
    pub(crate) fn offers(&self) -> Offers {
        let mut offers = Offers::none();
        for (wanted, offer) in [
            (self.zstd, Offers::ZSTD),
            (self.delta_cache_bytes > 0, Offers::DELTA),
            (self.post_copy != PostCopy::Off, Offers::POST_COPY),
        ] {
            if wanted {
                offers = offers.with(offer);
            }
        }
        offers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_counts_memory_and_disks() {
        let options = Options::default();
        assert_eq!(options.deadline(6 * GIB), Some(Duration::from_secs(4800)));
        let mirrored = Options {
            disk_bytes: 2 * GIB,
            ..Options::default()
        };
        assert_eq!(mirrored.deadline(6 * GIB), Some(Duration::from_secs(6400)));
        let patient = Options {
            completion_timeout_per_gib: None,
            ..Options::default()
        };
        assert_eq!(patient.deadline(GIB), None);
    }
}
