//! Rates, turns and changes of mind, in a time that passes only when everybody sleeps.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::conformance::{self, SIZE_BYTES};
use crate::{DiskErrorKind, InMemory};

/// A clock that somebody turns.
#[derive(Default)]
struct Clock(Mutex<Dial>);

#[derive(Default)]
struct Dial {
    now: Duration,
    next: u64,
    sleepers: BTreeMap<(Duration, u64), Waker>,
}

impl Timer for Arc<Clock> {
    fn now(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    fn sleep(&self, duration: Duration) -> DiskFuture<'static, ()> {
        let mut dial = self.0.lock().unwrap();
        dial.next += 1;
        Box::pin(Sleep {
            key: (dial.now.saturating_add(duration), dial.next),
            clock: Self::clone(self),
        })
    }
}

struct Sleep {
    key: (Duration, u64),
    clock: Arc<Clock>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut dial = self.clock.0.lock().unwrap();
        if dial.now >= self.key.0 {
            return Poll::Ready(());
        }
        dial.sleepers.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.0.lock().unwrap().sleepers.remove(&self.key);
    }
}

struct Flag(Mutex<bool>);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = true;
    }
}

impl Clock {
    /// Runs `future`; when it waits, time passes up to the next who sleeps.
    fn run<T>(self: &Arc<Self>, future: impl Future<Output = T>) -> T {
        let flag = Arc::new(Flag(Mutex::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            while !std::mem::take(&mut *flag.0.lock().unwrap()) {
                let mut dial = self.0.lock().unwrap();
                let ((until, _), sleeper) = dial.sleepers.pop_first().expect("somebody sleeps");
                dial.now = dial.now.max(until);
                drop(dial);
                sleeper.wake();
            }
        }
    }
}

fn throttled(limits: Limits) -> (Arc<Clock>, Throttle) {
    let clock = Arc::new(Clock::default());
    let disk = Arc::new(InMemory::new(Geometry::of_size(SIZE_BYTES)));
    let throttle = Throttle::new(disk, limits, Arc::new(Arc::clone(&clock)));
    (clock, throttle)
}

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second, burst })
}

fn buf(len: usize) -> Vec<IoBuf> {
    vec![IoBuf::heap(len, 1).unwrap()]
}

