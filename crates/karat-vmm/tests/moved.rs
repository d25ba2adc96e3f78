//! Tiny guests on the machine's own KVM that move to another process while they run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they measured"
)]

mod harness;

use std::time::{Duration, Instant};

use control::{
    AutoConvergeSteps, EndReason, FromVm, MigrationNews, MigrationPhase, MigrationProgress, MoveOptions, PostCopyWish,
    RefusalKind, VmEvent, VmRequest, VmState,
};
use harness::moving::{Road, Target};
use harness::{Console, PATIENCE, Setup, Vmm, can_run};

/// The same machine in all processes.
const ID: &str = "4d9c2a52-6f0e-4bb6-9a53-6d8f3c1d7e10";

fn tiny(test: &str) -> Setup {
    let mut setup = Setup::tiny(test);
    setup.parts.id = ID.parse().unwrap();
    setup
}

/// A counting guest.
fn counting() -> Setup {
    tiny("count")
}

fn wait_for_count(console: &mut Console, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while console.seen.matches("count ").count() < count {
        assert!(
            Instant::now() < deadline && console.read(),
            "no {count} counts:\n{}",
            console.seen
        );
    }
}

/// All lines of the guest over all its processes: every count once, in order.
fn check_counts(said: &str) -> u64 {
    let mut next = 0;
    for line in said.lines() {
        if let Some(number) = line.strip_prefix("count ") {
            assert_eq!(number.parse(), Ok(next), "a gap in: {said}");
            next += 1;
        }
        assert!(!line.starts_with("FAIL"), "{said}");
    }
    next
}

/// Has the guest look at all of its memory, and end.
fn finish(vmm: &mut Vmm, test: &str) {
    let mut console = vmm.console();
    console.type_in("q");
    console.wait_for(&format!("PASS {test}"));
    assert_eq!(vmm.report().reason, EndReason::DebugExit { code: 0 });
}

#[test]
fn counting_goes_on_without_a_gap_over_every_road() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(counting().cpus(2));
    wait_for_count(&mut vmm.console(), 10);
    let mut said = String::new();
    for (road, streams) in [(Road::Tcp, 1), (Road::Unix, 4), (Road::Tls, 3), (Road::Tcp, 16)] {
        let mut target = Target::prepare(counting().cpus(2), road);
        let options = MoveOptions {
            streams,
            zstd: streams == 3,
            delta_cache_bytes: u64::from(streams) << 18,
            ..MoveOptions::default()
        };
        let told = target.fetch(&mut vmm, &mut link, options);
        let last = told.last().unwrap();
        assert_eq!(last.phase, MigrationPhase::Succeeded);
        assert_eq!(last.total_bytes, 32 << 20);
        println!("{road:?}: {last:?}");
        said += &vmm.console_log();
        (vmm, link) = (target.vmm, target.link);
        let mut console = vmm.console();
        wait_for_count(&mut console, 10);
        console.type_in("b");
        console.wait_for("typed b");
    }
    finish(&mut vmm, "count");
    said += &vmm.console_log();
    assert!(check_counts(&said) >= 50, "{said}");
}

/// A guest whose counter goes through so many MiB.
fn pattern(mib: u64, rate: u64) -> Setup {
    let mut setup = tiny("pattern").memory((mib + 32) << 20);
    setup.parts.cmdline = format!("test=pattern mib={mib} rate={rate}");
    setup
}

/// Moves a machine `times` times while a counter goes through its memory; every page is looked at in every pass.
fn moves_with_a_counter(mib: u64, times: u32) {
    let setup = || pattern(mib, 0);
    let (mut vmm, mut link) = Vmm::boot(setup());
    vmm.console().wait_within("READY pattern", Duration::from_mins(1));
    let mut longest = 0;
    for number in 0..times {
        let mut target = Target::prepare(setup(), Road::Tcp);
        let begin = Instant::now();
        let options = MoveOptions {
            streams: 2,
            completion_timeout_per_gib_ms: Some(2000),
            on_timeout: control::OnMoveTimeout::Finish,
            ..MoveOptions::default()
        };
        let told = target.fetch(&mut vmm, &mut link, options);
        let last = told.last().unwrap();
        longest = longest.max(last.downtime_ms.unwrap_or(0));
        println!(
            "move {number}: {:?}, {} rounds, {} MiB on the wire, downtime {:?} ms",
            begin.elapsed(),
            last.round,
            last.wire_bytes >> 20,
            last.downtime_ms
        );
        assert!(!vmm.console_log().contains("FAIL"), "{}", vmm.console_log());
        (vmm, link) = (target.vmm, target.link);
    }
    let mut console = vmm.console();
    console.type_in("q");
    console.wait_within("PASS pattern", Duration::from_mins(1));
    println!(
        "{}",
        console
            .seen
            .lines()
            .rfind(|line| line.contains("verified"))
            .unwrap_or_default()
    );
    assert_eq!(vmm.report().reason, EndReason::DebugExit { code: 0 });
    println!("{times} moves of {mib} MiB, longest downtime {longest} ms");
}

