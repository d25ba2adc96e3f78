//! The suite on the disks of this crate, and what is particular to each decorator.

use super::*;
use crate::{Fault, FaultPlan, Faulty, Geometry, InMemory, ReadOnly, Strike};
use std::pin::pin;
use std::task::{Context, Waker};

/// For futures that are ready at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an in-memory disk does not wait"),
    }
}

fn in_memory(logical_sector_bytes: u32) -> Arc<dyn Disk> {
    Arc::new(InMemory::new(Geometry {
        logical_sector_bytes,
        ..Geometry::of_size(SIZE_BYTES)
    }))
}

#[test]
fn memory_and_its_decorators_conform() {
    all(|| in_memory(512), |case| now(case));
    all(|| in_memory(4096), |case| now(case));
    all(
        || Arc::new(Faulty::new(in_memory(512), FaultPlan::new())),
        |case| now(case),
    );
}

#[test]
fn read_only_refuses_every_change_and_reads_on() {
    let bytes = pattern(8192, 1);
    let below = InMemory::holding(bytes.clone(), Access::ReadWrite);
    let disk = ReadOnly::new(Arc::new(below.clone()));
    assert_eq!(disk.geometry().access, Access::ReadOnly);
    let io = disk.open_queue().unwrap();
    let (result, bufs) = now(io.write(0, vec![empty(512)]));
    assert_eq!((result.unwrap_err().kind(), bufs.len()), (DiskErrorKind::ReadOnly, 1));
    assert_eq!(now(io.discard(0, 512)).unwrap_err().kind(), DiskErrorKind::ReadOnly);
    assert_eq!(
        now(io.write_zeroes(0, 512, ZeroMode::MayUnmap)).unwrap_err().kind(),
        DiskErrorKind::ReadOnly
    );
    now(io.flush()).unwrap();
    assert_eq!(now(get(&*io, 0, 8192, 512)), bytes);
    assert_eq!(below.contents(), bytes);
}

#[test]
fn faults_strike_where_and_when_planned() {
    let below = InMemory::new(Geometry::of_size(SIZE_BYTES));
    let plan = FaultPlan::new();
    let disk = Faulty::new(Arc::new(below.clone()), plan.clone());
    let io = disk.open_queue().unwrap();
    let write = |offset| now(io.write(offset, vec![buf(&[1; 512])])).0.map_err(|e| e.kind());
    let fault = Fault {
        range: 4096..8192,
        skip: 1,
        count: 1,
        ..Fault::always(DiskOp::Write, DiskErrorKind::NoSpace)
    };
    plan.inject(fault);
    assert_eq!(write(0), Ok(()));
    assert_eq!(write(4096), Ok(()));
    assert_eq!(write(8192), Ok(()));
    assert_eq!(write(4608), Err(DiskErrorKind::NoSpace));
    assert_eq!(below.contents()[4608], 0);
    assert_eq!(write(4608), Ok(()));
    plan.inject(Fault {
        strike: Strike::After,
        ..Fault::always(DiskOp::Write, DiskErrorKind::Io)
    });
    assert_eq!(write(9216), Err(DiskErrorKind::Io));
    assert_eq!(below.contents()[9216], 1);
    plan.inject(Fault::always(DiskOp::Flush, DiskErrorKind::Io));
    plan.inject(Fault::always(DiskOp::Open, DiskErrorKind::Io));
    assert_eq!(now(io.flush()).unwrap_err().kind(), DiskErrorKind::Io);
    assert!(disk.open_queue().is_err());
    plan.clear();
    assert_eq!((write(9216), now(io.flush()).is_ok(), plan.struck()), (Ok(()), true, 4));
}

#[test]
fn images_are_probed_as_files_and_as_disks_alike() {
    use crate::probe::{Format, Sample};
    let mut bytes = vec![0; 64 << 10];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    for size in [512, 36 << 10, 64 << 10] {
        let disk = InMemory::holding(bytes[..size].to_vec(), Access::ReadOnly);
        let sample = now(Sample::of_disk(&disk)).unwrap();
        assert_eq!(sample, Sample::new(&bytes[..size], &bytes[..size], size as u64));
        assert_eq!(sample.format(), Format::Qcow2);
    }
}
