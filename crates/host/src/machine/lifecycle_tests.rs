//! Histories of machines.

use super::*;
use VmPhase::{Failed, Paused, Running, Starting, Stopped, Stopping};

fn machine(phase: VmPhase) -> Lifecycle {
    let status = VmStatus {
        phase,
        reason: None,
        message: None,
        pid: None,
        started_at: None,
        start_to_guest_us: None,
        resets: 0,
        clone_method: None,
        root_disk: None,
    };
    Lifecycle::new("web", status)
}

fn id() -> OperationId {
    OperationId::random()
}

fn stop(operation: OperationId, force: bool) -> Ask {
    Ask::Stop { operation, force }
}

fn launched() -> Happened {
    Happened::Launched {
        pid: 7,
        start_to_guest_us: Some(1500),
    }
}

fn exit(clean: bool) -> Happened {
    Happened::Exited(End {
        reason: if clean { "GuestPowerOff" } else { "Killed" }.to_owned(),
        message: "gone".to_owned(),
        clean,
    })
}

fn finished(effects: &[Effect]) -> Vec<(OperationId, OperationPhase)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Finish(id, phase, _) => Some((*id, *phase)),
            _ => None,
        })
        .collect()
}

#[test]
fn what_may_be_asked_is_the_drawing() {
    let all = [
        ("start", Ask::Start(id())),
        ("stop", stop(id(), false)),
        ("force", stop(id(), true)),
        ("pause", Ask::Pause),
        ("resume", Ask::Resume),
        ("reset", Ask::Reset),
        ("change disk", Ask::ChangeDisk),
        ("edit", Ask::Edit),
        ("delete", Ask::Delete),
    ];
    let allowed = |phase| {
        let may = |ask: Ask| machine(phase).ask(ask).is_ok();
        all.iter()
            .filter(|(_, ask)| may(*ask))
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(allowed(Stopped), "start edit delete");
    assert_eq!(allowed(Failed), "start edit delete");
    assert_eq!(allowed(Starting), "force");
    assert_eq!(allowed(Running), "stop force pause reset change disk");
    assert_eq!(allowed(Paused), "force resume change disk");
    assert_eq!(allowed(Stopping), "force");
}

#[test]
fn of_two_starts_one_wins_and_the_other_is_told_why() {
    let (mut vm, first) = (machine(Stopped), id());
    assert_eq!(vm.ask(Ask::Start(first)).unwrap(), [Effect::Launch]);
    let refused = vm.ask(Ask::Start(id())).unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongState);
    assert_eq!(
        refused.detail,
        "machine web is Starting: it is being started already; follow the operation of that start"
    );
    assert_eq!(finished(&vm.happened(launched())), [(first, OperationPhase::Succeeded)]);
    assert_eq!(
        (vm.phase(), vm.status.pid, vm.status.start_to_guest_us),
        (Running, Some(7), Some(1500))
    );
}

#[test]
fn a_launch_that_fails_leaves_a_machine_that_can_be_started_again() {
    let (mut vm, first) = (machine(Stopped), id());
    vm.ask(Ask::Start(first)).unwrap();
    let failure = Failure::new(ErrorCode::BadKernel, "no kernel");
    let effects = vm.happened(Happened::LaunchFailed(failure.clone()));
    assert_eq!(effects, [Effect::Finish(first, OperationPhase::Failed, Some(failure))]);
    assert_eq!(vm.phase(), Failed);
    assert_eq!(vm.status.message.as_deref(), Some("no kernel"));
    vm.ask(Ask::Start(id())).unwrap();
}

#[test]
fn a_guest_that_shuts_down_ends_the_stop_that_asked_for_it() {
    let (mut vm, asked) = (machine(Running), id());
    let effects = vm.ask(stop(asked, false)).unwrap();
    assert_eq!(effects, [Effect::Send(VmRequest::PowerButton), Effect::AwaitShutdown]);
    assert_eq!(vm.phase(), Stopping);
    let effects = vm.happened(exit(true));
    assert_eq!(finished(&effects), [(asked, OperationPhase::Succeeded)]);
    assert_eq!(
        (vm.phase(), vm.status.reason.as_deref()),
        (Stopped, Some("GuestPowerOff"))
    );
}

