//! What an operator decides about the host; `karatd` reads it from its configuration file.

use std::path::PathBuf;
use std::time::Duration;

use images::CloneWay;
use sandbox::SeccompMode;

use crate::image_config::ImageConfig;
use crate::metadefs::MetadefConfig;
use crate::moves::MigrationConfig;

/// Settings of the host, all of them decided.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where images, disks, logs and the registry are kept.
    pub state_dir: PathBuf,
    /// Where sockets and reports of running machines are; survives restarts of the daemon, not of the host.
    pub run_dir: PathBuf,
    /// Directories in which users may name kernels, initrds and disks.
    pub file_roots: Vec<PathBuf>,
    /// Registries spoken to over plain HTTP, as `host` or `host:port`.
    pub insecure_registries: Vec<String>,
    /// Credentials for registries, in a file as `docker login` writes it.
    pub registry_auth_file: Option<PathBuf>,
    /// The `karat-vmm` program.
    pub vmm_path: PathBuf,
    /// What becomes of system calls that threads of machine processes have no use for.
    pub seccomp: SeccompMode,
    /// Size at which a machine's console log is rotated, bytes.
    pub console_log_max_bytes: u64,
    /// How many rotated console logs are kept per machine.
    pub console_log_keep: u32,
    /// Largest disk an image or an upload may have, bytes.
    pub image_max_bytes: u64,
    /// Space that new disks, copies and pulls leave free on the state directory's file system, bytes.
    pub reserved_space_bytes: u64,
    /// How a machine's root disk is made from its image.
    pub root_disks: CloneWay,
    /// How long a guest has to shut down when the caller does not say.
    pub stop_timeout: Duration,
    /// Where images may come from, and where they are kept.
    pub images: ImageConfig,
    /// Where boot sources are defined, and which are polled.
    pub boot_sources: BootSourceConfig,
    /// Metadata definitions.
    pub metadefs: MetadefConfig,
    /// Moves of machines between hosts.
    pub migration: MigrationConfig,
}

/// Boot sources: images that are tracked.
#[derive(Debug, Clone)]
pub struct BootSourceConfig {
    /// Directory of the definitions that are shipped.
    pub system_directory: PathBuf,
    /// Directory of the definitions that administrators write.
    pub custom_directory: PathBuf,
    /// Whether the sources that are shipped are polled.
    pub system_sources: bool,
}
