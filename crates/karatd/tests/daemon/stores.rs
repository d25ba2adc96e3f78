//! Stores on file systems that come and go, and what they may hold.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

use crate::alerts::{metrics, prove};
use crate::harness::{Daemon, wait_for};
use crate::launcher::says;

/// A file system that is mounted, until this goes.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// A new one in memory, on a directory that is made for it.
    pub(crate) fn of_tmpfs(path: &Path, options: &CStr) -> Self {
        std::fs::create_dir_all(path).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), options).unwrap();
        Self(path.to_owned())
    }

    /// What is at `from`, at `path` as well.
    fn of_directory(from: &Path, path: &Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        rustix::mount::mount_bind(from, path).unwrap();
        Self(path.to_owned())
    }

    pub(crate) fn remount(&self, flags: MountFlags, options: &CStr) {
        rustix::mount::mount_remount(&self.0, flags, options).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // As when a server or a cable goes: whoever has files open there keeps them.
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// Whether file systems can be mounted here.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn is_root() -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        eprintln!("skipped: only root mounts file systems");
    }
    is
}

pub(crate) fn store(daemon: &Daemon, name: &str) -> Value {
    let stores = daemon.get("/v1/image-stores").json();
    let mut stores = stores["items"].as_array().unwrap().clone().into_iter();
    stores.find(|store| store["name"] == name).unwrap()
}

#[track_caller]
pub(crate) fn until(daemon: &Daemon, name: &str, state: &str) -> Value {
    wait_for(state, || {
        Some(store(daemon, name)).filter(|store| store["state"] == state)
    })
}

pub(crate) fn import(daemon: &Daemon, name: &str, fill: u8, stores: &Value) -> Value {
    let file = daemon.path("state/files").join(format!("{fill}.raw"));
    std::fs::write(&file, vec![fill; 256 << 10]).unwrap();
    if daemon.get(&format!("/v1/images/{name}")).status == 404 {
        assert_eq!(daemon.post("/v1/images", &json!({"name": name})).status, 201);
    }
    let from = json!({"method": "file", "path": file, "options": {"stores": stores}});
    daemon.begin(&format!("/v1/images/{name}/import"), &from)
}

fn machine(daemon: &Daemon, name: &str, image: &str) -> Value {
    let mut spec = daemon.spec(name, "");
    spec["image"] = json!(image);
    spec
}

pub(crate) fn sealed(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("images/sha256")).unwrap().count()
}

/// That it went and came back.
fn events_tell(daemon: &Daemon) {
    let events = daemon.get("/v1/events").json().to_string();
    for told in [
        "image store archive is not available",
        "image store archive is available",
    ] {
        assert!(events.contains(told), "{told}: {events}");
    }
}

pub(crate) const ARCHIVE: &str = "reserved_space = 0\n[[images.store]]\nname = \"archive\"\npath = \"@DIR@/archive\"\n";

