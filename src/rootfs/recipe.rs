//! All that decides what an image will be, and its hash: the key under which a built image is found again.
//!
//! The hash covers the template's `[rootfs]` with the host's part filled in (suite, package sources,
//! architecture) and the content of the files it brings along. It does not cover `[container]`: two templates
//! that differ in their command alone share an image. It cannot cover what the archive holds on the day of
//! the build, so a found image may be older than the archive: `ImageStore::rebuild` makes it anew.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use blake3::Hasher;
use nix::fcntl::OFlag;

use super::files;
use super::store_error::StoreError;
use crate::model::Digest;
use crate::oci::{Rootfs, Template, Variant};
use crate::storage;
use crate::sys::tree;

/// Counted up whenever a build makes something else of the same recipe.
const EDITION: &str = "godwit recipe 1";

/// A template, with all that its image depends on looked up.
pub(super) struct Recipe {
    /// Its hash.
    pub(super) id: Digest,
    /// The template's name, for messages.
    pub(super) template: String,
    /// Where the tree comes from.
    pub(super) base: Base,
    /// The directory to be laid over it.
    pub(super) files: Option<PathBuf>,
}

/// Where a tree comes from.
pub(super) enum Base {
    /// A directory.
    Directory(PathBuf),
    /// Packages.
    Packages(Packages),
}

/// What mmdebstrap is asked for.
#[derive(Debug)]
pub(super) struct Packages {
    pub(super) packages: Vec<String>,
    pub(super) suite: String,
    pub(super) variant: Variant,
    pub(super) setup: Vec<Vec<String>>,
    /// Files with package sources; none: the distribution's own archive.
    pub(super) sources: Vec<PathBuf>,
}

impl Recipe {
    /// Looks up all that the image of `template`, which lies in `directory`, depends on.
    pub(super) fn of(template: &Template, directory: &Path) -> Result<Self, StoreError> {
        let name = template.name.as_str();
        let mut hasher = Hasher::new();
        field(&mut hasher, EDITION.as_bytes());
        field(&mut hasher, std::env::consts::ARCH.as_bytes());
        let base = match &template.rootfs {
            Rootfs::Directory(path) => {
                let path = inside(name, directory, "rootfs.directory", path)?;
                let digest =
                    storage::digest(&path).map_err(|source| StoreError::Digest { source })?;
                field(&mut hasher, b"directory");
                field(&mut hasher, &digest.0);
                Base::Directory(path)
            }
            Rootfs::Packages {
                packages,
                suite,
                variant,
                setup,
            } => {
                let packages = Packages::look_up(name, packages, suite.as_ref(), *variant, setup)?;
                packages.hash(&mut hasher)?;
                Base::Packages(packages)
            }
        };
        let files = match &template.files {
            Some(path) => {
                let path = inside(name, directory, "rootfs.files", path)?;
                field(&mut hasher, b"files");
                files::hash(&path, &mut hasher)?;
                Some(path)
            }
            None => None,
        };
        Ok(Self {
            id: Digest(*hasher.finalize().as_bytes()),
            template: name.to_owned(),
            base,
            files,
        })
    }
}

impl Packages {
    fn look_up(
        template: &str,
        packages: &[String],
        suite: Option<&String>,
        variant: Variant,
        setup: &[Vec<String>],
    ) -> Result<Self, StoreError> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let own = code_name(&release);
        let suite = match suite.cloned().or_else(|| own.clone()) {
            Some(suite) => suite,
            None => {
                let template = template.to_owned();
                return Err(StoreError::NoSuite { template });
            }
        };
        // The host's sources tell of the host's release. For another one they would be wrong.
        let sources = if own.as_ref() == Some(&suite) {
            let apt = Path::new("/etc/apt");
            host_sources(apt).map_err(StoreError::io("list the package sources in", apt))?
        } else {
            Vec::new()
        };
        let mut packages = packages.to_vec();
        packages.sort();
        packages.dedup();
        Ok(Self {
            packages,
            suite,
            variant,
            setup: setup.to_vec(),
            sources,
        })
    }

    fn hash(&self, hasher: &mut Hasher) -> Result<(), StoreError> {
        field(hasher, b"packages");
        field(hasher, self.suite.as_bytes());
        field(hasher, self.variant.as_str().as_bytes());
        number(hasher, self.packages.len());
        for package in &self.packages {
            field(hasher, package.as_bytes());
        }
        number(hasher, self.setup.len());
        for command in &self.setup {
            number(hasher, command.len());
            for word in command {
                field(hasher, word.as_bytes());
            }
        }
        number(hasher, self.sources.len());
        for path in &self.sources {
            let text = fs::read(path).map_err(StoreError::io("read", path))?;
            field(hasher, &text);
        }
        Ok(())
    }
}

