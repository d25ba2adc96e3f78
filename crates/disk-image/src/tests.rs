//! Whole images: made, converted and looked at here, and judged by QEMU's tools where they are installed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::conformance::pattern;
use spec::DiskFormat;
use tempfile::TempDir;

use crate::*;

/// A directory of images.
pub(crate) struct Bench {
    directory: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn file(&self, name: &str) -> File {
        let options = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .clone();
        options.open(self.path(name)).unwrap()
    }

    pub(crate) fn chain(&self, name: &str, writable_layers: usize) -> Chain {
        let policy = Policy {
            writable_layers,
            ..Policy::within([self.directory.path()])
        };
        resolve(&self.path(name), &policy).unwrap()
    }

    /// A raw image of `size` bytes with data here and there.
    pub(crate) fn raw(&self, name: &str, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        for (start, len) in [
            (0, 700),
            (1 << 20, 300_000),
            (3 << 20, 65_536),
            ((5 << 20) - 9000, 20_000),
        ] {
            let end = (start + len).min(bytes.len());
            if start < end {
                bytes[start..end].copy_from_slice(&pattern(end - start, start as u64 + size));
            }
        }
        fs::write(self.path(name), &bytes).unwrap();
        bytes
    }

    /// Whether QEMU's tool is there; what it says, if it succeeds.
    pub(crate) fn qemu_img(&self, arguments: &[&str]) -> Option<String> {
        let run = Command::new("qemu-img")
            .args(arguments)
            .current_dir(self.directory.path())
            .output();
        match run {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: no qemu-img is installed");
                None
            }
            run => {
                let run = run.unwrap();
                let said = format!(
                    "{}{}",
                    String::from_utf8_lossy(&run.stdout),
                    String::from_utf8_lossy(&run.stderr)
                );
                assert!(run.status.success(), "qemu-img {arguments:?}: {said}");
                Some(said)
            }
        }
    }

    /// What the image shows, read by this crate.
    pub(crate) fn contents(&self, name: &str) -> Vec<u8> {
        let out = format!("{name}.flat");
        let chain = self.chain(name, 0);
        let size = virtual_size(&chain).unwrap();
        convert(
            &chain,
            &self.file(&out),
            &ConvertOptions::to(CreateOptions::raw(size)),
            &(),
        )
        .unwrap();
        fs::read(self.path(&out)).unwrap()
    }

    pub(crate) fn is_sound(&self, name: &str) {
        let report = check(&self.file(name), DiskFormat::Qcow2, None).unwrap();
        assert!(report.is_clean(), "{report:?}");
        self.qemu_img(&["check", name]);
    }
}

pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn images_go_from_format_to_format_and_back() {
    let bench = Bench::new();
    let bytes = bench.raw("a.raw", (6 << 20) + 512);
    for cluster_bytes in [512, 4096, 65_536, 2 << 20] {
        let qcow2 = CreateOptions::Qcow2(disk_qcow2::ops::CreateOptions {
            cluster_bytes,
            ..disk_qcow2::ops::CreateOptions::of_size(7 << 20)
        });
        let progress = Progress::new();
        convert(
            &bench.chain("a.raw", 0),
            &bench.file("b.qcow2"),
            &ConvertOptions::to(qcow2),
            &progress,
        )
        .unwrap();
        assert_eq!(progress.done_bytes(), bytes.len() as u64);
        bench.is_sound("b.qcow2");
        let back = bench.contents("b.qcow2");
        assert_eq!(back.len(), 7 << 20);
        assert!(back[..bytes.len()] == bytes && back[bytes.len()..].iter().all(|&byte| byte == 0));
        bench.qemu_img(&["compare", "a.raw", "b.qcow2"]);
        assert!(allocated(&bench.path("b.qcow2.flat")) < 1 << 20, "zeroes stay holes");
    }
}