#[test]
fn memory_is_exact_while_a_counter_goes_through_it() {
    if can_run() {
        moves_with_a_counter(64, 5);
    }
}

/// The long form. `KARAT_MOVES` says how often, else it is 200 times.
#[test]
#[ignore = "takes many minutes: run it by name, on a machine that does nothing else"]
fn memory_of_a_gib_is_exact_over_two_hundred_moves() {
    let times = std::env::var("KARAT_MOVES").map_or(200, |text| text.parse().unwrap());
    if can_run() {
        moves_with_a_counter(1024, times);
    }
}

#[test]
fn a_cancelled_move_leaves_the_guest_where_it_is_and_the_target_clean() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(pattern(64, 0));
    vmm.console().wait_for("READY pattern");
    let mut target = Target::prepare(pattern(64, 0), Road::Tcp);
    let slow = MoveOptions {
        bandwidth_bytes_per_s: 1 << 20,
        ..MoveOptions::default()
    };
    target.invite(&mut link, slow.clone()).unwrap();
    // While it moves, it is not to be changed.
    for request in [VmRequest::Pause, VmRequest::Reset] {
        let refusal = link.ask(request).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::WrongState);
        assert!(refusal.message.contains("migration"), "{}", refusal.message);
    }
    assert_eq!(
        target.invite(&mut link, slow).unwrap_err().kind,
        RefusalKind::WrongState
    );
    link.ask(VmRequest::DepartTune {
        bandwidth_bytes_per_s: 2 << 20,
    })
    .unwrap();
    assert_eq!(
        link.ask(VmRequest::DepartDecided { departed: true }).unwrap_err().kind,
        RefusalKind::WrongState
    );
    link.ask(VmRequest::DepartCancel).unwrap();
    match link.migration_turn() {
        MigrationNews::Stayed { cancelled: true, .. } => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        target.link.migration_turn(),
        MigrationNews::ArrivalFailed { .. }
    ));
    assert_eq!(target.vmm.report().reason, EndReason::ArrivalFailed);
    // A daemon that comes now is told how it ended.
    assert!(matches!(
        vmm.link().hello.migration,
        Some(MigrationNews::Stayed { cancelled: true, .. } | MigrationNews::Progress(_))
    ));
    assert_eq!(link.ask(VmRequest::Status).unwrap().state, VmState::Running);
    // It can be moved afterwards, and nothing was lost.
    let mut target = Target::prepare(pattern(64, 0), Road::Tcp);
    target.fetch(&mut vmm, &mut link, MoveOptions::default());
    finish(&mut target.vmm, "pattern");
}

