//! Images made to hurt: each is refused with its own code, and the process that looks at them stays small.
//!
//! The images are made here, most by changing one that `qemu-img` made. Another process of this test binary takes them one after
//! the other and tells how much memory it came to need.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking, and says what it skips"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image_formats::{Expectations, Format};
use support::{Rules, convert, create, have, noise, run, take};

/// How much the process may grow over where it began, MiB. What is needed is buffers; some of the images ask for
/// much more.
const GROWTH_MIB: u64 = 8;
/// Names the directory for the process that looks.
const DIRECTORY: &str = "KARAT_HOSTILE_IMAGES";

/// What an image has to be told.
struct Case {
    name: &'static str,
    code: &'static str,
    /// What the uploader says it is; empty for nothing.
    claim: &'static str,
    bytes: Vec<u8>,
}

struct Maker {
    dir: PathBuf,
    cases: Vec<Case>,
}

impl Maker {
    fn add(&mut self, name: &'static str, code: &'static str, claim: &'static str, bytes: Vec<u8>) {
        self.cases.push(Case {
            name,
            code,
            claim,
            bytes,
        });
    }

    /// An image of `qemu-img`.
    fn image(&self, format: &str, options: &str) -> Vec<u8> {
        let path = self.dir.join("made");
        create(&path, format, options, "16M");
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        bytes
    }

    /// A vmdk whose description is another.
    fn vmdk(&self, change: impl Fn(&str) -> String) -> Vec<u8> {
        let mut bytes = self.image("vmdk", "");
        let area = 512..512 + 20 * 512;
        let text = String::from_utf8(bytes[area.clone()].to_vec()).unwrap();
        let text = change(text.trim_end_matches('\0'));
        assert!(text.len() <= area.len());
        bytes[area.clone()].fill(0);
        bytes[512..512 + text.len()].copy_from_slice(text.as_bytes());
        bytes
    }
}

