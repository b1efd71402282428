//! What a pass saw and sent: the memory from which the next pass tells what has changed.

use super::wire::FileTime;

/// The first 16 bytes of a BLAKE3 hash.
pub(super) type Hash = [u8; 16];

/// The number of an object in a snapshot.
pub(super) type NodeId = u32;

/// The clock of the kernel that stamps files advances in steps of up to 10 ms.
const CLOCK_STEP: i128 = 50_000_000;
/// A filesystem without nanoseconds stamps files in steps of up to two seconds.
const COARSE_STEP: i128 = 2_100_000_000;

/// What `stat` says of an object, as far as a change would show in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub mtime: FileTime,
    pub ctime: FileTime,
}

impl Stamp {
    /// Of a directory that nobody has looked at.
    pub fn unread_directory() -> Self {
        let never = FileTime { secs: 0, nanos: 0 };
        Self {
            dev: 0,
            ino: 0,
            mode: nix::libc::S_IFDIR,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            mtime: never,
            ctime: never,
        }
    }

    /// The inode: two names with the same one are hard links.
    pub fn inode(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// The type, in the bits of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & nix::libc::S_IFMT
    }

    pub fn is_directory(&self) -> bool {
        self.kind() == nix::libc::S_IFDIR
    }

    pub fn is_file(&self) -> bool {
        self.kind() == nix::libc::S_IFREG
    }

    /// Whether a change *after* the moment `now` might leave this stamp as it is.
    ///
    /// The kernel sets ctime at every change and nobody can set it to a chosen value, so an equal
    /// ctime means an unchanged file, with one exception: two changes within one step of the clock
    /// get the same ctime. If we looked in between, we have the first and will not see the second.
    /// So a file whose ctime is not clearly older than the moment we looked at it is never taken
    /// for unchanged. (Git has the same rule and calls such entries racily clean.)
    pub fn is_racy(&self, now: FileTime) -> bool {
        let step = match self.ctime.nanos {
            0 => COARSE_STEP,
            _ => CLOCK_STEP,
        };
        nanoseconds(self.ctime) + step >= nanoseconds(now)
    }

    /// Whether everything the destination can see is equal, contents apart.
    pub fn looks_like(&self, other: &Self) -> bool {
        let seen = |s: &Self| (s.mode, s.uid, s.gid, s.rdev, s.mtime);
        seen(self) == seen(other)
    }
}

fn nanoseconds(time: FileTime) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

/// The hashes of a file's blocks as they were sent; a block that is a hole has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Blocks(pub Vec<(u64, Hash)>);

/// One object.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// As it was before its contents were read: a change meanwhile shows.
    pub stamp: Stamp,
    /// A hash of the extended attributes and the text of a symbolic link.
    pub extra: Hash,
    /// The stamp proves nothing, see [`Stamp::is_racy`]; or the object was not read completely.
    pub racy: bool,
    /// Which object of the destination this is: names with one body are hard links *there*.
    pub body: u32,
    /// Of large files only.
    pub blocks: Option<Blocks>,
    /// What is in the directory, sorted by name.
    pub children: Vec<(Box<[u8]>, NodeId)>,
}

/// What one pass over a tree saw, which is also what the destination has got.
///
/// Names are kept per directory, so that a deep tree does not cost the square of its depth.
#[derive(Debug, Clone)]
pub struct Snapshot {
    nodes: Vec<Node>,
    bodies: u32,
}

impl Snapshot {
    /// The root of the tree.
    pub(super) const ROOT: NodeId = 0;

    /// A snapshot that continues the numbers of bodies of `before`.
    pub(super) fn after(before: Option<&Self>) -> Self {
        Self {
            nodes: Vec::new(),
            bodies: before.map_or(0, |snapshot| snapshot.bodies),
        }
    }

    pub(super) fn new_body(&mut self) -> u32 {
        self.bodies += 1;
        self.bodies
    }

    pub(super) fn add(&mut self, node: Node) -> NodeId {
        let id = NodeId::try_from(self.nodes.len()).unwrap_or(NodeId::MAX);
        self.nodes.push(node);
        id
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// The object called `name` in the directory `parent`.
    pub(super) fn child_id(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = &self.node(parent).children;
        let place = children.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        Some(children[place].1)
    }

    /// How many objects it knows, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it knows nothing, not even a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn stamp(secs: i64, nanos: u32) -> Stamp {
        let time = FileTime { secs, nanos };
        Stamp {
            dev: 1,
            ino: 2,
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 3,
            mtime: time,
            ctime: time,
        }
    }

    #[test]
    fn only_a_clearly_older_stamp_is_trusted() {
        let now = FileTime {
            secs: 100,
            nanos: 500_000_000,
        };
        assert!(stamp(100, 500_000_000).is_racy(now));
        assert!(stamp(100, 495_000_000).is_racy(now));
        assert!(!stamp(100, 400_000_000).is_racy(now));
        // A clock that was set back.
        assert!(stamp(200, 1).is_racy(now));
        // Whole seconds: perhaps the filesystem has no finer ones.
        assert!(stamp(99, 0).is_racy(now));
        assert!(!stamp(98, 0).is_racy(now));
        assert!(!stamp(-5, 0).is_racy(now));
    }
}