#[test]
fn a_store_whose_mount_goes_while_the_daemon_runs_is_away_until_it_is_back() {
    if !is_root() {
        return;
    }
    let mounts = std::cell::RefCell::new(None);
    let mut daemon = Daemon::start_seeded(ARCHIVE, |state| {
        let disk = Mount::of_tmpfs(&state.with_file_name("disk"), c"size=16m");
        let archive = Mount::of_directory(&disk.0, &state.with_file_name("archive"));
        *mounts.borrow_mut() = Some((disk, archive));
    });
    let (disk, archive) = mounts.into_inner().unwrap();
    let (below, kept) = (daemon.path("archive"), daemon.path("disk"));
    let nothing_below = || assert_eq!(std::fs::read_dir(&below).unwrap().count(), 0);
    for (name, fill) in [("web", 1), ("old", 2)] {
        let done = import(&daemon, name, fill, &json!(["archive"]));
        assert_eq!(done["phase"], "Succeeded", "{done}");
    }
    let there = store(&daemon, "archive");
    assert_eq!(
        (&there["state"], &there["images"]),
        (&json!("ready"), &json!(2)),
        "{there}"
    );

    drop(archive);
    let away = until(&daemon, "archive", "unavailable");
    assert!(away["problem"].as_str().unwrap().contains("archive"), "{away}");
    assert!(away.get("used_bytes").is_none(), "{away}");
    let failed = import(&daemon, "new", 3, &json!(["archive"]));
    assert_eq!(failed["error"]["code"], "store_unavailable", "{failed}");
    let refused = daemon.post("/v1/vms", &machine(&daemon, "a", "web"));
    refused.problem(503, "store_unavailable");
    daemon
        .delete("/v1/images/web/stores/archive")
        .problem(503, "store_unavailable");
    let list = says(&daemon, &["image", "store", "ls"]);
    assert!(
        list.lines()
            .any(|line| line.starts_with("archive") && line.contains("unavailable")),
        "{list}"
    );
    let look = metrics(&daemon);
    assert!(look.contains("karat_store_available{store=\"default\"} 1"), "{look}");
    prove([&look, &look], &[("KaratStoreNotReady", "store", "archive")]);
    // What is removed meanwhile does not come back with the store.
    assert_eq!(daemon.delete("/v1/images/old").status, 204);
    nothing_below();
    // Where the daemon finds it missing it makes no new one, even if it was never told that something has to be mounted there.
    daemon.crash_and_restart();
    let problem = until(&daemon, "archive", "unavailable")["problem"].to_string();
    assert!(
        problem.contains("not the image store that was there before"),
        "{problem}"
    );
    nothing_below();

    let archive = Mount::of_directory(&disk.0, &below);
    until(&daemon, "archive", "ready");
    wait_for("the removal", || (sealed(&kept) == 1).then_some(()));
    let verified = daemon.begin("/v1/images/web/verify", &json!({}));
    assert_eq!(verified["phase"], "Succeeded", "{verified}");
    assert_eq!(daemon.get("/v1/images/old").status, 404);
    assert_eq!(import(&daemon, "new", 3, &json!(["archive"]))["phase"], "Succeeded");
    assert_eq!(sealed(&kept), 2);
    // What its file system can do is tried anew.
    let look = wait_for("the trial", || {
        let known = "store=\"archive\",default=\"false\",complete=\"true\"";
        Some(metrics(&daemon)).filter(|look| look.contains(known))
    });
    prove([&look, &look], &[]);
    events_tell(&daemon);
    drop(archive);
    drop(daemon);
}

/// The daemon is not there when the store comes back.
#[test]
fn what_was_deleted_while_its_store_was_away_stays_deleted_over_a_restart() {
    if !is_root() {
        return;
    }
    let mounts = std::cell::RefCell::new(None);
    let mut daemon = Daemon::start_seeded(ARCHIVE, |state| {
        let disk = Mount::of_tmpfs(&state.with_file_name("disk"), c"size=16m");
        let archive = Mount::of_directory(&disk.0, &state.with_file_name("archive"));
        *mounts.borrow_mut() = Some((disk, archive));
    });
    let (disk, archive) = mounts.into_inner().unwrap();
    for (name, fill) in [("web", 1), ("old", 2)] {
        let done = import(&daemon, name, fill, &json!(["archive"]));
        assert_eq!(done["phase"], "Succeeded", "{done}");
    }
    let digest = daemon.get("/v1/images/old").json()["digest"].clone();
    drop(archive);
    until(&daemon, "archive", "unavailable");
    assert_eq!(daemon.delete("/v1/images/old").status, 204);
    let archive = Mount::of_directory(&disk.0, &daemon.path("archive"));
    daemon.crash_and_restart();
    until(&daemon, "archive", "ready");
    let kept = daemon.path("disk");
    wait_for("the removal", || (sealed(&kept) == 1).then_some(()));
    let images = daemon.get("/v1/images").json().to_string();
    assert!(!images.contains(digest.as_str().unwrap()), "{images}");
    assert_eq!(daemon.get("/v1/images/web").status, 200);
    assert_eq!(daemon.get("/v1/images/fsck").json(), json!({"findings": []}));
    drop((archive, daemon));
}