#[test]
fn whoever_dies_leaves_one_machine() {
    if !can_run() {
        return;
    }
    let slow = || MoveOptions {
        bandwidth_bytes_per_s: 4 << 20,
        ..MoveOptions::default()
    };
    let (mut vmm, mut link) = Vmm::boot(pattern(16, 100));
    vmm.console().wait_for("READY pattern");
    // The target dies in the middle: the machine stays.
    let mut target = Target::prepare(pattern(16, 100), Road::Tcp);
    target.invite(&mut link, slow()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    target.vmm.signal("KILL");
    target.vmm.wait();
    assert!(matches!(
        link.migration_turn(),
        MigrationNews::Stayed { cancelled: false, .. }
    ));
    assert_eq!(link.ask(VmRequest::Status).unwrap().state, VmState::Running);
    // The record says that it stays: the target was in doubt, or gave up.
    let mut target = Target::prepare(pattern(16, 100), Road::Tcp);
    target.invite(&mut link, MoveOptions::default()).unwrap();
    assert!(matches!(link.migration_turn(), MigrationNews::Decide { .. }));
    link.ask(VmRequest::DepartDecided { departed: false }).unwrap();
    assert!(matches!(link.migration_turn(), MigrationNews::Stayed { .. }));
    assert!(matches!(target.link.migration_turn(), MigrationNews::InDoubt { .. }));
    target.link.ask(VmRequest::ArriveDecided { departed: false }).unwrap();
    assert_eq!(target.vmm.report().reason, EndReason::ArrivalFailed);
    // The source dies while its departure is being recorded: the target asks, and runs it.
    let mut target = Target::prepare(pattern(16, 100), Road::Tcp);
    target.invite(&mut link, MoveOptions::default()).unwrap();
    assert!(matches!(link.migration_turn(), MigrationNews::Decide { .. }));
    vmm.signal("KILL");
    vmm.wait();
    let MigrationNews::InDoubt { key } = target.link.migration_turn() else {
        panic!("the target can not know");
    };
    assert_eq!(key, target.key);
    assert!(matches!(
        target.vmm.link().hello.migration,
        Some(MigrationNews::InDoubt { .. })
    ));
    target.link.ask(VmRequest::ArriveDecided { departed: true }).unwrap();
    target.await_complete();
    finish(&mut target.vmm, "pattern");
}

#[test]
fn a_paused_machine_moves_and_stays_paused() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(counting());
    wait_for_count(&mut vmm.console(), 5);
    link.ask(VmRequest::Pause).unwrap();
    let mut target = Target::prepare(counting(), Road::Tcp);
    target.fetch(&mut vmm, &mut link, MoveOptions::default());
    assert_eq!(target.link.ask(VmRequest::Status).unwrap().state, VmState::Paused);
    target.link.ask(VmRequest::Resume).unwrap();
    wait_for_count(&mut target.vmm.console(), 5);
    finish(&mut target.vmm, "count");
    check_counts(&(vmm.console_log() + &target.vmm.console_log()));
}

#[test]
fn what_is_not_the_same_machine_is_refused() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(counting());
    wait_for_count(&mut vmm.console(), 3);
    for (setup, why) in [
        (counting().memory(64 << 20), "memory"),
        (counting().cpus(2), "had 1"),
        (Setup::tiny("count"), "machine"),
    ] {
        let mut target = Target::prepare(setup, Road::Tcp);
        target.invite(&mut link, MoveOptions::default()).unwrap();
        assert!(matches!(link.migration_turn(), MigrationNews::Stayed { .. }));
        let MigrationNews::ArrivalFailed { reason } = target.link.migration_turn() else {
            panic!("it does not come");
        };
        assert!(reason.contains(why), "{reason}");
        assert_eq!(target.vmm.report().reason, EndReason::ArrivalFailed);
    }
    finish(&mut vmm, "count");
}

#[test]
fn memory_that_comes_after_the_start_is_exact_under_scattered_access() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(pattern(64, 0).cpus(2));
    vmm.console().wait_for("READY pattern");
    for (rounds, streams, road) in [(0, 1, Road::Tcp), (1, 4, Road::Tls), (0, 2, Road::Unix)] {
        let mut target = Target::prepare(pattern(64, 0).cpus(2), road);
        let options = MoveOptions {
            streams,
            post_copy: PostCopyWish::AfterRounds { rounds },
            // Never short enough, so that it takes the rounds.
            downtime_ms: 1,
            // Slow enough for the guest to get at pages before they come by themselves.
            bandwidth_bytes_per_s: 64 << 20,
            ..MoveOptions::default()
        };
        let told = target.fetch(&mut vmm, &mut link, options);
        let last = told.last().unwrap();
        println!("after {rounds} rounds: {last:?}");
        assert!(last.post_copy, "{last:?}");
        assert!(!vmm.console_log().contains("FAIL"), "{}", vmm.console_log());
        (vmm, link) = (target.vmm, target.link);
    }
    finish(&mut vmm, "pattern");
}

#[test]
fn a_started_machine_waits_for_links_and_goes_on_when_they_come() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(pattern(32, 0));
    vmm.console().wait_for("READY pattern");
    let mut target = Target::prepare(pattern(32, 0), Road::Tls);
    let options = MoveOptions {
        post_copy: PostCopyWish::AfterRounds { rounds: 0 },
        bandwidth_bytes_per_s: 8 << 20,
        ..MoveOptions::default()
    };
    let sockets = target.invite_over(&mut link, options).unwrap();
    assert!(matches!(link.migration_turn(), MigrationNews::Decide { .. }));
    link.ask(VmRequest::DepartDecided { departed: true }).unwrap();
    assert!(matches!(link.migration_turn(), MigrationNews::Departed));
    assert!(matches!(target.link.migration_turn(), MigrationNews::Arrived { .. }));
    assert_eq!(
        link.ask(VmRequest::DepartCancel).unwrap_err().kind,
        RefusalKind::WrongState
    );
    assert_eq!(link.ask(VmRequest::Status).unwrap().state, VmState::Departed);
    for socket in &sockets {
        rustix::net::shutdown(socket, rustix::net::Shutdown::Both).unwrap();
    }
    let mut wanted = 0;
    // More than once where the target has not seen yet that the old links are gone.
    while let Some(frame) = link.next() {
        if let FromVm::Event(VmEvent::Migration(MigrationNews::LinksWanted { count, .. })) = frame {
            wanted += 1;
            target.send_links(&mut link, count);
        }
    }
    assert!(wanted > 0, "it needs other links");
    target.await_whole();
    assert_eq!(vmm.report().reason, EndReason::Departed);
    finish(&mut target.vmm, "pattern");
}

