//! Who may use the API.

use rest::Peer;

/// Root, the user the daemon runs as, and members of `group`, by their primary or a further group.
pub(crate) fn may(peer: Peer, group: Option<u32>) -> bool {
    if peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw() {
        return true;
    }
    let Some(group) = group else { return false };
    peer.gid == group || peer.pid.is_some_and(|pid| further_groups(pid).contains(&group))
}

/// Id of a group by its name (`/etc/group`, group(5)).
pub(crate) fn group_id(name: &str) -> Option<u32> {
    find(&std::fs::read_to_string("/etc/group").ok()?, name)
}

fn find(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Supplementary groups of a process that is connected (`/proc/PID/status`, proc(5)).
fn further_groups(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    parse_groups(&status)
}

fn parse_groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.unwrap_or_default()
        .split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let groups = "root:x:0:\nkarat-x:x:7:\nkarat:x:998:ann,bob\nbroken\n";
        assert_eq!(find(groups, "karat"), Some(998));
        assert_eq!(find(groups, "kara"), None);
        assert_eq!(find(groups, "broken"), None);
    }

    #[test]
    fn root_the_daemon_and_members_may_and_nobody_else() {
        let peer = |uid, gid| Peer { uid, gid, pid: None };
        let own = rustix::process::geteuid().as_raw();
        assert!(may(peer(0, 0), None));
        assert!(may(peer(own, 12), None));
        assert!(may(peer(own + 4000, 998), Some(998)));
        assert!(!may(peer(own + 4000, 998), None));
        assert!(!may(peer(own + 4000, 5), Some(998)));
        assert_eq!(parse_groups("Name:\tx\nGroups:\t4 998 \nPid:\t1\n"), [4, 998]);
    }
}
