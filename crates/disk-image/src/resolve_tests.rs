//! Chains of images that consist of a header: what is followed, and what is not.

use std::fs;
use std::os::unix::fs::symlink;

use disk_qcow2::meta::extension::{BACKING_FORMAT, DATA_FILE, Extensions};
use disk_qcow2::meta::header::{Compression, Header, WRITTEN_BYTES, incompatible};
use tempfile::TempDir;

use super::*;

/// The first cluster of an image that has a backing image of this name and format, or an external data file.
fn image(backing: Option<(&str, Option<&str>)>, data_file: Option<&str>) -> Vec<u8> {
    let mut extensions = Extensions::default();
    if let Some((_, Some(format))) = backing {
        extensions.set(BACKING_FORMAT, format.as_bytes().to_vec());
    }
    if let Some(name) = data_file {
        extensions.set(DATA_FILE, name.as_bytes().to_vec());
    }
    let (name, _) = backing.unwrap_or_default();
    let header = Header {
        version: 3,
        cluster_bits: 16,
        backing_offset: if backing.is_some() { 4096 } else { 0 },
        backing_len: u32::try_from(name.len()).unwrap(),
        size_bytes: 1 << 20,
        l1_entries: 1,
        l1_offset: 3 << 16,
        reftable_offset: 1 << 16,
        reftable_clusters: 1,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: if data_file.is_some() {
            incompatible::DATA_FILE
        } else {
            0
        },
        compatible: 0,
        autoclear: 0,
        refcount_order: 4,
        compression: Compression::Zlib,
        header_len: WRITTEN_BYTES,
        unknown: Vec::new(),
    };
    let mut bytes = header.encode();
    bytes.extend(extensions.to_bytes());
    bytes.resize(4096, 0);
    bytes.extend(name.as_bytes());
    bytes.resize(65_536, 0);
    bytes
}

/// A directory for images, and one beside it that is none.
struct Pool {
    directory: TempDir,
}

impl Pool {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["pool/vm", "private"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("private/secret"), [1; 4096]).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn policy(&self) -> Policy {
        Policy::within([self.path("pool")])
    }

    fn resolve(&self, name: &str) -> Result<Chain, ResolveError> {
        resolve(&self.path(name), &self.policy())
    }

    fn refusal(&self, name: &str) -> String {
        let error = self.resolve(name).err().unwrap();
        let source = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("{error} <- {source}").replace(&self.directory.path().display().to_string(), "")
    }
}

#[test]
fn names_lead_from_image_to_image() {
    let pool = Pool::new();
    pool.put("pool/base.raw", &[0; 5000]);
    pool.put("pool/vm/middle", &image(Some(("../base.raw", Some("raw"))), None));
    let middle = pool.path("pool/vm/middle").display().to_string();
    pool.put("pool/vm/top", &image(Some((&middle, Some("qcow2"))), None));
    let chain = pool.resolve("pool/vm/top").unwrap();
    let layers: Vec<_> = chain.layers().map(|layer| (layer.format, layer.writable)).collect();
    assert_eq!(
        layers,
        [
            (DiskFormat::Qcow2, false),
            (DiskFormat::Qcow2, false),
            (DiskFormat::Raw, false)
        ]
    );
    let policy = Policy {
        writable_layers: 2,
        ..pool.policy()
    };
    let chain = resolve(&pool.path("pool/vm/../vm/./top"), &policy).unwrap();
    assert_eq!(
        chain.layers().map(|layer| layer.writable).collect::<Vec<_>>(),
        [true, true, false]
    );
    // What is recorded is not judged again.
    let policy = Policy {
        format: Some(DiskFormat::Raw),
        ..pool.policy()
    };
    let chain = resolve(&pool.path("pool/vm/top"), &policy).unwrap();
    assert_eq!((chain.layers().count(), chain.top().format), (1, DiskFormat::Raw));
}

