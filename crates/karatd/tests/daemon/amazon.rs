//! Images whose kernels and ramdisks are images of their own.

use serde_json::{Value, json};

use crate::harness::Daemon;

/// Imports a file as an image of an Amazon format; its id.
fn imported(daemon: &Daemon, format: &str, bytes: &[u8], properties: &Value) -> String {
    let path = daemon.path("state/files").join(format);
    std::fs::write(&path, bytes).unwrap();
    let wish = json!({"name": format, "disk_format": format, "container_format": format, "properties": properties,
        "import": {"method": "file", "path": path}});
    let done = daemon.begin("/v1/images", &wish);
    assert_eq!(done["phase"], "Succeeded", "{done}");
    daemon.get(&format!("/v1/images/{format}")).json()["id"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_machine_is_booted_with_the_kernel_and_the_ramdisk_that_its_image_names() {
    let daemon = Daemon::start_with("reserved_space = 0");
    let (aki, ari) = (
        imported(&daemon, "aki", b"the kernel", &json!({})),
        imported(&daemon, "ari", b"the ramdisk", &json!({})),
    );
    let named = json!({"kernel_id": aki, "ramdisk_id": ari, "os_command_line": "root=/dev/vda"});
    imported(&daemon, "ami", &vec![5; 64 << 10], &named);
    let made = daemon.post("/v1/vms", &json!({"name": "web", "image": "ami", "memory": "64Mi"}));
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    let vm = made.json();
    assert_eq!(vm["spec"]["boot"]["cmdline"], "root=/dev/vda", "{vm}");
    let kept = |name: &str| {
        let directory = daemon.path("state/vms").join(vm["id"].as_str().unwrap());
        std::fs::read(directory.join("boot").join(name)).unwrap()
    };
    assert!(kept("kernel").starts_with(b"the kernel") && kept("initrd").starts_with(b"the ramdisk"));
    let events = daemon.get("/v1/events").json().to_string();
    assert!(!events.contains("made without"), "{events}");
    // It has them for itself.
    for image in ["aki", "ari"] {
        assert_eq!(daemon.delete(&format!("/v1/images/{image}")).status, 204);
    }
    let started = daemon.begin("/v1/vms/web/start", &json!({}));
    assert_eq!(started["phase"], "Succeeded", "{started}");
    // Another machine can not have them any more, but may name a kernel itself.
    let refused = daemon.post("/v1/vms", &json!({"name": "other", "image": "ami", "memory": "64Mi"}));
    let refused = refused.problem(422, "invalid_spec");
    assert!(refused.to_string().contains("kernel_id"), "{refused}");
    let mut spec = daemon.spec("other", "");
    spec["image"] = json!("ami");
    assert_eq!(daemon.post("/v1/vms", &spec).status, 201);
}
