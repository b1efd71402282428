//! The directory of a checkpoint: made, filled, and as it was before when a checkpoint fails.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::RuntimeError;
use super::error::file;

/// Without it a directory has no checkpoint: CRIU writes it last.
const INVENTORY: &str = "inventory.img";
/// What is memory alone has it, too, and this not.
const TREE: &str = "pstree.img";

/// A directory that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    path: PathBuf,
    /// Whether it is new.
    made: bool,
    /// What was in it before.
    before: BTreeSet<OsString>,
}

impl Filling {
    /// Makes the directory where it is missing. One that has a checkpoint has none from now on.
    pub fn begin(path: &Path) -> Result<Self, RuntimeError> {
        let made = make(path)?;
        let inventory = path.join(INVENTORY);
        match fs::remove_file(&inventory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file("replace the checkpoint that is in", path)(error));
            }
            _ => {}
        }
        let before = names(path).map_err(file("list", path))?;
        Ok(Self {
            path: path.to_owned(),
            made,
            before,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes away again what a failed checkpoint has written; logs stay, for people. As much as can be.
    pub fn undo(self) {
        let is_log = |name: &OsString| Path::new(name).extension().is_some_and(|e| e == "log");
        let new = names(&self.path).unwrap_or_default();
        for name in new.difference(&self.before).filter(|name| !is_log(name)) {
            let _ = fs::remove_file(self.path.join(name));
        }
        // What was there before may be of a mix of two checkpoints now.
        let _ = fs::remove_file(self.path.join(INVENTORY));
        if self.made {
            // With a log in it, it stays.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Makes a directory where it is missing, with those above it: whether it is new.
pub(super) fn make(path: &Path) -> Result<bool, RuntimeError> {
    let there = path.is_dir();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(file("make", path))?;
    Ok(!there)
}

fn names(path: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

/// Refuses a directory from which nothing can be restored.
pub(super) fn check(path: &Path) -> Result<(), RuntimeError> {
    let refused = |why: &str| RuntimeError::Option {
        option: "--image-path",
        why: format!("{} {why}", path.display()),
    };
    if !path.is_dir() {
        return Err(refused("is no directory; give the one of a checkpoint"));
    }
    if !path.join(INVENTORY).exists() {
        return Err(refused(
            "has no checkpoint in it, or one that was not finished (inventory.img is missing)",
        ));
    }
    if !path.join(TREE).exists() {
        return Err(refused(
            "has memory alone in it (a pre-dump); give the directory of the checkpoint that followed",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_failed_checkpoint_leaves_its_log_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let filling = Filling::begin(&path).unwrap();
        fs::write(path.join("core-1.img"), "x").unwrap();
        filling.undo();
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("mine"), "x").unwrap();
        fs::write(path.join(INVENTORY), "x").unwrap();
        let filling = Filling::begin(&path).unwrap();
        assert!(check(&path).is_err());
        fs::write(path.join("core-1.img"), "x").unwrap();
        fs::write(path.join("dump.log"), "x").unwrap();
        filling.undo();
        let left = names(&path).unwrap();
        assert_eq!(left, ["dump.log", "mine"].map(OsString::from).into());
    }

    #[test]
    fn what_has_no_checkpoint_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| check(path).unwrap_err().to_string();
        assert!(said(&dir.path().join("none")).contains("is no directory"));
        assert!(said(dir.path()).contains("inventory.img"));
        fs::write(dir.path().join(INVENTORY), "x").unwrap();
        assert!(said(dir.path()).contains("pre-dump"));
        fs::write(dir.path().join(TREE), "x").unwrap();
        check(dir.path()).unwrap();
    }
}