#[test]
fn compressed_images_are_smaller_and_show_the_same() {
    let bench = Bench::new();
    // Text, as it were: it gets smaller.
    let mut bytes = bench.raw("a.raw", (6 << 20) + 512);
    for (index, byte) in bytes[2 << 20..5 << 20].iter_mut().enumerate() {
        *byte = u8::try_from(index / 7 % 90).unwrap();
    }
    fs::write(bench.path("a.raw"), &bytes).unwrap();
    for (cluster_bytes, compression) in [(65_536, CompressionKind::Zlib), (2 << 20, CompressionKind::Zstd)] {
        let target = CreateOptions::Qcow2(disk_qcow2::ops::CreateOptions {
            cluster_bytes,
            compression,
            ..disk_qcow2::ops::CreateOptions::of_size(7 << 20)
        });
        let options = ConvertOptions {
            compressed: true,
            ..ConvertOptions::to(target)
        };
        let progress = Progress::new();
        convert(&bench.chain("a.raw", 0), &bench.file("b.qcow2"), &options, &progress).unwrap();
        assert_eq!(progress.done_bytes(), bytes.len() as u64);
        bench.is_sound("b.qcow2");
        assert!(bench.contents("b.qcow2")[..bytes.len()] == bytes);
        bench.qemu_img(&["compare", "a.raw", "b.qcow2"]);
        let report = check(&bench.file("b.qcow2"), DiskFormat::Qcow2, None).unwrap();
        assert!(report.compressed_clusters > 0, "{report:?}");
        // Of large clusters few are filled by so little.
        let small = allocated(&bench.path("b.qcow2")) < 3 << 20;
        assert!(small || cluster_bytes > 65_536, "{report:?}");
    }
    let raw = ConvertOptions {
        compressed: true,
        ..ConvertOptions::to(CreateOptions::raw(7 << 20))
    };
    let error = convert(&bench.chain("a.raw", 0), &bench.file("c"), &raw, &()).unwrap_err();
    assert!(matches!(error, ConvertError::Compressed), "{error}");
}

#[test]
fn in_order_the_same_disk_gives_the_same_image() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (1..=24_u8).flat_map(|piece| vec![piece; 1 << 20]).collect();
    fs::write(bench.path("a.raw"), &bytes).unwrap();
    let options = ConvertOptions {
        in_order: true,
        ..ConvertOptions::to(CreateOptions::qcow2(24 << 20))
    };
    let mut images = Vec::new();
    for name in ["b.qcow2", "c.qcow2", "d.qcow2"] {
        convert(&bench.chain("a.raw", 0), &bench.file(name), &options, &()).unwrap();
        bench.is_sound(name);
        images.push(fs::read(bench.path(name)).unwrap());
    }
    assert!(images[0] == images[1] && images[1] == images[2]);
}

#[test]
fn chains_show_what_qemu_shows() {
    let bench = Bench::new();
    bench.raw("base.raw", (4 << 20) + 700);
    if bench
        .qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.raw",
            "-F",
            "raw",
            "middle.qcow2",
            "3M",
        ])
        .is_none()
    {
        return;
    }
    bench.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4096",
        "-b",
        "middle.qcow2",
        "-F",
        "qcow2",
        "top.qcow2",
        "8M",
    ]);
    for (name, offset, byte) in [("middle.qcow2", 1 << 20, 7), ("top.qcow2", (1 << 20) + 5120, 9)] {
        put(&bench.chain(name, 1), offset, &[byte; 1024]);
    }
    bench.qemu_img(&["convert", "-O", "raw", "top.qcow2", "qemu.raw"]);
    let bytes = bench.contents("top.qcow2");
    assert!(bytes == fs::read(bench.path("qemu.raw")).unwrap());
    assert_eq!((bytes[1 << 20], bytes[(1 << 20) + 5120]), (7, 9));
    let chain = bench.chain("top.qcow2", 0);
    let info = info(&chain).unwrap();
    assert_eq!(
        info.iter().map(|image| image.virtual_size_bytes).collect::<Vec<_>>(),
        [8 << 20, 3 << 20, (4 << 20) + 700]
    );
    let top = info[0].qcow2.as_ref().unwrap();
    assert_eq!(
        (top.cluster_size, top.backing_filename.as_deref()),
        (4096, Some("middle.qcow2"))
    );
    assert_eq!(top.backing_filename_format.as_deref(), Some("qcow2"));
    // It can be written down, and read again.
    let text = serde_json::to_string(&info).unwrap();
    assert_eq!(serde_json::from_str::<Vec<ImageInfo>>(&text).unwrap(), info);
    let one = open(&chain, &OpenOptions::default()).unwrap();
    let two = open(&bench.chain("qemu.raw", 0), &OpenOptions::default()).unwrap();
    assert_eq!(compare(&*one.disk(), &*two.disk(), &()).unwrap(), Comparison::Same);
}