#[test]
fn a_store_that_can_only_be_read_takes_nothing() {
    if !is_root() {
        return;
    }
    let mount = std::cell::RefCell::new(None);
    let daemon = Daemon::start_seeded(ARCHIVE, |state| {
        *mount.borrow_mut() = Some(Mount::of_tmpfs(&state.with_file_name("archive"), c"size=16m"));
    });
    let mount = mount.into_inner().unwrap();
    assert_eq!(import(&daemon, "web", 1, &json!(["archive"]))["phase"], "Succeeded");
    mount.remount(MountFlags::RDONLY, c"");
    until(&daemon, "archive", "read_only");
    let failed = import(&daemon, "new", 2, &json!(["archive"]));
    assert_eq!(failed["error"]["code"], "store_unavailable", "{failed}");
    let look = metrics(&daemon);
    assert!(look.contains("karat_store_available{store=\"archive\"} 0"), "{look}");
    assert!(look.contains("karat_store_images{store=\"archive\"} 1"), "{look}");
    // Its images can be used.
    let copied = daemon.begin(
        "/v1/images/web/import",
        &json!({"method": "copy", "stores": ["default"]}),
    );
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
    mount.remount(MountFlags::empty(), c"");
    until(&daemon, "archive", "ready");
    assert_eq!(import(&daemon, "new", 2, &json!(["archive"]))["phase"], "Succeeded");
}

#[test]
fn a_quota_holds_for_imports_and_copies_and_is_shown() {
    let config = format!("{ARCHIVE}quota = \"400Ki\"\n");
    let daemon = Daemon::start_with(&config);
    assert_eq!(import(&daemon, "one", 1, &json!(["archive"]))["phase"], "Succeeded");
    let full = import(&daemon, "two", 2, &json!(["archive"]));
    assert_eq!(full["error"]["code"], "no_space", "{full}");
    assert_eq!(daemon.get("/v1/images/two").json()["failure"]["code"], "store_quota");
    assert_eq!(import(&daemon, "two", 2, &json!(["default"]))["phase"], "Succeeded");
    let copied = daemon.begin(
        "/v1/images/two/import",
        &json!({"method": "copy", "stores": ["archive"]}),
    );
    assert_eq!(copied["error"]["code"], "no_space", "{copied}");
    assert_eq!(daemon.get("/v1/images/two").json()["stores"], json!(["default"]));
    assert_eq!(std::fs::read_dir(daemon.path("archive/tmp")).unwrap().count(), 0);
    let shown = store(&daemon, "archive");
    assert_eq!(
        (&shown["quota_bytes"], &shown["images"]),
        (&json!(400 << 10), &json!(1)),
        "{shown}"
    );
    let used = shown["used_bytes"].as_u64().unwrap();
    assert!((256 << 10..=400 << 10).contains(&used), "{shown}");
    let look = metrics(&daemon);
    for line in [
        "karat_store_quota_bytes{store=\"archive\"} 409600".to_owned(),
        format!("karat_store_used_bytes{{store=\"archive\"}} {used}"),
        "karat_store_images{store=\"archive\"} 1".to_owned(),
    ] {
        assert!(look.lines().any(|found| found == line), "{line}: {look}");
    }
    let list = says(&daemon, &["image", "store", "ls"]);
    assert!(list.contains("400.0 KiB"), "{list}");
    // What goes makes room.
    assert_eq!(daemon.delete("/v1/images/one").status, 204);
    let copied = daemon.begin(
        "/v1/images/two/import",
        &json!({"method": "copy", "stores": ["archive"]}),
    );
    assert_eq!(copied["phase"], "Succeeded", "{copied}");
}
