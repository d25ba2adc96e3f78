//! The rules of an address policy, one by one.

use proptest::prelude::*;

use super::*;

fn check(policy: &AddressPolicy, url: &str) -> Result<(), String> {
    let url = Url::parse(url).map_err(|error| error.to_string())?;
    policy.check_url(&url).map_err(|refusal| refusal.to_string())
}

fn refused(policy: &AddressPolicy, url: &str) -> String {
    check(policy, url).expect_err(url)
}

fn networks(list: &[&str]) -> Vec<Network> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn hosts(list: &[&str]) -> Vec<HostPattern> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn the_default_is_web_on_its_own_ports() {
    let policy = AddressPolicy::default();
    for url in [
        "http://mirror.example.org/a",
        "https://mirror.example.org/a",
        "https://10.1.2.3/a",
        "http://mirror.example.org:443/a",
        "http://[2001:db8::1]/a",
    ] {
        assert_eq!(check(&policy, url), Ok(()), "{url}");
    }
    assert!(refused(&policy, "http://mirror.example.org:8080/").starts_with("port 8080 is not in allowed_ports"));
    for url in [
        "ftp://mirror.example.org/a",
        "file:///etc/passwd",
        "data:,x",
        "gopher://mirror.example.org:80/",
    ] {
        assert!(refused(&policy, url).contains("is not in allowed_schemes"), "{url}");
    }
}

#[test]
fn the_host_itself_is_refused_in_every_spelling() {
    let policy = AddressPolicy::default();
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "127。0。0。1",
        "１２７.0.0.1",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::127.0.0.1]",
        "[2002:7f00:1::]",
        "0.0.0.0",
        "0",
        "[::]",
        "169.254.169.254",
        "0xa9fea9fe",
        "[::ffff:169.254.169.254]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let text = refused(&policy, &format!("http://{host}/"));
        assert!(
            text.contains("where no image is fetched from by default"),
            "{host}: {text}"
        );
    }
}

#[test]
fn special_networks_open_only_by_name() {
    let open = |list: &[&str]| AddressPolicy {
        allowed_networks: networks(list),
        ..AddressPolicy::default()
    };
    assert!(check(&open(&["0.0.0.0/0", "::/0"]), "http://127.0.0.1/").is_err());
    assert_eq!(check(&open(&["0.0.0.0/0", "::/0"]), "http://192.0.2.1/"), Ok(()));
    assert_eq!(check(&open(&["127.0.0.0/8"]), "http://127.0.0.1/"), Ok(()));
    assert_eq!(check(&open(&["127.0.0.1"]), "http://[::ffff:127.0.0.1]/"), Ok(()));
    assert!(check(&open(&["127.0.0.1"]), "http://127.0.0.2/").is_err());
    assert!(check(&open(&["127.0.0.1"]), "http://[64:ff9b::7f00:2]/").is_err());
    let text = refused(&open(&["127.0.0.0/8"]), "http://192.0.2.1/");
    assert!(text.contains("is not in allowed_networks"), "{text}");
}

#[test]
fn what_is_denied_stays_denied() {
    let policy = AddressPolicy {
        allowed_hosts: hosts(&["*.example.org", "192.0.2.0", "10.0.0.1"]),
        denied_hosts: hosts(&["internal.example.org"]),
        allowed_ports: vec![],
        denied_ports: vec![22],
        allowed_networks: networks(&["0.0.0.0/0"]),
        denied_networks: networks(&["10.0.0.0/8"]),
        denied_schemes: vec!["HTTP".to_owned()],
        ..AddressPolicy::default()
    };
    assert_eq!(check(&policy, "https://a.example.org:8443/"), Ok(()));
    assert!(refused(&policy, "https://internal.example.org/").contains("in denied_hosts"));
    assert!(refused(&policy, "https://INTERNAL.example.org./").contains("in denied_hosts"));
    assert!(refused(&policy, "https://example.net/").contains("not in allowed_hosts"));
    assert!(refused(&policy, "https://a.example.org:22/").contains("in denied_ports"));
    assert!(refused(&policy, "https://10.0.0.1/").contains("in denied_networks"));
    assert!(refused(&policy, "http://a.example.org/").contains("in denied_schemes"));
}

#[test]
fn an_address_within_an_address_is_denied_too() {
    let policy = AddressPolicy {
        denied_networks: networks(&["10.0.0.0/8"]),
        ..AddressPolicy::default()
    };
    for host in ["[64:ff9b::10.0.0.1]", "[::ffff:10.0.0.1]", "[2002:a00:1::]", "10.1"] {
        assert!(
            refused(&policy, &format!("http://{host}/")).contains("in denied_networks"),
            "{host}"
        );
    }
}

#[test]
fn https_is_not_left_by_a_redirect() {
    let url = |text| Url::parse(text).unwrap();
    let policy = AddressPolicy::default();
    assert!(!policy.may_follow(&url("https://a.test/"), &url("http://a.test/")));
    assert!(policy.may_follow(&url("http://a.test/"), &url("https://a.test/")));
    assert!(policy.may_follow(&url("http://a.test/"), &url("http://b.test/")));
    let open = AddressPolicy {
        redirect_to_plain_http: true,
        ..policy
    };
    assert!(open.may_follow(&url("https://a.test/"), &url("http://a.test/")));
}

#[test]
fn it_is_written_in_toml() {
    let policy: AddressPolicy = toml::from_str(
        "allowed_hosts = ['*.example.org', '192.0.2.7']\nallowed_ports = [443]\nallowed_networks = ['127.0.0.1']",
    )
    .unwrap();
    assert_eq!(policy.allowed_schemes, ["http", "https"]);
    assert_eq!(policy.allowed_hosts, hosts(&["*.example.org", "192.0.2.7"]));
    assert_eq!(policy.redirects_max, REDIRECTS_MAX);
    assert!(toml::from_str::<AddressPolicy>("allowed_host = []").is_err());
    assert!(toml::from_str::<AddressPolicy>("allowed_networks = ['localhost']").is_err());
    let text = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<AddressPolicy>(&text).unwrap(), policy);
}

proptest! {
    /// However an IPv4 address is dressed up, the verdict is the one on the plain address.
    #[test]
    fn a_mapped_address_is_judged_as_the_plain_one(bits: u32, denied: u32, prefix in 0u8..=32) {
        let address = std::net::Ipv4Addr::from(bits);
        let policy = AddressPolicy {
            denied_networks: networks(&[&format!("{}/{prefix}", std::net::Ipv4Addr::from(denied))]),
            ..AddressPolicy::default()
        };
        let plain = policy.check_address("h", IpAddr::V4(address)).is_ok();
        let mapped = policy.check_address("h", IpAddr::V6(address.to_ipv6_mapped())).is_ok();
        let translated: IpAddr = format!("64:ff9b::{address}").parse().unwrap();
        prop_assert_eq!(plain, mapped);
        prop_assert_eq!(plain, policy.check_address("h", translated).is_ok());
        let url = Url::parse(&format!("http://{bits}/")).unwrap();
        prop_assert_eq!(plain, policy.check_url(&url).is_ok());
    }

    /// Nothing a user may write as a host makes the check fail otherwise than by a verdict.
    #[test]
    fn any_text_gets_a_verdict(text in "\\PC{0,40}") {
        if let Ok(url) = Url::parse(&format!("http://{text}/")) {
            let _ = AddressPolicy::default().check_url(&url);
        }
        let _ = text.parse::<HostPattern>();
        let _ = text.parse::<Network>();
    }
}
