//! Every format as `qemu-img` makes it: told by content, small and large, pushed and with seeks; converted back to what it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use image_formats::convert::{Conversion, ConvertLimits, Converted, Target};
use image_formats::{Expectations, Format, Inspector, Partitions};
use support::{Rules, convert, create, have, noise, run, take};

/// Format, its options, what it is.
const KINDS: [(&str, &str, Format); 14] = [
    ("raw", "", Format::Raw),
    ("qcow2", "", Format::Qcow2),
    ("qcow2", "compat=0.10", Format::Qcow2),
    ("qcow2", "cluster_size=512", Format::Qcow2),
    (
        "qcow2",
        "cluster_size=2M,extended_l2=on,compression_type=zstd",
        Format::Qcow2,
    ),
    ("vmdk", "", Format::Vmdk),
    ("vmdk", "subformat=streamOptimized", Format::Vmdk),
    ("vpc", "", Format::Vhd),
    ("vpc", "subformat=fixed", Format::Vhd),
    ("vpc", "force_size=on", Format::Vhd),
    ("vhdx", "", Format::Vhdx),
    ("vhdx", "subformat=fixed", Format::Vhdx),
    ("vdi", "", Format::Vdi),
    ("vdi", "static=on", Format::Vdi),
];

/// A VHD's size is rounded up to whole cylinders.
fn same_size(format: Format, found: Option<u64>, size: u64) -> bool {
    let found = found.unwrap();
    found == size || (format == Format::Vhd && found > size && found - size <= 16 * 255 * 512)
}

#[test]
fn every_format_is_told_by_its_content_whatever_its_size() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules {
        unpack: image_formats::DecompressLimits::up_to(1 << 40),
        ..Rules::new()
    };
    for (index, (kind, options, format)) in KINDS.into_iter().enumerate() {
        let sizes: &[u64] = match (kind, options) {
            ("qcow2", "cluster_size=512") => &[1 << 20, 100 << 20],
            ("raw", _) | (_, "subformat=fixed" | "static=on") => &[1 << 20, 30 << 20],
            ("vpc", _) => &[1 << 20, 100 << 30],
            _ => &[1 << 20, 700 << 20, 900 << 30],
        };
        for &size in sizes {
            // Its name says something else.
            let path = dir.path().join(format!("{index}-{size}.iso"));
            create(&path, kind, options, &size.to_string());
            let pushed = take(&path, &rules).unwrap_or_else(|code| panic!("{kind} {options} {size}: {code}"));
            assert_eq!(pushed.format, format, "{kind} {options}");
            assert!(
                same_size(format, pushed.virtual_size_bytes, size),
                "{kind} {options} {size}: {pushed:?}"
            );
            let mut file = File::open(&path).unwrap();
            let sought = Inspector::inspect(&mut file, rules.expected.clone()).unwrap();
            assert_eq!(sought, pushed, "{kind} {options}");
            let small = Expectations::up_to(size - 512);
            let refused = Inspector::inspect(&mut file, small).unwrap_err();
            assert_eq!(refused.code(), "virtual_size_beyond_quota", "{kind} {options}");
        }
    }
}

/// A disk with a partition table, data in places, and an end that is no multiple of a grain.
fn disk(path: &Path, size: u64) {
    let mut file = File::create_new(path).unwrap();
    let mut start = noise(100_000, 7);
    start[440..512].fill(0);
    start[450] = 0x83;
    start[458..462].copy_from_slice(&2048_u32.to_le_bytes());
    start[510..512].copy_from_slice(&[0x55, 0xaa]);
    file.write_all(&start).unwrap();
    for (at, seed) in [(size / 3, 3), (size - 5000, 5)] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&noise(5000, seed)).unwrap();
    }
    file.set_len(size).unwrap();
}

fn convert_back(source: &Path, target: &Path, format: Target) -> Converted {
    let job = Conversion {
        program: None,
        source: source.to_path_buf(),
        target: target.to_path_buf(),
        format,
        limits: ConvertLimits::up_to(1 << 40),
    };
    let mut last = 0;
    let converted = job.run(&mut |bytes| last = bytes, &|| false).unwrap();
    assert_eq!(last, converted.virtual_size_bytes, "the end of the progress");
    converted
}

fn same_start(a: &Path, b: &Path, len: u64) {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < len {
        let count = usize::try_from((len - at).min(1 << 20)).unwrap();
        a.read_exact_at(&mut left[..count], at).unwrap();
        b.read_exact_at(&mut right[..count], at).unwrap();
        assert!(left[..count] == right[..count], "bytes differ within the MiB at {at}");
        at += count as u64;
    }
}

