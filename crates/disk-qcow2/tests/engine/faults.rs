//! Files that fail, and images that lie.

use std::sync::Arc;
use std::task::Poll;

use disk::conformance::pattern;
use disk::{Access, Disk, DiskErrorKind, DiskIo, DiskOp, Fault, FaultPlan, Faulty, InMemory, Strike, ZeroMode};

use crate::jitter::Jitter;
use crate::{Lab, block_on, open, open_on, read, read_all, write};

/// An image's file, to be read and changed word by word.
struct Words(Vec<u8>);

impl Words {
    fn of(lab: &Lab, name: &str) -> Self {
        Self(lab.load(name).contents())
    }

    /// What a word of the header or a table refers to.
    fn place(&self, at: usize) -> usize {
        let word = u64::from_be_bytes(self.0[at..at + 8].try_into().unwrap());
        (word & 0x00ff_ffff_ffff_fe00) as usize
    }

    /// The same file with one other word.
    fn with(&self, at: usize, word: u64) -> InMemory {
        let mut bytes = self.0.clone();
        bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
        InMemory::holding(bytes, Access::ReadWrite)
    }
}

/// One write, and how it ended.
async fn try_write(io: &dyn DiskIo, at: u64, bytes: &[u8]) -> Result<(), DiskErrorKind> {
    let bufs = vec![guestmem::IoBuf::from_bytes(bytes).unwrap()];
    io.write(at, bufs).await.0.map_err(|error| error.kind())
}

/// Whatever fails in the file fails one operation; afterwards all is as the last good ones left it.
#[test]
fn failed_writes_harm_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=16k,extended_l2=on",
    ] {
        lab.run(&format!("qemu-img create -f qcow2 -o {options} a.qcow2 4M"));
        for (op, strike) in [
            (DiskOp::Write, Strike::Before),
            (DiskOp::Write, Strike::After),
            (DiskOp::Read, Strike::Before),
            (DiskOp::WriteZeroes, Strike::Before),
            (DiskOp::Discard, Strike::Before),
        ] {
            let file = lab.load("a.qcow2");
            let plan = FaultPlan::new();
            let disk = open_on(Arc::new(Faulty::new(Arc::new(file.clone()), plan.clone())), None);
            let model = block_on(async {
                let io = disk.open_queue().unwrap();
                let mut model = vec![0; 4 << 20];
                let mut failures = 0;
                for step in 0..120u64 {
                    let at = (step * 37 % 250) * 16384;
                    let len = 512 * (1 + step as usize % 60);
                    if step % 5 == 4 {
                        plan.inject(Fault {
                            skip: step % 3,
                            count: 1,
                            strike,
                            ..Fault::always(op, DiskErrorKind::Io)
                        });
                    }
                    let range = at as usize..at as usize + len;
                    let bytes = match step % 7 {
                        6 => vec![0; len],
                        _ => pattern(len, step),
                    };
                    let result = match step % 7 {
                        6 => {
                            let zeroed = io.write_zeroes(at, len as u64, ZeroMode::MayUnmap).await;
                            zeroed.map_err(|error| error.kind())
                        }
                        _ => try_write(&*io, at, &bytes).await,
                    };
                    let flushed = if step % 11 == 0 { io.flush().await } else { Ok(()) };
                    failures += u32::from(result.is_err() || flushed.is_err());
                    plan.clear();
                    if result.is_ok() {
                        model[range].copy_from_slice(&bytes);
                    } else {
                        // Old or new, sector by sector.
                        let now = read(&*io, at, len).await;
                        let old = &model[range.clone()];
                        for ((now, old), new) in now.chunks(512).zip(old.chunks(512)).zip(bytes.chunks(512)) {
                            assert!(now == old || now == new, "{options} {op} {strike:?} step {step}");
                        }
                        model[range].copy_from_slice(&now);
                    }
                }
                assert!(failures > 0 || op != DiskOp::Write, "writes never failed");
                assert!(read_all(&*io).await == model, "{options} {op} {strike:?}");
                disk.close().await.unwrap();
                model
            });
            let again = open(&file, None);
            assert!(block_on(async { read_all(&*again.open_queue().unwrap()).await }) == model);
            lab.check(&file, true);
        }
    }
}

/// After a sync has failed nobody knows what is on the disk: changes are refused until the image is opened again.
#[test]
fn a_failed_sync_stops_changes() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 4M");
    let file = lab.load("a.qcow2");
    let plan = FaultPlan::new();
    let disk = open_on(Arc::new(Faulty::new(Arc::new(file.clone()), plan.clone())), None);
    block_on(async {
        let io = disk.open_queue().unwrap();
        write(&*io, 0, &[1; 4096]).await;
        plan.inject(Fault::always(DiskOp::Flush, DiskErrorKind::Io));
        io.flush().await.unwrap_err();
        plan.clear();
        assert_eq!(try_write(&*io, 0, &[2; 4096]).await, Err(DiskErrorKind::Io));
        io.flush().await.unwrap_err();
        disk.close().await.unwrap_err();
        assert_eq!(read(&*io, 0, 512).await, [1; 512], "reads go on");
    });
    lab.check(&file, true);
}

