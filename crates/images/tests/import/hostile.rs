//! Images made to hurt, brought in every way: each is refused with a code of its own, leaves nothing behind, and costs the
//! process that imports it little memory.
//!
//! Another process of this test binary imports them one after the other and tells what became of each, and how much memory it
//! came to need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image_trust::Pinned;
use images::{ImportRequest, ImportSource, Progress, Settings, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{GZIP, Registry, TAR, gzip, noise, tar};
use crate::{disk, have, names, request, run, settings};

/// Set in the copy of this program that imports: directory of the images, host of the registry.
const IMPORTING: &str = "KARAT_TEST_IMPORTS_HOSTILE_IMAGES";
/// Name of the test, for the copy.
const TEST: &str = "hostile::every_attack_is_refused_with_its_own_code_in_little_memory";
/// How much memory the process may need beyond what it has while idle, KiB.
const GROWTH_KIB: u64 = 64 << 10;

/// Images by the code they have to be refused with; the name of the file is the code, and what is claimed behind a `=`.
struct Corpus {
    dir: PathBuf,
    registry: Registry,
    /// Codes in order; those from the registry are tags there.
    files: BTreeSet<String>,
    tags: BTreeSet<String>,
}

impl Corpus {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.join("images").join(name), bytes).unwrap();
        assert!(self.files.insert(name.to_owned()), "{name}");
    }

    fn push(&mut self, code: &str, layers: &[(&'static str, Vec<u8>)]) {
        self.registry.push(code, layers, "");
        assert!(self.tags.insert(code.to_owned()), "{code}");
    }

    fn made(&self, line: &str) -> Vec<u8> {
        run(&self.dir, line);
        fs::read(self.dir.join("made")).unwrap()
    }

    fn disks(&mut self) {
        let plain = self.made("qemu-img create -q -f qcow2 made 8M");
        run(&self.dir, "qemu-img create -q -f qcow2 base 8M");
        let backed = self.made("qemu-img create -q -f qcow2 -b base -F qcow2 made");
        self.add("backing_file", &backed);
        let external = self.made("qemu-img create -q -f qcow2 -o data_file=data made 8M");
        self.add("data_file", &external);
        self.add("unknown_feature", &put(&plain, 72, &[1]));
        self.add("encrypted", &put(&plain, 32, &[0, 0, 0, 2]));
        self.add("damaged", &put(&plain, 79, &[2]));
        let mbr = put(&put(&put(&plain, 510, &[0x55, 0xaa]), 450, &[0x83]), 458, &[0, 8]);
        self.add("polyglot_partition_table=qcow2", &mbr);
        self.add("polyglot", &put(&plain, 32_769, b"CD001\x01"));
        self.add("format_mismatch=raw", &plain);
        let large = self.made("qemu-img create -q -f qcow2 made 4T");
        self.add("virtual_size_beyond_quota", &large);
        let extents = self.made("qemu-img create -q -f vmdk -o subformat=monolithicFlat made 8M");
        self.add("vmdk_external_extent", &extents);
        let vmdk = self.made("qemu-img create -q -f vmdk made 8M");
        let text = String::from_utf8_lossy(&vmdk[512..512 + 20 * 512]).into_owned();
        let child = format!("{}\nparentFileNameHint=\"/etc/shadow\"\n", text.trim_end_matches('\0'));
        self.add("vmdk_parent", &put(&vmdk, 512, child.as_bytes()));
        let vdi = self.made("qemu-img create -q -f vdi made 8M");
        self.add("vdi_parent", &put(&vdi, 440, &[1]));
    }

    fn packed(&mut self) {
        let whole = gzip(&noise(100_000));
        self.add("nested_compression", &gzip(&whole));
        self.add("trailing_garbage", &[whole.as_slice(), b"#!/bin/sh"].concat());
        self.add("compressed_truncated", &whole[..whole.len() - 9]);
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8][..], &[0; 20]].concat();
        self.add("memory_beyond_limit", &frame);
        self.add("compression_unsupported", &b"PK\x03\x04 and so on".repeat(9));
        self.add("ratio_beyond_limit", &bomb());
        self.add("bytes_beyond_quota", &gzip(&noise(8192).repeat(11_000)));
        let ovf = br#"<Envelope><References><File id="f" href="d.vmdk"/></References>
            <DiskSection><Disk fileRef="f"/></DiskSection></Envelope>"#;
        let inner = tar(&[("a", &disk())]);
        self.add("nested_archive", &tar(&[("a.ovf", ovf), ("d.vmdk", &inner)]));
        let away = String::from_utf8_lossy(ovf).replace("d.vmdk", "http://host/d.vmdk");
        self.add(
            "ovf_external_file",
            &tar(&[("a.ovf", away.as_bytes()), ("d.vmdk", b"x")]),
        );
        let wrong = format!("SHA256(a.ovf)= {0}\nSHA256(d.vmdk)= {0}\n", "0".repeat(64));
        let vmdk = self.made("qemu-img create -q -f vmdk made 8M");
        let digest = tar(&[("a.ovf", ovf), ("a.mf", wrong.as_bytes()), ("d.vmdk", &vmdk)]);
        self.add("manifest_digest", &digest);
    }

    fn containers(&mut self) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_link(&mut header, "disk/a.img", "/etc/shadow").unwrap();
        self.push("container_no_disk", &[(TAR, builder.into_inner().unwrap())]);
        // A name of a terabyte in a layer of a megabyte that unpacks to a gigabyte.
        let mut name = tar::Header::new_gnu();
        name.set_entry_type(tar::EntryType::GNULongName);
        name.set_size(1 << 40);
        name.set_cksum();
        let bomb = gzip(&[name.as_bytes().as_slice(), &vec![b'n'; 64 << 20]].concat());
        self.push("container_layer", &[(GZIP, bomb)]);
        let two = tar(&[("disk/a.img", b"one"), ("disk/b.img", b"two")]);
        self.push("container_ambiguous", &[(TAR, two)]);
    }
}

