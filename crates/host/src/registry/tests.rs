//! The registry as its users see it.

use api_types::{CloneMethod, EventReason, OperationKind, OperationPhase, RootDisk, Vm, VmPhase, VmStatus};
use spec::{DiskFormat, OperationId, VmId};

use super::*;
use crate::catalogue::plain_record;

fn open() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(&file(dir.path())).unwrap();
    (dir, registry)
}

fn vm(name: &str) -> Vm {
    Vm {
        id: VmId::random(),
        spec: serde_json::from_str(&format!(r#"{{"name": "{name}", "image": "x"}}"#)).unwrap(),
        image_digest: Some("sha256:1".to_owned()),
        status: VmStatus {
            phase: VmPhase::Stopped,
            reason: None,
            message: None,
            pid: None,
            started_at: None,
            start_to_guest_us: None,
            resets: 0,
            clone_method: Some("overlay".to_owned()),
            root_disk: Some(RootDisk {
                method: CloneMethod::Overlay,
                reason: "because".to_owned(),
                format: DiskFormat::Qcow2,
                stands_alone: false,
                store: None,
            }),
        },
        conditions: Vec::new(),
        created_at: Timestamp::now(),
        revision: 1,
    }
}

fn now<T>(registry: &Registry, work: impl FnOnce(&Change<'_>) -> Result<T, RegistryError>) -> T {
    registry.change_now(work).unwrap()
}

fn all(registry: &Registry) -> Vec<Vm> {
    now(registry, |change| {
        let vms = change.vms()?;
        Ok(vms)
    })
}

#[test]
fn machines_survive_reopening_and_names_are_unique() {
    let (dir, registry) = open();
    let web = vm("web");
    now(&registry, |change| change.insert_vm(&web));
    let taken = registry.change_now(|change| change.insert_vm(&vm("web")));
    assert!(taken.unwrap_err().is_conflict());
    drop(registry);
    let registry = Registry::open(&file(dir.path())).unwrap();
    assert_eq!(all(&registry), std::slice::from_ref(&web));
    for key in ["web".to_owned(), web.id.to_string()] {
        assert_eq!(now(&registry, |change| change.vm(&key)), Some(web.clone()));
    }
    assert_eq!(now(&registry, |change| change.image_users("sha256:1")), ["web"]);
    now(&registry, |change| change.delete_vm(web.id));
    assert_eq!(now(&registry, |change| change.vm("web")), None);
}

#[test]
fn the_root_disk_of_a_machine_from_before_it_was_recorded_is_raw() {
    let (_dir, registry) = open();
    for (name, told, method) in [
        ("copied", Some("copy"), CloneMethod::Copy),
        ("shared", Some("reflink"), CloneMethod::Reflink),
        ("silent", None, CloneMethod::Copy),
    ] {
        let mut old = vm(name);
        old.status.clone_method = told.map(str::to_owned);
        old.status.root_disk = None;
        now(&registry, |change| change.insert_vm(&old));
        let read = now(&registry, |change| change.vm(name)).unwrap();
        let root = read.status.root_disk.unwrap();
        assert_eq!((root.method, root.format), (method, DiskFormat::Raw), "{name}");
        assert!(!root.reason.is_empty());
    }
    let mut kernel_only = vm("plain");
    kernel_only.image_digest = None;
    kernel_only.status.root_disk = None;
    now(&registry, |change| change.insert_vm(&kernel_only));
    assert_eq!(now(&registry, |change| change.vm("plain")), Some(kernel_only));
}

#[test]
fn each_written_status_is_a_revision() {
    let (_dir, registry) = open();
    let mut web = vm("web");
    now(&registry, |change| change.insert_vm(&web));
    web.status.phase = VmPhase::Running;
    assert!(now(&registry, |change| change.update_vm_status(web.id, &web.status)));
    assert!(!now(&registry, |change| change.update_vm_status(VmId::random(), &web.status)));
    web.revision = 2;
    assert_eq!(now(&registry, |change| change.vm("web")), Some(web));
}

#[test]
fn a_change_that_fails_leaves_nothing_and_tells_nobody() {
    let (_dir, registry) = open();
    let newest = registry.newest_event();
    let failed: Result<(), _> = registry.change_now(|change| {
        change.insert_vm(&vm("web"))?;
        change.event(&About::Host, EventReason::DaemonStarted, "x")?;
        Err(RegistryError::WorkerGone)
    });
    assert!(failed.is_err() && !newest.has_changed().unwrap());
    assert!(all(&registry).is_empty());
    assert!(now(&registry, |change| change.events_after(0, 10)).is_empty());
}

#[test]
fn operations_end_once() {
    let (_dir, registry) = open();
    let id = OperationId::random();
    let begun = now(&registry, |change| {
        change.begin_operation(id, OperationKind::ImagePull, "x")
    });
    assert_eq!(begun.phase, OperationPhase::Running);
    let failure = Failure::new(ErrorCode::NoSpace, "full");
    now(&registry, |change| {
        change.end_operation(id, OperationPhase::Failed, Err(&failure))
    });
    now(&registry, |change| {
        change.end_operation(id, OperationPhase::Succeeded, Ok(None))
    });
    let ended = now(&registry, |change| change.operation(id)).unwrap();
    assert_eq!((ended.phase, ended.failure), (OperationPhase::Failed, Some(failure)));
    let events = now(&registry, |change| change.events_after(0, 10));
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].message, "pulling the image failed: full");
    assert_eq!(
        now(&registry, |change| change.events_after(events[0].id, 10)),
        events[1..]
    );
    assert_eq!(*registry.newest_event().borrow(), events[1].id);
}

#[test]
fn old_operations_go_and_events_are_bounded() {
    let (_dir, registry) = open();
    let first = OperationId::random();
    now(&registry, |change| {
        change.begin_operation(first, OperationKind::ImagePull, "x")?;
        change.end_operation(first, OperationPhase::Succeeded, Ok(None))?;
        for _ in 0..1100 {
            change.begin_operation(OperationId::random(), OperationKind::ImagePull, "x")?;
        }
        for number in 0..10_000 {
            change.event(&About::Host, EventReason::DaemonStarted, &number.to_string())?;
        }
        Ok(())
    });
    assert_eq!(now(&registry, |change| change.operation(first)), None);
    let left = now(&registry, |change| change.events_after(0, 20_000)).len();
    assert!((10_000..10_300).contains(&left), "{left}");
}

#[test]
fn what_happens_again_is_counted() {
    let (_dir, registry) = open();
    let tell = |text: &'static str| {
        now(&registry, |change| {
            change.event(&About::Host, EventReason::DaemonStarted, text)
        });
        now(&registry, |change| change.events_after(0, 10))
    };
    let first = tell("x");
    assert_eq!((first[0].count, first[0].first_at), (1, first[0].at));
    let again = tell("x");
    assert_eq!((again.len(), again[0].count, again[0].first_at), (1, 2, first[0].at));
    assert!(again[0].id > first[0].id && *registry.newest_event().borrow() == again[0].id);
    // Something else in between is something else; so is another subject.
    assert_eq!(tell("y").len(), 2);
    assert_eq!(tell("x").len(), 3);
    let other = About::BootSource("a");
    now(&registry, |change| {
        change.event(&other, EventReason::DaemonStarted, "x")
    });
    assert_eq!(
        tell("x").iter().map(|event| event.count).collect::<Vec<_>>(),
        [2, 1, 1, 2]
    );
}

