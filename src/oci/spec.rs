//! From a template and its image to the spec that every other room trusts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::rule::{Origin, check_command, check_env};
use super::{OciError, Template, account};
use crate::model::{ContainerSpec, Digest, Lease, Limits, Name, Restart, Userns};

/// Where programs are looked for, unless the template or the request says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Account files are a few kilobytes; what is bigger is none.
const BIGGEST_ACCOUNTS: u64 = 1 << 20;

/// What the request for one container says differently from its template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Instead of the template's command.
    pub command: Option<Vec<String>>,
    /// `KEY=value`, each added to the template's or in the place of one of them.
    pub env: Vec<String>,
    /// Each limit that is set stands in the place of the template's.
    pub limits: Limits,
    /// Instead of the template's.
    pub restart: Option<Restart>,
    /// Instead of the template's.
    pub userns: Option<Userns>,
}

/// What the container `name` is: the template, with its user looked up in the image at `lower` (whose digest
/// is `image`), and with what the request says differently.
///
/// The environment is the template's and the request's, besides `PATH`, and `HOME` where the user's account
/// has one. Nothing is written.
pub fn resolve(
    template: &Template,
    image: Digest,
    lower: &Path,
    name: Name,
    lease: Lease,
    overrides: &Overrides,
) -> Result<ContainerSpec, OciError> {
    let defaults = &template.container;
    let origin = Origin(format!("{}/template.toml", template.name));
    let request = Origin(format!("the request for {name}"));

    let command = overrides.command.as_ref().unwrap_or(&defaults.command);
    check_command(&request, "command", command)?;

    let tree = Tree::open(lower)?;
    let passwd = tree.read(Path::new("etc/passwd"))?;
    let group = tree.read(Path::new("etc/group"))?;
    let resident = account::resolve(&origin, &defaults.user, &passwd, &group)?;
    tree.directory(&defaults.cwd)
        .map_err(|source| OciError::NoDirectory {
            origin: origin.0,
            cwd: defaults.cwd.clone(),
            source,
        })?;

    let mut env = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
    env.extend(resident.home.map(|home| ("HOME".to_owned(), home)));
    env.extend(defaults.env.clone());
    for line in &overrides.env {
        let Some((key, value)) = line.split_once('=') else {
            let rule = "a variable is written KEY=value";
            return Err(request.wrong("env", line, rule));
        };
        check_env(&request, "env", key, value)?;
        env.insert(key.to_owned(), value.to_owned());
    }

    Ok(ContainerSpec {
        name,
        template: template.name.to_string(),
        image,
        command: command.clone(),
        env: env
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
        cwd: defaults.cwd.clone(),
        user: resident.user,
        ports: defaults.ports.clone(),
        limits: limits(&request, &defaults.limits, &overrides.limits)?,
        restart: overrides.restart.unwrap_or(defaults.restart),
        userns: overrides.userns.unwrap_or(defaults.userns),
        lease,
        bundle: None,
    })
}

fn limits(request: &Origin, template: &Limits, wished: &Limits) -> Result<Limits, OciError> {
    for (value, field) in [
        (wished.memory.map(|memory| memory.0), "limits.memory"),
        (wished.cpu_millis, "limits.cpu_millis"),
        (wished.pids, "limits.pids"),
    ] {
        if value == Some(0) {
            let rule = "a container cannot run on nothing: write more, or leave it out";
            return Err(request.wrong(field, "0", rule));
        }
    }
    Ok(Limits {
        memory: wished.memory.or(template.memory),
        cpu_millis: wished.cpu_millis.or(template.cpu_millis),
        pids: wished.pids.or(template.pids),
    })
}

/// An image, read as a process would whose root directory it is: an image that comes from a stranger may
/// hold a link `/etc/passwd` to anywhere, and must not be able to show us the host's.
struct Tree<'a> {
    root: OwnedFd,
    path: &'a Path,
}