#[test]
fn nothing_outside_of_the_directories_is_opened() {
    let pool = Pool::new();
    let secret = pool.path("private/secret").display().to_string();
    for (name, backing) in [
        ("a", secret.as_str()),
        ("b", "../../private/secret"),
        ("c", "../../../../../etc/passwd"),
    ] {
        pool.put(&format!("pool/vm/{name}"), &image(Some((backing, Some("raw"))), None));
        let text = pool.refusal(&format!("pool/vm/{name}"));
        assert!(text.contains("outside of the directories for images (/pool)"), "{text}");
    }
    symlink(&secret, pool.path("pool/link")).unwrap();
    symlink(pool.path("private"), pool.path("pool/linked")).unwrap();
    for backing in ["../link", "../linked/secret"] {
        pool.put("pool/vm/d", &image(Some((backing, Some("raw"))), None));
        let text = pool.refusal("pool/vm/d");
        assert!(text.contains("symbolic link"), "{text}");
    }
    assert!(pool.refusal("pool/link").contains("symbolic link"));
    assert!(pool.refusal("private/secret").contains("outside"));
    assert!(pool.refusal("pool/vm").contains("neither a regular file"));
    assert!(pool.refusal("pool/none").contains("can not be opened"));
    // The directory itself may be reached by a link: whoever wrote the policy chose it.
    symlink(pool.path("pool"), pool.path("alias")).unwrap();
    pool.put("pool/vm/e", &[0; 512]);
    let policy = Policy::within([pool.path("alias")]);
    for name in ["alias/vm/e", "pool/vm/e"] {
        resolve(&pool.path(name), &policy).unwrap();
    }
}

#[test]
fn loops_and_long_chains_end() {
    let pool = Pool::new();
    pool.put("pool/self", &image(Some(("self", Some("qcow2"))), None));
    pool.put("pool/one", &image(Some(("two", Some("qcow2"))), None));
    pool.put("pool/two", &image(Some(("./vm/../one", Some("qcow2"))), None));
    fs::hard_link(pool.path("pool/one"), pool.path("pool/three")).unwrap();
    for name in ["self", "one", "three"] {
        let text = pool.refusal(&format!("pool/{name}"));
        assert!(text.contains("its own backing image"), "{text}");
    }
    for index in 1..=LAYERS {
        let below = format!("{}", index - 1);
        pool.put(&format!("pool/{index}"), &image(Some((&below, Some("qcow2"))), None));
    }
    pool.put("pool/0", &image(None, None));
    assert_eq!(
        pool.resolve(&format!("pool/{}", LAYERS - 1)).unwrap().layers().count(),
        LAYERS
    );
    assert!(pool.refusal(&format!("pool/{LAYERS}")).contains("more than 32 images"));
}

const LAYERS: usize = crate::LAYERS_MAX;

#[test]
fn formats_are_recorded_or_harmless() {
    let pool = Pool::new();
    pool.put("pool/plain", &[0; 4096]);
    pool.put("pool/leaf", &image(None, None));
    pool.put("pool/leads", &image(Some(("plain", Some("raw"))), None));
    for (backing, format, expected) in [
        ("plain", None, Ok(DiskFormat::Raw)),
        ("leaf", None, Ok(DiskFormat::Qcow2)),
        ("leaf", Some("raw"), Ok(DiskFormat::Raw)),
        ("leads", Some("qcow2"), Ok(DiskFormat::Qcow2)),
        ("leads", None, Err("does not record the format")),
        ("plain", Some("vmdk"), Err("backing image is vmdk")),
        ("plain", Some("qcow2"), Err("can not be used")),
        ("nbd://host/disk", Some("raw"), Err("backing image by nbd")),
    ] {
        pool.put("pool/top", &image(Some((backing, format)), None));
        match expected {
            Ok(format) => assert_eq!(pool.resolve("pool/top").unwrap().below()[0].format, format),
            Err(words) => {
                let text = pool.refusal("pool/top");
                assert!(text.contains(words), "{text}");
            }
        }
    }
    pool.put(
        "pool/foreign",
        b"vhdxfile and more than sixty-four bytes of whatever may come after that",
    );
    assert!(pool.refusal("pool/foreign").contains("is vhdx"));
}

#[test]
fn data_files_are_followed_only_on_demand() {
    let pool = Pool::new();
    pool.put("pool/data", &[0; 4096]);
    pool.put("pool/top", &image(None, Some("data")));
    assert!(pool.refusal("pool/top").contains("not allowed here"));
    let policy = Policy {
        data_files: true,
        ..pool.policy()
    };
    let chain = resolve(&pool.path("pool/top"), &policy).unwrap();
    assert!(chain.top().data_file.as_ref().unwrap().name.ends_with("/pool/data"));
    pool.put("pool/top", &image(None, Some("top")));
    let error = resolve(&pool.path("pool/top"), &policy).err().unwrap();
    assert!(matches!(error, ResolveError::Loop { .. }), "{error}");
    pool.put("pool/top", &image(None, Some("../private/secret")));
    let error = resolve(&pool.path("pool/top"), &policy).err().unwrap();
    assert!(matches!(error, ResolveError::Access { .. }), "{error}");
}
