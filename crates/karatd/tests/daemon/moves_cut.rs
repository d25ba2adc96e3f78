//! Moves whose daemons and processes are killed, at every step: there is exactly one machine afterwards, and nothing is left of the other.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Daemon, signal, wait_for};
use crate::pair::{Pair, migrate, nothing_left, vms};

/// Every step at which a move can be held: at the source, or at the target.
const STEPS: [&str; 7] = ["hello", "copy", "ready", "decide", "start", "started", "end"];

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    SourceDaemon,
    TargetDaemon,
    BothDaemons,
    SourceProcess,
    TargetProcess,
}

fn pid(daemon: &Daemon) -> Option<u32> {
    let vm = vms(daemon).first()?.clone();
    u32::try_from(vm["status"]["pid"].as_u64()?).ok()
}

fn kill(pair: &mut Pair, victim: Victim) {
    match victim {
        Victim::SourceDaemon => pair.a.crash_and_restart(),
        Victim::TargetDaemon => pair.b.crash_and_restart(),
        Victim::BothDaemons => {
            pair.a.crash();
            pair.b.crash();
            pair.b.restart();
            pair.a.restart();
        }
        Victim::SourceProcess => signal(pid(&pair.a).unwrap(), Signal::KILL),
        Victim::TargetProcess => signal(wait_for("a process", || pid(&pair.b)), Signal::KILL),
    }
}

/// The one machine there is, once the move is over at both sides.
fn settled(pair: &Pair, migration: &str) -> (Value, &'static str) {
    let ended = wait_for("the end of the move", || {
        let body = pair.a.get(migration).json();
        (body["completed"] == true).then_some(body)
    });
    let is_there = ended["phase"] == "Succeeded";
    let (has, has_not, place) = if is_there {
        (&pair.b, &pair.a, "b")
    } else {
        (&pair.a, &pair.b, "a")
    };
    nothing_left(has_not);
    wait_for("the end at the target", || {
        let list = pair.b.get("/v1/incoming-migrations").json();
        let items = list["items"].as_array()?.clone();
        let over = items.iter().all(|item| !item["ended_at"].is_null());
        over.then_some(())
    });
    let rows = vms(has);
    assert_eq!(rows.len(), 1, "{rows:?}");
    (rows[0].clone(), place)
}

fn cut(victim: Victim) {
    for step in STEPS {
        let mut pair = Pair::start();
        pair.run("web");
        pair.hold(step);
        let migration = migrate(&pair.a, "web", "b");
        pair.at(step);
        kill(&mut pair, victim);
        pair.let_go(step);
        let (vm, place) = settled(&pair, &migration);
        let phase = vm["status"]["phase"].as_str().unwrap();
        let dead = matches!(victim, Victim::SourceProcess | Victim::TargetProcess);
        // The machine runs, or is where it was when its process was killed.
        let killed_here = match victim {
            Victim::SourceProcess => place == "a",
            Victim::TargetProcess => place == "b",
            _ => false,
        };
        let expected = if dead && killed_here { "Failed" } else { "Running" };
        assert_eq!(phase, expected, "{victim:?} at {step}: {vm}");
        let departed = matches!(step, "start" | "started" | "end");
        // Whether a source that lives hears of its target's end before it decides is chance; either is one machine.
        let either = victim == Victim::TargetProcess && step == "decide";
        if !either && (matches!(victim, Victim::SourceDaemon | Victim::BothDaemons) || dead) {
            // What was decided before stands; what was not can not be decided for the target by a daemon that was gone.
            assert_eq!(place == "b", departed, "{victim:?} at {step}: it is at {place}");
        }
    }
}

#[test]
fn one_machine_survives_when_the_daemon_of_the_source_is_killed() {
    cut(Victim::SourceDaemon);
}

#[test]
fn one_machine_survives_when_the_daemon_of_the_target_is_killed() {
    cut(Victim::TargetDaemon);
}

#[test]
fn one_machine_survives_when_both_daemons_are_killed() {
    cut(Victim::BothDaemons);
}

#[test]
fn one_machine_survives_when_the_process_of_the_source_is_killed() {
    cut(Victim::SourceProcess);
}

#[test]
fn one_machine_survives_when_the_process_of_the_target_is_killed() {
    cut(Victim::TargetProcess);
}