#[test]
fn new_images_are_as_they_were_asked_for() {
    let bench = Bench::new();
    for preallocation in [Preallocation::Off, Preallocation::Falloc, Preallocation::Full] {
        fs::write(bench.path("a.raw"), [7; 5000]).unwrap();
        create(
            &bench.file("a.raw"),
            None,
            &CreateOptions::Raw {
                size_bytes: (1 << 20) + 1,
                preallocation,
            },
        )
        .unwrap();
        let bytes = fs::read(bench.path("a.raw")).unwrap();
        assert!(bytes.len() == (1 << 20) + 512 && bytes.iter().all(|&byte| byte == 0));
        let reserved = allocated(&bench.path("a.raw")) >= 1 << 20;
        assert_eq!(reserved, preallocation != Preallocation::Off, "{preallocation:?}");
    }
    for options in [
        CreateOptions::qcow2(3 << 30),
        CreateOptions::overlay(2 << 20, "a.raw", DiskFormat::Raw),
        CreateOptions::Qcow2(disk_qcow2::ops::CreateOptions {
            extended_l2: true,
            lazy_refcounts: true,
            compression: CompressionKind::Zstd,
            preallocation: Preallocation::Metadata,
            ..disk_qcow2::ops::CreateOptions::of_size(5 << 20)
        }),
    ] {
        create(&bench.file("b.qcow2"), None, &options).unwrap();
        bench.is_sound("b.qcow2");
        let found = info(&bench.chain("b.qcow2", 0)).unwrap().remove(0);
        let qcow2 = found.qcow2.unwrap();
        assert_eq!(found.virtual_size_bytes, options.size_bytes());
        let CreateOptions::Qcow2(options) = options else {
            unreachable!()
        };
        let specific = qcow2.format_specific;
        assert_eq!(specific.extended_l2, Some(options.extended_l2));
        assert_eq!(specific.lazy_refcounts, Some(options.lazy_refcounts));
        assert_eq!(qcow2.backing_filename, options.backing.map(|backing| backing.name));
    }
    let refused = |options: CreateOptions| create(&bench.file("c"), None, &options).unwrap_err().to_string();
    assert!(refused(CreateOptions::raw(0)).contains("0 bytes"));
    assert!(
        refused(CreateOptions::Raw {
            size_bytes: 512,
            preallocation: Preallocation::Metadata
        })
        .contains("no metadata")
    );
}

#[test]
fn disks_grow_and_do_not_shrink() {
    let bench = Bench::new();
    let bytes = bench.raw("a.raw", 2 << 20);
    convert(
        &bench.chain("a.raw", 0),
        &bench.file("a.qcow2"),
        &ConvertOptions::to(CreateOptions::qcow2(2 << 20)),
        &(),
    )
    .unwrap();
    for name in ["a.raw", "a.qcow2"] {
        resize(&bench.chain(name, 1), 9 << 30).unwrap();
        resize(&bench.chain(name, 1), 9 << 30).unwrap();
        assert_eq!(virtual_size(&bench.chain(name, 0)).unwrap(), 9 << 30);
        let error = resize(&bench.chain(name, 1), 2 << 20).unwrap_err();
        assert!(matches!(error, ResizeError::Grow { .. }), "{error}");
        let error = resize(&bench.chain(name, 0), 10 << 30).unwrap_err();
        assert!(matches!(error, ResizeError::Open(_)), "{error}");
        let disk = open(&bench.chain(name, 0), &OpenOptions::default()).unwrap().disk();
        let old = disk::InMemory::holding(bytes.clone(), disk::Access::ReadOnly);
        assert_eq!(compare(&*disk, &old, &()).unwrap(), Comparison::Same);
    }
    bench.is_sound("a.qcow2");
}

#[test]
fn who_is_in_use_is_not_written_and_who_is_stopped_stops() {
    let bench = Bench::new();
    bench.raw("a.raw", 6 << 20);
    let used = bench.file("b.qcow2");
    create(&used, None, &CreateOptions::qcow2(1 << 20)).unwrap();
    let before = fs::read(bench.path("b.qcow2")).unwrap();
    let to = ConvertOptions::to(CreateOptions::qcow2(6 << 20));
    let error = convert(&bench.chain("a.raw", 0), &bench.file("b.qcow2"), &to, &()).unwrap_err();
    assert!(
        matches!(
            error,
            ConvertError::Create(CreateError::Open(OpenError::File(disk_raw::OpenError::InUse { .. })))
        ),
        "{error}"
    );
    assert!(fs::read(bench.path("b.qcow2")).unwrap() == before);
    // Looking is free.
    info(&bench.chain("b.qcow2", 0)).unwrap();
    drop(used);
    let progress = Progress::new();
    progress.stop();
    let error = convert(&bench.chain("a.raw", 0), &bench.file("b.qcow2"), &to, &progress).unwrap_err();
    assert!(matches!(error, ConvertError::Copy(CopyError::Stopped)), "{error}");
    let small = ConvertOptions::to(CreateOptions::raw(5 << 20));
    let error = convert(&bench.chain("a.raw", 0), &bench.file("c.raw"), &small, &()).unwrap_err();
    assert!(matches!(error, ConvertError::TooSmall { .. }), "{error}");
    assert!(bench.file("c.raw").metadata().unwrap().len() == 0);
}

