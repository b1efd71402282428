//! Whom a container runs as: a user as written, looked up in an image's own accounts.

use super::OciError;
use super::rule::Origin;
use crate::model::User;

/// A user as it was written: `USER` or `USER:GROUP`, each a name or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserWish {
    /// The user.
    pub user: Account,
    /// The group, where one is named.
    pub group: Option<Account>,
}

/// A user or a group as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl UserWish {
    /// The rule that [`UserWish::parse`] keeps.
    pub const RULE: &'static str =
        "it must be USER or USER:GROUP, each a name of the image's own accounts or a number";

    /// Reads what was written; none where it breaks [`UserWish::RULE`].
    pub fn parse(text: &str) -> Option<Self> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        Some(Self {
            user: Account::parse(user)?,
            group: match group {
                Some(group) => Some(Account::parse(group)?),
                None => None,
            },
        })
    }
}

impl Account {
    fn parse(text: &str) -> Option<Self> {
        if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
            // The last number means "no change" to the system calls that set ids.
            return text.parse().ok().filter(|&id| id != u32::MAX).map(Self::Id);
        }
        let inner = |c: u8| c.is_ascii_alphanumeric() || b"_.-$".contains(&c);
        let good = (1..=32).contains(&text.len()) && text.bytes().all(inner);
        (good && !text.starts_with('-')).then(|| Self::Name(text.to_owned()))
    }
}

/// A user, and the directory it calls home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// The numbers.
    pub user: User,
    /// Its home directory, where its account has one.
    pub home: Option<String>,
}

/// Looks `wish` up in the text of an image's `/etc/passwd` and `/etc/group` (empty where it has none).
///
/// Without a group the user's own is taken, and with it every group that lists the user as a member. Lines
/// that are no account lines are passed over, as the C library does.
pub(super) fn resolve(
    origin: &Origin,
    wish: &UserWish,
    passwd: &str,
    group: &str,
) -> Result<Resident, OciError> {
    let unknown = |kind, name: String, file, remedy| OciError::NoAccount {
        origin: origin.0.clone(),
        kind,
        name,
        file,
        remedy,
    };
    let line = passwd
        .lines()
        .filter_map(PasswdLine::parse)
        .find(|line| match &wish.user {
            Account::Id(id) => line.uid == *id,
            Account::Name(name) => line.name == name,
        });
    let (uid, own_gid) = match (&line, &wish.user) {
        (Some(line), _) => (line.uid, Some(line.gid)),
        // Root is root even where nobody has written it down.
        (None, Account::Id(0)) => (0, Some(0)),
        (None, Account::Name(name)) if name == "root" => (0, Some(0)),
        (None, Account::Id(id)) => (*id, None),
        (None, Account::Name(name)) => {
            let remedy = "write UID:GID, or install the package that makes the account";
            return Err(unknown("user", name.clone(), "/etc/passwd", remedy));
        }
    };
    let groups = || group.lines().filter_map(GroupLine::parse);
    let (gid, supplementary) = match (&wish.group, own_gid) {
        (Some(Account::Id(gid)), _) => (*gid, Vec::new()),
        (Some(Account::Name(name)), _) => match groups().find(|g| g.name == name) {
            Some(found) => (found.gid, Vec::new()),
            None => {
                let remedy = "write the group's number, or install the package that makes it";
                return Err(unknown("group", name.clone(), "/etc/group", remedy));
            }
        },
        (None, Some(gid)) => {
            let member = line.as_ref().map_or("root", |line| line.name);
            let mut ids: Vec<u32> = groups()
                .filter(|g| g.gid != gid && g.members.split(',').any(|m| m == member))
                .map(|g| g.gid)
                .collect();
            ids.sort_unstable();
            ids.dedup();
            (gid, ids)
        }
        (None, None) => {
            let remedy = "an account that is only a number needs a group: write UID:GID";
            return Err(unknown("user", uid.to_string(), "/etc/passwd", remedy));
        }
    };
    Ok(Resident {
        user: User {
            uid,
            gid,
            groups: supplementary,
        },
        home: line
            .map(|line| line.home.to_owned())
            .filter(|home| home.starts_with('/')),
    })
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok().filter(|&id| id != u32::MAX)?;
        let gid = fields.next()?.parse().ok().filter(|&id| id != u32::MAX)?;
        let _comment = fields.next();
        let home = fields.next().unwrap_or("");
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok().filter(|&id| id != u32::MAX)?;
        let members = fields.next().unwrap_or("");
        Some(Self { name, gid, members })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a remark\nbroken:x:-1:0\n\
        redis:x:101:102::/var/lib/redis:/usr/sbin/nologin\nminus:x:4294967295:0:::\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:redis,root\nredis:x:102:redis\ntls:x:50:a,redis\n";

    fn look(text: &str) -> Result<Resident, String> {
        let wish = UserWish::parse(text).unwrap();
        let origin = Origin("redis/template.toml".into());
        resolve(&origin, &wish, PASSWD, GROUP).map_err(|e| e.to_string())
    }

    fn ids(text: &str) -> (u32, u32, Vec<u32>) {
        let user = look(text).unwrap().user;
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn a_user_comes_with_its_groups_and_its_home() {
        assert_eq!(ids("redis"), (101, 102, vec![4, 50]));
        assert_eq!(ids("101"), (101, 102, vec![4, 50]));
        assert_eq!(look("redis").unwrap().home.unwrap(), "/var/lib/redis");
        assert_eq!(ids("root"), (0, 0, vec![4]));
    }

    #[test]
    fn a_named_group_stands_alone() {
        assert_eq!(ids("redis:adm"), (101, 4, vec![]));
        assert_eq!(ids("7:8"), (7, 8, vec![]));
        assert_eq!(ids("7:adm"), (7, 4, vec![]));
    }

    #[test]
    fn an_unknown_account_is_refused_with_its_name_and_a_remedy() {
        for (text, part) in [
            ("nginx", "nginx"),
            ("redis:wheel", "wheel"),
            ("7", "UID:GID"),
            ("broken", "broken"),
            ("minus", "minus"),
        ] {
            let error = look(text).unwrap_err();
            assert!(
                error.contains(part) && error.contains("container.user"),
                "{error}"
            );
        }
    }

    #[test]
    fn root_needs_no_accounts() {
        let origin = Origin("x".into());
        for text in ["root", "0", "0:0"] {
            let wish = UserWish::parse(text).unwrap();
            let found = resolve(&origin, &wish, "", "").unwrap();
            assert_eq!((found.user.uid, found.user.gid, found.home), (0, 0, None));
        }
    }

    #[test]
    fn what_is_no_user_is_not_read_as_one() {
        for text in [
            "",
            ":",
            "a:",
            ":a",
            "a:b:c",
            "a b",
            "-a",
            "4294967295",
            "99999999999",
            "a/b",
        ] {
            assert_eq!(UserWish::parse(text), None, "{text}");
        }
    }
}
