//! Real machines whose process, and whose daemon, are killed in the middle of work on their disk.
//!
//! A round: a guest waits for a key, work on its disk begins, the guest writes its pattern meanwhile, and both sides are killed
//! in either order. Then the next daemon says how the work ended, the next start finds what was written, and the volume consists
//! of exactly the files that its record has. `KARAT_KILL_SEED` repeats a run, `KARAT_KILL_ROUNDS` makes it a longer one.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Daemon, signal, wait_for};

#[path = "../../../../karat-vmm/tests/harness/payload.rs"]
pub(crate) mod payload;

pub(crate) use payload::tiny_guest;

/// Rounds unless more are asked for.
const ROUNDS: u64 = 30;
/// Size of the disk, bytes.
const SIZE_BYTES: u64 = 24 << 20;
/// Where the host put data that the guest leaves alone: it writes at both ends.
const DATA: std::ops::Range<u64> = 4 << 20..20 << 20;

/// Numbers that a seed repeats (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.next() % choices.len() as u64).unwrap()]
    }

    /// Up to 5, 50 or 300 ms: some work takes no longer than the first, none longer than the last.
    fn moment(&mut self) -> Duration {
        let most_us = self.one_of(&[5_000, 50_000, 300_000]);
        Duration::from_micros(self.next() % most_us)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Snapshot,
    Stream,
    MoveRaw,
    MoveQcow2,
}

/// Who is killed first, and whether the guest has written by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Daemon,
    Machine,
    MachineBeforeItWrote,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn pattern() -> Vec<u8> {
    let len = usize::try_from(DATA.end - DATA.start).unwrap();
    (0..len)
        .map(|at| u8::try_from((at >> 9) % 251).unwrap() ^ 0x5a)
        .collect()
}

/// What the tests of other crates are run with, or built now.
pub(crate) fn karat_vmm() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_karatd")).with_file_name("karat-vmm");
    if !path.exists() {
        let built = Command::new(env!("CARGO"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--quiet", "-p", "karat-vmm", "--target-dir"])
            .arg(path.parent().unwrap().parent().unwrap())
            .status();
        assert!(built.unwrap().success() && path.exists(), "karat-vmm can not be built");
    }
    path
}

/// True where this can be run; says so where not.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn can_run() -> bool {
    let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let qemu_img = Command::new("qemu-img").arg("--version").output().is_ok();
    if !(kvm && qemu_img) {
        eprintln!("skipped: no usable /dev/kvm, or no qemu-img");
    }
    kvm && qemu_img
}

struct Rig {
    daemon: Daemon,
    data: Vec<u8>,
}

impl Rig {
    fn new() -> Self {
        let kernel = tiny_guest();
        let daemon = Daemon::start_with_vmm(&karat_vmm(), "reserved_space = 0", |state| {
            std::fs::copy(kernel, state.join("files/kernel")).unwrap();
        });
        Self {
            daemon,
            data: pattern(),
        }
    }

    /// A machine whose guest waits, then writes to its disk; returns its id.
    fn prepare(&self, format: &str) -> String {
        let daemon = &self.daemon;
        let volume = daemon.make(&json!({"name": "data", "size": SIZE_BYTES.to_string(), "format": format}));
        if format == "raw" {
            let file = File::options().write(true).open(daemon.file(&volume)).unwrap();
            file.write_all_at(&self.data, DATA.start).unwrap();
        }
        let mut spec = daemon.spec("web", "test=echo,blk,halt");
        spec["disks"] = json!([{"volume": "data"}]);
        let made = daemon.post("/v1/vms", &spec);
        assert_eq!(made.status, 201, "{made:?}");
        let id = made.json()["id"].as_str().unwrap().to_owned();
        self.start();
        self.says(&id, "READY echo");
        id
    }

    #[track_caller]
    fn start(&self) {
        let started = self.daemon.begin("/v1/vms/web/start", &json!({}));
        assert_eq!(started["phase"], "Succeeded", "{started}");
    }

