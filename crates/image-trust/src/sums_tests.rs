//! Sums files: forms made by the real tools, and lists nobody should trust.

use std::process::Command;

use super::*;

const A: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const B: &str = "0000000000000000000000000000000000000000000000000000000000000001";

fn find(list: &str, name: &str) -> Result<String, &'static str> {
    let sums = Sums::parse(list.as_bytes()).map_err(|error| error.code())?;
    sums.find(name).map(ToString::to_string).map_err(|error| error.code())
}

#[test]
fn every_documented_form_of_a_line() {
    let sha512 = "1".repeat(128);
    for (list, name, expected) in [
        (format!("{A}  disk.img\n"), "disk.img", Ok(format!("sha256:{A}"))),
        (format!("{A} *disk.img"), "disk.img", Ok(format!("sha256:{A}"))),
        (format!("{A}  disk.img\r\n"), "disk.img", Ok(format!("sha256:{A}"))),
        (
            format!("\u{feff}{A}  disk.img\n"),
            "disk.img",
            Ok(format!("sha256:{A}")),
        ),
        (
            format!("{}  disk.img\n", A.to_uppercase()),
            "disk.img",
            Ok(format!("sha256:{A}")),
        ),
        (format!("{A}  ./sub/disk.img\n"), "disk.img", Ok(format!("sha256:{A}"))),
        (
            format!("SHA256 (disk.img) = {A}\n"),
            "disk.img",
            Ok(format!("sha256:{A}")),
        ),
        (
            format!("SHA256 (a (1) = b) = {A}\n"),
            "a (1) = b",
            Ok(format!("sha256:{A}")),
        ),
        (
            format!("SHA512 (disk.img) = {sha512}\n"),
            "disk.img",
            Ok(format!("sha512:{sha512}")),
        ),
        (
            format!("# note\n\nMD5 (x) = 00\n{A}  x\n"),
            "x",
            Ok(format!("sha256:{A}")),
        ),
        (format!("\\{A}  a\\\\b\\nc\n"), "a\\b\nc", Ok(format!("sha256:{A}"))),
        (format!("{A}  x\n{sha512}  x\n"), "x", Ok(format!("sha512:{sha512}"))),
        (format!("{sha512}  x\n{A}  x\n"), "x", Ok(format!("sha512:{sha512}"))),
        (format!("{A}  x\n{A} *dir/x\n"), "x", Ok(format!("sha256:{A}"))),
        (format!("{A}  x\n"), "y", Err("sums_name_missing")),
        (format!("{A}  x\n"), "", Err("sums_name_missing")),
        (format!("{A}  disk.img.old\n"), "disk.img", Err("sums_name_missing")),
        (format!("{A}  x\n{B}  x\n"), "x", Err("sums_name_ambiguous")),
        (format!("{A}  x\n{B}  old/x\n"), "x", Err("sums_name_ambiguous")),
        (
            format!("{sha512}  x\n{A}  x\n{B}  x\n"),
            "x",
            Err("sums_name_ambiguous"),
        ),
        (format!("{A} x\n"), "x", Err("sums_malformed")),
        (format!("{A}\tx\n"), "x", Err("sums_malformed")),
        (format!("{}  x\n", &A[1..]), "x", Err("sums_malformed")),
        (format!("\\{A}  bad\\q\n"), "bad\\q", Err("sums_malformed")),
        ("<html>404</html>".to_owned(), "x", Err("sums_malformed")),
        (String::new(), "x", Err("sums_malformed")),
    ] {
        assert_eq!(find(&list, name), expected, "{list:?} {name:?}");
    }
}

#[test]
fn is_bounded() {
    let long = format!("{A}  x\n").repeat(SUMS_MAX_BYTES / 68 + 1);
    assert_eq!(Sums::parse(long.as_bytes()).unwrap_err().code(), "sums_too_long");
    let line = format!("{A}  {}\n", "x".repeat(LINE_MAX_BYTES));
    assert_eq!(find(&line, "x"), Err("sums_malformed"));
    // The densest list that is accepted, and a name that every line is compared with.
    let dense = format!("{A}  x\n").repeat(SUMS_MAX_BYTES / 68);
    assert!(find(&dense, "x").is_ok());
}

#[test]
fn names_of_urls() {
    for (url, expected) in [
        ("https://host/dir/disk.img", Ok("disk.img")),
        ("https://host/dir/disk.img?token=a/b#frag/x", Ok("disk.img")),
        ("https://host/my%20disk%2eimg", Ok("my disk.img")),
        ("file:///srv/disk.img", Ok("disk.img")),
        ("s3://bucket/a/b.qcow2", Ok("b.qcow2")),
        ("https://host", Err("sums_no_name")),
        ("https://host/", Err("sums_no_name")),
        ("https://host/..", Err("sums_no_name")),
        ("https://host/a%2Fb", Err("sums_no_name")),
        ("https://host/a%zz", Err("sums_no_name")),
        ("https://host/a%00", Err("sums_no_name")),
        ("https://host/a%ff", Err("sums_no_name")),
    ] {
        let name = name_of_url(url);
        assert_eq!(name.as_deref().map_err(SumsError::code), expected, "{url}");
    }
}

#[test]
fn reads_what_the_tools_write() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["plain.img", "with space.img", "back\\slash", "new\nline", "par(en) = x"];
    for name in names {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    for (tool, option, prefix) in [
        ("sha256sum", "--text", "sha256:"),
        ("sha256sum", "--binary", "sha256:"),
        ("sha256sum", "--tag", "sha256:"),
        ("sha512sum", "--tag", "sha512:"),
        ("sha512sum", "--text", "sha512:"),
    ] {
        let output = Command::new(tool)
            .arg(option)
            .args(names)
            .current_dir(dir.path())
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: no {tool}");
            return;
        };
        assert!(output.status.success());
        let sums = Sums::parse(&output.stdout).unwrap();
        assert_eq!(sums.entries().len(), names.len());
        for name in names {
            let mut digests = crate::Digests::sha256_sha512();
            digests.update(name.as_bytes());
            let pinned = sums.find(name).unwrap();
            assert!(pinned.to_string().starts_with(prefix));
            assert_eq!(digests.finish().check(pinned), Ok(()), "{tool} {option} {name:?}");
        }
    }
}
