//! What can be typed. Parsing never touches the system.

use api_types::{ByteSize, DiskBus, DiskWish};
use clap::{Parser, Subcommand, ValueEnum};

use crate::connection::Connection;
use crate::image_args::ImageCommand;
use crate::metadef_args::MetadefCommand;
use crate::migration_args::{MigrateArgs, MigrationCommand};
use crate::network_arg::{Network, parse_network};
use crate::snapshot_args::SnapshotCommand;
use crate::source_args::BootSourceCommand;
use crate::volume_args::{VolumeCommand, parse_disk, words};

/// Pulls golden images and runs machines on this host.
#[derive(Debug, Parser)]
#[command(name = "karat", version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// JSON, as the API gives it.
    Json,
    /// YAML of the same.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a machine from a golden image and start it; pulls the image if it is not here yet.
    Run(RunArgs),
    /// Make a machine without starting it.
    Create(MachineArgs),
    /// List machines.
    Ls,
    /// Show one machine.
    Show {
        /// Name or id.
        vm: String,
    },
    /// Attach to a machine's serial console; Ctrl-] detaches.
    Console {
        /// Name or id.
        vm: String,
    },
    /// Print the end of a machine's console log.
    Logs {
        /// Name or id.
        vm: String,
    },
    /// Start machines.
    Start {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
    },
    /// Shut machines down by their power button.
    Stop {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
        /// End them at once, as if the power was cut.
        #[arg(long)]
        force: bool,
        /// Seconds each guest has to shut down.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Shut machines down and start them again.
    Restart {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
        /// Seconds each guest has to shut down.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Make the root disks of machines stand alone, so that their images are not needed any more. The machines may run.
    Flatten {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
    },
    /// Power-cycle running machines without waiting for their guests.
    Reset {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
    },
    /// Hold machines still.
    Pause {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
    },
    /// Let paused machines go on.
    Resume {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
    },
    /// Remove machines and their disks.
    Rm {
        /// Names or ids.
        #[arg(required = true)]
        vms: Vec<String>,
        /// End those that run first.
        #[arg(long)]
        force: bool,
    },
    /// Snapshots: machines saved at one instant, to go on from there.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Golden images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Boot sources: images that are tracked by a schedule.
    #[command(subcommand)]
    BootSource(BootSourceCommand),
    /// Metadata definitions: which properties images can have, and what they mean.
    #[command(subcommand)]
    Metadef(MetadefCommand),
    /// Volumes: disks that outlive machines.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Move a running machine to another host.
    Migrate(MigrateArgs),
    /// Moves of machines to other hosts.
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Parser)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Return once the machine runs, instead of attaching to its console.
    #[arg(short, long)]
    pub(crate) detach: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MachineArgs {
    /// Golden image: a reference to pull, or the name, alias or digest of one that is here. Without one, name a kernel.
    #[arg(required_unless_present = "kernel")]
    pub(crate) image: Option<String>,
    /// Name of the machine; default: the image's, with a few random letters.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// vCPUs, 1 to 64.
    #[arg(long, default_value_t = 1)]
    pub(crate) cpus: u32,
    /// Memory, as 512Mi or 2Gi.
    #[arg(long, default_value = "512Mi")]
    pub(crate) memory: ByteSize,
    /// Size the disk is grown to; default: the image's.
    #[arg(long)]
    pub(crate) disk_size: Option<ByteSize>,
    /// How the guest reaches the disk, as /dev/vda or as /dev/sda; default: as the image asks, else virtio.
    #[arg(long, value_name = "virtio|scsi", value_parser = words::<DiskBus>(&["virtio", "scsi"]))]
    pub(crate) disk_bus: Option<DiskBus>,
    /// Kernel file on the host (bzImage or ELF) instead of the image's.
    #[arg(long)]
    pub(crate) kernel: Option<String>,
    /// Initial RAM file system on the host instead of the image's.
    #[arg(long)]
    pub(crate) initrd: Option<String>,
    /// Kernel command line instead of the image's.
    #[arg(long)]
    pub(crate) cmdline: Option<String>,
    /// Network: none, or tap:NAME for a tap device of the host. May be given several times.
    #[arg(long, value_name = "none|tap:NAME", value_parser = parse_network)]
    pub(crate) network: Vec<Network>,
    /// Volume as a further disk. May be given several times.
    #[arg(long, value_name = "NAME[,ro][,cdrom][,bus=…][,cache=…][,serial=…][,boot-order=N]", value_parser = parse_disk)]
    pub(crate) volume: Vec<DiskWish>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn wrong_sizes_are_a_matter_of_usage() {
        let error = Args::try_parse_from(["karat", "run", "img", "--memory", "2GB"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("is no size"), "{error}");
    }
}
