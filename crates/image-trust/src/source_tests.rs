//! One spelling for each source, and what patterns reach.

use super::*;

fn spelled(text: &str) -> String {
    Source::parse(text).map_or_else(|error| error.problem.to_owned(), |source| source.to_string())
}

#[test]
fn every_spelling_of_a_source_is_one() {
    for (same, texts) in [
        (
            "https://host/signed/disk.img",
            &[
                "https://host/signed/disk.img",
                "HTTPS://Host:443/signed/disk.img?x=1#y",
                "https://user:pw@host/signed/disk.img",
                "https://host./signed//disk.img",
                "https://host/%73igned/%64isk.img",
                "https://host/open/../signed/./disk.img",
                "https://host/open/%2e%2e/signed/disk.img",
                "https://host/open%2f..%2Fsigned/disk.img",
                "https://host/../../signed/disk.img",
            ][..],
        ),
        ("http://host:8080/a", &["http://host:8080/a", "http://HOST:8080/a"]),
        ("https://host/", &["https://host", "https://host/", "https://host?x"]),
        (
            "file:///srv/a",
            &["file:///srv/a", "file://localhost/srv/a", "file:///srv/../srv/a"],
        ),
        ("s3://bucket/a/b", &["s3://bucket/a/b"]),
        (
            "docker.io/library/debian",
            &[
                "debian",
                "debian:12",
                "docker.io/debian",
                "index.docker.io/library/debian",
                "registry-1.docker.io/debian:12",
                "library/debian@sha256:00",
            ],
        ),
        ("docker.io/team/app", &["team/app", "docker.io/team/app:1"]),
        ("localhost/app", &["localhost/app"]),
        ("reg:5000/a/b", &["reg:5000/a/b", "REG:5000/a/b:1@sha256:00"]),
    ] {
        for text in texts {
            assert_eq!(spelled(text), same, "{text}");
        }
    }
}

#[test]
fn refuses_what_has_no_one_spelling() {
    for text in [
        "",
        "https://",
        "https:///a",
        "https://../a",
        "https://./a",
        "https://host../a",
        "https://.host/a",
        "https://:8080/a",
        "ftp://host/a",
        "file://host/a",
        "https://host\\@evil/a",
        "https://host/a b",
        "https://host/%zz",
        "https://host/%ff",
        "https://ho%73t/a",
        "reg:5000/a/../b",
        "reg:5000//b",
        "reg:5000/",
        "reg:5000/%61",
        &format!("https://host/{}", "a".repeat(5000)),
    ] {
        assert!(Source::parse(text).is_err(), "{text}");
    }
}

#[test]
fn patterns_reach_what_they_say() {
    let cases: [(&str, &[&str], &[&str]); 10] = [
        ("*", &["debian", "https://h/a", "file:///a"], &[]),
        (
            "https://host/*",
            &["https://host/a/b", "https://host/"],
            &["http://host/a", "https://host.evil/a", "host/a"],
        ),
        (
            "https://host/a/*",
            &["https://host/a/b", "https://host/b/../a/c"],
            &["https://host/a/../b", "https://host/ab"],
        ),
        (
            "https://*.example.com/*",
            &["https://x.example.com/a"],
            &["https://evil/x.example.com/a", "https://example.com/a"],
        ),
        (
            "https://host/*.img",
            &["https://host/a/b.img"],
            &["https://host/a.img.sig"],
        ),
        (
            "reg.io/team/*",
            &["reg.io/team/a:1", "reg.io/team/a/b@sha256:00"],
            &["reg.io/teams/a", "reg.io:5000/team/a"],
        ),
        (
            "*/golden/*",
            &["reg.io/golden/a", "r:5000/golden/b"],
            &["reg.io/a/golden/b", "https://r/golden/b"],
        ),
        (
            "docker.io/debian",
            &["debian:12", "docker.io/library/debian"],
            &["docker.io/team/debian"],
        ),
        ("file:///srv/*", &["file:///srv/a"], &["file:///srv/../etc/a"]),
        ("upload://", &[], &["https://h/a", "debian"]),
    ];
    for (pattern, meant, not_meant) in cases {
        let parsed = Pattern::parse(pattern).unwrap();
        assert_eq!(parsed.to_string(), pattern);
        for source in meant {
            assert!(
                parsed.matches(&Source::parse(source).unwrap()),
                "{pattern} means {source}"
            );
        }
        for source in not_meant {
            assert!(
                !parsed.matches(&Source::parse(source).unwrap()),
                "{pattern} does not mean {source}"
            );
        }
    }
    assert!(Pattern::parse("upload://").unwrap().matches(&Source::upload()));
    assert!(Pattern::parse("*").unwrap().matches(&Source::upload()));
}