/// The kernel tells a failure to one of those who sync at the same time.
#[test]
fn a_failed_sync_is_told_to_all_who_wait_for_one() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 4M");
    let mut waited = 0;
    while waited < 10 {
        let plan = FaultPlan::new();
        let file = Jitter::new(Arc::new(lab.load("a.qcow2")), 8);
        let disk = open_on(Arc::new(Faulty::new(Arc::new(file), plan.clone())), None);
        block_on(async {
            let [one, other] = [(); 2].map(|()| disk.open_queue().unwrap());
            for _ in 0..50 {
                let mut flush = one.flush();
                let ready = std::future::poll_fn(|context| Poll::Ready(flush.as_mut().poll(context).is_ready()));
                if ready.await {
                    continue;
                }
                plan.inject(Fault {
                    count: 1,
                    ..Fault::always(DiskOp::Flush, DiskErrorKind::Io)
                });
                assert!(other.flush().await.is_err());
                assert!(flush.await.is_err(), "one succeeds after the other has failed");
                waited += 1;
                return;
            }
            panic!("no flush ever waits");
        });
    }
}

/// A file that can not grow is full, and stays usable.
#[test]
fn a_full_file_is_told() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 4M");
    let file = lab.load("a.qcow2");
    let plan = FaultPlan::new();
    let disk = open_on(Arc::new(Faulty::new(Arc::new(file.clone()), plan.clone())), None);
    block_on(async {
        let io = disk.open_queue().unwrap();
        write(&*io, 0, &[1; 4096]).await;
        plan.inject(Fault::always(DiskOp::Grow, DiskErrorKind::NoSpace));
        let mut told = Ok(());
        for i in 1..64 {
            told = try_write(&*io, i * 65536, &[1; 4096]).await;
            if told.is_err() {
                break;
            }
        }
        assert_eq!(told, Err(DiskErrorKind::NoSpace));
        io.discard(0, 65536).await.unwrap();
        io.flush().await.unwrap();
        io.flush().await.unwrap();
        write(&*io, 63 * 65536, &[2; 4096]).await;
        plan.clear();
        write(&*io, 62 * 65536, &[3; 65536]).await;
        disk.close().await.unwrap();
    });
    lab.check(&file, false);
}

/// Entries that point at tables, outside of the file, or nowhere sensible: reads fail or give bytes, writes never hit a table.
#[test]
fn images_that_lie_do_no_harm() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 8M");
    lab.io("a.qcow2", &["write -P 1 0 64k", "write -P 2 4M 64k"]);
    let sound = Words::of(&lab, "a.qcow2");
    let (l1, reftable) = (sound.place(40), sound.place(48));
    let (l2, refblock) = (sound.place(l1), sound.place(reftable));
    let copied = 1 << 63;
    let lies = [0, l1, reftable, l2, refblock, 1 << 40, 0xfff, 8192 + 1];
    for place in [l1, l2, l2 + 8, l2 + 512, reftable, refblock, refblock + 8] {
        for lie in lies {
            for flags in [0, copied, copied | 1, 1, 1 << 62] {
                let file = sound.with(place, lie as u64 | flags);
                let disk = open(&file, None);
                block_on(async {
                    let io = disk.open_queue().unwrap();
                    for at in [0, 4096, 65536, 4 << 20, 6 << 20] {
                        let buf = guestmem::IoBuf::heap(8192, 1).unwrap();
                        let _ = io.read(at, vec![buf]).await;
                        let _ = try_write(&*io, at, &[9; 512]).await;
                        let _ = io.write_zeroes(at, 4096, ZeroMode::MayUnmap).await;
                        let _ = io.flush().await;
                        let _ = try_write(&*io, at + 512, &[9; 4096]).await;
                    }
                    let _ = disk.close().await;
                });
                let after = file.contents();
                assert!(
                    after[..72] == sound.0[..72],
                    "the header is what it was ({place:#x}: {lie:#x} {flags:#x})"
                );
                assert!(
                    !after[l1..l1 + 8].contains(&9) || lie == l1,
                    "guest data in the L1 table"
                );
            }
        }
    }
}

