//! The executor on real files, pipes and eventfds, with a thread at its door.

use std::cell::{Cell, RefCell};
use std::io;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use guestmem::{GuestAddress, GuestMemory, IoBuf, MemoryConfig};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::pipe::pipe;

use crate::*;

fn buf(bytes: &[u8]) -> IoBuf {
    IoBuf::from_bytes(bytes).unwrap()
}

fn empty(len: usize) -> IoBuf {
    IoBuf::heap(len, 512).unwrap()
}

fn joined(bufs: &[IoBuf]) -> Vec<u8> {
    bufs.iter().flat_map(IoBuf::to_vec).collect()
}

fn is_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: Errno) -> bool {
    result.unwrap_err().raw_os_error() == Some(errno.raw_os_error())
}

/// Runs `act` on a fresh executor with few entries, so that full queues are met often.
fn on<T>(act: impl AsyncFnOnce(Ring) -> T) -> T {
    let mut executor = executor(4).unwrap();
    let ring = executor.ring();
    executor.block_on(act(ring)).unwrap()
}

fn temp() -> File {
    File::from(tempfile::tempfile().unwrap())
}

fn ends(pair: (OwnedFd, OwnedFd)) -> (File, File) {
    (File::from(pair.0), File::from(pair.1))
}

#[test]
fn transfers_scatter_gather_and_come_back() {
    on(async |ring| {
        let file = temp();
        let (moved, bufs) = ring.write(&file, 100, vec![buf(b"abc"), empty(0), buf(b"defgh")]).await;
        assert_eq!((moved.unwrap(), joined(&bufs)), (8, b"abcdefgh".to_vec()));
        let (moved, bufs) = ring.read(&file, 102, vec![empty(2), empty(100)]).await;
        assert_eq!(moved.unwrap(), 6);
        assert_eq!(joined(&bufs)[..6], *b"cdefgh");
        let (done, bufs) = ring.read_exact(&file, 100, vec![empty(5), empty(3)]).await;
        done.unwrap();
        assert_eq!(joined(&bufs), b"abcdefgh");
        let (done, bufs) = ring.read_exact(&file, 100, vec![empty(9)]).await;
        assert_eq!(
            (done.unwrap_err().kind(), bufs.len()),
            (io::ErrorKind::UnexpectedEof, 1)
        );
        ring.sync(&file, SyncScope::Data).await.unwrap();
        ring.sync(&file, SyncScope::All).await.unwrap();
    });
}

#[test]
fn more_buffers_than_one_operation_takes() {
    on(async |ring| {
        let file = temp();
        let bytes: Vec<u8> = (0..2500_u32 * 8).map(|i| (i % 251) as u8).collect();
        let (moved, bufs) = ring.write(&file, 0, bytes.chunks(8).map(buf).collect()).await;
        assert_eq!(moved.unwrap(), 1024 * 8);
        let (done, _) = ring.write_all(&file, 4096, bufs).await;
        done.unwrap();
        let (done, bufs) = ring
            .read_exact(&file, 4096, (0..2500).map(|_| empty(8)).collect())
            .await;
        done.unwrap();
        assert!(joined(&bufs) == bytes);
    });
}

#[test]
fn a_thousand_in_flight_on_four_entries() {
    on(async |ring| {
        let file = temp();
        let writes: Vec<_> = (0..1000_u64)
            .map(|i| ring.write(&file, i * 8, vec![buf(&i.to_le_bytes())]))
            .collect();
        for write in writes {
            assert_eq!(write.await.0.unwrap(), 8);
        }
        let reads: Vec<_> = (0..1000_u64).map(|i| ring.read(&file, i * 8, vec![empty(8)])).collect();
        // Awaited from the last to the first: completions are kept for those that come late.
        for (i, read) in reads.into_iter().enumerate().rev() {
            assert_eq!(joined(&read.await.1), (i as u64).to_le_bytes());
        }
    });
}