fn field(hasher: &mut Hasher, bytes: &[u8]) {
    number(hasher, bytes.len());
    hasher.update(bytes);
}

fn number(hasher: &mut Hasher, number: usize) {
    hasher.update(&(number as u64).to_le_bytes());
}

/// The real path of a directory that a template names beneath its own.
fn inside(
    template: &str,
    directory: &Path,
    field: &'static str,
    path: &Path,
) -> Result<PathBuf, StoreError> {
    let real = tree::open_root(directory)
        .and_then(|root| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            tree::open_beneath(root.as_fd(), path, flags)
        })
        .and_then(|_| fs::canonicalize(directory.join(path)));
    real.map_err(|source| StoreError::NoDirectory {
        template: template.to_owned(),
        field,
        path: path.to_owned(),
        source,
    })
}

/// The release's code name in the text of an os-release file.
fn code_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

/// The files in which this host's package sources are, as apt would read them.
fn host_sources(apt: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![apt.join("sources.list")];
    match fs::read_dir(apt.join("sources.list.d")) {
        Ok(entries) => {
            for entry in entries {
                found.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    found.retain(|path| {
        let known = path
            .extension()
            .is_some_and(|extension| extension == "list" || extension == "sources");
        known && path.is_file() && names_a_source(path)
    });
    found.sort();
    Ok(found)
}

/// Whether there is more than remarks in a file; mmdebstrap refuses one that has only those.
fn names_a_source(path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(str::trim)
        .any(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::oci::parse;

    fn id(dir: &Path, rootfs: &str, container: &str) -> Digest {
        let text = format!("[rootfs]\n{rootfs}\n[container]\ncommand = [\"x\"]\n{container}\n");
        Recipe::of(&parse(&text, "t").unwrap(), dir).unwrap().id
    }

    #[test]
    fn a_recipe_is_what_the_tree_depends_on_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let base = "suite = \"trixie\"\npackages = [\"aa\", \"bb\"]";
        let plain = id(dir.path(), base, "");
        assert_eq!(plain, id(dir.path(), base, "cwd = \"/tmp\""));
        let swapped = "suite = \"trixie\"\npackages = [\"bb\", \"aa\", \"bb\"]";
        assert_eq!(plain, id(dir.path(), swapped, ""));
        let mut others = vec![plain];
        for rootfs in [
            "suite = \"trixie\"\npackages = [\"aa\"]",
            "suite = \"trixie\"\npackages = [\"aabb\"]",
            "suite = \"sid\"\npackages = [\"aa\", \"bb\"]",
            "suite = \"trixie\"\npackages = [\"aa\", \"bb\"]\nvariant = \"extract\"",
            "suite = \"trixie\"\npackages = [\"aa\", \"bb\"]\nsetup = [[\"a\"], [\"b\"]]",
            "suite = \"trixie\"\npackages = [\"aa\", \"bb\"]\nsetup = [[\"a\", \"b\"]]",
        ] {
            let other = id(dir.path(), rootfs, "");
            assert!(!others.contains(&other), "{rootfs}");
            others.push(other);
        }
    }

    #[test]
    fn the_content_of_files_and_directories_counts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tree", "files"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let rootfs = "directory = \"tree\"\nfiles = \"files\"";
        let first = id(dir.path(), rootfs, "");
        fs::write(dir.path().join("tree/a"), "x").unwrap();
        let second = id(dir.path(), rootfs, "");
        fs::write(dir.path().join("files/a"), "x").unwrap();
        let third = id(dir.path(), rootfs, "");
        assert!(first != second && second != third && first != third);
    }

    #[test]
    fn a_directory_outside_is_refused_with_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::create_dir_all(dir.path().join("other")).unwrap();
        fs::create_dir(&own).unwrap();
        std::os::unix::fs::symlink("../other", own.join("link")).unwrap();
        for (rootfs, field) in [
            ("directory = \"link\"", "rootfs.directory"),
            ("directory = \"missing\"", "rootfs.directory"),
            (
                "packages = [\"aa\"]\nsuite = \"sid\"\nfiles = \"link\"",
                "rootfs.files",
            ),
        ] {
            let text = format!("[rootfs]\n{rootfs}\n[container]\ncommand = [\"x\"]\n");
            let result = Recipe::of(&parse(&text, "t").unwrap(), &own);
            let error = result.err().unwrap().to_string();
            assert!(
                error.contains(field) && error.contains("template t"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_code_name_is_read_with_and_without_quotes() {
        let name = |text| code_name(text);
        assert_eq!(
            name("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap(),
            "bookworm"
        );
        assert_eq!(name("VERSION_CODENAME=\"noble\"\n").unwrap(), "noble");
        assert_eq!(name("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
        assert_eq!(name(""), None);
    }
}