fn put(mut bytes: Vec<u8>, at: usize, what: &[u8]) -> Vec<u8> {
    bytes[at..at + what.len()].copy_from_slice(what);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn qcow2(maker: &mut Maker) {
    let plain = maker.image("qcow2", "");
    let base = maker.dir.join("base.qcow2");
    create(&base, "qcow2", "", "16M");
    let options = format!("backing_file={},backing_fmt=qcow2", base.display());
    let backed = maker.image("qcow2", &options);
    maker.add("backing", "backing_file", "", backed);
    let data = maker.dir.join("data.raw");
    let options = format!("data_file={}", data.display());
    let external = maker.image("qcow2", &options);
    maker.add("data-file", "data_file", "", external);
    maker.add("feature", "unknown_feature", "", put(plain.clone(), 72, &[1]));
    maker.add("encrypted", "encrypted", "", put(plain.clone(), 32, &[0, 0, 0, 2]));
    maker.add("corrupt", "damaged", "", put(plain.clone(), 79, &[2]));
    let mbr = put(plain.clone(), 510, &[0x55, 0xaa]);
    let mbr = put(put(mbr, 450, &[0x83]), 458, &[0, 8]);
    maker.add("mbr", "polyglot_partition_table", "qcow2", mbr);
    let iso = put(plain.clone(), 32_769, b"CD001\x01");
    maker.add("iso", "polyglot", "", iso);
    maker.add("claimed", "format_mismatch", "raw", plain.clone());
    maker.add("huge", "virtual_size_beyond_quota", "", {
        let path = maker.dir.join("huge");
        create(&path, "qcow2", "", "4T");
        fs::read(path).unwrap()
    });
    maker.add("cut", "truncated", "", plain[..100_000].to_vec());
}

fn others(maker: &mut Maker) {
    let parent = maker.vmdk(|text| format!("{text}\nparentFileNameHint=\"/etc/shadow\"\n"));
    maker.add("vmdk-parent", "vmdk_parent", "", parent);
    let path = maker.vmdk(|text| text.replace("\"made\"", "\"/etc/shadow\""));
    maker.add("vmdk-path", "vmdk_external_extent", "", path);
    let alone = b"# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/shadow\" 0\n";
    maker.add("vmdk-alone", "vmdk_external_extent", "", alone.repeat(8));
    let two = maker.vmdk(|text| text.replace("# The Disk", "RW 8 SPARSE \"b.vmdk\"\n# The Disk"));
    maker.add("vmdk-two", "vmdk_several_extents", "", two);
    let kind = maker.vmdk(|text| text.replace("monolithicSparse", "monolithicFlat"));
    maker.add("vmdk-kind", "vmdk_create_type", "", kind);
    // A second header at the end, which readers of stream-optimized images believe.
    let mut footer = maker.image("vmdk", "subformat=streamOptimized");
    let second = put(footer[..512].to_vec(), 12, &[0, 0, 0, 8]);
    let header = put(footer.clone(), 56, &[0xff; 8]);
    footer = [&header, &second[..], &[0; 512]].concat();
    maker.add("vmdk-footer", "vmdk_footer", "", footer);
    let vhd = maker.image("vpc", "");
    maker.add("vhd-parent", "vhd_parent", "", vhd_kind(vhd, 4));
    let vhdx = maker.image("vhdx", "");
    // Flags of the file parameters: behind the block size, in the first item.
    let flags = vhdx_item(&vhdx) + 4;
    maker.add("vhdx-parent", "vhdx_parent", "", put(vhdx, flags, &[2]));
    let vdi = maker.image("vdi", "");
    maker.add("vdi-parent", "vdi_parent", "", put(vdi, 440, &[1]));
    maker.add("qed", "format_not_allowed", "", maker.image("qed", ""));
    maker.add("nothing", "empty", "", Vec::new());
    maker.add("long", "bytes_beyond_quota", "", noise(9 << 20, 3));
}

/// The footer's copy at the start with another kind, and its checksum.
fn vhd_kind(bytes: Vec<u8>, kind: u8) -> Vec<u8> {
    let bytes = put(put(bytes, 60, &[0, 0, 0, kind]), 64, &[0; 4]);
    let sum: u32 = bytes[..512].iter().map(|&byte| u32::from(byte)).sum();
    put(bytes, 64, &(!sum).to_be_bytes())
}

/// Where the first metadata item of a vhdx is.
fn vhdx_item(bytes: &[u8]) -> usize {
    let table = bytes
        .windows(8)
        .step_by(65_536)
        .position(|mark| mark == b"metadata")
        .unwrap()
        * 65_536;
    let at = u32::from_le_bytes(bytes[table + 32 + 16..table + 32 + 20].try_into().unwrap());
    table + usize::try_from(at).unwrap()
}

fn packed(maker: &mut Maker) {
    let zeros = vec![0; 40 << 20];
    maker.add("bomb", "ratio_beyond_limit", "", gzip(&zeros));
    maker.add("more", "output_beyond_limit", "", gzip(&noise(8192, 9).repeat(9000)));
    let data = noise(100_000, 5);
    let whole = gzip(&data);
    maker.add("twice", "nested_compression", "", gzip(&whole));
    maker.add(
        "garbage",
        "trailing_garbage",
        "",
        [whole.as_slice(), b"#!/bin/sh"].concat(),
    );
    maker.add("short", "compressed_truncated", "", whole[..whole.len() - 9].to_vec());
    maker.add("broken", "compressed_damaged", "", {
        let at = whole.len() - 6; // The checksum.
        let other = !whole[at];
        put(whole, at, &[other])
    });
    let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8][..], &[0; 20]].concat();
    maker.add("window", "memory_beyond_limit", "", frame);
    maker.add("zip", "compression_unsupported", "", b"PK\x03\x04 and so on".repeat(9));
    if have("xz") {
        let path = maker.dir.join("dictionary");
        fs::write(&path, &data).unwrap();
        run("xz", &["-k", "--lzma2=preset=0,dict=96MiB", path.to_str().unwrap()]);
        let bytes = fs::read(path.with_extension("xz")).unwrap();
        maker.add("dictionary", "memory_beyond_limit", "", bytes);
    }
}