#[test]
fn refuses_patterns_that_would_never_match() {
    for text in [
        "",
        "debian",
        "team/app",
        "reg.io/",
        "reg.io/app:1",
        "reg.io/app@sha256:00",
        "https://host",
        "https://host/a?b",
        "https://user@host/a",
        "https://host/%61",
        "https://host/a/../b",
        "https://host//a",
        "ftp://host/*",
    ] {
        assert!(Pattern::parse(text).is_err(), "{text}");
    }
}

#[test]
fn knows_when_a_pattern_is_covered() {
    for (wide, narrow, covers) in [
        ("*", "https://host/*", true),
        ("https://host/*", "https://host/a/*", true),
        ("https://host/*", "https://host/*.img", true),
        ("https://host/a/*", "https://host/*", false),
        ("https://host/*.img", "https://host/*", false),
        ("https://*.x/*", "https://a.x/*", true),
        ("reg.io/*", "https://reg.io/*", false),
        ("reg.io/*", "*", false),
    ] {
        let covered = Pattern::parse(wide).unwrap().covers(&Pattern::parse(narrow).unwrap());
        assert_eq!(covered, covers, "{wide} over {narrow}");
    }
}

#[test]
fn stars_cost_no_more_than_length_times_length() {
    let pattern = format!("https://host/{}b", "a*".repeat(1500));
    let source = format!("https://host/{}", "a".repeat(4000));
    assert!(
        !Pattern::parse(&pattern)
            .unwrap()
            .matches(&Source::parse(&source).unwrap())
    );
}

#[test]
fn a_bucket_is_told_from_one_of_the_same_name_elsewhere() {
    let source = |text: &str| Source::parse(text).unwrap();
    let (here, there) = (
        source("s3://Images@S3.test:9000/a.raw"),
        source("s3://images@other.test/a.raw"),
    );
    assert_eq!(here.to_string(), "s3://images@s3.test:9000/a.raw");
    let pattern = |text: &str| Pattern::parse(text).unwrap();
    for (text, is_here, is_there) in [
        ("s3://images@s3.test:9000/*", true, false),
        ("s3://images@*.test*/*", true, true),
        ("s3://images/*", true, true),
        ("s3://*@other.test/*", false, true),
        ("s3://others@s3.test:9000/*", false, false),
    ] {
        let pattern = pattern(text);
        assert_eq!(
            (pattern.matches(&here), pattern.matches(&there)),
            (is_here, is_there),
            "{text}"
        );
    }
    // Where nobody said which server, a rule for one does not hold.
    let nowhere = source("s3://images/a.raw");
    assert!(pattern("s3://images/*").matches(&nowhere) && !pattern("s3://images@s3.test:9000/*").matches(&nowhere));
    assert!(pattern("s3://images/*").covers(&pattern("s3://images@s3.test/*")));
    assert!(!pattern("s3://images@s3.test/*").covers(&pattern("s3://images/*")));
    for text in [
        "s3://@server/a*",
        "s3://bucket@/a*",
        "s3://bucket/a@b",
        "https://user@host/*",
    ] {
        assert!(Pattern::parse(text).is_err(), "{text}");
    }
}
