//! What a request costs between a driver and a disk: one that needs no time, and one in the page cache. Rings, wake-ups,
//! interrupts.
//!
//! The driver is this thread; it looks for answers as long as there are requests in flight, as a guest under load does, and kicks
//! only when the device asks for it. Kicks and interrupts per request are printed, since on a real machine each is an exit or
//! an injection; and the processor time of the device's threads, which a busy host does not blur as it does the time that passes.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench that can not be set up must stop loudly, and says what it saw"
)]

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use disk::{Disk, Geometry, InMemory};
use disk_raw::{RawDisk, RawOptions};
use guestmem::{Bytes, GuestAddress};
use virtio::VirtioDevice;
use virtio::feature::{EVENT_IDX, INDIRECT_DESC};
use virtio::mock::{Buf, MockDriver};
use virtio_devices::{Blk, BlkOptions, Lun, LunOptions, Medium, Scsi, ScsiOptions};

/// Bytes of a request.
const BLOCK: u32 = 4096;
/// Bytes of the disk.
const SIZE: u64 = 16 << 20;

/// A driver that keeps requests in flight.
struct Load {
    driver: MockDriver,
    queue: u16,
    /// Ready-made requests: readable and writable parts.
    requests: Vec<[Buf; 2]>,
    /// Name of the device, with which its threads' names begin.
    name: &'static str,
    kicks: u64,
    done: u64,
    /// What was seen when it was told last: kicks, interrupts, requests, processor time in nanoseconds.
    told: [u64; 4],
}

impl Load {
    fn new(name: &'static str, device: Arc<dyn VirtioDevice>, queue: u16, header: &[u8], answer: u32) -> Self {
        let mut driver = MockDriver::new(device);
        driver.start(EVENT_IDX | INDIRECT_DESC);
        let request = |driver: &mut MockDriver| {
            let readable = driver.place(header);
            let writable = driver.allocate((BLOCK + answer) as usize);
            let length = u32::try_from(header.len()).expect("a short header");
            [Buf::Readable(readable, length), Buf::Writable(writable, BLOCK + answer)]
        };
        let requests = (0..32).map(|_| request(&mut driver)).collect();
        Self {
            driver,
            queue,
            requests,
            name,
            kicks: 0,
            done: 0,
            told: [0; 4],
        }
    }

    /// Where the device says how far it looks by itself: behind the used ring.
    fn wants_kick(&mut self, before: u16, after: u16) -> bool {
        let used = u64::from(self.queue) * 0x1_0000 + 0x6000;
        let place = GuestAddress(used + 4 + 8 * u64::from(self.driver.ring(self.queue).size()));
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let event: u16 = self.driver.memory().read_obj(place).expect("the ring is in memory");
        after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before)
    }

    /// `rounds` requests, `depth` at a time.
    fn run(&mut self, rounds: u64, depth: usize) -> Duration {
        let begin = Instant::now();
        let (mut sent, mut answered) = (0_u64, 0_u64);
        let mut index = u16::try_from(self.done & 0xffff).expect("masked");
        while answered < rounds {
            let before = index;
            while sent < rounds && sent - answered < depth as u64 {
                let bufs = self.requests[usize::try_from(sent).expect("64 bits") % depth];
                self.driver.ring(self.queue).add(&bufs);
                (sent, index) = (sent + 1, index.wrapping_add(1));
            }
            if before != index && self.wants_kick(before, index) {
                self.driver.kick(self.queue);
                self.kicks += 1;
            }
            let mut found = false;
            while self.driver.ring(self.queue).take_used().is_some() {
                (answered, found) = (answered + 1, true);
            }
            if !found {
                std::hint::spin_loop();
            }
        }
        self.done += rounds;
        begin.elapsed()
    }

    fn tell(&mut self, name: &str) {
        let interrupts = self.driver.routes().delivered(self.queue + 1);
        let now = [self.kicks, interrupts, self.done, processor_time(self.name)];
        #[expect(clippy::cast_precision_loss, reason = "ratios")]
        let [kicks, interrupts, requests, time] = std::array::from_fn(|at| (now[at] - self.told[at]) as f64);
        println!(
            "{name}: {:.3} kicks, {:.3} interrupts, {:.0} ns of processor time per request",
            kicks / requests,
            interrupts / requests,
            time / requests
        );
        self.told = now;
    }
}

/// What the threads of a device have used, nanoseconds (the first field of /proc/PID/task/TID/schedstat).
fn processor_time(device: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc is mounted");
    let time = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let used: u64 = stat.split(' ').next()?.parse().ok()?;
        name.starts_with(device).then_some(used)
    };
    tasks.filter_map(|task| time(task.ok()?)).sum()
}

fn in_memory() -> Arc<dyn Disk> {
    Arc::new(InMemory::new(Geometry::of_size(SIZE)))
}

fn in_page_cache(file: &mut tempfile::NamedTempFile) -> Arc<dyn Disk> {
    let bytes = vec![0x5a; usize::try_from(SIZE).expect("64 bits")];
    file.write_all(&bytes).expect("space for the file");
    Arc::new(RawDisk::open(file.path(), RawOptions::named("bench")).expect("the file is a disk"))
}

fn blk(disk: Arc<dyn Disk>) -> Load {
    let options = BlkOptions {
        name: "disk0".into(),
        serial: String::new(),
        queues: 1,
        queue_size: 256,
    };
    Load::new("disk0", Arc::new(Blk::new(disk, options)), 0, &[0; 16], 1)
}

fn scsi(disk: Arc<dyn Disk>) -> Load {
    let scsi = Scsi::new(ScsiOptions {
        name: "scsi0".into(),
        request_queues: 1,
        queue_size: 256,
    });
    let lun = Lun::new(0, 0).expect("a small number");
    let options = LunOptions {
        serial: String::new(),
        medium: Medium::Disk,
    };
    scsi.attach(lun, disk, options).expect("an empty host");
    let mut header = [0; 51];
    // READ (10) of eight blocks of unit 0:0.
    (header[0], header[2], header[19], header[27]) = (1, 0x40, 0x28, 8);
    Load::new("scsi0", Arc::new(scsi), 2, &header, 108)
}

fn requests(criterion: &mut Criterion) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    let cached = in_page_cache(&mut file);
    let mut group = criterion.benchmark_group("queue, 4 KiB read");
    group.throughput(Throughput::Elements(1));
    group.measurement_time(Duration::from_secs(3));
    for (name, mut load) in [
        ("blk, in memory", blk(in_memory())),
        ("scsi, in memory", scsi(in_memory())),
        ("blk, cached", blk(Arc::clone(&cached))),
        ("scsi, cached", scsi(cached)),
    ] {
        for depth in [1, 32] {
            group.bench_function(format!("{name}, depth {depth}"), |bencher| {
                bencher.iter_custom(|rounds| load.run(rounds, depth));
            });
            load.tell(&format!("{name}, depth {depth}"));
        }
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
