//! `[images]` and `[trust]` of the configuration file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use host::{
    AddressPolicy, BucketStyle, CacheConfig, CloneWay, DISK_FORMATS, ImageConfig, ImportMethod, S3Config, S3Key,
    S3Server, StoreConfig, StoreName, TrustPolicy, TrustSection, UploadConfig, read_trust_file,
};
use serde::Deserialize;
use spec::ByteSize;
use toml::{Table, Value};

use crate::reader::Reader;

/// `[images]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Images {
    methods: Vec<String>,
    quota: Option<ByteSize>,
    file_roots: Option<Vec<PathBuf>>,
    authorities: Option<PathBuf>,
    web: AddressPolicy,
    registry: Table,
    store: Vec<Store>,
    s3: Vec<S3>,
    cache: Cache,
    uploads: Uploads,
    disk_formats: Vec<String>,
}

/// `[images.cache]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Cache {
    max_size: ByteSize,
    prefetch_interval_seconds: u32,
    prune_interval_seconds: u32,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            max_size: ByteSize::from_bytes(10 << 30),
            prefetch_interval_seconds: 300,
            prune_interval_seconds: 300,
        }
    }
}

/// `[images.uploads]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Uploads {
    quota: Option<ByteSize>,
    kept_hours: u32,
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            quota: None,
            kept_hours: 24,
        }
    }
}

/// `[[images.store]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Store {
    name: String,
    path: PathBuf,
    quota: Option<ByteSize>,
    #[serde(default)]
    must_be_mounted: bool,
    #[serde(default)]
    cached: bool,
    root_disks: Option<String>,
}

/// `[[images.s3]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct S3 {
    name: String,
    endpoint: String,
    #[serde(default = "usual_region")]
    region: String,
    #[serde(default)]
    virtual_host: bool,
    key_id: Option<String>,
    secret_file: Option<PathBuf>,
}

/// What servers of one's own mostly want.
fn usual_region() -> String {
    "us-east-1".to_owned()
}

impl Default for Images {
    fn default() -> Self {
        Self {
            methods: ImportMethod::ALL.map(|method| method.name().to_owned()).to_vec(),
            quota: None,
            file_roots: None,
            authorities: None,
            web: AddressPolicy::default(),
            registry: Table::new(),
            store: Vec::new(),
            s3: Vec::new(),
            cache: Cache::default(),
            uploads: Uploads::default(),
            disk_formats: DISK_FORMATS.map(str::to_owned).to_vec(),
        }
    }
}

/// Takes both sections. Files of the host's `file_roots` can be imported unless others are named.
pub(crate) fn take(reader: &mut Reader, file_roots: &[PathBuf]) -> ImageConfig {
    let read = reader.take("images", Images::default());
    let roots = read.file_roots.unwrap_or_else(|| file_roots.to_vec());
    for root in &roots {
        reader.check_absolute("images.file_roots", root);
    }
    let roots: Vec<_> = roots.into_iter().filter(|root| root.is_absolute()).collect();
    ImageConfig {
        methods: take_methods(reader, &read.methods),
        disk_formats: take_formats(reader, read.disk_formats),
        quota_bytes: read.quota.map(ByteSize::bytes),
        stores: take_stores(reader, read.store),
        cache: take_cache(reader, &read.cache),
        file_roots: roots,
        web: read.web,
        registry: take_registry(reader, read.registry),
        authorities_pem: read.authorities.and_then(|path| take_authorities(reader, &path)),
        s3: take_s3(reader, read.s3),
        trust: Arc::new(take_trust(reader)),
        uploads: UploadConfig {
            quota_bytes: read.uploads.quota.map(ByteSize::bytes),
            kept_hours: read.uploads.kept_hours,
        },
    }
}

/// As for the web, but on any port and with fewer redirects unless it says otherwise.
fn take_registry(reader: &mut Reader, mut rules: Table) -> AddressPolicy {
    const REDIRECTS_MAX: i64 = 5;
    rules.entry("allowed_ports").or_insert(Value::Array(Vec::new()));
    rules.entry("redirects_max").or_insert(Value::Integer(REDIRECTS_MAX));
    rules.try_into().unwrap_or_else(|error: toml::de::Error| {
        reader.wrong("images.registry", error.message());
        AddressPolicy::default()
    })
}

fn take_methods(reader: &mut Reader, names: &[String]) -> Vec<ImportMethod> {
    let mut methods = Vec::new();
    for name in names {
        match ImportMethod::ALL.into_iter().find(|method| method.name() == name) {
            Some(method) => methods.push(method),
            None => {
                let all = ImportMethod::ALL.map(ImportMethod::name).join(", ");
                reader.wrong("images.methods", format_args!("{name:?} is none of {all}"));
            }
        }
    }
    methods
}