/// An entry that points at a table takes none of it away when it is discarded, zeroed or written anew.
#[test]
fn what_lies_takes_no_table_away() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 8M");
    lab.io("a.qcow2", &["write -P 1 0 64k", "write -P 2 4M 64k"]);
    lab.run("qemu-img snapshot -c one a.qcow2");
    lab.io("a.qcow2", &["write -P 3 0 64k", "write -P 4 4M 64k"]);
    let sound = Words::of(&lab, "a.qcow2");
    let [l1, reftable, snapshots] = [40, 48, 64].map(|at| sound.place(at));
    let [l2, other_l2, refblock, snapshot_l1] = [l1, l1 + 16, reftable, snapshots].map(|at| sound.place(at));
    let tables = [l1, reftable, snapshots, l2, refblock, snapshot_l1];
    let compressed = |table: usize| 1 << 62 | table as u64;
    for table in tables {
        // One entry of the guest's data points there, and everything else is sound.
        for word in [table as u64, table as u64 | 1 << 63, compressed(table)] {
            for way in 0..3 {
                let file = sound.with(other_l2, word);
                let disk = open(&file, None);
                block_on(async {
                    let io = disk.open_queue().unwrap();
                    // What the cache knows to be tables, it knows; the others are not looked at before.
                    read(&*io, 0, 4096).await;
                    let _ = try_write(&*io, 2 << 20, &[7; 4096]).await;
                    let at = 4 << 20;
                    let done = match way {
                        0 => io.discard(at, 4096).await.map_err(|error| error.kind()),
                        1 => {
                            let zeroed = io.write_zeroes(at, 4096, ZeroMode::MayUnmap).await;
                            zeroed.map_err(|error| error.kind())
                        }
                        _ => try_write(&*io, at, &[9; 4096]).await,
                    };
                    assert_eq!(done, Err(DiskErrorKind::Corrupt), "{table:#x} {word:#x} {way}");
                    for _ in 0..3 {
                        io.flush().await.unwrap();
                    }
                    assert_eq!(read(&*io, 0, 4096).await, [3; 4096], "{table:#x} {word:#x} {way}");
                });
                drop(disk);
                let again = open(&file, None);
                let whole = block_on(async { read(&*again.open_queue().unwrap(), 0, 65536).await });
                assert!(whole == [3; 65536], "{table:#x} {word:#x} {way}");
            }
        }
    }
    // A table of tables that points at one that does not change.
    for (entry, table) in [
        (l1 + 8, snapshots),
        (l1 + 8, snapshot_l1),
        (l1 + 8, reftable),
        (reftable + 8, snapshots),
    ] {
        let file = sound.with(entry, table as u64 | u64::from(entry != reftable + 8) << 63);
        let disk = open(&file, None);
        block_on(async {
            let io = disk.open_queue().unwrap();
            let _ = io.discard(2 << 20, 2 << 20).await;
            if entry != reftable + 8 {
                assert_eq!(try_write(&*io, 2 << 20, &[9; 4096]).await, Err(DiskErrorKind::Corrupt));
            }
            let _ = disk.close().await;
        });
        let after = file.contents();
        assert!(
            after[table..table + 4096] == sound.0[table..table + 4096],
            "{entry:#x} {table:#x}"
        );
    }
}

/// A place far behind the end of the file does not make it that long.
#[test]
fn places_behind_the_end_are_refused() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 8M");
    lab.io("a.qcow2", &["write -P 1 0 64k"]);
    let sound = Words::of(&lab, "a.qcow2");
    let l2 = sound.place(sound.place(40));
    for host in [1u64 << 24, 1 << 40, 1 << 55] {
        // Reads as zeroes, and keeps a place of its own.
        let file = sound.with(l2, host | 1 << 63 | 1);
        let disk = open(&file, None);
        block_on(async {
            let io = disk.open_queue().unwrap();
            assert_eq!(
                try_write(&*io, 0, &[9; 512]).await,
                Err(DiskErrorKind::Corrupt),
                "{host:#x}"
            );
            assert_eq!(try_write(&*io, 4096, &[9; 512]).await, Ok(()), "the next one is sound");
        });
        assert!(file.contents().len() <= sound.0.len() + (1 << 20), "{host:#x}");
    }
}

/// A block device has the length it has, which need not be whole clusters.
#[test]
fn a_device_of_any_length_is_written() {
    let Some(lab) = Lab::new() else { return };
    lab.run("qemu-img create -f qcow2 a.qcow2 4M");
    let mut bytes = lab.load("a.qcow2").contents();
    bytes.resize((1 << 20) + 512, 0);
    let file = InMemory::holding(bytes, Access::ReadWrite);
    let plan = FaultPlan::new();
    plan.inject(Fault::always(DiskOp::Grow, DiskErrorKind::Unsupported));
    let disk = open_on(Arc::new(Faulty::new(Arc::new(file.clone()), plan)), None);
    let written = block_on(async {
        let io = disk.open_queue().unwrap();
        let mut written = 0;
        let full = loop {
            match try_write(&*io, written * 65536, &[written as u8 + 1; 65536]).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full, DiskErrorKind::NoSpace);
        disk.close().await.unwrap();
        written
    });
    // Sixteen whole clusters, of which header, tables and refcounts have five.
    assert!((8..=12).contains(&written), "{written}");
    let again = open(&file, None);
    let whole = block_on(async { read_all(&*again.open_queue().unwrap()).await });
    for (cluster, bytes) in whole.chunks(65536).enumerate() {
        let expected = if (cluster as u64) < written {
            cluster as u8 + 1
        } else {
            0
        };
        assert!(bytes.iter().all(|&byte| byte == expected), "cluster {cluster}");
    }
    lab.check(&file, true);
}