#[test]
fn a_guest_that_does_not_shut_down_goes_on() {
    for (happened, phase) in [(None, OperationPhase::Failed), (Some(()), OperationPhase::Cancelled)] {
        let (mut vm, asked) = (machine(Running), id());
        vm.ask(stop(asked, false)).unwrap();
        let happened = happened.map_or(Happened::StopTimedOut, |()| Happened::Cancelled(asked));
        let effects = vm.happened(happened);
        assert_eq!(effects.first(), Some(&Effect::Forget));
        assert_eq!(finished(&effects), [(asked, phase)]);
        assert_eq!(vm.phase(), Running);
        // The guest shuts down after all: nobody waits, but it is down.
        assert_eq!(vm.happened(exit(true)), [Effect::Forget]);
        assert_eq!(vm.phase(), Stopped);
    }
}

#[test]
fn force_takes_over_a_stop_and_whatever_ends_the_process_is_as_asked() {
    let (mut vm, polite, hard) = (machine(Running), id(), id());
    vm.ask(stop(polite, false)).unwrap();
    assert_eq!(vm.ask(stop(hard, true)).unwrap(), [Effect::End]);
    assert!(vm.happened(Happened::StopTimedOut).is_empty());
    assert!(vm.happened(Happened::Cancelled(hard)).is_empty());
    let effects = vm.happened(exit(false));
    assert_eq!(
        finished(&effects),
        [(polite, OperationPhase::Succeeded), (hard, OperationPhase::Succeeded)]
    );
    assert_eq!((vm.phase(), vm.status.reason.as_deref()), (Stopped, Some("Requested")));
    // Once over, force is over too.
    vm.ask(Ask::Start(id())).unwrap();
    vm.happened(launched());
    vm.happened(exit(false));
    assert_eq!(vm.phase(), Failed);
}

#[test]
fn a_start_can_be_given_up_early_or_late() {
    for late in [false, true] {
        let (mut vm, start, force) = (machine(Stopped), id(), id());
        vm.ask(Ask::Start(start)).unwrap();
        assert_eq!(vm.ask(stop(force, true)).unwrap(), [Effect::AbortLaunch]);
        assert_eq!(vm.phase(), Stopping);
        let mut effects = Vec::new();
        if late {
            effects.extend(vm.happened(launched()));
            assert_eq!(effects.first(), Some(&Effect::End));
            effects.extend(vm.happened(exit(false)));
        } else {
            effects.extend(vm.happened(Happened::LaunchFailed(Failure::new(ErrorCode::Cancelled, "given up"))));
        }
        assert_eq!(
            finished(&effects),
            [(start, OperationPhase::Cancelled), (force, OperationPhase::Succeeded)]
        );
        assert_eq!(vm.phase(), Stopped);
    }
    let (mut vm, start) = (machine(Stopped), id());
    vm.ask(Ask::Start(start)).unwrap();
    assert_eq!(vm.happened(Happened::Cancelled(start)), [Effect::AbortLaunch]);
}

#[test]
fn pause_and_resume_follow_what_the_process_says() {
    let mut vm = machine(Running);
    assert_eq!(vm.ask(Ask::Pause).unwrap(), [Effect::Send(VmRequest::Pause)]);
    assert_eq!(vm.phase(), Running);
    vm.happened(Happened::State(VmState::Paused));
    assert_eq!(vm.phase(), Paused);
    let refused = vm.ask(stop(id(), false)).unwrap_err();
    assert!(refused.detail.contains("resume it first"), "{refused}");
    vm.ask(Ask::Resume).unwrap();
    vm.happened(Happened::State(VmState::Running));
    assert_eq!(vm.phase(), Running);
    vm.happened(Happened::Resets(3));
    assert_eq!(vm.status.resets, 3);
}

#[test]
fn a_killed_machine_is_failed_with_its_reason() {
    for phase in [Running, Paused] {
        let mut vm = machine(phase);
        vm.happened(exit(false));
        assert_eq!((vm.phase(), vm.status.reason.as_deref()), (Failed, Some("Killed")));
    }
    let (mut vm, asked) = (machine(Running), id());
    vm.ask(stop(asked, false)).unwrap();
    let effects = vm.happened(exit(false));
    assert_eq!(finished(&effects), [(asked, OperationPhase::Failed)]);
}
