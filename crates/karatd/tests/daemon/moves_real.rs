//! Moves of a real guest between two daemons: it counts on its own KVM while it goes there and back, and misses nothing.

use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::harness::{Daemon, wait_for};
use crate::pair::{Pair, migrate, nothing_left, over};
use crate::volumes::kills::{karat_vmm, tiny_guest};

/// Moves in all.
const MOVES: usize = 6;

/// True where this can be run; says so where not.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn can_run() -> bool {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !kvm {
        eprintln!("skipped: no usable /dev/kvm");
    }
    kvm
}

/// What a guest has printed on this host.
fn printed(daemon: &Daemon, id: &str) -> String {
    let log = daemon.path(&format!("state/vms/{id}/log/console.log"));
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log).into_owned();
    assert!(!log.contains("FAIL"), "{log}");
    log
}

#[test]
fn a_guest_counts_on_while_it_moves_there_and_back() {
    if !can_run() {
        return;
    }
    let pair = Pair::start_with_vmm(&karat_vmm(), &tiny_guest());
    let disk = pair.shared.path().join("files/disk.raw");
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let kernel = pair.shared.path().join("files/kernel");
    let spec = json!({
        "name": "web", "memory": "128Mi", "cpus": 2, "disks": [{"path": disk}],
        "boot": {"kernel": kernel, "cmdline": "test=count,halt disk=1"},
    });
    let made = pair.a.post("/v1/vms", &spec);
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(pair.a.begin("/v1/vms/web/start", &json!({}))["phase"], "Succeeded");
    wait_for("the guest", || {
        printed(&pair.a, &id).contains("READY count").then_some(())
    });
    let (mut here, mut there, mut name) = (&pair.a, &pair.b, "b");
    for round in 0..MOVES {
        let migration = migrate(here, "web", name);
        let moved = over(here, &migration);
        assert_eq!(moved["phase"], "Succeeded", "move {round}: {moved}");
        assert_eq!(moved["progress"]["total_bytes"], 128 << 20, "{moved}");
        nothing_left(here);
        there.until("web", "Running");
        let before = printed(there, &id).len();
        wait_for("counts at the target", || {
            (printed(there, &id).len() > before + 20).then_some(())
        });
        (here, there) = (there, here);
        name = if name == "b" { "a" } else { "b" };
    }
    let console = here.path(&format!("run/vms/{id}/console.sock"));
    UnixStream::connect(console).unwrap().write_all(b"q").unwrap();
    wait_for("the guest's own verdict", || {
        printed(here, &id).contains("PASS count").then_some(())
    });
}

#[test]
fn a_move_of_a_real_guest_that_is_cancelled_leaves_it_where_it_was() {
    if !can_run() {
        return;
    }
    let pair = Pair::start_with_vmm(&karat_vmm(), &tiny_guest());
    let kernel = pair.shared.path().join("files/kernel");
    let spec = json!({
        "name": "web", "memory": "256Mi", "boot": {"kernel": kernel, "cmdline": "test=count,halt"},
    });
    let made = pair.a.post("/v1/vms", &spec);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(pair.a.begin("/v1/vms/web/start", &json!({}))["phase"], "Succeeded");
    let wish = json!({"vm": "web", "target": "b", "options": {"bandwidth_per_migration": "64Ki"}});
    let migration = pair.a.post("/v1/migrations", &wish);
    let migration = migration.header("location").unwrap().to_owned();
    wait_for("memory to move", || {
        (pair.a.get(&migration).json()["phase"] == "Running").then_some(())
    });
    assert_eq!(pair.a.delete(&migration).status, 202);
    let ended = over(&pair.a, &migration);
    assert_eq!(ended["phase"], "Cancelled", "{ended}");
    nothing_left(&pair.b);
    let before = printed(&pair.a, &id).len();
    wait_for("counts at the source", || {
        (printed(&pair.a, &id).len() > before + 20).then_some(())
    });
    // And it goes when it is asked again.
    assert_eq!(over(&pair.a, &migrate(&pair.a, "web", "b"))["phase"], "Succeeded");
    nothing_left(&pair.a);
    let before = printed(&pair.b, &id).len();
    wait_for("counts at the target", || {
        (printed(&pair.b, &id).len() > before + 20).then_some(())
    });
}
