//! The configuration file. Every key is documented in `packaging/karat.toml`, which a test reads.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::{BootSourceConfig, CloneWay, HostConfig, MetadefConfig, MetadefPolicy, MigrationConfig, SeccompMode};
use serde::Deserialize;
use spec::ByteSize;
use toml::Table;

use crate::image_section;
use crate::migration_section::{self, TlsConfig};
use crate::reader::Reader;

/// Longest path of a UNIX socket, bytes, without the terminating zero (`sun_path`, unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// What a machine's sockets add to the run directory: `/vms/`, a UUID, `/console.sock`.
const MACHINE_SOCKET_TAIL: usize = 5 + 36 + 13;
/// Where distributions put programs that are not for people.
const LIBEXEC_VMM: &str = "/usr/libexec/karat/karat-vmm";

/// Everything that is configured.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where the API is served.
    pub(crate) socket: PathBuf,
    /// Whose members may use it.
    pub(crate) socket_group: String,
    /// How long requests under way may take when the daemon ends.
    pub(crate) shutdown_grace: Duration,
    /// Threads that serve requests.
    pub(crate) worker_threads: usize,
    /// Where it is served for other hosts, if it is.
    pub(crate) tls: Option<TlsConfig>,
    /// What concerns the host.
    pub(crate) host: HostConfig,
}

/// `[boot_sources]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BootSources {
    system: bool,
    system_directory: PathBuf,
    custom_directory: PathBuf,
}

impl Default for BootSources {
    fn default() -> Self {
        Self {
            system: true,
            system_directory: PathBuf::from("/usr/share/karat/boot-sources.d"),
            custom_directory: PathBuf::from("/etc/karat/boot-sources.d"),
        }
    }
}

/// `[metadefs]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Metadefs {
    system_directory: PathBuf,
    custom_directory: PathBuf,
    policy: MetadefPolicy,
}

impl Default for Metadefs {
    fn default() -> Self {
        Self {
            system_directory: PathBuf::from("/usr/share/karat/metadefs.d"),
            custom_directory: PathBuf::from("/etc/karat/metadefs.d"),
            policy: MetadefPolicy::default(),
        }
    }
}

impl Config {
    /// Reads `path`. Without the file all defaults hold, unless it must exist.
    pub(crate) fn read(path: &Path, must_exist: bool) -> Result<Self, Vec<String>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => Self::parse(""),
            Err(error) => Err(vec![format!("can not be read: {error}")]),
        }
    }

    fn parse(text: &str) -> Result<Self, Vec<String>> {
        let table = text.parse::<Table>().map_err(|error| vec![error.to_string()])?;
        let mut reader = Reader {
            table,
            problems: Vec::new(),
        };
        let config = Self::take(&mut reader);
        let unknown: Vec<_> = reader.table.keys().cloned().collect();
        for key in unknown {
            reader.wrong(&key, "no such key; the karat.toml that comes with karatd lists all");
        }
        if reader.problems.is_empty() {
            Ok(config)
        } else {
            Err(reader.problems)
        }
    }

    fn take(reader: &mut Reader) -> Self {
        let socket = reader.absolute("socket", Path::new("/run/karat/karat.sock"));
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            reader.wrong(
                "socket",
                format_args!("more than {SOCKET_PATH_MAX} bytes, the most of a socket"),
            );
        }
        let worker_threads = reader.take("worker_threads", 2usize);
        if !(1..=64).contains(&worker_threads) {
            reader.wrong("worker_threads", "take 1 to 64");
        }
        let (tls, migration) = migration_section::take(reader);
        Self {
            socket,
            tls,
            socket_group: reader.take("socket_group", "karat".to_owned()),
            shutdown_grace: reader.seconds("shutdown_grace_seconds", 10),
            worker_threads,
            host: take_host(reader, migration),
        }
    }
}

fn take_host(reader: &mut Reader, migration: MigrationConfig) -> HostConfig {
    let state_dir = reader.absolute("state_dir", Path::new("/var/lib/karat"));
    let run_dir = reader.absolute("run_dir", Path::new("/run/karat"));
    if run_dir.as_os_str().len() + MACHINE_SOCKET_TAIL > SOCKET_PATH_MAX {
        let most = SOCKET_PATH_MAX - MACHINE_SOCKET_TAIL;
        reader.wrong(
            "run_dir",
            format_args!("more than {most} bytes: machines' sockets in it would not fit"),
        );
    }
    let file_roots: Vec<PathBuf> = reader.take("file_roots", vec![state_dir.join("files")]);
    for root in &file_roots {
        reader.check_absolute("file_roots", root);
    }
    let vmm_path = reader.absolute("vmm_path", &default_vmm());
    if !is_program(&vmm_path) {
        let text = format!(
            "{} is no program; install karat-vmm there, or name it here",
            vmm_path.display()
        );
        reader.wrong("vmm_path", text);
    }
    let console_log_max_bytes = reader.take("console_log_max", ByteSize::from_mib(16)).bytes();
    if console_log_max_bytes < 4096 {
        reader.wrong("console_log_max", "take at least 4Ki");
    }
    HostConfig {
        migration,
        boot_sources: take_boot_sources(reader),
        metadefs: take_metadefs(reader),
        images: image_section::take(reader, &file_roots),
        file_roots,
        insecure_registries: reader.take("insecure_registries", Vec::new()),
        registry_auth_file: take_auth_file(reader),
        vmm_path,
        seccomp: take_seccomp(reader),
        console_log_max_bytes,
        console_log_keep: reader.take("console_log_keep", 3),
        image_max_bytes: reader.take("image_max", ByteSize::from_bytes(256 << 30)).bytes(),
        reserved_space_bytes: reader.take("reserved_space", ByteSize::from_mib(256)).bytes(),
        root_disks: take_root_disks(reader),
        stop_timeout: reader.seconds("stop_timeout_seconds", 180),
        state_dir,
        run_dir,
    }
}

