//! Where a bundle's cgroup is. Pure, but for the look at the mounts that the caller takes.

use std::path::{Component, Path, PathBuf};

use crate::cgroup::CgroupError;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// We do, as directories.
    #[default]
    CgroupFs,
    /// systemd does, as scopes.
    Systemd,
}

/// The parent of cgroups whose place the bundle leaves to us.
pub const OURS: &str = "godwit-oci";

/// The path below the root of the hierarchy, as names: at least one.
///
/// An absolute `linux.cgroupsPath` begins at the root of the hierarchy, a relative one at a parent of ours, and without
/// one the container's id is the name.
pub fn names(id: &str, path: Option<&Path>) -> Result<Vec<String>, CgroupError> {
    let refused = |reason| CgroupError::Place {
        path: path.unwrap_or(Path::new(id)).display().to_string(),
        reason,
    };
    let given = path.filter(|path| !path.as_os_str().is_empty());
    let whole = match given {
        Some(path) if path.is_absolute() => path.to_owned(),
        Some(path) => Path::new(OURS).join(path),
        None => Path::new(OURS).join(id),
    };
    let mut names = Vec::new();
    for component in whole.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                let name = name.to_str().ok_or_else(|| refused("it is not UTF-8"))?;
                if name.starts_with("cgroup.") || name.bytes().any(|byte| byte < b' ') {
                    return Err(refused("a name in it is none of a cgroup"));
                }
                names.push(name.to_owned());
            }
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused("`..` leads out of it"));
            }
        }
    }
    if names.is_empty() {
        return Err(refused(
            "the root of all cgroups has no limits; name one below it",
        ));
    }
    Ok(names)
}

/// The directory of these names.
pub fn directory(root: &Path, names: &[String]) -> PathBuf {
    names
        .iter()
        .fold(root.to_owned(), |path, name| path.join(name))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_path_is_below_the_root_wherever_it_begins() {
        let of = |path: Option<&str>| names("web", path.map(Path::new)).map(|n| n.join("/"));
        assert_eq!(of(None).unwrap(), "godwit-oci/web");
        assert_eq!(of(Some("")).unwrap(), "godwit-oci/web");
        assert_eq!(of(Some("a/b")).unwrap(), "godwit-oci/a/b");
        assert_eq!(of(Some("/kubepods/pod7/./x")).unwrap(), "kubepods/pod7/x");
        for bad in ["/", "/a/../../b", "../b", "/a/cgroup.procs", "/a\n"] {
            assert!(of(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