impl<'a> Tree<'a> {
    fn open(path: &'a Path) -> Result<Self, OciError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(root) => Ok(Self { root, path }),
            Err(errno) => Err(OciError::Read {
                path: path.to_owned(),
                source: errno.into(),
            }),
        }
    }

    fn within(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(self.root.as_fd(), path, how)?)
    }

    fn directory(&self, path: &Path) -> io::Result<()> {
        self.within(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .map(drop)
    }

    /// The text of a file; empty where there is none. What is not UTF-8 in it stays unreadable, it names no
    /// account that could be asked for.
    fn read(&self, path: &Path) -> Result<String, OciError> {
        let fail = |source| OciError::Read {
            path: self.path.join(path),
            source,
        };
        // Without O_NONBLOCK a named pipe in the file's place would keep us waiting.
        let file = match self.within(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            result => File::from(result.map_err(fail)?),
        };
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(fail(io::ErrorKind::InvalidInput.into()));
        }
        let mut bytes = Vec::new();
        let mut limited = file.take(BIGGEST_ACCOUNTS + 1);
        limited.read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > BIGGEST_ACCOUNTS {
            return Err(OciError::TooBig {
                path: self.path.join(path),
                most: BIGGEST_ACCOUNTS,
            });
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Bytes, Mac};
    use crate::oci::parse;
    use std::fs;
    use std::net::Ipv4Addr;
    use std::os::unix::fs::symlink;

    const TEMPLATE: &str = r#"
        [rootfs]
        packages = ["web"]
        [container]
        command = ["web", "--serve"]
        env = { COLOUR = "red", SIZE = "big" }
        cwd = "/srv"
        user = "web"
        ports = [80]
        limits = { memory = "64M", pids = 10 }
    "#;

    fn given_image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["etc", "srv"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(
            dir.path().join("etc/passwd"),
            "web:x:7:8::/home/web:/bin/sh\n",
        )
        .unwrap();
        dir
    }

    fn resolved(lower: &Path, overrides: &Overrides) -> Result<ContainerSpec, String> {
        let address = Ipv4Addr::new(10, 88, 0, 2);
        let lease = Lease {
            address,
            prefix: 24,
            gateway: None,
            mac: Mac::of(address),
        };
        let template = parse(TEMPLATE, "web").unwrap();
        let name = "web-1".parse().unwrap();
        resolve(&template, Digest([7; 32]), lower, name, lease, overrides)
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    #[test]
    fn a_template_becomes_a_spec() {
        let image = given_image();
        let spec = resolved(image.path(), &Overrides::default()).unwrap();
        assert_eq!(spec.template, "web");
        assert_eq!(spec.command, ["web", "--serve"]);
        assert_eq!(
            spec.env[..3],
            ["COLOUR=red", "HOME=/home/web", &format!("PATH={PATH}")]
        );
        assert_eq!((spec.user.uid, spec.user.gid), (7, 8));
        assert_eq!((spec.ports, spec.image), (vec![80], Digest([7; 32])));
    }

    #[test]
    fn the_request_has_the_last_word() {
        let image = given_image();
        let overrides = Overrides {
            command: Some(vec!["sh".into()]),
            env: vec!["SIZE=small".into(), "NEW=".into()],
            limits: Limits {
                memory: Some(Bytes(1 << 20)),
                ..Limits::default()
            },
            restart: Some(Restart::Always),
            userns: Some(Userns::Host),
        };
        let spec = resolved(image.path(), &overrides).unwrap();
        assert_eq!(spec.command, ["sh"]);
        assert!(spec.env.contains(&"SIZE=small".to_owned()));
        assert_eq!(spec.restart, Restart::Always);
        assert_eq!(spec.userns, Userns::Host);
        let without = resolved(image.path(), &Overrides::default()).unwrap();
        assert_eq!(without.userns, Userns::Auto);
        assert!(spec.env.contains(&"NEW=".to_owned()));
        assert_eq!(
            (spec.limits.memory, spec.limits.pids),
            (Some(Bytes(1 << 20)), Some(10))
        );
    }

    #[test]
    fn a_wrong_request_is_refused_with_its_field() {
        let image = given_image();
        let overrides = |command: Option<Vec<String>>, env: &[&str], pids| Overrides {
            command,
            env: env.iter().map(|line| (*line).to_owned()).collect(),
            limits: Limits {
                pids,
                ..Limits::default()
            },
            restart: None,
            userns: None,
        };
        for (wrong, part) in [
            (overrides(Some(vec![]), &[], None), "command"),
            (overrides(Some(vec!["a\0".into()]), &[], None), "command"),
            (overrides(None, &["NOVALUE"], None), "NOVALUE"),
            (overrides(None, &["=x"], None), "KEY=value"),
            (overrides(None, &[], Some(0)), "limits.pids"),
        ] {
            let error = resolved(image.path(), &wrong).unwrap_err();
            assert!(error.contains(part) && error.contains("web-1"), "{error}");
        }
    }

    #[test]
    fn an_image_cannot_show_the_hosts_accounts() {
        let image = given_image();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "web:x:0:0::/root:\n").unwrap();
        let inside = image.path().join("etc/passwd");
        fs::remove_file(&inside).unwrap();
        symlink(outside.path().join("passwd"), &inside).unwrap();
        let error = resolved(image.path(), &Overrides::default()).unwrap_err();
        assert!(error.contains("\"web\""), "{error}");
        // A link within the image is followed.
        fs::remove_file(&inside).unwrap();
        symlink("/srv/accounts", &inside).unwrap();
        fs::write(image.path().join("srv/accounts"), "web:x:9:9::/:\n").unwrap();
        let spec = resolved(image.path(), &Overrides::default()).unwrap();
        assert_eq!(spec.user.uid, 9);
    }

    #[test]
    fn a_directory_that_the_image_lacks_is_refused() {
        let image = given_image();
        fs::remove_dir(image.path().join("srv")).unwrap();
        let error = resolved(image.path(), &Overrides::default()).unwrap_err();
        assert!(
            error.contains("container.cwd") && error.contains("/srv"),
            "{error}"
        );
    }
}
