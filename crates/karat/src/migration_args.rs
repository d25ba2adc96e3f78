//! What can be typed after `karat migrate` and `karat migration`.

use api_types::{ByteSize, MigrationId, MigrationOptions};
use clap::Subcommand;

#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    /// Name or id of a machine that runs or is paused.
    pub(crate) vm: String,
    /// Host to move it to, as karatd's configuration calls it.
    #[arg(long, value_name = "HOST")]
    pub(crate) to: String,
    /// Return once the move has begun, and print its id.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Most bytes per second, as 64Mi; 0 is no limit.
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<ByteSize>,
    /// Seconds for each GiB of memory before the move is given up; 0 is no limit.
    #[arg(long, value_name = "SECONDS")]
    completion_timeout_per_gib: Option<u32>,
    /// Seconds without progress before the move is given up.
    #[arg(long, value_name = "SECONDS")]
    progress_timeout: Option<u32>,
    /// Start the machine at the target when time is up, before all its memory is there. From then on the loss of either host loses it.
    #[arg(long)]
    post_copy: bool,
    /// Longest pause of the guest that is aimed at, milliseconds.
    #[arg(long, value_name = "MS")]
    downtime: Option<u32>,
    /// Streams for memory, 1 to 16.
    #[arg(long)]
    streams: Option<u8>,
    /// Slow the guest when it writes faster than is sent.
    #[arg(long)]
    auto_converge: bool,
    /// Compress memory.
    #[arg(long)]
    zstd: bool,
}

impl MigrateArgs {
    /// What was typed; the rest is as configured.
    pub(crate) fn options(&self) -> MigrationOptions {
        MigrationOptions {
            bandwidth_per_migration: self.bandwidth,
            completion_timeout_per_gib_seconds: self.completion_timeout_per_gib,
            progress_timeout_seconds: self.progress_timeout,
            allow_post_copy: self.post_copy.then_some(true),
            downtime_ms: self.downtime,
            streams: self.streams,
            auto_converge: self.auto_converge.then_some(true),
            zstd: self.zstd.then_some(true),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrationCommand {
    /// List moves to other hosts: those under way, and the last five of each machine.
    Ls,
    /// List machines that come, or came, from other hosts.
    Incoming,
    /// Show one move.
    Show {
        /// Its id.
        id: MigrationId,
    },
    /// Give moves up: their machines stay. Those that are over are forgotten.
    Cancel {
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<MigrationId>,
    },
    /// Give a move another bandwidth.
    Tune {
        /// Its id.
        id: MigrationId,
        /// Most bytes per second, as 64Mi; 0 is no limit.
        #[arg(long, value_name = "SIZE")]
        bandwidth: ByteSize,
    },
}
