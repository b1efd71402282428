//! Who a container is, in its own files: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`. They are written into
//! its own layer when it is created, and travel with it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::ContainerError;
use crate::model::ContainerSpec;

/// Where the host's own resolver configuration is, the better one first: with systemd-resolved the usual file
/// names a server that only the host can reach.
const RESOLVERS: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// Writes the files through the mounted root of a container that has never run. Nothing outside that root is
/// touched, whatever links the image has. They are the container's root's, who is `owner` on this host.
pub(super) fn write(root: &Path, spec: &ContainerSpec, owner: u32) -> Result<(), ContainerError> {
    let failed = || ContainerError::file("write the identity files of", root);
    let root_dir = File::open(root).map_err(failed())?;
    let etc = open_etc(&root_dir, owner).map_err(failed())?;
    let resolvers = RESOLVERS
        .iter()
        .find_map(|path| fs::read_to_string(path).ok());
    let resolver = resolver_text(&resolvers.unwrap_or_default(), spec);
    let files = [
        ("hostname", format!("{}\n", spec.name)),
        ("hosts", hosts_text(spec)),
        ("resolv.conf", resolver),
    ];
    for (name, text) in files {
        replace(&etc, name, &text, owner).map_err(failed())?;
    }
    Ok(())
}

fn open_etc(root: &File, owner: u32) -> io::Result<File> {
    let mut made = true;
    match mkdirat(root, "etc", Mode::from_bits_truncate(0o755)) {
        Ok(()) => {}
        Err(nix::errno::Errno::EEXIST) => made = false,
        Err(errno) => return Err(errno.into()),
    }
    let how = OpenHow::new()
        .flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let etc = File::from(openat2(root, "etc", how)?);
    if made {
        fchown(&etc, Some(owner), Some(owner))?;
    }
    Ok(etc)
}

/// Makes the file anew: a link in its place is removed, not followed.
fn replace(etc: &File, name: &str, text: &str, owner: u32) -> io::Result<()> {
    match unlinkat(etc.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let how = OpenHow::new()
        .flags(flags)
        .mode(Mode::from_bits_truncate(0o644))
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let mut file = File::from(openat2(etc, name, how)?);
    // Whatever our own mask is.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    fchown(&file, Some(owner), Some(owner))?;
    file.write_all(text.as_bytes())
}

fn hosts_text(spec: &ContainerSpec) -> String {
    let (address, name) = (spec.lease.address, &spec.name);
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{name}\n")
}

/// The host's resolver configuration without servers that only the host reaches; where none are left, the
/// gateway, which often is one.
fn resolver_text(of_host: &str, spec: &ContainerSpec) -> String {
    let usable = |line: &&str| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(server)) => {
                !server.starts_with("127.") && server != "::1" && server != "0.0.0.0"
            }
            (Some("search" | "domain" | "options"), _) => true,
            _ => false,
        }
    };
    let mut lines: Vec<String> = of_host.lines().filter(usable).map(str::to_owned).collect();
    let any = lines
        .iter()
        .any(|line| line.trim_start().starts_with("nameserver"));
    if let (false, Some(gateway)) = (any, spec.lease.gateway) {
        lines.push(format!("nameserver {gateway}"));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::container::test::spec;
    use std::os::unix::fs::symlink;

    #[test]
    fn servers_that_only_the_host_reaches_are_left_out() {
        let mut spec = spec("web", &["true"]);
        spec.lease.gateway = Some([10, 0, 0, 1].into());
        let text = "# note\nnameserver 127.0.0.53\nsearch example.org\n";
        assert_eq!(
            resolver_text(text, &spec),
            "search example.org\nnameserver 10.0.0.1\n"
        );
        let text = "nameserver ::1\nnameserver 192.0.2.1\n";
        assert_eq!(resolver_text(text, &spec), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn a_link_in_the_image_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(&outside, "untouched").unwrap();
        symlink(&outside, root.join("etc/hosts")).unwrap();
        let spec = spec("web", &["true"]);
        let mine = nix::unistd::geteuid().as_raw();
        write(&root, &spec, mine).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert!(
            fs::read_to_string(root.join("etc/hosts"))
                .unwrap()
                .ends_with("\tweb\n")
        );
        assert_eq!(
            fs::read_to_string(root.join("etc/hostname")).unwrap(),
            "web\n"
        );

        fs::remove_dir_all(root.join("etc")).unwrap();
        symlink(dir.path(), root.join("etc")).unwrap();
        assert!(write(&root, &spec, mine).is_err());
        assert!(!dir.path().join("hosts").exists());
    }
}