/// As many operations as there are entries, all complete at once: no wait may come between that and telling.
#[test]
fn a_full_submission_queue_never_sleeps_over_completions() {
    for _ in 0..20 {
        let alarm = Bell::new();
        let (finish, finished) = mpsc::channel::<()>();
        let guard = thread::spawn({
            let alarm = alarm.clone();
            move || {
                if finished.recv_timeout(Duration::from_secs(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
                    alarm.ring();
                }
            }
        });
        on(async |ring| {
            let std_file = tempfile::tempfile().unwrap();
            (&std_file).write_all(&[1; 64]).unwrap();
            let file = File::from(std_file);
            let reads: Vec<_> = (0..4).map(|i| ring.read(&file, i * 16, vec![empty(16)])).collect();
            let all = async {
                for read in reads {
                    assert_eq!(read.await.0.unwrap(), 16);
                }
            };
            assert_eq!(race(alarm.rung(), all).await, First::Right(()));
        });
        drop(finish);
        guard.join().unwrap();
    }
}

#[test]
fn dropped_writes_still_happen_before_the_executor_is_gone() {
    let file = tempfile::tempfile().unwrap();
    {
        let executor = executor(8).unwrap();
        let file = File::dup(&file).unwrap();
        for i in 0..200_u64 {
            drop(executor.ring().write(&file, i * 4096, vec![buf(&[0x5a; 4096])]));
        }
    }
    let bytes = io::Read::bytes(&file).collect::<Result<Vec<u8>, _>>().unwrap();
    assert!(bytes.len() == 200 * 4096 && bytes.iter().all(|&b| b == 0x5a));
}

#[test]
fn an_executor_ends_although_operations_would_wait_for_ever() {
    let (reader, _writer) = ends(pipe().unwrap());
    let kept = {
        let mut executor = executor(8).unwrap();
        let ring = executor.ring();
        let file = reader.clone();
        ring.spawn({
            let ring = ring.clone();
            async move { ring.receive(&file, vec![empty(64)]).await }
        });
        drop(ring.sleep(Duration::from_secs(3600)));
        drop(ring.receive(&reader, vec![empty(64)]));
        let kept = ring.receive(&reader, vec![empty(64)]);
        let _ = executor.block_on(ring.sleep(Duration::from_millis(1))).unwrap();
        kept
    };
    // The future outlives its executor, and learns how its operation ended.
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(kept).poll(&mut context) {
        std::task::Poll::Ready((moved, bufs)) => assert!(is_errno(moved, Errno::CANCELED) && bufs.len() == 1),
        std::task::Poll::Pending => panic!("still flying"),
    }
}

#[test]
fn a_dropped_receive_does_not_eat_what_comes_later() {
    on(async |ring| {
        let (reader, writer) = ends(pipe().unwrap());
        drop(ring.receive(&reader, vec![empty(16)]));
        ring.sleep(Duration::from_millis(1)).await.unwrap();
        assert_eq!(ring.send(&writer, vec![buf(b"hello")]).await.0.unwrap(), 5);
        let (moved, bufs) = ring.receive(&reader, vec![empty(16)]).await;
        assert_eq!((moved.unwrap(), &joined(&bufs)[..5]), (5, &b"hello"[..]));
    });
}

#[test]
fn cancelled_operations_say_so() {
    on(async |ring| {
        let sleep = ring.sleep(Duration::from_secs(3600));
        let canceller = sleep.canceller();
        ring.spawn(async move { canceller.cancel() });
        assert!(is_errno(sleep.await, Errno::CANCELED));
        let started = Instant::now();
        let long = ring.sleep(Duration::from_secs(3600));
        let won = race(long, ring.sleep(Duration::from_millis(5))).await;
        assert!(won.right().unwrap().is_ok());
        assert!(started.elapsed() >= Duration::from_millis(5));
    });
}

impl<A, B> First<A, B> {
    fn right(self) -> Option<B> {
        match self {
            Self::Left(_) => None,
            Self::Right(value) => Some(value),
        }
    }
}

#[test]
fn events_are_counted_and_reset_in_both_modes() {
    for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
        let event = eventfd(0, flags).unwrap();
        let bell = event.try_clone().unwrap();
        let ringer = thread::spawn(move || {
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(2));
                rustix::io::write(&bell, &5_u64.to_ne_bytes()).unwrap();
            }
        });
        on(async |ring| {
            let event = File::from(event);
            let mut sum = 0;
            while sum < 15 {
                sum += ring.read_event(&event).await.unwrap();
            }
            assert_eq!(sum, 15);
        });
        ringer.join().unwrap();
    }
}

#[test]
fn readable_waits_for_data() {
    on(async |ring| {
        let (reader, writer) = ends(pipe().unwrap());
        ring.spawn({
            let ring = ring.clone();
            async move {
                ring.sleep(Duration::from_millis(2)).await.unwrap();
                rustix::io::write(writer.as_fd(), b"x").unwrap();
            }
        });
        ring.readable(&reader).await.unwrap();
        assert_eq!(rustix::io::read(reader.as_fd(), &mut [0_u8; 4]).unwrap(), 1);
    });
}

#[test]
fn bells_from_another_thread_are_never_lost() {
    let (request, answer) = (Bell::new(), mpsc::channel());
    let (tell, told) = answer;
    let far = request.clone();
    let other = thread::spawn(move || {
        for _ in 0..2000 {
            far.ring();
            told.recv_timeout(Duration::from_secs(10))
                .expect("the executor heard the bell");
        }
    });
    on(async |_| {
        for _ in 0..2000 {
            request.rung().await;
            tell.send(()).unwrap();
        }
    });
    other.join().unwrap();
}

