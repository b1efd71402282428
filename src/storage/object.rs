//! What a pass does with one name in a directory: keep it, send it, or send what changed of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::libc;

use super::content::{self, HASHED_FROM, Manner};
use super::error::{StorageError, failed};
use super::outbox::tree_path;
use super::scan::{self, Extra, stamp_at, stamp_of};
use super::send::{Pass, Tree, unread_directory};
use super::snapshot::{Hash, Node, NodeId, Stamp};
use super::wire::{NodeKind, Record};
use crate::sys::beneath::open_at;

/// The first name under which a pass met an inode that has several.
pub(super) struct First {
    path: Vec<u8>,
    stamp: Stamp,
    node: NodeId,
}

/// What one name in a directory turned out to be.
pub(super) enum Found {
    Nothing,
    Object(NodeId),
    /// With what the last pass knew of it.
    Directory(NodeId, Option<NodeId>),
}

/// An object that is held, as it was before its contents are read.
struct Seen {
    held: OwnedFd,
    stamp: Stamp,
    /// It has more than one name.
    linked: bool,
    extra: Extra,
    racy: bool,
    old: Option<NodeId>,
}

impl Seen {
    fn node(&self, extra: Hash, body: u32) -> Node {
        Node {
            stamp: self.stamp,
            extra,
            racy: self.racy,
            body,
            blocks: None,
            children: Vec::new(),
        }
    }
}