    /// Waits for words on the console.
    #[track_caller]
    fn says(&self, id: &str, words: &str) {
        let log = self.daemon.path(&format!("state/vms/{id}/log/console.log"));
        wait_for(words, || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(!log.contains("FAIL"), "{log}");
            log.contains(words).then_some(())
        });
    }

    fn pid(&self) -> u32 {
        u32::try_from(self.daemon.vm("web")["status"]["pid"].as_u64().unwrap()).unwrap()
    }

    fn round(&mut self, random: &mut Random) -> String {
        let work = random.one_of(&[Work::Snapshot, Work::Stream, Work::MoveRaw, Work::MoveQcow2]);
        let kill = random.one_of(&[Kill::Daemon, Kill::Machine, Kill::MachineBeforeItWrote]);
        let format = random.one_of(&["raw", "raw", "qcow2"]);
        let id = self.prepare(format);
        if work == Work::Stream {
            let taken = self.daemon.begin("/v1/vms/web/disks/data/snapshot", &json!({}));
            assert_eq!(taken["phase"], "Succeeded", "{taken}");
        }
        let (verb, body) = match work {
            Work::Snapshot => ("snapshot", json!({})),
            Work::Stream => ("stream", json!({})),
            Work::MoveRaw => ("mirror", json!({"format": "raw"})),
            Work::MoveQcow2 => ("mirror", json!({"format": "qcow2"})),
        };
        let answer = self.daemon.post(&format!("/v1/vms/web/disks/data/{verb}"), &body);
        assert_eq!(answer.status, 202, "{answer:?}");
        let operation = answer.header("location").unwrap().to_owned();
        let machine = self.pid();
        self.kill_both(&id, machine, kill, random);
        self.daemon.restart();
        let ended = self.daemon.over(&operation)["phase"].as_str().unwrap().to_owned();
        self.daemon.until("web", "Failed");
        let what = format!("{work:?} of {format}, {kill:?} first: {ended}");
        let test = if kill == Kill::MachineBeforeItWrote {
            "blk,blk-verify"
        } else {
            "blk-verify"
        };
        self.verify(&id, test, &what);
        self.compare(format == "raw", &what);
        assert_eq!(self.daemon.delete("/v1/vms/web").status, 204, "{what}");
        assert_eq!(self.daemon.delete("/v1/volumes/data").status, 204, "{what}");
        assert_eq!(self.daemon.files(), Vec::<String>::new(), "{what}");
        what
    }

    fn kill_both(&mut self, id: &str, machine: u32, kill: Kill, random: &mut Random) {
        std::thread::sleep(random.moment());
        if kill == Kill::Daemon {
            self.daemon.crash();
            std::thread::sleep(random.moment());
        }
        if kill != Kill::MachineBeforeItWrote {
            let console = self.daemon.path(&format!("run/vms/{id}/console.sock"));
            // Open until the guest has it.
            let mut console = UnixStream::connect(console).unwrap();
            console.write_all(b"\n").unwrap();
            self.says(id, "PASS blk");
        }
        signal(machine, Signal::KILL);
        if kill != Kill::Daemon {
            std::thread::sleep(random.moment());
            self.daemon.crash();
        }
    }

    /// The next guest finds what the one before wrote.
    fn verify(&self, id: &str, test: &str, what: &str) {
        let kernel = self.daemon.path("state/files/kernel");
        let boot = json!({"boot": {"kernel": kernel, "cmdline": format!("test={test},halt")}});
        let content = "Content-Type: application/merge-patch+json\r\n";
        let changed = self.daemon.request("PATCH", "/v1/vms/web", content, &boot.to_string());
        assert_eq!(changed.status, 200, "{what}: {changed:?}");
        self.start();
        self.says(id, "PASS blk-verify");
        let stopped = self.daemon.begin("/v1/vms/web/stop", &json!({"force": true}));
        assert_eq!(stopped["phase"], "Succeeded", "{what}: {stopped}");
    }

    /// Record and files agree, and the files are whole.
    fn compare(&self, has_data: bool, what: &str) {
        let volume = self.daemon.volume("data");
        let id = volume["id"].as_str().unwrap();
        let layers = volume["layers"].as_array().cloned().unwrap_or_default();
        let mut expected: Vec<_> = layers
            .iter()
            .map(|layer| layer["file"].as_str().unwrap().to_owned())
            .collect();
        wait_for(&format!("only the files of {volume} after {what}"), || {
            let files = self.daemon.files();
            (files.len() == expected.len().max(1)).then_some(())
        });
        let files = self.daemon.files();
        if expected.is_empty() {
            expected = files.clone();
        }
        let top = self.daemon.path("state/volumes").join(&expected[0]);
        expected.sort();
        assert!(
            files == expected && files[0].starts_with(id),
            "{what}: {files:?}, {volume}"
        );
        for file in files.iter().filter(|file| file.ends_with(".qcow2")) {
            let path = self.daemon.path("state/volumes").join(file);
            let checked = Command::new("qemu-img")
                .args(["check", "-f", "qcow2"])
                .arg(path)
                .output()
                .unwrap();
            // 3: clusters that nothing refers to, which a kill may leave.
            assert!(matches!(checked.status.code(), Some(0 | 3)), "{what}: {checked:?}");
        }
        if has_data {
            let whole = self.daemon.path("whole");
            let format = volume["format"].as_str().unwrap();
            let mut convert = Command::new("qemu-img");
            convert
                .args(["convert", "-O", "raw", "-f", format])
                .arg(&top)
                .arg(&whole);
            assert!(convert.status().unwrap().success(), "{what}");
            let mut found = vec![0; self.data.len()];
            File::open(whole)
                .unwrap()
                .read_exact_at(&mut found, DATA.start)
                .unwrap();
            assert!(found == self.data, "{what}: data of the host's is not as it was");
        }
    }
}

#[test]
fn whoever_is_killed_at_work_on_a_disk_the_next_start_has_all_that_was_written() {
    if !can_run() {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = number("KARAT_KILL_SEED").unwrap_or(now);
    eprintln!("KARAT_KILL_SEED={seed}");
    let (mut random, mut rig) = (Random(seed), Rig::new());
    for _ in 0..number("KARAT_KILL_ROUNDS").unwrap_or(ROUNDS) {
        let what = rig.round(&mut random);
        eprintln!("{what}");
    }
}