#[test]
fn foreign_formats_come_back_as_they_were() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let size = 20 << 20;
    let original = dir.path().join("original");
    disk(&original, size);
    for (index, (kind, options, format)) in KINDS.into_iter().enumerate().filter(|(_, kind)| kind.0 != "raw") {
        let image = dir.path().join(format!("{index}"));
        convert(&original, &image, kind, options);
        for target in [Target::Raw, Target::Qcow2] {
            let path = dir.path().join(format!("{index}-{target:?}"));
            let converted = convert_back(&image, &path, target);
            assert_eq!(converted.source.format, format);
            assert!(
                same_size(format, Some(converted.virtual_size_bytes), size),
                "{kind} {options}: {converted:?}"
            );
            let raw = match target {
                Target::Raw => path.clone(),
                Target::Qcow2 => {
                    let raw = dir.path().join(format!("{index}-again"));
                    run(
                        "qemu-img",
                        &[
                            "convert",
                            "-f",
                            "qcow2",
                            "-O",
                            "raw",
                            path.to_str().unwrap(),
                            raw.to_str().unwrap(),
                        ],
                    );
                    raw
                }
            };
            assert_eq!(raw.metadata().unwrap().len(), converted.virtual_size_bytes);
            same_start(&original, &raw, size);
            std::fs::remove_file(raw).unwrap();
        }
    }
}

#[test]
fn a_partitioned_disk_keeps_its_table_in_a_fixed_vhd() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (original, image) = (dir.path().join("a"), dir.path().join("b"));
    disk(&original, 3 << 20);
    convert(&original, &image, "vpc", "subformat=fixed");
    let rules = Rules::new();
    assert_eq!(take(&original, &rules).unwrap().partitions, Some(Partitions::Mbr));
    let found = take(&image, &rules).unwrap();
    assert_eq!((found.format, found.partitions), (Format::Vhd, Some(Partitions::Mbr)));
}

#[test]
fn installers_are_isos_and_hybrids() {
    if !have("xorriso") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), noise(100_000, 1)).unwrap();
    let (tree, plain) = (tree.to_str().unwrap(), dir.path().join("plain"));
    run(
        "xorriso",
        &["-as", "mkisofs", "-quiet", "-o", plain.to_str().unwrap(), tree],
    );
    let found = take(&plain, &Rules::new()).unwrap();
    assert_eq!((found.format, found.partitions), (Format::Iso9660, None));
    let hybrid = dir.path().join("hybrid");
    // A protective table of an own partition, as installers have it.
    let arguments = [
        "-as",
        "mkisofs",
        "-quiet",
        "--protective-msdos-label",
        "-partition_offset",
        "16",
    ];
    run(
        "xorriso",
        &[&arguments[..], &["-o", hybrid.to_str().unwrap(), tree]].concat(),
    );
    let found = take(&hybrid, &Rules::new()).unwrap();
    assert_eq!(
        (found.format, found.partitions),
        (Format::Iso9660, Some(Partitions::Mbr))
    );
}

#[test]
fn compressed_images_of_real_tools_are_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("disk");
    disk(&original, 3 << 20);
    for (program, suffix, options) in [
        ("gzip", "gz", vec!["-9"]),
        ("bzip2", "bz2", vec!["-9"]),
        ("xz", "xz", vec!["-9e"]),
        ("xz", "xz", vec!["-T2", "--block-size=1MiB"]),
        ("zstd", "zst", vec!["-q", "-19"]),
        ("zstd", "zst", vec!["-q", "-T2"]),
    ] {
        if !have(program) {
            continue;
        }
        let copy = dir.path().join("copy");
        std::fs::copy(&original, &copy).unwrap();
        let path = copy.to_str().unwrap().to_owned();
        run(program, &[&options[..], &["-f", "-k", &path]].concat());
        let packed = dir.path().join(format!("copy.{suffix}"));
        let limits = image_formats::DecompressLimits::up_to(1 << 30);
        let mut stream = image_formats::Decompress::new(File::open(&packed).unwrap(), limits).unwrap();
        assert!(stream.packing().is_some(), "{program}");
        let mut out = Vec::new();
        stream.read_to_end(&mut out).unwrap();
        assert!(out == std::fs::read(&original).unwrap(), "{program} {options:?}");
        assert_eq!(take(&packed, &Rules::new()).unwrap().format, Format::Raw);
    }
}