/// Holds an object without opening it: nothing happens to a device or a pipe.
fn hold(directory: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<(OwnedFd, Stamp, bool, Extra)> {
    let held = open_at(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
    let (stamp, linked) = stamp_of(held.as_fd())?;
    let extra = Extra::read(held.as_fd(), &stamp)?;
    Ok((held, stamp, linked, extra))
}

impl<'a> Pass<'a> {
    /// Looks at one name in a directory, of which the last pass knew `parent`, and sends it if need
    /// be; the present path is the path of the name.
    pub fn visit(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        parent: Option<NodeId>,
    ) -> Result<Found, StorageError> {
        let old = self
            .since
            .zip(parent)
            .and_then(|(since, parent)| since.child_id(parent, name));
        // Before the object is looked at, to be on the safe side.
        let now = scan::now();
        let looked = stamp_at(directory, name);
        if let Some((stamp, linked)) = self.allow(looked, "look at")? {
            if stamp.is_directory() {
                return self.directory(old);
            }
            if let Some(node) = self.untouched(&stamp, linked, old) {
                return Ok(Found::Object(self.remember(node, linked)));
            }
            let held = hold(directory, name);
            if let Some((held, stamp, linked, extra)) = self.allow(held, "open")? {
                if stamp.is_directory() {
                    return self.directory(old);
                }
                let seen = Seen {
                    racy: stamp.is_racy(now),
                    held,
                    stamp,
                    linked,
                    extra,
                    old,
                };
                return self.object(&seen).map(Found::Object);
            }
        }
        // It was listed and is gone. Nobody would speak again of what the destination has of it.
        if old.is_some() {
            let path = self.path.clone();
            self.delete(&path)?;
        }
        Ok(Found::Nothing)
    }

    fn directory(&mut self, old: Option<NodeId>) -> Result<Found, StorageError> {
        let there = self.before(old).is_some_and(|old| old.stamp.is_directory());
        if !there {
            self.touched = true;
            let path = tree_path(&self.path)?;
            self.out.put(&Record::Directory { path })?;
        }
        let node = self.snapshot.add(unread_directory());
        Ok(Found::Directory(node, old))
    }

    /// The node of something that is certainly as it was: it need not even be opened. No attribute
    /// and no link to it can change without its ctime.
    fn untouched(&self, stamp: &Stamp, linked: bool, old: Option<NodeId>) -> Option<Node> {
        let old = self.before(old)?;
        let inode = stamp.inode();
        let known = linked && self.firsts.contains_key(&inode);
        let same = old.stamp == *stamp && !old.racy && !known && !self.suspects.contains(&inode);
        same.then(|| self.copy(old))
    }

    /// A node for the new snapshot; nobody reads that of the last pass.
    fn copy(&self, old: &Node) -> Node {
        Node {
            blocks: match self.tree {
                Tree::InUse => old.blocks.clone(),
                Tree::Still => None,
            },
            children: Vec::new(),
            ..*old
        }
    }

    /// Enters an object into the snapshot, and its inode among those that may come again.
    fn remember(&mut self, node: Node, linked: bool) -> NodeId {
        let stamp = node.stamp;
        if stamp.is_file() && stamp.size >= HASHED_FROM {
            self.settled.insert(node.body);
        }
        let id = self.snapshot.add(node);
        if linked {
            let path = self.path.clone();
            self.firsts.entry(stamp.inode()).or_insert(First {
                path,
                stamp,
                node: id,
            });
        }
        id
    }

    /// Something that is not a directory and perhaps has changed.
    fn object(&mut self, seen: &Seen) -> Result<NodeId, StorageError> {
        let first = self.firsts.get(&seen.stamp.inode());
        if let Some(first) = first.filter(|_| seen.linked) {
            if first.stamp == seen.stamp {
                return self.link(seen);
            }
            // The inode changed since we met its first name; perhaps it is even another one by now.
            if self.tree == Tree::Still {
                return Err(self.unsettled());
            }
        }
        let node = match seen.stamp.is_file() {
            true => self.file(seen)?,
            false => self.special(seen)?,
        };
        Ok(self.remember(node, seen.linked))
    }

    /// Another name of an object that the destination has already.
    fn link(&mut self, seen: &Seen) -> Result<NodeId, StorageError> {
        let first = &self.firsts[&seen.stamp.inode()];
        let node = self.copy(self.snapshot.node(first.node));
        let there = self
            .before(seen.old)
            .is_some_and(|old| !old.stamp.is_directory() && old.body == node.body);
        if !there {
            self.touched = true;
            self.out.put(&Record::Link {
                path: tree_path(&self.path)?,
                to: tree_path(&first.path)?,
            })?;
        }
        Ok(self.snapshot.add(node))
    }

    /// A pipe, socket, device or symbolic link: all of it is in what we have seen, so it is compared
    /// as a whole and its ctime does not matter. (All whiteouts of an overlay may be one inode,
    /// whose ctime changes with every new whiteout.)
    fn special(&mut self, seen: &Seen) -> Result<Node, StorageError> {
        let extra = seen.extra.hash();
        let same = self
            .before(seen.old)
            .filter(|old| old.stamp.looks_like(&seen.stamp) && old.extra == extra);
        if let Some(old) = same {
            return Ok(seen.node(extra, old.body));
        }
        let path = tree_path(&self.path)?;
        let rdev = seen.stamp.rdev;
        let node = |kind| Record::Node { path, kind, rdev };
        let record = match seen.stamp.kind() {
            libc::S_IFLNK => Record::Symlink {
                path,
                target: &seen.extra.target,
            },
            libc::S_IFIFO => node(NodeKind::Fifo),
            libc::S_IFCHR => node(NodeKind::Character),
            libc::S_IFBLK => node(NodeKind::Block),
            _ => node(NodeKind::Socket),
        };
        self.touched = true;
        self.out.put(&record)?;
        self.out
            .put_attributes(&self.path, &seen.stamp, &seen.extra.xattrs)?;
        Ok(seen.node(extra, self.snapshot.new_body()))
    }

    /// A regular file: its changed blocks, if the destination has this very file and we know what it
    /// has of it; or else all of it, as a new file.
    fn file(&mut self, seen: &Seen) -> Result<Node, StorageError> {
        let stamp = seen.stamp;
        let (path, size) = (tree_path(&self.path)?, stamp.size);
        let opened = scan::reader(seen.held.as_fd());
        let file = opened.map_err(failed("open", &self.path))?;
        let large = size >= HASHED_FROM;
        let (manner, body) = match self.patchable(seen).filter(|_| large) {
            Some(old) => {
                if old.stamp.size != size {
                    self.out.put(&Record::Resize { path, size })?;
                }
                let blocks = old.blocks.as_ref().map_or(&[][..], |blocks| &blocks.0);
                (Manner::Changed(blocks), old.body)
            }
            None => {
                self.touched = true;
                self.out.put(&Record::File { path, size })?;
                let manner = match large && self.tree == Tree::InUse {
                    true => Manner::Hashed,
                    false => Manner::Whole,
                };
                (manner, self.snapshot.new_body())
            }
        };
        let sent = content::send(&file, &self.path, size, manner, &mut self.out)?;
        self.out
            .put_attributes(&self.path, &stamp, &seen.extra.xattrs)?;
        if self.tree == Tree::Still {
            self.check_still(&stamp, stamp_of(seen.held.as_fd()))?;
        }
        let mut node = seen.node(seen.extra.hash(), body);
        node.racy |= sent.short;
        node.blocks = (manner != Manner::Whole).then_some(sent.blocks);
        Ok(node)
    }

    /// What the last pass knew, if the destination's file can be changed in place: it is the same
    /// inode, and no other name has had to do with it in this pass. (If it had, then the inode
    /// changed in between, and the blocks we would remember for that name would be wrong.)
    fn patchable(&self, seen: &Seen) -> Option<&'a Node> {
        self.before(seen.old).filter(|old| {
            old.stamp.is_file()
                && old.stamp.inode() == seen.stamp.inode()
                && old.blocks.is_some()
                && !self.settled.contains(&old.body)
        })
    }
}
