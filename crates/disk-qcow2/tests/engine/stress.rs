//! Several threads with several operations each, on neighbouring sectors of the same clusters, against shadow models.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread;

use disk::conformance::pattern;
use disk::{Disk, DiskIo, ZeroMode};
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use guestmem::IoBuf;
use uring::{Executor, Ring};

use crate::jitter::{Jitter, turns};
use crate::{Lab, block_on, read, read_all, write};

const THREADS: u64 = 3;
const TASKS: u64 = 6;
/// Bytes of a block, the unit of ownership in the first half of the disk.
const BLOCK: u64 = 1024;
/// Bytes of what is owned in the second half: whole clusters of all sizes tried here.
const STRETCH: u64 = 64 << 10;
const DISK: u64 = 12 << 20;

/// One sequence of operations on what it alone owns.
struct Worker {
    io: Rc<dyn DiskIo>,
    id: u64,
    state: u64,
    /// Offset, contents (`None` once unknown), for each unit owned.
    owned: Vec<(u64, Option<Vec<u8>>)>,
}

impl Worker {
    fn new(io: Rc<dyn DiskIo>, id: u64, start: &[u8]) -> Self {
        let owners = THREADS * TASKS;
        let mut owned = Vec::new();
        let half = DISK / 2;
        let units = (0..half / BLOCK).map(|i| (i, i * BLOCK, BLOCK));
        let stretches = (0..half / STRETCH).map(|i| (i, half + i * STRETCH, STRETCH));
        for (index, at, len) in units.chain(stretches) {
            // Neighbours belong to different owners.
            if index % owners == id {
                owned.push((at, Some(start[at as usize..(at + len) as usize].to_vec())));
            }
        }
        Self {
            io,
            id,
            state: (id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            owned,
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    async fn work(mut self, steps: u64) -> Self {
        for step in 0..steps {
            let index = (self.next() % self.owned.len() as u64) as usize;
            let (at, Some(contents)) = self.owned[index].clone() else {
                continue;
            };
            let len = contents.len() as u64;
            let from = (self.next() % (len / 512)) * 512;
            let count = (self.next() % ((len - from) / 512) + 1) * 512;
            let whole = self.next().is_multiple_of(2);
            let (from, count) = if whole { (0, len) } else { (from, count) };
            let range = from as usize..(from + count) as usize;
            let mut now = contents;
            match self.next() % 10 {
                0..=3 => {
                    let bytes = pattern(count as usize, self.next());
                    write(&*self.io, at + from, &bytes).await;
                    now[range].copy_from_slice(&bytes);
                }
                4 => {
                    let mode = if self.next().is_multiple_of(2) {
                        ZeroMode::MayUnmap
                    } else {
                        ZeroMode::KeepAllocated
                    };
                    self.io.write_zeroes(at + from, count, mode).await.unwrap();
                    now[range].fill(0);
                }
                5 => {
                    self.io.discard(at + from, count).await.unwrap();
                    let after = read(&*self.io, at, len as usize).await;
                    for (index, (new, old)) in after.chunks(512).zip(now.chunks(512)).enumerate() {
                        let zero = new.iter().all(|&byte| byte == 0);
                        let inside = range.contains(&(index * 512));
                        assert!(new == old || (zero && inside), "worker {} step {step} at {at}", self.id);
                    }
                    now = after;
                }
                6..=7 => {
                    let seen = read(&*self.io, at + from, count as usize).await;
                    assert!(
                        seen == now[range],
                        "worker {} step {step}: {count} bytes at {}",
                        self.id,
                        at + from
                    );
                }
                8 => self.io.flush().await.unwrap(),
                _ if step % 16 == 0 => {
                    // Begun and thrown away: it may happen at any time, so nothing is known of this unit any more.
                    let mut begun = pin!(self.io.write(at, vec![IoBuf::from_bytes(&now).unwrap()]));
                    std::future::poll_fn(|context| Poll::Ready(begun.as_mut().poll(context).is_ready())).await;
                    self.owned[index].1 = None;
                    continue;
                }
                _ => turns(3).await,
            }
            self.owned[index].1 = Some(now);
        }
        self
    }
}

fn stress(lab: &Lab, name: &str, backing: Option<Arc<dyn Disk>>, cache_bytes: u64) {
    let file = lab.load(name);
    let options = Qcow2Options {
        cache_bytes,
        backing: backing.map(|disk| -> Arc<dyn Disk> { Arc::new(Jitter::new(disk, 3)) }),
        ..Qcow2Options::named(name)
    };
    let slow = Arc::new(Jitter::new(Arc::new(file.clone()), 5));
    let disk = block_on(Qcow2Disk::open(slow, options)).unwrap();
    let start = block_on(async { read_all(&*disk.open_queue().unwrap()).await });
    let run = |thread_number: u64| {
        let (disk, start) = (Arc::clone(&disk), &start);
        let mut executor = Executor::new(64).unwrap();
        let owned = executor.block_on(async move {
            let io = disk.open_queue().unwrap();
            let done = Rc::new(RefCell::new(Vec::new()));
            let ring = Ring::current().unwrap();
            let workers = (0..TASKS).map(|task| Worker::new(Rc::clone(&io), thread_number * TASKS + task, start));
            let tasks: Vec<_> = workers
                .map(|worker| {
                    let done = Rc::clone(&done);
                    ring.spawn(async move {
                        let worker = worker.work(120).await;
                        done.borrow_mut().extend(worker.owned);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            // What was thrown away gets its time.
            for _ in 0..50 {
                turns(60).await;
            }
            io.flush().await.unwrap();
            done.take()
        });
        owned.unwrap()
    };
    let owned: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    block_on(async {
        let io = disk.open_queue().unwrap();
        for (at, contents) in &owned {
            if let Some(contents) = contents {
                assert!(
                    read(&*io, *at, contents.len()).await == *contents,
                    "{name}: {at} is wrong at the end"
                );
            }
        }
        disk.close().await.unwrap();
    });
    lab.check(&file, false);
    let seen = lab.read_by_qemu(&file);
    for (at, contents) in owned {
        if let Some(contents) = contents {
            assert!(
                seen[at as usize..][..contents.len()] == contents,
                "{name}: QEMU reads something else at {at}"
            );
        }
    }
}

#[test]
fn threads_share_clusters_without_a_backing() {
    let Some(lab) = Lab::new() else { return };
    for options in [
        "cluster_size=64k",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=512",
        "cluster_size=4k,lazy_refcounts=on",
    ] {
        lab.run(&format!("qemu-img create -f qcow2 -o {options} a.qcow2 {DISK}"));
        stress(&lab, "a.qcow2", None, 64 << 10);
    }
}

#[test]
fn threads_share_clusters_over_a_backing_and_a_snapshot() {
    let Some(lab) = Lab::new() else { return };
    let base = disk::InMemory::holding(pattern(7 << 20, 3), disk::Access::ReadOnly);
    std::fs::write(lab.path("base.raw"), base.contents()).unwrap();
    for options in ["cluster_size=64k", "cluster_size=32k,extended_l2=on", "cluster_size=2k"] {
        lab.run(&format!(
            "qemu-img create -f qcow2 -o {options} -b base.raw -F raw a.qcow2 {DISK}"
        ));
        lab.io("a.qcow2", &["write -P 1 1M 3M", "write -z 5M 100k", "write -P 3 9M 2M"]);
        lab.run("qemu-img snapshot -c one a.qcow2");
        lab.io("a.qcow2", &["write -P 2 2M 1M"]);
        stress(&lab, "a.qcow2", Some(Arc::new(base.clone())), 64 << 10);
    }
}