fn put(bytes: &[u8], at: usize, what: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + what.len()].copy_from_slice(what);
    bytes
}

/// 300 MiB of zeros as a Zstandard frame of run-length blocks, 128 KiB each (RFC 8878 §3.1.1.2).
fn bomb() -> Vec<u8> {
    const BLOCKS: u32 = 2400;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x38];
    for block in 1..=BLOCKS {
        let header = u32::from(block == BLOCKS) | 1 << 1 | (128 << 10) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// What is larger than 64 MiB is too large, but for a bomb, which is to be told by its ratio.
fn hostile(source: ImportSource, claim: &str, is_bomb: bool) -> ImportRequest {
    let mut request = request(source);
    request.expected.max_bytes = if is_bomb { 1 << 30 } else { 64 << 20 };
    if !claim.is_empty() {
        request.expected = request.expected.claimed_by_name(claim).unwrap();
    }
    request
}

fn store_settings(dir: &Path, host: &str) -> Settings {
    Settings {
        insecure_registries: vec![host.to_owned()],
        ..settings(&dir.join("store"))
    }
}

/// Memory of this process (proc(5)), KiB: the most it had, or what it has.
fn memory_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':')
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// The other process.
fn import_all(order: &str) {
    let (dir, host) = order.split_once('|').unwrap();
    let dir = Path::new(dir);
    let (store, _) = Store::open(store_settings(dir, host)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let attempt = |request: ImportRequest| {
        let (progress, _) = watch::channel(Progress::default());
        runtime
            .block_on(store.import(request, &progress, &CancellationToken::new()))
            .map_or_else(|error| error.code(), |_| "taken")
    };
    let idle = memory_kib("VmRSS");
    for name in names(&dir.join("images")) {
        let (_, claim) = name.split_once('=').unwrap_or((name.as_str(), ""));
        let file = fs::File::open(dir.join("images").join(&name)).unwrap();
        eprintln!(
            "told {name} {}",
            attempt(hostile(
                ImportSource::Upload(Box::new(file)),
                claim,
                name.starts_with("ratio")
            ))
        );
    }
    for tag in fs::read_to_string(dir.join("tags")).unwrap().lines() {
        let reference = format!("{host}/demo:{tag}").parse().unwrap();
        eprintln!(
            "told {tag} {}",
            attempt(hostile(ImportSource::Registry { reference }, "", false))
        );
    }
    let mut pinned = hostile(
        ImportSource::Upload(Box::new(std::io::Cursor::new(noise(9000)))),
        "",
        false,
    );
    pinned.evidence.pinned = vec![Pinned::sha256([7; 32])];
    eprintln!("told digest_mismatch {}", attempt(pinned));
    eprintln!("memory {idle} {}", memory_kib("VmHWM"));
}

#[test]
fn every_attack_is_refused_with_its_own_code_in_little_memory() {
    if let Ok(order) = std::env::var(IMPORTING) {
        return import_all(&order);
    }
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    let mut corpus = Corpus {
        dir: dir.path().to_path_buf(),
        registry: Registry::start(),
        files: BTreeSet::new(),
        tags: BTreeSet::new(),
    };
    corpus.disks();
    corpus.packed();
    corpus.containers();
    let tags: Vec<&str> = corpus.tags.iter().map(String::as_str).collect();
    fs::write(dir.path().join("tags"), tags.join("\n")).unwrap();
    let host = corpus.registry.host.clone();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", TEST])
        .env(IMPORTING, format!("{}|{host}", dir.path().display()))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let mut codes = BTreeSet::new();
    for name in corpus
        .files
        .iter()
        .chain(&corpus.tags)
        .map(String::as_str)
        .chain(["digest_mismatch"])
    {
        let told = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("told {name} ")));
        let expected = name.split_once('=').map_or(name, |(code, _)| code);
        assert_eq!(told, Some(expected), "{text}");
        assert!(codes.insert(expected), "{expected} twice");
    }
    assert!(codes.len() >= 20, "{codes:?}");
    let memory = text.lines().find_map(|line| line.strip_prefix("memory ")).unwrap();
    let (idle, peak) = memory.split_once(' ').unwrap();
    let growth = peak.parse::<u64>().unwrap() - idle.parse::<u64>().unwrap();
    eprintln!(
        "{} attacks, each with its code; {growth} KiB over {idle} KiB while idle",
        codes.len()
    );
    assert!(growth < GROWTH_KIB, "{growth} KiB over {idle} KiB");
    // Nothing is there but the empty store.
    let (store, recovery) = Store::open(store_settings(dir.path(), &host)).unwrap();
    assert_eq!((recovery.removed, recovery.kept_blobs), (0, 0));
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.fsck(&images::Examination::default(), &|| false).unwrap(), []);
    assert!(names(&dir.path().join("store/partial")).is_empty());
}