const OVF: &str = r#"<Envelope><References><File id="f" href="d.vmdk"/></References>
    <DiskSection><Disk fileRef="f"/></DiskSection></Envelope>"#;

fn archives(maker: &mut Maker) {
    let ovf = ("a.ovf", OVF.as_bytes());
    let disk = maker.image("vmdk", "");
    let disk = ("d.vmdk", disk.as_slice());
    let inner = tar(&[ovf, disk]);
    maker.add("tar-in-tar", "nested_archive", "", tar(&[ovf, ("d.vmdk", &inner)]));
    maker.add(
        "gzip-in-tar",
        "nested_compression",
        "",
        tar(&[ovf, ("d.vmdk", &gzip(disk.1))]),
    );
    maker.add(
        "climbing",
        "archive_unsafe_path",
        "",
        tar(&[ovf, ("../../etc/cron.d/x", b"x"), disk]),
    );
    maker.add(
        "absolute",
        "archive_unsafe_path",
        "",
        tar(&[ovf, ("/etc/cron.d/x", b"x"), disk]),
    );
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_path("d.vmdk").unwrap();
    link.set_link_name("/etc/shadow").unwrap();
    link.set_size(0);
    link.set_cksum();
    let head = tar(&[ovf]);
    let bytes = [&head[..head.len() - 1024], link.as_bytes(), &[0; 1024]].concat();
    maker.add("link", "archive_link", "", bytes);
    descriptions(maker, disk.1);
    let mut name = tar::Header::new_gnu();
    name.set_entry_type(tar::EntryType::GNULongName);
    name.set_size(1 << 40);
    name.set_cksum();
    let bytes = [&head[..head.len() - 1024], name.as_bytes(), &[b'n'; 4096]].concat();
    maker.add("long-name", "archive_damaged", "", bytes);
}

fn descriptions(maker: &mut Maker, disk: &[u8]) {
    let ovf = ("a.ovf", OVF.as_bytes());
    let disk = ("d.vmdk", disk);
    let two = OVF.replace("</DiskSection>", "<Disk fileRef=\"f\"/></DiskSection>");
    maker.add(
        "two-disks",
        "ova_several_disks",
        "",
        tar(&[("a.ovf", two.as_bytes()), disk]),
    );
    let wrong = format!("SHA256(a.ovf)= {0}\nSHA256(d.vmdk)= {0}\n", "0".repeat(64));
    maker.add(
        "digest",
        "manifest_digest",
        "",
        tar(&[ovf, ("a.mf", wrong.as_bytes()), disk]),
    );
    let entities = "<!DOCTYPE x [<!ENTITY a SYSTEM \"file:///etc/shadow\">]><Envelope>&a;</Envelope>";
    maker.add(
        "entities",
        "ovf_damaged",
        "",
        tar(&[("a.ovf", entities.as_bytes()), disk]),
    );
    maker.add(
        "unlisted",
        "archive_unlisted",
        "",
        tar(&[ovf, ("other.vmdk", b"x"), disk]),
    );
    maker.add("no-description", "ovf_missing", "", tar(&[disk, ovf]));
    let away = OVF.replace("d.vmdk", "http://host/d.vmdk");
    maker.add(
        "away",
        "ovf_external_file",
        "",
        tar(&[("a.ovf", away.as_bytes()), disk]),
    );
}

fn rules(name: &str, claim: &str) -> Rules {
    let rules = Rules::new();
    let expected = Expectations {
        max_virtual_bytes: 1 << 40,
        max_bytes: 8 << 20,
        ..rules.expected
    };
    let expected = if claim.is_empty() {
        expected
    } else {
        expected.claimed_by_name(claim).unwrap()
    };
    let mut unpack = rules.unpack;
    unpack.max_memory_bytes = 8 << 20;
    // What is not compressed has the other limit.
    unpack.max_output_bytes = if name == "long" { u64::MAX } else { 6 << 20 };
    unpack.ratio_from_bytes = 4 << 20;
    unpack.max_ratio = 500;
    Rules { expected, unpack }
}

