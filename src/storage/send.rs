//! The source's passes over a tree: everything, then what has changed, then what has changed since
//! the container stands still.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Totals;
use super::error::{StorageError, failed, shown};
use super::object::{First, Found};
use super::outbox::{Outbox, tree_path};
use super::scan::{self, Extra, joined, stamp_of, vanished};
use super::snapshot::{Hash, Node, NodeId, Snapshot, Stamp};
use super::wire::Record;
use crate::sys::beneath::Root;

/// The first pass: sends everything below `root`, while others write there.
///
/// Whatever the destination had goes. What vanishes, shrinks, grows or changes its type meanwhile is
/// no error: the snapshot knows enough for the next pass to mend it.
pub fn send_all(
    root: &Path,
    sink: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<(Snapshot, Totals), StorageError> {
    let mut pass = Pass::new(root, None, Tree::InUse, &HashSet::new(), sink)?;
    pass.delete(b"")?;
    pass.run()
}

/// A pass between the first and the last: sends what has changed, while others write there.
pub fn send_again(
    root: &Path,
    since: &Snapshot,
    sink: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<(Snapshot, Totals), StorageError> {
    Pass::new(root, Some(since), Tree::InUse, &HashSet::new(), sink)?.run()
}

/// The last pass: sends what has changed since `since`, while nobody writes there.
///
/// On success the destination has exactly this tree. A change that is seen to happen meanwhile is
/// an error, as nothing would mend it. `suspects`, as paths relative to `root`, are sent or compared
/// whatever their times say: a write through a shared mapping shows in the times late or never.
pub fn send_changes(
    root: &Path,
    since: &Snapshot,
    suspects: &HashSet<PathBuf>,
    sink: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<Totals, StorageError> {
    let pass = Pass::new(root, Some(since), Tree::Still, suspects, sink)?;
    pass.run().map(|(_, totals)| totals)
}

/// Whether anybody may write to the tree during a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    InUse,
    Still,
}

/// One walk over the tree. What it does with a single name is in `object.rs`.
pub(super) struct Pass<'a> {
    root: Root,
    pub since: Option<&'a Snapshot>,
    pub tree: Tree,
    /// The inodes whose times prove nothing.
    pub suspects: HashSet<(u64, u64)>,
    pub snapshot: Snapshot,
    pub firsts: HashMap<(u64, u64), First>,
    /// The bodies that this pass has kept or sent and whose blocks it knows.
    pub settled: HashSet<u32>,
    /// The path of what is being looked at.
    pub path: Vec<u8>,
    /// See [`Visit::touched`], of the directory that is being listed.
    pub touched: bool,
    pub out: Outbox<'a>,
}

/// A directory whose subdirectories are still to be visited.
struct Visit {
    /// Its path, as a length of [`Pass::path`].
    length: usize,
    node: NodeId,
    old: Option<NodeId>,
    subdirectories: std::vec::IntoIter<Subdirectory>,
    extra: Extra,
    /// The destination changes what is in the directory, and with it its time.
    touched: bool,
}

struct Subdirectory {
    name: Box<[u8]>,
    node: NodeId,
    old: Option<NodeId>,
}

struct Listing {
    held: OwnedFd,
    stamp: Stamp,
    extra: Extra,
    names: Vec<Box<[u8]>>,
}

impl<'a> Pass<'a> {
    fn new(
        path: &Path,
        since: Option<&'a Snapshot>,
        tree: Tree,
        suspects: &HashSet<PathBuf>,
        sink: &'a mut dyn FnMut(Vec<u8>) -> io::Result<()>,
    ) -> Result<Self, StorageError> {
        let root = scan::open(path)?;
        // By inode: a file that is mapped under one name is a suspect under all of them.
        let inode = |path: &PathBuf| {
            let held = root.handle(path.as_os_str().as_bytes()).ok()?;
            Some(stamp_of(held.as_fd()).ok()?.0.inode())
        };
        Ok(Self {
            suspects: suspects.iter().filter_map(inode).collect(),
            root,
            since,
            tree,
            snapshot: Snapshot::after(since),
            firsts: HashMap::new(),
            settled: HashSet::new(),
            path: Vec::new(),
            touched: false,
            out: Outbox::new(sink),
        })
    }

    /// Walks the tree depth first: a directory, what is in it, its subdirectories, and last its own
    /// attributes, because all that comes before changes its time at the destination.
    fn run(mut self) -> Result<(Snapshot, Totals), StorageError> {
        let root = self.snapshot.add(unread_directory());
        let mut stack = Vec::new();
        stack.extend(self.enter(root, self.since.map(|_| Snapshot::ROOT))?);
        while let Some(visit) = stack.last_mut() {
            self.path.truncate(visit.length);
            if let Some(next) = visit.subdirectories.next() {
                self.path = joined(&self.path, &next.name)?;
                self.touched = visit.touched;
                let entered = self.enter(next.node, next.old)?;
                if entered.is_none() {
                    visit.touched = self.touched;
                }
                stack.extend(entered);
            } else if let Some(done) = stack.pop() {
                self.leave(&done)?;
            }
        }
        self.out.flush()?;
        Ok((self.snapshot, self.out.totals))
    }

    /// Lists the directory at the present path and sends what is in it, subdirectories apart.
    fn enter(&mut self, node: NodeId, old: Option<NodeId>) -> Result<Option<Visit>, StorageError> {
        let listed = self.list();
        let Some(listing) = self.allow(listed, "list the directory")? else {
            self.empty_directory(old)?;
            return Ok(None);
        };
        let entry = self.snapshot.node_mut(node);
        entry.stamp = listing.stamp;
        entry.extra = listing.extra.hash();
        entry.racy = false;
        self.touched = false;
        self.delete_missing(old, &listing.names)?;
        let length = self.path.len();
        let mut subdirectories = Vec::new();
        let mut children = Vec::with_capacity(listing.names.len());
        for name in listing.names {
            self.path = joined(&self.path, &name)?;
            let found = self.visit(listing.held.as_fd(), &name, old)?;
            self.path.truncate(length);
            match found {
                Found::Nothing => {}
                Found::Object(node) => children.push((name, node)),
                Found::Directory(node, old) => {
                    children.push((name.clone(), node));
                    subdirectories.push(Subdirectory { name, node, old });
                }
            }
        }
        self.snapshot.node_mut(node).children = children;
        Ok(Some(Visit {
            length,
            node,
            old,
            subdirectories: subdirectories.into_iter(),
            extra: listing.extra,
            touched: self.touched,
        }))
    }

    fn list(&self) -> io::Result<Listing> {
        let held = self.root.directory(&self.path)?;
        let (stamp, _) = stamp_of(held.as_fd())?;
        Ok(Listing {
            extra: Extra::read(held.as_fd(), &stamp)?,
            names: scan::names(held.as_fd())?,
            held,
            stamp,
        })
    }

    /// Everything in and below the directory is sent: now its attributes, if they changed or if the
    /// destination's work in it changed its time.
    fn leave(&mut self, visit: &Visit) -> Result<(), StorageError> {
        let now = self.snapshot.node(visit.node);
        let (stamp, extra) = (now.stamp, now.extra);
        let same = self
            .before(visit.old)
            .is_some_and(|old| !old.racy && old.stamp.looks_like(&stamp) && old.extra == extra);
        if !same || visit.touched {
            self.out
                .put_attributes(&self.path, &stamp, &visit.extra.xattrs)?;
        }
        if self.tree == Tree::Still {
            let held = self.root.directory(&self.path);
            self.check_still(&stamp, held.and_then(|held| stamp_of(held.as_fd())))?;
        }
        Ok(())
    }

    /// What the directory had before and has no more.
    fn delete_missing(
        &mut self,
        old: Option<NodeId>,
        names: &[Box<[u8]>],
    ) -> Result<(), StorageError> {
        let before = self.before(old).map_or(&[][..], |old| &old.children);
        for (name, _) in before {
            if names.binary_search(name).is_err() {
                let path = joined(&self.path, name)?;
                self.delete(&path)?;
            }
        }
        Ok(())
    }

    /// A directory that vanished before it could be listed: the snapshot says that it is empty, so
    /// it has to be.
    fn empty_directory(&mut self, old: Option<NodeId>) -> Result<(), StorageError> {
        if self.before(old).is_some_and(|old| !old.children.is_empty()) {
            let path = self.path.clone();
            self.delete(&path)?;
            let path = tree_path(&path)?;
            self.out.put(&Record::Directory { path })?;
        }
        Ok(())
    }

    pub fn delete(&mut self, path: &[u8]) -> Result<(), StorageError> {
        self.touched = true;
        let path = tree_path(path)?;
        self.out.put(&Record::Delete { path })
    }

    /// What the last pass knew of this.
    pub fn before(&self, old: Option<NodeId>) -> Option<&'a Node> {
        self.since.zip(old).map(|(since, old)| since.node(old))
    }

    /// What to do about an error of the kernel: a name that is gone from a tree in use is nothing.
    pub fn allow<T>(
        &self,
        answer: io::Result<T>,
        operation: &'static str,
    ) -> Result<Option<T>, StorageError> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(error) if vanished(&error) && !self.path.is_empty() => match self.tree {
                Tree::InUse => Ok(None),
                Tree::Still => Err(self.unsettled()),
            },
            Err(error) => Err(failed(operation, &self.path)(error)),
        }
    }

    /// In a tree that stands still, everything looks after reading as before.
    pub fn check_still(
        &self,
        before: &Stamp,
        after: io::Result<(Stamp, bool)>,
    ) -> Result<(), StorageError> {
        match after {
            Ok((after, _)) if after == *before => Ok(()),
            Err(error) if !vanished(&error) => Err(failed("look at", &self.path)(error)),
            _ => Err(self.unsettled()),
        }
    }

    pub fn unsettled(&self) -> StorageError {
        StorageError::Unsettled {
            path: shown(&self.path),
        }
    }
}

/// A directory that the destination has, and of which we know nothing yet.
pub(super) fn unread_directory() -> Node {
    Node {
        stamp: Stamp::unread_directory(),
        extra: Hash::default(),
        racy: true,
        body: 0,
        blocks: None,
        children: Vec::new(),
    }
}