/// Writes `bytes` at `offset` of what `chain` shows; no bytes make zeroes of 128 KiB.
fn put(chain: &Chain, offset: u64, bytes: &[u8]) {
    let options = OpenOptions {
        access: disk::Access::ReadWrite,
        ..OpenOptions::default()
    };
    let image = open(chain, &options).unwrap();
    engine::block_on(async {
        let io = image.disk().open_queue().unwrap();
        if bytes.is_empty() {
            io.write_zeroes(offset, 128 << 10, disk::ZeroMode::MayUnmap)
                .await
                .unwrap();
        } else {
            let buf = guestmem::IoBuf::from_bytes(bytes).unwrap();
            io.write(offset, vec![buf]).await.0.unwrap();
        }
        image.close().await.unwrap();
    })
    .unwrap();
}

/// `base`, and `top.qcow2` of 8 MiB on it with some data and some zeroes; what that shows.
fn overlaid(bench: &Bench, base: &str) -> Vec<u8> {
    let format = bench.chain(base, 0).top().format;
    create(
        &bench.file("top.qcow2"),
        None,
        &CreateOptions::overlay(8 << 20, base, format),
    )
    .unwrap();
    let top = bench.chain("top.qcow2", 1);
    put(&top, (1 << 20) + 4096, &pattern(100_352, 5));
    put(&top, 3 << 20, &[]);
    put(&top, (8 << 20) - 512, &pattern(512, 6));
    drop(top);
    bench.contents("top.qcow2")
}

#[test]
fn commits_leave_one_image_that_shows_the_same() {
    let bench = Bench::new();
    bench.raw("base.raw", 5 << 20);
    let to = ConvertOptions::to(CreateOptions::qcow2(5 << 20));
    convert(&bench.chain("base.raw", 0), &bench.file("base.qcow2"), &to, &()).unwrap();
    for base in ["base.raw", "base.qcow2"] {
        let shown = overlaid(&bench, base);
        let error = commit(&bench.chain("top.qcow2", 1), &()).unwrap_err();
        assert!(matches!(error, CommitError::Open(_)), "{error}");
        let progress = Progress::new();
        commit(&bench.chain("top.qcow2", 2), &progress).unwrap();
        assert_eq!((progress.done_bytes(), progress.total_bytes()), (8 << 20, 8 << 20));
        assert!(
            bench.contents("top.qcow2") == shown && bench.contents(base) == shown,
            "{base}"
        );
    }
    bench.is_sound("base.qcow2");
    let error = commit(&bench.chain("base.qcow2", 1), &()).unwrap_err();
    assert!(matches!(error, CommitError::NoBacking { .. }), "{error}");
}

#[test]
fn rebased_images_show_what_they_showed() {
    let bench = Bench::new();
    bench.raw("old.raw", 5 << 20);
    let mut bytes = bench.raw("new.raw", 9 << 20);
    bytes[6 << 20..7 << 20].fill(3);
    fs::write(bench.path("new.raw"), &bytes).unwrap();
    let shown = overlaid(&bench, "old.raw");
    let name = BackingName {
        name: "new.raw".to_owned(),
        format: "raw".to_owned(),
    };
    rebase(
        &bench.chain("top.qcow2", 1),
        Some((&bench.chain("new.raw", 0), &name)),
        &(),
    )
    .unwrap();
    assert_eq!(
        bench.chain("top.qcow2", 0).below()[0].name,
        bench.path("new.raw").display().to_string()
    );
    assert!(bench.contents("top.qcow2") == shown);
    bench.is_sound("top.qcow2");
    // Onto nothing.
    rebase(&bench.chain("top.qcow2", 1), None, &()).unwrap();
    assert!(bench.chain("top.qcow2", 0).below().is_empty());
    assert!(bench.contents("top.qcow2") == shown);
    bench.is_sound("top.qcow2");
    // Without looking: only what the image holds itself stays.
    let shown = overlaid(&bench, "old.raw");
    fs::rename(bench.path("old.raw"), bench.path("moved.raw")).unwrap();
    let moved = BackingName {
        name: "moved.raw".to_owned(),
        format: "raw".to_owned(),
    };
    let policy = Policy {
        format: Some(DiskFormat::Raw),
        writable_layers: 1,
        ..Policy::within([bench.directory.path()])
    };
    // The image that was named is gone, so the chain is the image alone.
    let alone = resolve(&bench.path("top.qcow2"), &policy)
        .unwrap()
        .into_layers()
        .remove(0);
    let alone = Chain::of_file("top.qcow2", alone.file, DiskFormat::Qcow2, true);
    rebase_unchecked(&alone, Some(&moved)).unwrap();
    drop(alone);
    assert!(bench.contents("top.qcow2") == shown);
}