#[test]
fn each_attack_is_refused_with_its_code_in_bounded_memory() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut maker = Maker {
        dir: dir.path().to_path_buf(),
        cases: Vec::new(),
    };
    qcow2(&mut maker);
    others(&mut maker);
    packed(&mut maker);
    archives(&mut maker);
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    for case in &maker.cases {
        fs::write(images.join(format!("{}={}", case.name, case.claim)), &case.bytes).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "looks_at_images_for_another_process",
            "--ignored",
            "--nocapture",
        ])
        .env(DIRECTORY, &images)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("told ")?.split_once(' '))
        .collect();
    for case in &maker.cases {
        assert_eq!(told.get(case.name), Some(&case.code), "{}", case.name);
    }
    let codes: std::collections::BTreeSet<_> = maker.cases.iter().map(|case| case.code).collect();
    assert!(
        maker.cases.len() >= 40 && codes.len() >= 34,
        "{} images, {} codes",
        maker.cases.len(),
        codes.len()
    );
    let growth: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("growth "))
        .unwrap()
        .parse()
        .unwrap();
    eprintln!(
        "{} images, {} codes, {growth} KiB of growth",
        maker.cases.len(),
        codes.len()
    );
    assert!(growth <= GROWTH_MIB << 10, "grew by {growth} KiB");
}

/// The other process of the test above.
#[test]
#[ignore = "is run by the test that makes the images"]
fn looks_at_images_for_another_process() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let mut all: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    let before = peak_kib();
    let mut told = String::new();
    for path in &all {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (name, claim) = name.split_once('=').unwrap();
        let code =
            take(path, &rules(name, claim)).map_or_else(|code| code, |found| format!("taken as {}", found.format));
        told += &format!("told {name} {code}\n");
    }
    let growth = peak_kib() - before;
    println!("\n{told}growth {growth}");
}

/// The most memory this process had so far (proc(5), `VmHWM`), KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_conversion_refuses_before_anything_is_run() {
    if !have("qemu-img") {
        return;
    }
    use image_formats::convert::{Conversion, ConvertLimits, Target};
    let dir = tempfile::tempdir().unwrap();
    let maker = Maker {
        dir: dir.path().to_path_buf(),
        cases: Vec::new(),
    };
    let image = maker.vmdk(|text| text.replace("\"made\"", "\"/etc/shadow\""));
    let source = dir.path().join("image");
    fs::write(&source, image).unwrap();
    let trap = dir.path().join("trap");
    fs::write(&trap, "#!/bin/sh\necho run >&2; exit 9\n").unwrap();
    let job = Conversion {
        program: Some(trap),
        source,
        target: dir.path().join("target"),
        format: Target::Raw,
        limits: ConvertLimits::up_to(1 << 40),
    };
    assert_eq!(
        job.run(&mut |_| (), &|| false).unwrap_err().code(),
        "vmdk_external_extent"
    );
    assert!(!job.target.exists());
}

#[test]
fn an_honest_image_in_an_honest_archive_is_taken() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    fs::write(&raw, noise(3 << 20, 1)).unwrap();
    let disk = dir.path().join("d.vmdk");
    convert(&raw, &disk, "vmdk", "subformat=streamOptimized");
    let disk = fs::read(disk).unwrap();
    let archive = tar(&[("a.ovf", OVF.as_bytes()), ("d.vmdk", &disk)]);
    for (name, bytes) in [("plain", archive.clone()), ("packed", gzip(&archive))] {
        let path: &Path = &dir.path().join(name);
        fs::write(path, bytes).unwrap();
        let found = take(path, &rules(name, "ova")).unwrap();
        assert_eq!((found.format, found.virtual_size_bytes), (Format::Vmdk, Some(3 << 20)));
    }
}