#[test]
fn tasks_spawn_tasks_and_are_awaited() {
    let order = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&order);
    let sum = on(async move |ring| {
        let tasks: Vec<_> = (0..100_u64)
            .map(|i| {
                let (ring, seen) = (ring.clone(), Rc::clone(&seen));
                ring.clone().spawn(async move {
                    let inner = ring.spawn(async move { i * 2 });
                    ring.sleep(Duration::from_micros(100 - i)).await.unwrap();
                    seen.borrow_mut().push(i);
                    inner.await
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        sum
    });
    assert_eq!((sum, order.borrow().len()), (9900, 100));
}

#[test]
fn tasks_go_on_with_the_next_block_on() {
    let mut executor = executor(4).unwrap();
    let ring = executor.ring();
    let (tell, told) = mpsc::channel();
    ring.spawn({
        let ring = ring.clone();
        async move {
            ring.sleep(Duration::from_millis(3)).await.unwrap();
            tell.send(7).unwrap();
        }
    });
    executor.block_on(async {}).unwrap();
    assert!(told.try_recv().is_err());
    let heard = executor.block_on(async {
        for _ in 0..10_000 {
            ring.sleep(Duration::from_millis(1)).await.unwrap();
            if let Ok(heard) = told.try_recv() {
                return Some(heard);
            }
        }
        None
    });
    assert_eq!(heard.unwrap(), Some(7));
}

#[test]
fn one_executor_per_thread_and_none_after_it() {
    assert!(Ring::current().is_err());
    let executor = executor(4).unwrap();
    assert!(matches!(
        Executor::with_engine(4, EngineChoice::Best),
        Err(SetupError::Occupied)
    ));
    let ring = Ring::current().unwrap();
    drop(executor);
    assert_eq!(Ring::current().err(), Some(NoExecutor));
    let file = temp();
    on(async |_| {
        let (moved, bufs) = ring.read(&file, 0, vec![empty(1)]).await;
        assert!(is_errno(moved, Errno::CANCELED) && bufs.len() == 1);
    });
}

#[test]
fn space_is_reserved_punched_and_zeroed() {
    on(async |ring| {
        let mut std_file = tempfile::tempfile().unwrap();
        std_file.write_all(&[1; 3 * 4096]).unwrap();
        let file = File::dup(&std_file).unwrap();
        ring.allocate(&file, Allocation::PunchHole, 0, 4096).await.unwrap();
        let zeroed = ring.allocate(&file, Allocation::ZeroRange, 4096, 4096).await;
        let middle = if zeroed.is_ok() { 0 } else { 1 };
        let (_, bufs) = ring.read_exact(&file, 0, vec![empty(3 * 4096)]).await;
        let bytes = joined(&bufs);
        assert_eq!((bytes[0], bytes[4095], bytes[4096], bytes[8192]), (0, 0, middle, 1));
        ring.allocate(&file, Allocation::Reserve, 0, 1 << 20).await.unwrap();
        assert_eq!(std_file.metadata().unwrap().len(), 1 << 20);
        assert!(is_errno(
            ring.allocate(&file, Allocation::PunchHole, 0, 0).await,
            Errno::INVAL
        ));
    });
}

#[test]
fn what_the_kernel_writes_to_guest_memory_is_logged_as_dirty() {
    let memory = GuestMemory::new(MemoryConfig {
        size_bytes: 1 << 20,
        hugepages: None,
        prefault: false,
    })
    .unwrap();
    let dirty = || memory.regions().next().unwrap().dirty.take()[0];
    on(async |ring| {
        let file = temp();
        let (done, _) = ring.write_all(&file, 0, vec![buf(&[7; 5000])]).await;
        done.unwrap();
        memory.start_dirty_log();
        let guest = |gpa, len| IoBuf::guest(&memory, GuestAddress(gpa), len).unwrap();
        // 5000 bytes of the 12288 asked for: page 3, and the first of pages 5 and 6.
        let (moved, bufs) = ring
            .read(&file, 0, vec![guest(3 << 12, 4096), guest(5 << 12, 8192)])
            .await;
        assert_eq!((moved.unwrap(), bufs[1].to_vec()[903]), (5000, 7));
        assert_eq!(dirty(), 1 << 3 | 1 << 5);
        // Nobody waits, but the guest's page was written all the same.
        drop(ring.read(&file, 0, vec![guest(9 << 12, 16)]));
        drop(ring.write(&file, 0, vec![guest(10 << 12, 16)]));
        let mut seen = 0;
        for _ in 0..1000 {
            ring.sleep(Duration::from_millis(2)).await.unwrap();
            seen |= dirty();
            if seen != 0 {
                break;
            }
        }
        assert_eq!(seen, 1 << 9);
    });
}

#[test]
fn locks_belong_to_the_opening() {
    use blocking::{LockKind, lock};
    let file = tempfile::NamedTempFile::new().unwrap();
    let other = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(file.path())
            .unwrap()
    };
    lock(&file, LockKind::Exclusive).unwrap();
    let same = file.as_file().try_clone().unwrap();
    lock(&same, LockKind::Exclusive).unwrap();
    assert!(is_errno(lock(other(), LockKind::Shared), Errno::AGAIN));
    lock(&same, LockKind::Shared).unwrap();
    let second = other();
    lock(&second, LockKind::Shared).unwrap();
    assert!(is_errno(lock(&same, LockKind::Exclusive), Errno::AGAIN));
    drop(second);
    lock(&same, LockKind::Exclusive).unwrap();
    assert!(blocking::discard_blocks(&same, 0, 512).is_err());
}

#[test]
fn what_is_kept_goes_on_when_it_is_dropped() {
    on(async |ring| {
        let ended = Rc::new(RefCell::new(0));
        let operation = || {
            let (ended, ring) = (Rc::clone(&ended), ring.clone());
            kept(async move {
                ring.sleep(Duration::from_millis(1)).await.unwrap();
                *ended.borrow_mut() += 1;
            })
        };
        // Never begun, awaited, and dropped on the way.
        drop(operation());
        operation().await;
        let mut dropped = operation();
        let begun = std::future::poll_fn(|context| std::task::Poll::Ready(dropped.as_mut().poll(context)));
        assert!(begun.await.is_pending());
        drop(dropped);
        ring.sleep(Duration::from_millis(50)).await.unwrap();
        assert_eq!(*ended.borrow(), 2);
    });
}

#[test]
fn what_is_kept_ends_before_its_executor_does() {
    let ended = Rc::new(Cell::new(0));
    let mut executor = executor(4).unwrap();
    let ring = executor.ring();
    let operation = || {
        let (ended, ring) = (Rc::clone(&ended), ring.clone());
        kept(async move {
            for _ in 0..3 {
                ring.sleep(Duration::from_millis(5)).await.unwrap();
            }
            ended.set(ended.get() + 1);
        })
    };
    let begin = async |operation: &mut std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(operation.as_mut().poll(context)));
        assert!(polled.await.is_pending());
    };
    executor
        .block_on(async {
            let (mut dropped, mut held) = (operation(), operation());
            begin(&mut dropped).await;
            drop(dropped);
            // And one that a task holds, which is dropped with the executor.
            begin(&mut held).await;
            let sleep = ring.sleep(Duration::from_hours(1));
            drop(ring.spawn(async move {
                sleep.await.unwrap();
                drop(held);
            }));
        })
        .unwrap();
    assert_eq!(ended.get(), 0);
    drop(executor);
    assert_eq!(ended.get(), 2);
}