fn take_cache(reader: &mut Reader, read: &Cache) -> CacheConfig {
    for (key, seconds) in [
        ("images.cache.prefetch_interval_seconds", read.prefetch_interval_seconds),
        ("images.cache.prune_interval_seconds", read.prune_interval_seconds),
    ] {
        if seconds == 0 {
            reader.wrong(key, "take at least 1");
        }
    }
    CacheConfig {
        max_bytes: read.max_size.bytes(),
        prefetch_interval: Duration::from_secs(u64::from(read.prefetch_interval_seconds)),
        prune_interval: Duration::from_secs(u64::from(read.prune_interval_seconds)),
    }
}

fn take_formats(reader: &mut Reader, names: Vec<String>) -> Vec<String> {
    for name in names.iter().filter(|name| !DISK_FORMATS.contains(&name.as_str())) {
        let all = DISK_FORMATS.join(", ");
        reader.wrong("images.disk_formats", format_args!("{name:?} is none of {all}"));
    }
    names
}

fn take_stores(reader: &mut Reader, read: Vec<Store>) -> Vec<StoreConfig> {
    let mut names = BTreeSet::from([StoreName::default()]);
    let mut stores = Vec::new();
    for store in read {
        reader.check_absolute("images.store.path", &store.path);
        let way = store.root_disks.as_deref();
        let root_disks = way.and_then(|way| clone_way(reader, "images.store.root_disks", way));
        match store.name.parse::<StoreName>() {
            Ok(name) if names.insert(name.clone()) => stores.push(StoreConfig {
                name,
                path: store.path,
                quota_bytes: store.quota.map(ByteSize::bytes),
                must_be_mounted: store.must_be_mounted,
                cached: store.cached,
                root_disks,
            }),
            Ok(name) => {
                let text = format!("two are called {name} (that in state_dir is called default)");
                reader.wrong("images.store.name", text);
            }
            Err(error) => reader.wrong("images.store.name", error),
        }
    }
    stores
}

fn take_s3(reader: &mut Reader, read: Vec<S3>) -> Vec<S3Config> {
    let mut names = BTreeSet::new();
    let mut servers = Vec::new();
    for s3 in read {
        if s3.name.is_empty() || !names.insert(s3.name.clone()) {
            reader.wrong(
                "images.s3.name",
                format_args!("{:?} is empty or there already", s3.name),
            );
        }
        let key = match (s3.key_id, s3.secret_file) {
            (Some(id), Some(path)) => take_secret(reader, &path).map(|secret| S3Key {
                id,
                secret,
                session_token: None,
            }),
            (None, None) => None,
            _ => {
                reader.wrong(
                    "images.s3",
                    "key_id and secret_file belong together: write both or none",
                );
                None
            }
        };
        servers.push(S3Config {
            name: s3.name,
            server: S3Server {
                endpoint: s3.endpoint,
                region: s3.region,
                style: if s3.virtual_host {
                    BucketStyle::VirtualHost
                } else {
                    BucketStyle::Path
                },
                key,
            },
        });
    }
    servers
}

fn take_authorities(reader: &mut Reader, path: &Path) -> Option<Vec<u8>> {
    reader.check_absolute("images.authorities", path);
    match std::fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            reader.wrong(
                "images.authorities",
                format_args!("{} can not be read: {error}", path.display()),
            );
            None
        }
    }
}

/// The first line of a file.
fn take_secret(reader: &mut Reader, path: &Path) -> Option<String> {
    reader.check_absolute("images.s3.secret_file", path);
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text.lines().next().unwrap_or_default().trim().to_owned()),
        Err(error) => {
            reader.wrong(
                "images.s3.secret_file",
                format_args!("{} can not be read: {error}", path.display()),
            );
            None
        }
    }
}

fn take_trust(reader: &mut Reader) -> TrustPolicy {
    let section = reader.take("trust", TrustSection::default());
    match TrustPolicy::build(&section, read_trust_file) {
        Ok(policy) => policy,
        Err(problems) => {
            for problem in problems.0 {
                reader.wrong(&problem.field, problem.problem);
            }
            TrustPolicy::default()
        }
    }
}

/// A way of making disks; nothing where it is none, which is told.
pub(crate) fn clone_way(reader: &mut Reader, key: &str, way: &str) -> Option<CloneWay> {
    match way {
        "overlay" => Some(CloneWay::Overlay),
        "reflink" => Some(CloneWay::Reflink),
        "copy" => Some(CloneWay::Copy),
        other => {
            reader.wrong(key, format_args!("{other:?} is none of overlay, reflink and copy"));
            None
        }
    }
}
