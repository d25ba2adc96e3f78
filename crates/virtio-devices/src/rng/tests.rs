//! The entropy source as a driver sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device::Device;
use virtio::feature::EVENT_IDX;
use virtio::mock::{Buf, MockDriver};

use super::{Rng, RngOptions};

fn driver(bytes_per_second: u64) -> MockDriver {
    let options = RngOptions {
        bytes_per_second,
        ..RngOptions::named("rng0")
    };
    let mut driver = MockDriver::new(Arc::new(Rng::new(options)));
    driver.start(EVENT_IDX);
    driver
}

fn ask(driver: &mut MockDriver, length: u32) -> Vec<u8> {
    let into = driver.allocate(length as usize);
    driver.submit(
        0,
        &[
            Buf::Writable(into, length / 2),
            Buf::Writable(into + u64::from(length / 2), length - length / 2),
        ],
    );
    let used = driver.wait_used(0);
    driver.bytes(into, used.len as usize)
}

#[test]
fn gives_bytes_that_differ() {
    let mut driver = driver(1 << 30);
    let answers: BTreeSet<Vec<u8>> = (0..50).map(|_| ask(&mut driver, 64)).collect();
    assert_eq!(answers.len(), 50);
    assert!(answers.iter().all(|answer| answer.len() == 64));
    assert_eq!(ask(&mut driver, 10_000).len(), 4096, "as much as it gives at once");
}

#[test]
fn gives_no_more_than_its_rate() {
    let mut driver = driver(64 << 10);
    let start = Instant::now();
    let given: usize = (0..5).map(|_| ask(&mut driver, 4096).len()).sum();
    assert_eq!(given, 5 * 4096);
    // The first comes at once, the other four take a sixteenth of a second each.
    assert!(start.elapsed() >= Duration::from_millis(249), "{:?}", start.elapsed());
}

#[test]
fn pauses_resumes_resets_and_survives_nonsense() {
    let mut driver = driver(1 << 30);
    driver.transport().pause().wait();
    let into = driver.allocate(16);
    driver.submit(0, &[Buf::Writable(into, 16)]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.ring(0).take_used(), None);
    driver.transport().resume();
    assert_eq!(driver.wait_used(0).len, 16);

    driver.submit(0, &[Buf::Readable(into, 16)]);
    assert_eq!(driver.wait_used(0).len, 0, "no room, no bytes");
    driver.submit(0, &[Buf::Writable(1 << 50, 16)]);
    driver.wait_needs_reset();
    driver.start(0);
    assert_eq!(ask(&mut driver, 8).len(), 8);
}

#[test]
fn goes_on_in_another_machine() {
    let mut driver = driver(1 << 30);
    assert_eq!(ask(&mut driver, 8).len(), 8);
    let fresh = || Arc::new(Rng::new(RngOptions::named("rng0")));
    driver.transport().pause().wait();
    device::conformance::check(&**driver.transport(), || driver.twin(fresh()));
    driver.transport().resume();
    for _ in 0..5 {
        driver.move_to(fresh());
        assert_eq!(ask(&mut driver, 8).len(), 8);
    }
}
