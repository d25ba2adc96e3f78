//! What can be typed about snapshots.

use clap::{Args, Subcommand};

use crate::network_arg::{Network, parse_network};

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save a machine that runs or is paused: memory, devices and root disk at one instant. It goes on afterwards.
    Create {
        /// The machine, by name or id.
        vm: String,
        /// Name of the snapshot. Default: the machine's, the date and the time.
        #[arg(long)]
        name: Option<String>,
    },
    /// List snapshots.
    Ls,
    /// Show one snapshot.
    Show {
        /// Name or id.
        snapshot: String,
    },
    /// Remove snapshots. Machines that were made from them stay as they are.
    Rm {
        /// Names or ids.
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
    /// Make a new machine that goes on from a snapshot.
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Name or id of the snapshot.
    pub(crate) snapshot: String,
    /// Name of the new machine.
    pub(crate) name: String,
    /// Networks, as many as the saved machine had: tap:NAME.
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    pub(crate) network: Vec<Network>,
    /// Read all memory, and compare it with its checksums, before the machine goes on.
    #[arg(long)]
    pub(crate) eager: bool,
    /// Do not start it; its first start goes on from the snapshot.
    #[arg(long)]
    pub(crate) stopped: bool,
}
