//! `[tls]`, `[hosts]` and `[migration]`: the API for other hosts, which these are, and how machines are moved there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use host::{MigrationConfig, MoveDefaults, Remote, TlsFiles};
use rest::TlsSettings;
use serde::Deserialize;
use spec::ByteSize;

use crate::reader::Reader;

/// Where the API is served for other hosts.
#[derive(Debug, Clone)]
pub(crate) struct TlsConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) settings: TlsSettings,
}

/// `[tls]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    listen: Option<SocketAddr>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    url: Option<String>,
}

/// `[hosts.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostSection {
    url: String,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// `[migration]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MigrationSection {
    bind: IpAddr,
    advertise: Option<String>,
    parallel_total: usize,
    parallel_outbound: usize,
    bandwidth_per_migration: ByteSize,
    completion_timeout_per_gib_seconds: u32,
    progress_timeout_seconds: u32,
    allow_post_copy: bool,
    downtime_ms: u32,
    streams: u8,
    auto_converge: bool,
    zstd: bool,
    plain: bool,
}

impl Default for MigrationSection {
    fn default() -> Self {
        let MoveDefaults {
            bandwidth_bytes_per_s,
            completion_timeout_per_gib_s,
            progress_timeout_s,
            allow_post_copy,
            downtime_ms,
            streams,
            auto_converge,
            zstd,
        } = MoveDefaults::default();
        let MigrationConfig {
            bind,
            total_max,
            outbound_max,
            ..
        } = MigrationConfig::default();
        Self {
            bind,
            advertise: None,
            parallel_total: total_max,
            parallel_outbound: outbound_max,
            bandwidth_per_migration: ByteSize::from_bytes(bandwidth_bytes_per_s),
            completion_timeout_per_gib_seconds: completion_timeout_per_gib_s,
            progress_timeout_seconds: progress_timeout_s,
            allow_post_copy,
            downtime_ms,
            streams,
            auto_converge,
            zstd,
            plain: false,
        }
    }
}

/// Most page streams of a move (crate `migration`).
const STREAMS_MAX: u8 = 16;

pub(crate) fn take(reader: &mut Reader) -> (Option<TlsConfig>, MigrationConfig) {
    let tls: TlsSection = reader.take("tls", TlsSection::default());
    let files = check_tls(reader, &tls);
    let hosts: BTreeMap<String, HostSection> = reader.take("hosts", BTreeMap::new());
    let hosts = hosts
        .into_iter()
        .filter_map(|(name, section)| Some((name.clone(), take_host(reader, &name, section, files.as_ref())?)));
    let hosts = hosts.collect();
    let section: MigrationSection = reader.take("migration", MigrationSection::default());
    let config = take_migration(reader, section, hosts, tls.url.clone(), files.clone());
    let listening = tls.listen.zip(files).map(|(listen, files)| TlsConfig {
        listen,
        settings: TlsSettings {
            certificate: files.certificate,
            key: files.key,
            client_ca: files.ca,
        },
    });
    (listening, config)
}

/// The files, where all are named; some are as good as a mistake.
fn check_tls(reader: &mut Reader, tls: &TlsSection) -> Option<TlsFiles> {
    for (key, path) in [
        ("tls.certificate", &tls.certificate),
        ("tls.key", &tls.key),
        ("tls.client_ca", &tls.client_ca),
    ] {
        match path {
            Some(path) => reader.check_absolute(key, path),
            None if tls.listen.is_some() => reader.wrong(key, "needed to listen: both sides show certificates"),
            None => {}
        }
    }
    if let Some(url) = &tls.url {
        check_url(reader, "tls.url", url);
    }
    Some(TlsFiles {
        ca: tls.client_ca.clone()?,
        certificate: tls.certificate.clone()?,
        key: tls.key.clone()?,
    })
}

fn check_url(reader: &mut Reader, key: &str, url: &str) {
    let files = TlsFiles {
        ca: PathBuf::new(),
        certificate: PathBuf::new(),
        key: PathBuf::new(),
    };
    if let Err(error) = Remote::new(url, files) {
        reader.wrong(key, error);
    }
}

fn take_host(reader: &mut Reader, name: &str, host: HostSection, own: Option<&TlsFiles>) -> Option<Remote> {
    let mut file = |key: &str, written: Option<PathBuf>, own: Option<&PathBuf>| {
        let key = format!("hosts.{name}.{key}");
        let path = written.or_else(|| own.cloned());
        match &path {
            Some(path) => reader.check_absolute(&key, path),
            None => reader.wrong(&key, "needed, since [tls] names none"),
        }
        path
    };
    let ca = file("ca", host.ca, own.map(|files| &files.ca));
    let certificate = file("certificate", host.certificate, own.map(|files| &files.certificate));
    let key = file("key", host.key, own.map(|files| &files.key));
    let files = TlsFiles {
        ca: ca?,
        certificate: certificate?,
        key: key?,
    };
    match Remote::new(&host.url, files) {
        Ok(remote) => Some(remote),
        Err(error) => {
            reader.wrong(&format!("hosts.{name}.url"), error);
            None
        }
    }
}

fn take_migration(
    reader: &mut Reader,
    section: MigrationSection,
    hosts: BTreeMap<String, Remote>,
    url: Option<String>,
    own: Option<TlsFiles>,
) -> MigrationConfig {
    if !(1..=STREAMS_MAX).contains(&section.streams) {
        reader.wrong("migration.streams", format_args!("take 1 to {STREAMS_MAX}"));
    }
    for (key, value) in [
        ("migration.parallel_total", section.parallel_total),
        ("migration.parallel_outbound", section.parallel_outbound),
    ] {
        if !(1..=64).contains(&value) {
            reader.wrong(key, "take 1 to 64");
        }
    }
    if section.progress_timeout_seconds == 0 {
        reader.wrong("migration.progress_timeout_seconds", "take at least 1");
    }
    if !hosts.is_empty() && url.is_none() {
        reader.wrong(
            "tls.url",
            "needed, since the hosts named in [hosts] have to ask this one, too",
        );
    }
    MigrationConfig {
        hosts,
        url,
        files: own,
        bind: section.bind,
        advertise: section.advertise,
        total_max: section.parallel_total,
        outbound_max: section.parallel_outbound,
        plain: section.plain,
        defaults: MoveDefaults {
            bandwidth_bytes_per_s: section.bandwidth_per_migration.bytes(),
            completion_timeout_per_gib_s: section.completion_timeout_per_gib_seconds,
            progress_timeout_s: section.progress_timeout_seconds,
            allow_post_copy: section.allow_post_copy,
            downtime_ms: section.downtime_ms,
            streams: section.streams,
            auto_converge: section.auto_converge,
            zstd: section.zstd,
        },
    }
}
