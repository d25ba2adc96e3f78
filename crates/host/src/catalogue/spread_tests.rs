//! What copies that failed take back.

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use image_sources::AddressPolicy;
use images::{ImportRequest, ImportSource, RequestedProof};

use super::super::adopt::plain_record;
use super::*;
use crate::image_config::{CacheConfig, ImageConfig, StoreConfig, UploadConfig};
use crate::{BootSourceConfig, HostConfig, MetadefConfig, MigrationConfig};

/// A host with a further store, `far`.
fn config(dir: &Path) -> HostConfig {
    HostConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        file_roots: Vec::new(),
        insecure_registries: Vec::new(),
        registry_auth_file: None,
        vmm_path: dir.join("no-vmm"),
        seccomp: crate::SeccompMode::Enforce,
        console_log_max_bytes: 1 << 20,
        console_log_keep: 1,
        image_max_bytes: 1 << 30,
        reserved_space_bytes: 0,
        root_disks: images::CloneWay::Overlay,
        stop_timeout: Duration::from_secs(1),
        images: ImageConfig {
            methods: Vec::new(),
            quota_bytes: None,
            stores: vec![StoreConfig {
                name: "far".parse().unwrap(),
                path: dir.join("far"),
                quota_bytes: None,
                must_be_mounted: false,
                cached: false,
                root_disks: None,
            }],
            cache: CacheConfig {
                max_bytes: 0,
                prefetch_interval: Duration::from_secs(300),
                prune_interval: Duration::from_secs(300),
            },
            file_roots: Vec::new(),
            web: AddressPolicy::default(),
            registry: AddressPolicy::default(),
            authorities_pem: None,
            s3: Vec::new(),
            disk_formats: Vec::new(),
            trust: std::sync::Arc::default(),
            uploads: UploadConfig {
                quota_bytes: None,
                kept_hours: 1,
            },
        },
        boot_sources: BootSourceConfig {
            system_directory: dir.join("none"),
            custom_directory: dir.join("none"),
            system_sources: false,
        },
        metadefs: MetadefConfig {
            directories: Vec::new(),
            policy: image_catalog::Policy::default(),
        },
        migration: MigrationConfig::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_same_image_got_since_is_not_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::open(config(dir.path())).await.unwrap();
    let request = ImportRequest {
        source: ImportSource::Upload(Box::new(Cursor::new(vec![7; 4096]))),
        expected: image_formats::Expectations::up_to(1 << 20),
        evidence: RequestedProof::default(),
        trust: std::sync::Arc::default(),
        stores: vec!["default".parse().unwrap(), "far".parse().unwrap()],
    };
    let (progress, _) = watch::channel(images::Progress::default());
    let stores = &host.0.context.stores;
    let placed = stores
        .import(request, false, &progress, &CancellationToken::new())
        .await;
    let digest = placed.unwrap().imported.image.digest;
    let far = stores.get(&"far".parse().unwrap()).unwrap();
    // A copy to `far` has failed as a whole; before its bytes could go, another one brought the image there to stay.
    let mut row = ImageRow::sealed(
        plain_record("web", "").unwrap(),
        digest.to_string(),
        jiff::Timestamp::now(),
    );
    row.placement.stores = vec!["default".to_owned(), "far".to_owned()];
    let kept = row.clone();
    let inserted = host.registry().change(move |change| change.insert_image(&kept)).await;
    inserted.unwrap();
    host.take_back(&digest, vec!["far".to_owned()]).await.unwrap();
    far.get(&digest).unwrap();
    // Without that they go.
    row.placement.stores.pop();
    let noted = host
        .registry()
        .change(move |change| change.update_image(&mut row))
        .await;
    noted.unwrap();
    host.take_back(&digest, vec!["far".to_owned()]).await.unwrap();
    assert!(matches!(far.get(&digest), Err(StoreError::NotFound(_))));
    host.close();
}
