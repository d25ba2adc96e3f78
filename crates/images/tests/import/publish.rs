//! Images that are published to Debian's `docker-registry`, with users and without, and taken in again.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use images::{
    DiskFormat, ImageDigest, ImportSource, Progress, PullError, PushError, Pushed, Reference, Settings, Store,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry_stub::{GZIP, gzip, tar};
use crate::{disk, have, import, left, request, run, settings};

/// User `karat` with password `karat-secret`, as `htpasswd -B` writes it.
const USERS: &str = "karat:$2b$04$zQHyaxvr7p.4xWjYOG8Cf.EW/zfxMN/cCVhEE.ffo86uR5eG3BaWC\n";

/// A registry of its own, killed when the test ends.
struct Server {
    child: Child,
    host: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(dir: &Path, with_users: bool) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = dir.display();
        let users = format!("auth:\n  htpasswd:\n    realm: test\n    path: {path}/users\n");
        let users = if with_users { users.as_str() } else { "" };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {path}/registry\n\
             http:\n  addr: 127.0.0.1:{port}\n{users}"
        );
        std::fs::write(dir.join("users"), USERS).unwrap();
        std::fs::write(dir.join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", "config.yml"])
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let host = format!("127.0.0.1:{port}");
        let server = Self { child, host };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&server.host).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }
}

fn open(root: &Path, server: &Server, registry_auth_file: Option<PathBuf>) -> Store {
    let settings = Settings {
        insecure_registries: vec![server.host.clone()],
        registry_auth_file,
        ..settings(root)
    };
    Store::open(settings).unwrap().0
}

async fn push(store: &Store, digest: &ImageDigest, to: &Reference) -> Result<Pushed, PushError> {
    let (progress, _) = watch::channel(Progress::default());
    store.push(digest, to, &progress, &CancellationToken::new()).await
}

fn source(reference: Reference) -> ImportSource {
    ImportSource::Registry { reference }
}

fn upload(bytes: Vec<u8>) -> ImportSource {
    ImportSource::Upload(Box::new(std::io::Cursor::new(bytes)))
}

/// Whether `skopeo` reads what was published, and finds every digest right.
fn copied_by_skopeo(dir: &Path, reference: &Reference, credentials: &str) {
    let line = format!(
        "skopeo --insecure-policy copy --src-tls-verify=false {credentials} docker://{reference} oci:{}:copy",
        dir.join("copied").display()
    );
    run(dir, &line.replace("  ", " "));
}

#[tokio::test]
async fn what_is_published_is_what_is_imported() {
    if !["docker-registry", "skopeo", "qemu-img"].into_iter().all(have) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), false);
    let store = open(&dir.path().join("a"), &server, None);
    let raw = import(&store, request(upload(disk()))).await.unwrap().image;
    assert_eq!(raw.disk.format, DiskFormat::Raw);
    let to = server.reference("demo/raw:v1");
    let pushed = push(&store, &raw.digest, &to).await.unwrap();
    assert_eq!(pushed.reference, to.to_string());
    assert!(
        pushed.layer_bytes < 200_000,
        "what is empty does not travel: {pushed:?}"
    );
    assert_eq!(
        push(&store, &raw.digest, &to).await.unwrap(),
        pushed,
        "the same image gives the same layer"
    );
    copied_by_skopeo(dir.path(), &to, "");

    // Another host has the same disk then, as qcow2, which travels unchanged from there.
    let other = open(&dir.path().join("b"), &server, None);
    let taken = import(&other, request(source(to))).await.unwrap().image;
    assert_eq!(taken.disk.format, DiskFormat::Qcow2);
    let path = other.disk_path(&taken.digest);
    run(dir.path(), &format!("qemu-img convert -O raw {} back", path.display()));
    assert!(std::fs::read(dir.path().join("back")).unwrap() == disk());
    let again = server.reference("demo/again:v1");
    push(&other, &taken.digest, &again).await.unwrap();
    assert_eq!(
        import(&store, request(source(again))).await.unwrap().image.digest,
        taken.digest
    );
    assert_eq!((left(&store), left(&other)), (vec![], vec![]));
}