fn take_seccomp(reader: &mut Reader) -> SeccompMode {
    let named = reader.take("seccomp", SeccompMode::default().to_string());
    named.parse().unwrap_or_else(|error| {
        reader.wrong("seccomp", error);
        SeccompMode::default()
    })
}

fn take_auth_file(reader: &mut Reader) -> Option<PathBuf> {
    let file: Option<PathBuf> = reader.take("registry_auth_file", None);
    if let Some(path) = &file {
        reader.check_absolute("registry_auth_file", path);
    }
    file
}

fn take_root_disks(reader: &mut Reader) -> CloneWay {
    let way: String = reader.take("root_disks", "overlay".to_owned());
    image_section::clone_way(reader, "root_disks", &way).unwrap_or_default()
}

fn take_boot_sources(reader: &mut Reader) -> BootSourceConfig {
    let read = reader.take("boot_sources", BootSources::default());
    for (key, path) in [
        ("boot_sources.system_directory", &read.system_directory),
        ("boot_sources.custom_directory", &read.custom_directory),
    ] {
        reader.check_absolute(key, path);
    }
    BootSourceConfig {
        system_directory: read.system_directory,
        custom_directory: read.custom_directory,
        system_sources: read.system,
    }
}

fn take_metadefs(reader: &mut Reader) -> MetadefConfig {
    let read = reader.take("metadefs", Metadefs::default());
    for (key, path) in [
        ("metadefs.system_directory", &read.system_directory),
        ("metadefs.custom_directory", &read.custom_directory),
    ] {
        reader.check_absolute(key, path);
    }
    MetadefConfig {
        directories: vec![read.system_directory, read.custom_directory],
        policy: read.policy,
    }
}

/// Beside this program if it is there, as in a build directory; else where packages put it.
fn default_vmm() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.join("karat-vmm")));
    beside
        .filter(|path| is_program(path))
        .unwrap_or_else(|| PathBuf::from(LIBEXEC_VMM))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/karat.toml");

    fn packaged(active: bool) -> String {
        let text = std::fs::read_to_string(PACKAGED).unwrap();
        let keys = text.lines().map(|line| match line.strip_prefix('#') {
            // A key that is commented out stands right behind the mark; prose has a space there.
            Some(key) if active && !key.starts_with(' ') => key,
            _ => line,
        });
        keys.collect::<Vec<_>>()
            .join("\n")
            .replace("/usr/libexec/karat/karat-vmm", "/bin/sh")
    }

    fn problems(text: &str) -> Vec<String> {
        Config::parse(text).unwrap_err()
    }

    #[test]
    fn the_packaged_file_names_every_key_with_its_default() {
        let vmm = "vmm_path = \"/bin/sh\"";
        let default = Config::parse(vmm).unwrap();
        let named = Config::parse(&packaged(true)).unwrap();
        assert_eq!(format!("{named:?}"), format!("{default:?}"));
        let keys = packaged(true).parse::<Table>().unwrap().len();
        assert_eq!(
            keys, 23,
            "a new key is documented in packaging/karat.toml and counted here"
        );
        assert!(packaged(false).parse::<Table>().unwrap().is_empty());
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let text = r#"
            socket = "karat.sock"
            run_dir = "/a/../b"
            file_roots = ["/ok", "not"]
            vmm_path = "/nowhere"
            console_log_max = "lots"
            worker_threads = 0
            root_disks = "link"
            seccomp = "on"
            insecure = []
            [boot_sources]
            custom_directory = "etc"
            sytem = false
        "#;
        let told = problems(text).join("\n");
        for key in [
            "socket:",
            "run_dir:",
            "file_roots:",
            "vmm_path:",
            "console_log_max:",
            "worker_threads:",
            "seccomp: \"on\" is none of enforce, log and off",
            "root_disks:",
            "insecure: no such key",
            "boot_sources: unknown field `sytem`",
        ] {
            assert!(told.contains(key), "{key} is missing in {told}");
        }
    }

    #[test]
    fn a_run_directory_too_long_for_sockets_is_refused() {
        let long = format!("vmm_path = \"/bin/sh\"\nrun_dir = \"/{}\"", "x".repeat(60));
        assert!(problems(&long)[0].contains("would not fit"));
        assert!(!problems("socket = [").is_empty());
    }
}
