//! Files below roots, and the ways out that are closed.

use std::os::unix::fs::symlink;

use super::*;

/// A root `in` with a file `a`, and a file `out/secret` beside it.
fn tree() -> (tempfile::TempDir, FileRoots, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    let root = top.path().join("in");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::create_dir(top.path().join("out")).unwrap();
    std::fs::write(root.join("a"), b"bytes of a").unwrap();
    std::fs::write(top.path().join("out/secret"), b"secret").unwrap();
    let roots = FileRoots::new([root.clone()]).unwrap();
    (top, roots, root)
}

fn code(roots: &FileRoots, path: impl AsRef<Path>) -> &'static str {
    roots
        .open_file(path.as_ref())
        .map_or_else(|error| error.code(), |_| "ok")
}

async fn all(mut opened: Opened) -> Result<Vec<u8>, SourceError> {
    let mut all = Vec::new();
    while let Some(piece) = opened.next_piece().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

#[test]
fn paths_out_of_the_roots_are_refused() {
    let (top, roots, root) = tree();
    assert_eq!(code(&roots, root.join("a")), "ok");
    assert_eq!(code(&roots, root.join("./sub/./../a")), "denied_path");
    assert_eq!(code(&roots, root.join("../out/secret")), "denied_path");
    assert_eq!(code(&roots, top.path().join("out/secret")), "denied_path");
    assert_eq!(code(&roots, "in/a"), "denied_path");
    assert_eq!(code(&roots, "/etc/passwd"), "denied_path");
    assert_eq!(code(&roots, root.join("missing")), "not_found");
    // A root is a directory, not the beginning of a name.
    let beside = top.path().join("in-beside");
    std::fs::write(&beside, b"x").unwrap();
    assert_eq!(code(&roots, &beside), "denied_path");
    assert_eq!(code(&FileRoots::new([]).unwrap(), root.join("a")), "denied_path");
}

#[test]
fn links_are_followed_within_the_root_only() {
    let (top, roots, root) = tree();
    symlink("../a", root.join("sub/inside")).unwrap();
    symlink("../../out/secret", root.join("sub/outside")).unwrap();
    symlink(top.path().join("out/secret"), root.join("absolute")).unwrap();
    symlink(root.join("a"), root.join("absolute-inside")).unwrap();
    symlink(top.path().join("out"), root.join("directory")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    assert_eq!(code(&roots, root.join("sub/inside")), "ok");
    for name in [
        "sub/outside",
        "absolute",
        "absolute-inside",
        "directory/secret",
        "loop",
        "magic/etc/passwd",
    ] {
        assert_eq!(code(&roots, root.join(name)), "denied_path", "{name}");
    }
    let proc = FileRoots::new(["/proc/self".into()]).unwrap();
    assert_eq!(code(&proc, "/proc/self/exe"), "denied_path");
    assert_eq!(code(&proc, "/proc/self/root/etc/passwd"), "denied_path");
}

#[test]
fn a_root_may_be_a_link_itself() {
    let (top, _, root) = tree();
    let link = top.path().join("link");
    symlink(&root, &link).unwrap();
    assert_eq!(code(&FileRoots::new([link.clone()]).unwrap(), link.join("a")), "ok");
}

#[test]
fn only_regular_files_are_opened() {
    let (_top, roots, root) = tree();
    rustix::fs::mkfifoat(CWD, root.join("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    for name in ["pipe", "socket", "sub", "."] {
        assert_eq!(code(&roots, root.join(name)), "not_a_file", "{name}");
    }
    assert_eq!(
        code(&FileRoots::new(["/dev".into()]).unwrap(), "/dev/null"),
        "not_a_file"
    );
}

#[test]
fn roots_have_to_be_absolute() {
    assert_eq!(FileRoots::new(["images".into()]).unwrap_err().code(), "denied_path");
    assert_eq!(
        FileRoots::new(["/srv/../etc".into()]).unwrap_err().code(),
        "denied_path"
    );
}

#[tokio::test]
async fn a_file_comes_whole_and_from_its_middle() {
    let (_top, roots, root) = tree();
    let content: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(root.join("big"), &content).unwrap();
    let source = FileSource::new(&roots, root.join("big"));
    let opened = source.open_at(0, None).await.unwrap();
    let (identity, progress) = (opened.identity().clone(), opened.progress());
    assert_eq!(opened.length_bytes(), Some(4_000_000));
    assert!(all(opened).await.unwrap() == content);
    assert_eq!(progress.fetched_bytes(), 4_000_000);
    assert_eq!(source.probe().await.unwrap(), identity);
    let opened = source.open_at(3_999_990, Some(&identity)).await.unwrap();
    assert_eq!(all(opened).await.unwrap(), content[3_999_990..]);
    assert_eq!(all(source.open_at(4_000_000, None).await.unwrap()).await.unwrap(), b"");
    assert_eq!(
        source.open_at(4_000_001, None).await.unwrap_err().code(),
        "wrong_length"
    );
}

#[tokio::test]
async fn a_file_that_changes_is_an_error() {
    let (_top, roots, root) = tree();
    let path = root.join("big");
    std::fs::write(&path, vec![1; 8 * PIECE]).unwrap();
    let source = FileSource::new(&roots, path.clone());
    let mut opened = source.open_at(0, None).await.unwrap();
    let identity = opened.identity().clone();
    opened.next_piece().await.unwrap();
    std::fs::write(&path, vec![2; 8 * PIECE]).unwrap();
    assert_eq!(all(opened).await.unwrap_err().code(), "source_changed");
    assert_eq!(
        source.open_at(100, Some(&identity)).await.unwrap_err().code(),
        "source_changed"
    );
    let mut opened = source.open_at(0, None).await.unwrap();
    opened.next_piece().await.unwrap();
    File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    assert_eq!(all(opened).await.unwrap_err().code(), "source_changed");
    let length = Identity {
        length_bytes: Some(7),
        ..Identity::default()
    };
    assert_eq!(
        source.open_at(0, Some(&length)).await.unwrap_err().code(),
        "wrong_length"
    );
}