async fn join(futures: Vec<DiskFuture<'_, ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(Some).collect();
    poll_fn(|context| {
        for slot in &mut futures {
            if slot
                .as_mut()
                .is_some_and(|future| future.as_mut().poll(context).is_ready())
            {
                *slot = None;
            }
        }
        if futures.iter().all(Option::is_none) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

#[test]
fn throttled_disks_conform() {
    let tight = Limits {
        bytes: rate(50 << 20, 1 << 20),
        reads: rate(5000, 10),
        writes: rate(3000, 1),
        ..Limits::default()
    };
    for limits in [Limits::default(), tight] {
        let clock = RefCell::new(Arc::default());
        let make = || -> Arc<dyn Disk> {
            let (new, disk) = throttled(limits);
            clock.replace(new);
            Arc::new(disk)
        };
        conformance::all(make, |case| clock.borrow().run(case));
    }
}

/// Requests of `sizes` in turn, one after the other, until the clock shows `end`; when each was through.
fn drive(clock: &Arc<Clock>, disk: &Throttle, sizes: &[usize], end: Duration) -> Vec<(Duration, u64)> {
    let io = disk.open_queue().unwrap();
    let done = RefCell::new(Vec::new());
    clock.run(async {
        for &size in sizes.iter().cycle() {
            io.write(0, buf(size)).await.0.unwrap();
            let now = clock.now();
            if now >= end {
                return;
            }
            done.borrow_mut().push((now, size as u64));
        }
    });
    done.into_inner()
}

#[test]
fn rates_are_kept_in_every_tenth_of_a_second() {
    let ms = Duration::from_millis;
    let (per_second, burst) = (10 << 20, 256 << 10);
    let limits = Limits {
        write_bytes: rate(per_second, burst),
        ..Limits::default()
    };
    let (clock, disk) = throttled(limits);
    let sizes = [4096, 64 << 10, 512, 128 << 10];
    let done = drive(&clock, &disk, &sizes, ms(5000));
    let within = |from: Duration, to: Duration| -> u64 {
        done.iter()
            .filter(|(at, _)| (from..to).contains(at))
            .map(|(_, bytes)| bytes)
            .sum()
    };
    for start in (0..4900).step_by(50) {
        let bytes = within(ms(start), ms(start + 100));
        let (fair, slack) = (per_second / 10, 128 << 10);
        let most = fair + slack + if start == 0 { burst } else { 0 };
        assert!(
            (fair - slack..=most).contains(&bytes),
            "{bytes} bytes in the 100 ms after {start} ms"
        );
    }
    let total = within(ms(0), ms(5000));
    assert!(total.abs_diff(5 * per_second + burst) <= 129 << 10, "{total}");
    // After a pause the burst, and no more, goes at once.
    let before = clock.now();
    clock.run(clock.sleep(ms(10_000)));
    let again = drive(&clock, &disk, &[4096], before + ms(10_100));
    let at_once = again.iter().filter(|(at, _)| *at <= before + ms(10_000)).count() as u64 * 4096;
    assert!((burst - 4096..=burst).contains(&at_once), "{at_once}");
}

#[test]
fn operations_are_counted_whatever_their_size() {
    let limits = Limits {
        operations: rate(100, 1),
        ..Limits::default()
    };
    let (clock, disk) = throttled(limits);
    let io = disk.open_queue().unwrap();
    clock.run(async {
        for _ in 0..10 {
            io.read(0, buf(1 << 20)).await.0.unwrap();
            io.write_zeroes(0, SIZE_BYTES, ZeroMode::MayUnmap).await.unwrap();
            io.discard(0, SIZE_BYTES).await.unwrap();
            io.flush().await.unwrap();
        }
    });
    let took = clock.now().as_millis();
    assert!((385..=395).contains(&took), "{took} ms for 40 operations");
    // What the disk refuses is refused at once.
    let error = clock.run(io.write(1, buf(1))).0.unwrap_err();
    assert_eq!(error.kind(), DiskErrorKind::Misaligned);
    assert_eq!(clock.now().as_millis(), took);
}

#[test]
fn queues_go_by_turns_and_classes_do_not_wait_for_each_other() {
    let limits = Limits {
        writes: rate(1000, 1),
        reads: rate(100, 1),
        ..Limits::default()
    };
    let (clock, disk) = throttled(limits);
    let (busy, calm) = (disk.open_queue().unwrap(), disk.open_queue().unwrap());
    let (writes, reads) = (Cell::new(0), Cell::new(0));
    clock.run(async {
        // One queue with two hundred requests in flight, one with a single one at a time.
        let mut futures: Vec<DiskFuture<'_, ()>> = Vec::new();
        for _ in 0..200 {
            futures.push(Box::pin(async {
                busy.write(0, buf(512)).await.0.unwrap();
                writes.set(writes.get() + 1);
            }));
        }
        futures.push(Box::pin(async {
            for _ in 0..50 {
                calm.write(0, buf(512)).await.0.unwrap();
            }
            assert!((45..=55).contains(&writes.get()), "{} by then", writes.get());
        }));
        futures.push(Box::pin(async {
            for _ in 0..10 {
                calm.read(0, buf(512)).await.0.unwrap();
                reads.set(reads.get() + 1);
            }
        }));
        join(futures).await;
    });
    assert_eq!((writes.get(), reads.get()), (200, 10));
    let took = clock.now().as_millis();
    assert!(
        (248..=252).contains(&took),
        "{took} ms for 250 writes at 1000 per second"
    );
}

#[test]
fn a_common_limit_is_shared_by_age() {
    let limits = Limits {
        operations: rate(1000, 1),
        ..Limits::default()
    };
    let (clock, disk) = throttled(limits);
    let io = disk.open_queue().unwrap();
    let counts = [Cell::new(0), Cell::new(0)];
    clock.run(async {
        let one = async |read: bool, count: &Cell<u32>| {
            while clock.now() < Duration::from_millis(200) {
                match read {
                    true => io.read(0, buf(512)).await.0.unwrap(),
                    false => io.write(0, buf(512)).await.0.unwrap(),
                }
                count.set(count.get() + 1);
            }
        };
        let [reads, writes] = &counts;
        join(vec![Box::pin(one(true, reads)), Box::pin(one(false, writes))]).await;
    });
    let [reads, writes] = counts.map(|count| count.get());
    assert!(
        reads.abs_diff(writes) <= 2 && (195..=205).contains(&(reads + writes)),
        "{reads} {writes}"
    );
}

#[test]
fn limits_change_under_those_who_wait() {
    let slow = Limits {
        bytes: rate(512, 1),
        ..Limits::default()
    };
    let (clock, disk) = throttled(slow);
    let io = disk.open_queue().unwrap();
    let throttling = disk.throttling();
    clock.run(async {
        io.write(0, buf(512)).await.0.unwrap();
        // Would take a quarter of an hour.
        let writes =
            (0..100).map(|_| -> DiskFuture<'_, ()> { Box::pin(async { io.write(0, buf(4096)).await.0.unwrap() }) });
        let mut all: Vec<_> = writes.collect();
        all.push(Box::pin(async {
            clock.sleep(Duration::from_millis(100)).await;
            assert_eq!(throttling.limits(), slow);
            throttling.set(Limits {
                bytes: rate(4 << 20, 1),
                ..Limits::default()
            });
            clock.sleep(Duration::from_millis(10)).await;
            throttling.set(Limits::default());
        }));
        join(all).await;
    });
    let took = clock.now();
    assert!(took <= Duration::from_millis(1100), "{took:?}");
}

#[test]
fn who_leaves_the_line_takes_nothing_along() {
    let limits = Limits {
        writes: rate(10, 1),
        ..Limits::default()
    };
    let (clock, disk) = throttled(limits);
    let (io, other) = (disk.open_queue().unwrap(), disk.open_queue().unwrap());
    clock.run(async {
        io.write(0, buf(512)).await.0.unwrap();
        let mut left: Vec<_> = (0..50).map(|_| other.write(0, buf(512))).collect();
        poll_fn(|context| {
            for future in &mut left {
                assert!(future.as_mut().poll(context).is_pending());
            }
            Poll::Ready(())
        })
        .await;
        let waits = io.write(0, buf(512));
        // The one in front goes, then all others; whoever is left gets the turn.
        drop(left.remove(0));
        drop(left);
        waits.await.0.unwrap();
    });
    let took = clock.now().as_millis();
    assert!((99..=101).contains(&took), "{took} ms");
}
