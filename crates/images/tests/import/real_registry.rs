//! The same against Debian's `docker-registry`, with an image built by `umoci` and pushed by `skopeo`.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use images::{Settings, SourceFormat, Store};

use crate::registry_stub::noise;
use crate::{have, pull, run, told};

/// A running program; killed when the test ends, however it ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(dir: &Path) -> (Killed, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.join("registry").display()
    );
    std::fs::write(dir.join("config.yml"), config).unwrap();
    let child = Command::new("docker-registry")
        .args(["serve", "config.yml"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let child = Killed(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "docker-registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, port)
}

#[tokio::test]
async fn pulls_a_container_disk_as_people_build_them() {
    let programs = ["docker-registry", "skopeo", "umoci", "qemu-img"];
    if !programs.iter().all(|program| have(program)) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = [noise(700_000), vec![0; 5 << 20]].concat();
    std::fs::write(dir.join("raw"), &disk).unwrap();
    std::fs::write(dir.join("vmlinuz"), "kernel").unwrap();
    std::fs::write(dir.join("initrd"), "initrd").unwrap();
    let (_registry, port) = serve(dir);
    for line in [
        "qemu-img convert -O qcow2 raw disk.qcow2",
        "umoci init --layout oci",
        "umoci new --image oci:v1",
        "umoci insert --rootless --image oci:v1 disk.qcow2 /disk/disk.qcow2",
        "umoci insert --rootless --image oci:v1 vmlinuz /boot/vmlinuz-6.1.0-amd64",
        "umoci insert --rootless --image oci:v1 initrd /boot/initrd.img-6.1.0-amd64",
        "umoci config --image oci:v1 --config.label io.karat.cmdline=console=ttyS0",
        &format!(
            "skopeo --insecure-policy copy --dest-tls-verify=false oci:oci:v1 docker://127.0.0.1:{port}/demo/debian:12"
        ),
    ] {
        run(dir, line);
    }
    let store = Store::open(Settings {
        root: dir.join("store"),
        insecure_registries: vec![format!("127.0.0.1:{port}")],
        ..Settings::default()
    })
    .unwrap()
    .0;
    let reference = format!("127.0.0.1:{port}/demo/debian:12").parse().unwrap();
    let image = pull(&store, &reference)
        .await
        .map_err(|error| told(&error))
        .unwrap()
        .image;
    assert_eq!(image.disk.source_format, SourceFormat::Qcow2);
    assert_eq!(image.disk.virtual_bytes, 700_000_u64.next_multiple_of(512) + (5 << 20));
    assert_eq!(image.kernel.unwrap().source_path, "boot/vmlinuz-6.1.0-amd64");
    assert_eq!(image.initrd.unwrap().size_bytes, 6);
    assert_eq!(image.cmdline.as_deref(), Some("console=ttyS0"));
    let path = store.disk_path(&image.digest);
    run(dir, &format!("qemu-img convert -O raw {} back", path.display()));
    assert!(std::fs::read(dir.join("back")).unwrap()[..disk.len()] == disk);
    let unknown = format!("127.0.0.1:{port}/demo/debian:13").parse().unwrap();
    let error = pull(&store, &unknown).await.unwrap_err();
    assert_eq!(error.code(), "registry_not_found", "{}", told(&error));
}