#[test]
fn references_move_to_the_newest_image() {
    let (_dir, registry) = open();
    now(&registry, |change| change.point_reference("q.io/a:1", "sha256:1"));
    now(&registry, |change| change.point_reference("q.io/a:2", "sha256:1"));
    now(&registry, |change| change.point_reference("q.io/a:1", "sha256:2"));
    assert_eq!(
        now(&registry, |change| change.referenced("q.io/a:1")).as_deref(),
        Some("sha256:2")
    );
    assert_eq!(now(&registry, |change| change.references_to("sha256:1")), ["q.io/a:2"]);
    now(&registry, |change| change.forget_references_to("sha256:1"));
    assert_eq!(now(&registry, |change| change.referenced("q.io/a:2")), None);
}

#[test]
fn a_registry_of_a_newer_program_is_left_alone() {
    let (dir, registry) = open();
    drop(registry);
    Connection::open(file(dir.path()))
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    assert!(matches!(
        Registry::open(&file(dir.path())),
        Err(RegistryError::TooNew { found: 99, .. })
    ));
}

fn volume(name: &str) -> VolumeRecord {
    let now = Timestamp::now();
    VolumeRecord {
        id: spec::VolumeId::random(),
        wish: serde_json::from_str(&format!(r#"{{"name": "{name}", "size": 512}}"#)).unwrap(),
        format: None,
        size_bytes: Some(512),
        image: None,
        image_store: None,
        copied_from: None,
        state: api_types::VolumeState::Ready,
        reason: None,
        message: None,
        sent_bytes: None,
        changed_at: now,
        job: None,
        last_check: None,
        created_at: now,
        layers: Vec::new(),
        dropped: Vec::new(),
        last_file: 0,
        revision: 1,
    }
}

#[test]
fn holders_of_a_volume_are_found_among_the_machines_that_name_it() {
    let (_dir, registry) = open();
    let (data, other) = (volume("data"), volume("other"));
    let with = |name: &str, disks: &str| Vm {
        spec: serde_json::from_str(&format!(r#"{{"name": "{name}", "image": "x", "disks": [{disks}]}}"#)).unwrap(),
        ..vm(name)
    };
    let id = data.id;
    let web = with("web", r#"{"volume": "data"}"#);
    let by_id = with(
        "by-id",
        &format!(r#"{{"volume": "other"}}, {{"volume": "{id}", "read_only": true}}"#),
    );
    now(&registry, |change| {
        change.insert_volume(&data)?;
        change.insert_volume(&other)?;
        // Its name is that of a volume it does not have.
        [&web, &by_id, &with("data", "")]
            .into_iter()
            .try_for_each(|vm| change.insert_vm(vm))
    });
    let held = now(&registry, |change| change.holders(&data));
    let held: Vec<_> = held
        .iter()
        .map(|one| (one.vm.as_str(), one.disk.as_str(), one.id))
        .collect();
    assert_eq!(held, [("by-id", "disk2", by_id.id), ("web", "disk1", web.id)]);
    let all = now(&registry, |change| {
        let all = change.attached_volumes()?;
        Ok(all)
    });
    for (volume, attached) in &all {
        assert_eq!(
            *attached,
            now(&registry, |change| change.attachments(volume)),
            "{}",
            volume.name()
        );
    }
    assert_eq!(
        all.iter().map(|(_, attached)| attached.len()).collect::<Vec<_>>(),
        [2, 1]
    );
    // Others are not even read.
    now(&registry, |change| {
        change
            .transaction
            .execute("UPDATE vms SET spec = '{}' WHERE name = 'web'", [])?;
        Ok(())
    });
    assert_eq!(now(&registry, |change| change.holders(&other)).len(), 1);
    let unread: Result<(), RegistryError> = registry.change_now(|change| change.vms().map(drop));
    assert!(unread.is_err());
}

#[test]
fn what_daemons_begin_is_counted_until_one_stops_in_order() {
    let (_dir, registry) = open();
    let mut sent = volume("sent");
    sent.job = Some(Job::new(OperationId::random(), Task::Finish));
    let mut moved = volume("moved");
    moved.job = Some(Job::new(OperationId::random(), Task::Stream));
    let pull = now(&registry, |change| {
        change.insert_volume(&sent)?;
        change.insert_volume(&moved)?;
        change.insert_image(&ImageRow::queued(plain_record("idle", "").unwrap(), change.now()))?;
        let mut coming = ImageRow::queued(plain_record("coming", "").unwrap(), change.now());
        change.insert_image(&coming)?;
        let begun = change.begin_import(&mut coming, api_types::ImageImport::registry("q.io/x/y:1"), None);
        assert!(begun.is_ok(), "{begun:?}");
        change.begin_operation(OperationId::random(), OperationKind::ImagePull, "x")
    });
    let start = || {
        now(&registry, |change| {
            let (volumes, pulls) = (change.volumes()?, vec![(pull.clone(), 0)]);
            let images = change.images()?;
            let flattens = Vec::new();
            let mut begun = crate::begun::Begun {
                volumes,
                pulls,
                flattens,
                images,
            };
            crate::begun::count(change, &mut begun)?;
            let jobs = begun.volumes.iter().filter_map(|volume| volume.job);
            let imports: Vec<_> = change.images()?.iter().map(|row| row.begun).collect();
            assert_eq!(imports, [0, begun.pulls[0].1]);
            Ok((jobs.map(|job| job.begun).collect::<Vec<_>>(), begun.pulls[0].1))
        })
    };
    // What a machine does is not counted.
    assert_eq!(start(), (vec![1, 2], 2));
    assert_eq!(start(), (vec![1, 3], 3));
    assert!(!crate::begun::too_often(3));
    assert_eq!(start(), (vec![1, 4], 4));
    assert!(crate::begun::too_often(4));
    now(&registry, crate::begun::forget);
    assert_eq!(start().1, 1);
}