#[tokio::test]
async fn kernel_and_command_line_travel_too() {
    if !["docker-registry", "skopeo", "umoci"].into_iter().all(have) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let stub = crate::registry_stub::Registry::start();
    let files: [(&str, &[u8]); 4] = [
        ("disk/a.img", &disk()),
        ("boot/vmlinuz-6.1", b"kernel"),
        ("boot/initrd.img-6.1", b"initrd"),
        ("boot/cmdline", b"console=ttyS0 quiet"),
    ];
    stub.push("v1", &[(GZIP, gzip(&tar(&files)))], "");
    let server = Server::start(dir.path(), false);
    let insecure = vec![server.host.clone(), stub.host.clone()];
    let store = Store::open(Settings {
        insecure_registries: insecure,
        ..settings(&dir.path().join("store"))
    })
    .unwrap()
    .0;
    let image = import(&store, request(source(stub.reference("demo:v1"))))
        .await
        .unwrap()
        .image;
    let to = server.reference("demo:v1");
    push(&store, &image.digest, &to).await.unwrap();
    let back = import(&store, request(source(to))).await.unwrap().image;
    assert_eq!(back.cmdline.as_deref(), Some("console=ttyS0 quiet"));
    let lengths = |image: &images::ImageRecord| {
        [&image.kernel, &image.initrd].map(|file| file.as_ref().map(|file| file.size_bytes))
    };
    assert_eq!(lengths(&back), lengths(&image));
}

#[tokio::test]
async fn a_registry_with_users_wants_one_that_it_knows() {
    if !["docker-registry", "skopeo"].into_iter().all(have) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), true);
    let (auth, wrong) = (dir.path().join("auth.json"), dir.path().join("wrong.json"));
    for (path, password) in [(&auth, "karat-secret"), (&wrong, "guess")] {
        let secret = STANDARD.encode(format!("karat:{password}"));
        let entry = serde_json::json!({ "auths": { server.host.as_str(): { "auth": secret } } });
        std::fs::write(path, entry.to_string()).unwrap();
    }
    let to = server.reference("private/disk:v1");
    let known = open(&dir.path().join("known"), &server, Some(auth));
    let image = import(&known, request(upload(disk()))).await.unwrap().image;
    push(&known, &image.digest, &to).await.unwrap();
    copied_by_skopeo(dir.path(), &to, "--src-creds karat:karat-secret");
    import(&known, request(source(to.clone()))).await.unwrap();
    known.probe(&source(to.clone())).await.unwrap();

    let missing = dir.path().join("nothing.json");
    for (name, file, code) in [
        ("nobody", None, "registry_unauthorized"),
        ("wrong", Some(wrong), "registry_unauthorized"),
        ("missing", Some(missing), "registry_credentials"),
    ] {
        let store = open(&dir.path().join(name), &server, file);
        let error = import(&store, request(source(to.clone()))).await.unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error}");
        let image = import(&store, request(upload(disk()))).await.unwrap().image;
        let error = push(&store, &image.digest, &to).await.unwrap_err();
        assert!(
            matches!(&error, PushError::Registry { source, .. } if source.code() == code),
            "{error:?}"
        );
        assert_eq!(left(&store), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_push_that_fails_leaves_nothing() {
    if !have("docker-registry") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), false);
    let store = open(&dir.path().join("store"), &server, None);
    let image = import(&store, request(upload(disk()))).await.unwrap().image;
    let by_digest = server.reference(&format!("demo@{}", image.digest));
    assert!(matches!(
        push(&store, &image.digest, &by_digest).await,
        Err(PushError::NoTag(_))
    ));
    let unknown = ImageDigest::of(b"unknown");
    let to = server.reference("demo:v1");
    assert!(matches!(push(&store, &unknown, &to).await, Err(PushError::Store(_))));
    let (progress, cancel) = (watch::channel(Progress::default()).0, CancellationToken::new());
    cancel.cancel();
    let cancelled = store.push(&image.digest, &to, &progress, &cancel).await;
    assert!(matches!(cancelled, Err(PushError::Cancelled)));
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let gone = push(&store, &image.digest, &to).await.unwrap_err();
    assert!(
        matches!(
            &gone,
            PushError::Registry {
                source: PullError::Unreachable { .. },
                ..
            }
        ),
        "{gone:?}"
    );
    assert_eq!(left(&store), Vec::<String>::new());
}