/// Looks, when it is let go, how long a file is.
struct Guard(std::fs::File, Rc<RefCell<Option<u64>>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.1.replace(Some(self.0.metadata().unwrap().len()));
    }
}

#[test]
fn what_a_task_holds_is_held_until_its_files_are_left_alone() {
    let seen = Rc::new(RefCell::new(None));
    let file = tempfile::tempfile().unwrap();
    let guard = Guard(file.try_clone().unwrap(), Rc::clone(&seen));
    let mut executor = executor(4).unwrap();
    let ring = executor.ring();
    executor
        .block_on(async {
            // Never done at once.
            let grow = ring.allocate(&File::from(file), Allocation::Reserve, 0, 8192);
            // And something that never ends, which nobody is to wait for.
            let sleep = ring.sleep(Duration::from_hours(1));
            drop(ring.spawn(async move {
                let _guard = guard;
                let _ = grow.await;
                let _ = sleep.await;
            }));
        })
        .unwrap();
    assert_eq!(*seen.borrow(), None);
    drop(executor);
    assert_eq!(*seen.borrow(), Some(8192));
}

/// Set for the run of these tests on threads.
const ENGINE: &str = "KARAT_TEST_IO_ENGINE";

fn executor(entries: u32) -> Result<Executor, SetupError> {
    let choice = match std::env::var_os(ENGINE) {
        Some(_) => EngineChoice::Threads,
        None => EngineChoice::Ring,
    };
    Executor::with_engine(entries, choice)
}

/// All tests above once more, in a process where executors have no ring.
#[test]
fn threads_keep_the_same_contract() {
    if std::env::var_os(ENGINE).is_some() {
        return;
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["tests::", "--skip", "threads_keep_the_same_contract"])
        .env(ENGINE, "threads")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(!said.contains("running 0 tests"), "{said}");
}

#[test]
fn the_process_chooses() {
    choose_engine(EngineChoice::Threads);
    let made = Executor::new(4).map(|mut executor| executor.block_on(async { 5 }).unwrap());
    choose_engine(EngineChoice::Best);
    assert_eq!(made.unwrap(), 5);
}
