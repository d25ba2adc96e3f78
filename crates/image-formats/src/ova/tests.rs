//! Archives as honest tools make them, and as others do.

use tar::{EntryType, Header};

use super::*;

const OVF: &str = r#"<Envelope><References><File id="f" href="d.vmdk"/><File id="i" href="seed.iso"/></References>
    <DiskSection><Disk fileRef="f" capacity="2" capacityAllocationUnits="byte * 2^20" format="x"/></DiskSection></Envelope>"#;

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn manifest(files: &[(&str, &[u8])]) -> String {
    files
        .iter()
        .map(|(name, bytes)| format!("SHA256({name})= {}\n", sha256(bytes)))
        .collect()
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = Header::new_ustar();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

const RULES: OvaRules = OvaRules {
    max_disk_bytes: 1 << 20,
    require_manifest: false,
};

fn take(bytes: &[u8], rules: OvaRules) -> Result<(Vec<u8>, OvaReport), &'static str> {
    let mut ova = Ova::open(bytes, rules).map_err(|error| error.code())?;
    let mut disk = Vec::new();
    let read = ova.read_to_end(&mut disk);
    read.map_err(|error| OvaError::of(&error).map_or("other", OvaError::code))?;
    let report = ova.finish().map_err(|error| error.code())?;
    Ok((disk, report))
}

fn code(entries: &[(&str, &[u8])]) -> &'static str {
    take(&archive(entries), RULES).map_or_else(|code| code, |_| "taken")
}

#[test]
fn the_disk_is_streamed_and_the_digests_compared_wherever_the_manifest_is() {
    let disk = vec![7; 100_000];
    let ovf = ("a.ovf", OVF.as_bytes());
    let files: [(&str, &[u8]); 3] = [ovf, ("d.vmdk", &disk), ("seed.iso", b"seed")];
    let mf = manifest(&files);
    let mf = ("a.mf", mf.as_bytes());
    for order in [
        vec![ovf, mf, files[1], files[2]],
        vec![ovf, mf, files[2], files[1], ("a.cert", b"x")],
        vec![ovf, files[1], files[2], mf],
    ] {
        let (found, report) = take(&archive(&order), RULES).unwrap();
        assert!(found == disk && report.had_manifest);
    }
    let bare = archive(&files);
    assert!(!take(&bare, RULES).unwrap().1.had_manifest);
    let strict = OvaRules {
        require_manifest: true,
        ..RULES
    };
    assert_eq!(take(&bare, strict), Err("manifest_missing"));
    let ova = Ova::open(bare.as_slice(), RULES).unwrap();
    assert_eq!((ova.disk().path.as_str(), ova.disk().size_bytes), ("d.vmdk", 100_000));
    assert_eq!(ova.disk().capacity_bytes, Some(2 << 20));
    assert!(!ova.finish().unwrap().had_manifest, "nobody has to read the disk");
}

#[test]
fn what_the_manifest_does_not_cover_is_refused() {
    let ovf = ("a.ovf", OVF.as_bytes());
    let disk: (&str, &[u8]) = ("d.vmdk", b"disk");
    let other = manifest(&[ovf, ("d.vmdk", b"DISK")]);
    for order in [
        vec![ovf, ("a.mf", other.as_bytes()), disk],
        vec![ovf, disk, ("a.mf", other.as_bytes())],
    ] {
        assert_eq!(code(&order), "manifest_digest");
    }
    let less = manifest(&[ovf]);
    assert_eq!(code(&[ovf, ("a.mf", less.as_bytes()), disk]), "manifest_digest");
    let more = manifest(&[ovf, disk, ("seed.iso", b"seed")]);
    assert_eq!(code(&[ovf, ("a.mf", more.as_bytes()), disk]), "manifest_digest");
    assert_eq!(code(&[ovf, ("a.mf", b"nonsense"), disk]), "manifest_damaged");
}

#[test]
fn descriptions_that_do_not_lead_to_one_disk_are_refused() {
    let with = |from: &str, to: &str| {
        let text = OVF.replace(from, to);
        assert_ne!(text, OVF);
        code(&[("a.ovf", text.as_bytes()), ("d.vmdk", b"disk")])
    };
    assert_eq!(
        with("</DiskSection>", "<Disk fileRef=\"i\"/></DiskSection>"),
        "ova_several_disks"
    );
    assert_eq!(with("DiskSection", "Section"), "ova_no_disk");
    assert_eq!(with("fileRef=\"f\"", "fileRef=\"g\""), "ova_no_disk");
    assert_eq!(with("fileRef=\"f\"", ""), "ova_no_disk");
    assert_eq!(with("d.vmdk", "http://host/d.vmdk"), "ovf_external_file");
    assert_eq!(with("d.vmdk", "../d.vmdk"), "ovf_external_file");
    assert_eq!(with("d.vmdk", "/d.vmdk"), "ovf_external_file");
    assert_eq!(
        with("href=\"d.vmdk\"", "href=\"d.vmdk\" compression=\"gzip\""),
        "ova_disk_compressed"
    );
    assert_eq!(
        with("fileRef=\"f\"", "fileRef=\"f\" parentRef=\"p\""),
        "ova_disk_parent"
    );
    assert_eq!(with("id=\"i\"", "id=\"f\""), "ovf_damaged");
    assert_eq!(with("<Envelope>", "<!DOCTYPE x><Envelope>"), "ovf_damaged");
    assert_eq!(with("</Envelope>", ""), "ovf_damaged");
}

#[test]
fn archives_beyond_their_description_are_refused() {
    let ovf = ("a.ovf", OVF.as_bytes());
    let disk: (&str, &[u8]) = ("d.vmdk", b"disk");
    assert_eq!(code(&[ovf, disk]), "taken");
    assert_eq!(code(&[disk, ovf]), "ovf_missing");
    assert_eq!(code(&[]), "ovf_missing");
    assert_eq!(code(&[ovf]), "ova_no_disk");
    assert_eq!(code(&[ovf, disk, disk]), "archive_duplicate");
    assert_eq!(code(&[ovf, ("x.vmdk", b"x"), disk]), "archive_unlisted");
    assert_eq!(code(&[ovf, disk, ("x.vmdk", b"x")]), "archive_unlisted");
    assert_eq!(code(&[ovf, ("d.vmdk", &vec![0; (1 << 20) + 1])]), "ova_disk_too_large");
    assert_eq!(
        code(&[("a.ovf", &vec![b' '; (2 << 20) + 1])]),
        "archive_entry_too_large"
    );
    let whole = archive(&[ovf, disk]);
    let ovf_end = 512 + ovf.1.len().next_multiple_of(512);
    assert_eq!(take(&whole[..ovf_end + 512 + 2], RULES), Err("archive_truncated"));
    for (kind, expected) in [
        (EntryType::Symlink, "archive_link"),
        (EntryType::Link, "archive_link"),
        (EntryType::Block, "archive_link"),
    ] {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path("d.vmdk").unwrap();
        header.set_link_name("/etc/shadow").unwrap();
        header.set_size(0);
        header.set_cksum();
        let bytes = [&whole[..ovf_end], header.as_bytes(), &[0; 1024]].concat();
        assert_eq!(take(&bytes, RULES), Err(expected));
    }
}
