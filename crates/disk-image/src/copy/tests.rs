//! Copies between disks in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::conformance::pattern;
use disk::{Access, Fault, FaultPlan, Faulty, Geometry, InMemory};

use super::*;
use crate::watch::Progress;

const RULES: Rules = Rules {
    sparse_bytes: 4096,
    target_is_zero: true,
    threads: NonZeroUsize::new(2),
    in_order: false,
};

fn holed(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (start, len) in [(0, 512), (5 << 20, 3 << 20), (size - 70_000, 70_000), (1 << 20, 12_345)] {
        let end = (start + len).min(size);
        bytes[start..end].copy_from_slice(&pattern(end - start, start as u64 + 1));
    }
    bytes
}

#[test]
fn all_that_is_there_arrives_and_zeroes_are_skipped() {
    let bytes = holed((21 << 20) + 512);
    let source = InMemory::holding(bytes.clone(), Access::ReadOnly);
    for rules in [
        RULES,
        Rules {
            sparse_bytes: 0,
            ..RULES
        },
        Rules {
            threads: NonZeroUsize::new(1),
            ..RULES
        },
    ] {
        let progress = Progress::new();
        let target = InMemory::new(Geometry::of_size(22 << 20));
        copy(&source, &target, None, rules, &progress).unwrap();
        assert!(target.contents()[..bytes.len()] == bytes);
        assert_eq!(
            (progress.done_bytes(), progress.total_bytes()),
            (21 << 20 | 512, 21 << 20 | 512)
        );
    }
    // A target that holds something else is cleared where the source is zeroes.
    let target = InMemory::holding(vec![0xee; bytes.len()], Access::ReadWrite);
    let rules = Rules {
        target_is_zero: false,
        ..RULES
    };
    copy(&source, &target, None, rules, &()).unwrap();
    assert!(target.contents() == bytes);
}

#[test]
fn failures_and_stops_end_it() {
    let bytes = holed(16 << 20);
    let make = |op| {
        let plan = FaultPlan::new();
        plan.inject(Fault {
            range: 6 << 20..7 << 20,
            ..Fault::always(op, DiskErrorKind::Io)
        });
        Faulty::new(Arc::new(InMemory::holding(bytes.clone(), Access::ReadWrite)), plan)
    };
    let good = InMemory::new(Geometry::of_size(16 << 20));
    let error = copy(&make(DiskOp::Read), &good, None, RULES, &()).unwrap_err();
    assert!(matches!(error, CopyError::Source(_)), "{error}");
    let error = copy(&make(DiskOp::Flush), &make(DiskOp::Write), None, RULES, &()).unwrap_err();
    assert!(matches!(error, CopyError::Target(_)), "{error}");
    let error = copy(
        &InMemory::holding(bytes.clone(), Access::ReadOnly),
        &InMemory::new(Geometry::of_size(512)),
        None,
        RULES,
        &(),
    );
    assert!(matches!(error, Err(CopyError::TooSmall { .. })));

    /// Stops after the first piece.
    struct Once(AtomicU64);
    impl Watch for Once {
        fn progress(&self, done_bytes: u64, _: u64) {
            self.0.store(done_bytes, Ordering::Relaxed);
        }
        fn is_stopped(&self) -> bool {
            self.0.load(Ordering::Relaxed) > 0
        }
    }
    let source = InMemory::holding(bytes, Access::ReadOnly);
    let error = copy(&source, &good, None, RULES, &Once(AtomicU64::new(0))).unwrap_err();
    assert!(matches!(error, CopyError::Stopped), "{error}");
}

/// Nothing to copy, in pieces that differ from their neighbours; counts how many pieces were told.
struct Stripes(Arc<AtomicU64>);

const STRIPE_BYTES: usize = 4096;

impl Guide for Stripes {
    fn steps(&self, offset: u64, len: u64) -> disk::DiskFuture<'_, Result<Vec<guide::Step>, DiskError>> {
        let stripe = |offset: u64| guide::Step {
            offset,
            len: STRIPE_BYTES as u64,
            action: match (offset / STRIPE_BYTES as u64).is_multiple_of(2) {
                true => Action::Zero,
                false => Action::Skip,
            },
        };
        let steps: Vec<_> = (offset..offset + len).step_by(STRIPE_BYTES).map(stripe).collect();
        self.0.fetch_add(steps.len() as u64, Ordering::Relaxed);
        Box::pin(async move { Ok(steps) })
    }
}

#[test]
fn what_is_alike_is_not_looked_for_to_the_end_of_the_disk() {
    let size = 64 << 20;
    let disk = InMemory::new(Geometry::of_size(size));
    let told = Arc::new(AtomicU64::new(0));
    let guide = || -> Result<Box<dyn Guide>, DiskError> { Ok(Box::new(Stripes(Arc::clone(&told)))) };
    let progress = Progress::new();
    run(Job {
        source: &disk,
        target: &disk,
        reference: None,
        guide: &guide,
        packed: None,
        rules: RULES,
        regions: Regions::of(size),
        watch: &progress,
        failure: Mutex::new(None),
    })
    .unwrap();
    assert_eq!(progress.done_bytes(), size);
    let (told, pieces) = (told.load(Ordering::Relaxed), size / STRIPE_BYTES as u64);
    assert!(told >= pieces && told <= 3 * pieces, "{told} of {pieces}");
}
