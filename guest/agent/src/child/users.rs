//! Who a process runs as: names looked up in the container's own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::Read;

use kvmlet_protocol::{ErrorKind, Failure, Identity, User};

use crate::failure::fail;

/// More of these files is not read.
const MOST: u64 = 16 << 20;

/// Numbers and home of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) identity: Identity,
    pub(crate) home: String,
}

/// Looks the user up in this process's root; `strict`, it has no groups but those of `user`.
pub(crate) fn resolve(user: &User, strict: bool) -> Result<Account, Failure> {
    resolve_in(user, strict, &read("/etc/passwd"), &read("/etc/group"))
}

/// The text of a file; a missing one has no entries, as for other runtimes.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What could be read before an error counts.
        drop(file.take(MOST).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or(""),
        })
    })
}

/// Name, number and members of each group.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// Linux has no larger user or group numbers that can be set.
fn number(text: &str) -> Option<u32> {
    text.parse::<i32>().ok().and_then(|n| u32::try_from(n).ok())
}

fn resolve_in(user: &User, strict: bool, passwd_text: &str, group_text: &str) -> Result<Account, Failure> {
    let (wanted, wanted_group) = match user.user.split_once(':') {
        Some((name, group)) => (name, group),
        None => (user.user.as_str(), ""),
    };
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let entry = passwd(passwd_text).find(|e| e.name == wanted || Some(e.uid) == number(wanted));
    let no_user = || {
        fail(
            ErrorKind::BadContainer,
            format!("unable to find user {wanted}: no matching entries in passwd file"),
        )
    };
    let uid = entry.as_ref().map(|e| e.uid).or_else(|| number(wanted)).ok_or_else(no_user)?;

    let gid = if let Some(group) = user.group {
        group
    } else if wanted_group.is_empty() {
        entry.as_ref().map_or(0, |e| e.gid)
    } else {
        let no_group = || {
            fail(
                ErrorKind::BadContainer,
                format!("unable to find group {wanted_group}: no matching entries in group file"),
            )
        };
        let found = groups(group_text).find(|(name, gid, _)| *name == wanted_group || Some(*gid) == number(wanted_group));
        found.map(|(_, gid, _)| gid).or_else(|| number(wanted_group)).ok_or_else(no_group)?
    };

    let member = |members: &str| entry.as_ref().is_some_and(|e| members.split(',').any(|m| m == e.name));
    let mut all = vec![gid];
    if !strict {
        all.extend(groups(group_text).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    all.extend(&user.groups);
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|g| seen.insert(*g));

    let home = entry.map(|e| e.home).filter(|h| !h.is_empty()).unwrap_or("/").to_owned();
    let identity = Identity { uid, gid, groups: all };
    Ok(Account { identity, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nnginx:x:101:102:nginx:/var/cache/nginx:/bin/false\n";
    const GROUP: &str = "root:x:0:\nnginx:x:102:\nweb:x:200:nginx,other\nadm:x:4:root,nginx\n";

    fn look(user: &str) -> Result<Account, Failure> {
        let user = User {
            user: user.into(),
            group: None,
            groups: vec![],
        };
        resolve_in(&user, false, PASSWD, GROUP)
    }

    fn account(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        let groups = groups.into();
        Account {
            identity: Identity { uid, gid, groups },
            home: home.into(),
        }
    }

    #[test]
    fn users_come_by_name_and_by_number_with_their_groups() {
        assert_eq!(look(""), Ok(account(0, 0, &[0, 4], "/root")));
        assert_eq!(look("nginx"), Ok(account(101, 102, &[102, 200, 4], "/var/cache/nginx")));
        assert_eq!(look("101"), look("nginx"));
        assert_eq!(look("nginx:web"), Ok(account(101, 200, &[200, 4], "/var/cache/nginx")));
        assert_eq!(look("4711"), Ok(account(4711, 0, &[0], "/")));
        assert_eq!(look("4711:4712"), Ok(account(4711, 4712, &[4712], "/")));
    }

    #[test]
    fn unknown_names_are_refused_in_the_usual_words() {
        assert_eq!(
            look("nobody").unwrap_err().message,
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            look("root:none").unwrap_err().message,
            "unable to find group none: no matching entries in group file"
        );
        for user in ["-1", "4294967295", "root "] {
            assert!(look(user).is_err(), "{user:?}");
        }
    }

    #[test]
    fn the_pods_groups_come_on_top() {
        let user = User {
            user: "nginx".into(),
            group: Some(3000),
            groups: vec![2000, 4],
        };
        assert_eq!(
            resolve_in(&user, false, PASSWD, GROUP),
            Ok(account(101, 3000, &[3000, 200, 4, 2000], "/var/cache/nginx"))
        );
        assert_eq!(
            resolve_in(&user, true, PASSWD, GROUP),
            Ok(account(101, 3000, &[3000, 2000, 4], "/var/cache/nginx"))
        );
    }
}