#[test]
fn conversions_keep_to_their_limits_and_leave_nothing() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (original, image) = (dir.path().join("a"), dir.path().join("b"));
    disk(&original, 64 << 20);
    convert(&original, &image, "vmdk", "subformat=streamOptimized");
    let target = dir.path().join("c");
    let job = |change: &dyn Fn(&mut Conversion)| {
        let mut job = Conversion {
            program: None,
            source: image.clone(),
            target: target.clone(),
            format: Target::Raw,
            limits: ConvertLimits::up_to(1 << 30),
        };
        change(&mut job);
        let code = job
            .run(&mut |_| (), &|| false)
            .map_or_else(|error| error.code(), |_| "converted");
        assert!(code == "converted" || !target.exists(), "{code} left a target");
        code
    };
    assert_eq!(
        job(&|job| job.limits.max_virtual_bytes = 1 << 20),
        "virtual_size_beyond_quota"
    );
    assert_eq!(job(&|job| job.limits.time = Duration::ZERO), "converter_too_slow");
    let starved = job(&|job| job.limits.address_space_bytes = 1 << 20);
    assert!(matches!(starved, "converter_failed" | "converter_killed"), "{starved}");
    assert_eq!(job(&|job| job.source = original.clone()), "not_convertible");
    assert_eq!(job(&|job| job.source = dir.path().join("none")), "file_unusable");
    assert_eq!(job(&|job| job.program = Some("/no/qemu-img".into())), "no_converter");
    let cancelled = Conversion {
        program: None,
        source: image.clone(),
        target: target.clone(),
        format: Target::Qcow2,
        limits: ConvertLimits::up_to(1 << 30),
    };
    assert_eq!(cancelled.run(&mut |_| (), &|| true).unwrap_err().code(), "cancelled");
    assert!(!target.exists());
    assert_eq!(job(&|_| ()), "converted");
    // The target is there now, and is not touched.
    let before = std::fs::metadata(&target).unwrap().modified().unwrap();
    let again = cancelled.run(&mut |_| (), &|| false).unwrap_err();
    assert_eq!(again.code(), "file_unusable");
    assert_eq!(std::fs::metadata(&target).unwrap().modified().unwrap(), before);
}

#[test]
fn a_converter_that_lies_or_reaches_out_is_not_believed() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, target, secret) = (dir.path().join("i"), dir.path().join("t"), dir.path().join("secret"));
    create(&image, "vmdk", "", "1M");
    std::fs::write(&secret, "secret").unwrap();
    let script = dir.path().join("qemu-img");
    let run = |text: &str| {
        std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let job = Conversion {
            program: Some(script.clone()),
            source: image.clone(),
            target: target.clone(),
            format: Target::Raw,
            limits: ConvertLimits::up_to(1 << 30),
        };
        let error = job.run(&mut |_| (), &|| false).unwrap_err();
        assert!(!target.exists());
        error
    };
    let info = r#"if [ "$1" = info ]; then echo '{"format":"vmdk","virtual-size":1048576}'; exit; fi; "#;
    assert_eq!(
        run("echo '{\"format\":\"raw\",\"virtual-size\":1048576}'").code(),
        "size_disagreement"
    );
    assert_eq!(
        run("echo '{\"format\":\"vmdk\",\"virtual-size\":2097152}'").code(),
        "size_disagreement"
    );
    assert_eq!(run("echo no").code(), "size_disagreement");
    let shrinking = format!("{info} for last; do :; done; : > \"$last\"");
    assert_eq!(run(&shrinking).code(), "output_wrong");
    let growing = format!("{info} for last; do :; done; head -c 2M /dev/zero > \"$last\"; exit 0");
    assert!(matches!(
        run(&growing).code(),
        "output_wrong" | "converter_failed" | "converter_killed"
    ));
    // What the landlock rules close is closed to it; where there is no landlock, this shows nothing.
    let reaching = format!("{info} cat {} >&2 && exit 3; exit 4", secret.display());
    let error = run(&reaching).to_string();
    // The last two arguments are the source, for reading, and the target.
    let changing = format!("{info} for a; do s=$t; t=$a; done; (echo x >> \"$s\") && exit 3; exit 4");
    let changed = run(&changing).to_string();
    if has_landlock() {
        assert!(error.contains("status 4"), "{error}");
        assert!(changed.contains("status 4"), "{changed}");
    } else {
        eprintln!("skipped: this kernel has no landlock");
    }
}

#[test]
fn a_conversion_is_killed_when_asked() {
    if !have("qemu-img") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (image, script) = (dir.path().join("i"), dir.path().join("qemu-img"));
    create(&image, "vmdk", "", "1M");
    let text = "#!/bin/sh\n[ $1 = info ] && exec echo '{\"format\":\"vmdk\",\"virtual-size\":1048576}'\n\
                echo '(50.00/100%)'; sleep 60 & sleep 60\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut job = Conversion {
        program: Some(script),
        source: image,
        target: dir.path().join("t"),
        format: Target::Raw,
        limits: ConvertLimits::up_to(1 << 30),
    };
    let half = std::cell::Cell::new(0);
    let began = std::time::Instant::now();
    let error = job.run(&mut |bytes| half.set(bytes), &|| half.get() > 0).unwrap_err();
    assert_eq!((error.code(), half.get()), ("cancelled", 1 << 19));
    job.limits.time = Duration::from_millis(500);
    assert_eq!(
        job.run(&mut |_| (), &|| false).unwrap_err().code(),
        "converter_too_slow"
    );
    assert!(began.elapsed() < Duration::from_secs(30) && !job.target.exists());
}

fn has_landlock() -> bool {
    let command = sandbox::ConfinedCommand::new("/bin/sh", Duration::from_secs(10))
        .arg("-c")
        .arg("true");
    let outcome = command.run(&mut |_| (), &|| false).unwrap();
    !outcome.gaps.contains(&sandbox::Gap::Landlock)
}
