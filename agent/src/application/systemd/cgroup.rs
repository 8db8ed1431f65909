//! Who lives in a unit's control group. Read from `/proc`, which says the same under cgroups of version 1 and 2.

use crate::processes::{self, Identity};

/// Living processes in a control group or below it. None for a unit that has no group.
pub fn members(group: &str) -> Vec<Identity> {
    if group.is_empty() || group == "/" {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            // It may end between the listing and the reading.
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| is_member(&text, group))
        })
        .filter_map(processes::identity)
        .collect()
}

/// Lines are `hierarchy:controllers:path`. systemd's own hierarchy is called `name=systemd` in version 1 and has no
/// controllers in version 2; the others need not follow it.
fn is_member(text: &str, group: &str) -> bool {
    text.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let ours = matches!(fields.next(), Some("" | "name=systemd"));
        let below = fields
            .next()
            .and_then(|path| path.strip_prefix(group))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        ours && below
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_whose_name_only_begins_alike_is_another_one() {
        let text = "4:memory:/system.slice/other.service\n1:name=systemd:/system.slice/app.service/worker\n0::/\n";
        assert!(is_member(text, "/system.slice/app.service"));
        assert!(!is_member(text, "/system.slice/app"));
        assert!(!is_member(text, "/system.slice/other.service"));
        assert!(is_member("0::/system.slice/app.service\n", "/system.slice/app.service"));
    }
}