#[test]
fn a_bandwidth_limit_is_kept() {
    if !can_run() {
        return;
    }
    let (mut vmm, mut link) = Vmm::boot(pattern(64, 1));
    vmm.console().wait_for("READY pattern");
    let mut target = Target::prepare(pattern(64, 1), Road::Tcp);
    let limit = 32 << 20;
    let options = MoveOptions {
        streams: 4,
        bandwidth_bytes_per_s: limit,
        ..MoveOptions::default()
    };
    let begin = Instant::now();
    let told = target.fetch(&mut vmm, &mut link, options);
    let last = told.last().unwrap();
    // What the first round sent at the rate it says: the rest of the move is no matter of bandwidth.
    let first = told.iter().rfind(|progress| progress.round == 2).unwrap_or(last);
    let rate = first.throughput_bytes_per_s;
    println!(
        "{:?} for {} bytes, {rate} B/s measured",
        begin.elapsed(),
        last.wire_bytes
    );
    assert!(last.wire_bytes > 60 << 20);
    let low = limit - limit / 20;
    let high = limit + limit / 20;
    assert!(
        (low..=high).contains(&rate),
        "{rate} is not within 5 % of {limit}: {told:?}"
    );
    finish(&mut target.vmm, "pattern");
}

/// How a move goes at one rate of writing, in pages in 10 ms, over a link of 20 MiB/s.
fn at_rate(rate: u64, change: impl FnOnce(&mut MoveOptions)) -> Result<Vec<MigrationProgress>, String> {
    let setup = || pattern(32, rate);
    let (mut vmm, mut link) = Vmm::boot(setup());
    vmm.console().wait_for("READY pattern");
    let mut target = Target::prepare(setup(), Road::Tcp);
    let mut options = MoveOptions {
        bandwidth_bytes_per_s: 20 << 20,
        downtime_ms: 300,
        completion_timeout_per_gib_ms: Some(320_000),
        ..MoveOptions::default()
    };
    change(&mut options);
    let told = target.try_fetch(&mut vmm, &mut link, options);
    finish(if told.is_ok() { &mut target.vmm } else { &mut vmm }, "pattern");
    told
}

#[test]
fn a_guest_that_writes_slowly_converges_by_itself() {
    if can_run() {
        for rate in [1, 8, 24] {
            let told = at_rate(rate, |_| {}).unwrap();
            let last = told.last().unwrap();
            println!(
                "{rate} pages in 10 ms: {} rounds, dirty {} KiB/s, downtime {:?} ms",
                last.round,
                last.dirty_bytes_per_s >> 10,
                last.downtime_ms
            );
            assert_eq!(last.throttle_percent, 0);
        }
    }
}

#[test]
fn a_guest_that_writes_too_fast_stays_when_time_is_up() {
    if can_run() {
        let why = at_rate(0, |options| options.completion_timeout_per_gib_ms = Some(64_000)).unwrap_err();
        assert!(why.contains("auto-converge"), "{why}");
    }
}

#[test]
fn a_guest_that_writes_too_fast_is_slowed_until_it_converges() {
    if can_run() {
        let steps = AutoConvergeSteps {
            initial_percent: 40,
            step_percent: 20,
            max_percent: 99,
        };
        let told = at_rate(0, |options| options.auto_converge = Some(steps)).unwrap();
        for progress in &told {
            println!(
                "round {}: dirty {} MiB/s, slowed by {} %",
                progress.round,
                progress.dirty_bytes_per_s >> 20,
                progress.throttle_percent
            );
        }
        assert!(told.last().unwrap().throttle_percent >= 40);
    }
}

#[test]
fn post_copy_ends_what_would_not_converge() {
    if can_run() {
        let told = at_rate(0, |options| {
            options.completion_timeout_per_gib_ms = Some(64_000);
            options.post_copy = PostCopyWish::AfterTimeout;
        });
        assert!(told.unwrap().last().unwrap().post_copy);
    }
}