#[test]
fn measures_are_what_qemu_says() {
    let bench = Bench::new();
    bench.raw("a.raw", 6 << 20);
    let raw = measure(&bench.chain("a.raw", 0), &CreateOptions::raw(6 << 20)).unwrap();
    assert_eq!(raw.fully_allocated, 6 << 20);
    for cluster_bytes in [4096, 65_536] {
        let options = CreateOptions::Qcow2(disk_qcow2::ops::CreateOptions {
            cluster_bytes,
            ..disk_qcow2::ops::CreateOptions::of_size(6 << 20)
        });
        let measured = measure(&bench.chain("a.raw", 0), &options).unwrap();
        let cluster = format!("cluster_size={cluster_bytes}");
        let said = bench.qemu_img(&[
            "measure",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            &cluster,
            "--output=json",
            "a.raw",
        ]);
        if let Some(said) = said {
            let said: Measure = serde_json::from_str(&said).unwrap();
            assert_eq!(measured, said);
        }
    }
}

#[test]
fn damage_is_found_and_repaired() {
    let bench = Bench::new();
    bench.raw("a.raw", 2 << 20);
    let to = ConvertOptions::to(CreateOptions::qcow2(2 << 20));
    convert(&bench.chain("a.raw", 0), &bench.file("b.qcow2"), &to, &()).unwrap();
    // One refcount too many: behind the last cluster in use, in the first refcount block.
    let file = bench.file("b.qcow2");
    let mut word = [0; 8];
    file.read_exact_at(&mut word, 65_536).unwrap();
    let block = u64::from_be_bytes(word);
    let clusters = file.metadata().unwrap().len() / 65_536;
    file.write_all_at(&[0, 1], block + 2 * (clusters + 3)).unwrap();
    let report = check(&file, DiskFormat::Qcow2, None).unwrap();
    assert_eq!((report.leaks, report.corruptions), (1, 0), "{report:?}");
    check(&file, DiskFormat::Qcow2, Some(Repair::Leaks)).unwrap();
    drop(file);
    bench.is_sound("b.qcow2");
    assert!(check(&bench.file("a.raw"), DiskFormat::Raw, None).unwrap().is_clean());
}

/// Stops as soon as something was read.
struct StopsAfter(std::sync::atomic::AtomicU64, u64);

impl Watch for StopsAfter {
    fn progress(&self, done_bytes: u64, total_bytes: u64) {
        assert!(done_bytes <= total_bytes);
        self.0.fetch_max(done_bytes, std::sync::atomic::Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed) >= self.1
    }
}

#[test]
fn a_check_tells_how_far_it_is_and_can_be_given_up() {
    let bench = Bench::new();
    create(&bench.file("a.qcow2"), None, &CreateOptions::qcow2(1 << 30)).unwrap();
    for repair in [None, Some(Repair::All)] {
        let looked = StopsAfter(0.into(), u64::MAX);
        let report = check_watched(&bench.file("a.qcow2"), DiskFormat::Qcow2, repair, &looked).unwrap();
        assert!(report.is_clean());
        assert!(looked.0.into_inner() > 0, "it read something and said so");
        let stops = StopsAfter(0.into(), 1);
        let stopped = check_watched(&bench.file("a.qcow2"), DiskFormat::Qcow2, repair, &stops);
        assert!(matches!(stopped, Err(CheckError::Stopped)), "{stopped:?}");
    }
    assert!(
        check(&bench.file("a.qcow2"), DiskFormat::Qcow2, None)
            .unwrap()
            .is_clean()
    );
}
