//! What is asked of CRIU, as values; pure.

use std::path::{Path, PathBuf};

use super::CriuError;
use super::rpc::{CgroupMode, InheritFd, NetworkLock, Options, PageServerInfo};

/// The largest removed file whose content goes into the images, in bytes.
pub const GHOST_LIMIT: u32 = 256 << 20;

/// What becomes of the tasks when their dump has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// They are killed before the answer comes.
    Dead,
    /// They are left stopped (SIGSTOP), each by its own.
    Stopped,
    /// They run on.
    Running,
}

/// A dump, or a pre-dump of memory alone.
///
/// Two things are not for the caller to choose: CRIU never touches cgroups, and never locks the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpRequest {
    /// The host process id of the root task.
    pub pid: i32,
    /// The directory the images are written into. It exists.
    pub images: PathBuf,
    /// The directory of log and statistics; none: the images directory.
    pub work: Option<PathBuf>,
    /// The log's name in it.
    pub log_file: String,
    /// 1 errors, 2 warnings, 3 information, 4 everything. Each step up costs time inside the freeze.
    pub log_level: i32,
    /// What becomes of the tasks.
    pub leave: Leave,
    /// The tasks' cgroup. Where it is frozen already CRIU does not wait for it.
    pub freeze_cgroup: Option<PathBuf>,
    /// Our end of the page server's socket pair, as the number that [`Spawn::pass`](super::Spawn::pass) gave.
    pub page_server: Option<i32>,
    /// Whether CRIU uses soft-dirty bits: pages that are clean and whose address space "has a parent" are told
    /// as holes. Needs [`Features::mem_track`](super::Features), and a parent.
    pub track_mem: bool,
    /// The parent images, relative to the images directory.
    pub parent: Option<PathBuf>,
    /// Whether established TCP connections are dumped.
    pub tcp_established: bool,
    /// Objects that stay outside: `net[INODE]:KEY`, `mnt[PATH]:KEY`, `pipe:[INODE]`, …
    pub external: Vec<String>,
    /// The paths of watched files and directories, in the container, that CRIU would not find by their handles.
    pub watched: Vec<PathBuf>,
    /// The largest removed file whose content goes into the images, in bytes.
    pub ghost_limit: u32,
    /// How long stopping the tasks may take, in seconds.
    pub timeout: u32,
}

impl DumpRequest {
    /// A dump that takes everything with it and leaves nothing behind.
    pub fn new(pid: i32, images: impl Into<PathBuf>) -> Self {
        Self {
            pid,
            images: images.into(),
            work: None,
            log_file: "dump.log".to_owned(),
            log_level: 2,
            leave: Leave::Dead,
            freeze_cgroup: None,
            page_server: None,
            track_mem: false,
            parent: None,
            tcp_established: true,
            external: Vec::new(),
            watched: Vec::new(),
            ghost_limit: GHOST_LIMIT,
            timeout: 10,
        }
    }

    pub(super) fn options(&self, directories: Directories) -> Result<Options, CriuError> {
        Ok(Options {
            pid: Some(self.pid),
            leave_running: Some(self.leave == Leave::Running),
            leave_stopped: Some(self.leave == Leave::Stopped),
            freeze_cgroup: optional_text("freeze_cgroup", self.freeze_cgroup.as_deref())?,
            ps: self.page_server.map(|fd| PageServerInfo { fd: Some(fd) }),
            track_mem: Some(self.track_mem),
            parent_img: optional_text("parent", self.parent.as_deref())?,
            tcp_established: Some(self.tcp_established),
            external: self.external.clone(),
            // A path that is no text cannot be told; a watch of it is what CRIU will then name.
            irmap_scan_paths: self
                .watched
                .iter()
                .filter_map(|path| path.to_str().map(str::to_owned))
                .collect(),
            ghost_limit: Some(self.ghost_limit),
            timeout: Some(self.timeout),
            ..common(directories, &self.log_file, self.log_level)
        })
    }
}

/// A restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The directory of the images.
    pub images: PathBuf,
    /// The directory of log and statistics; none: the images directory.
    pub work: Option<PathBuf>,
    /// The log's name in it.
    pub log_file: String,
    /// 1 errors, 2 warnings, 3 information, 4 everything.
    pub log_level: i32,
    /// The root of the tasks' mount namespace: a mount point whose mount is its own parent's child.
    pub root: Option<PathBuf>,
    /// File descriptors that stand for external objects: key, and the number that
    /// [`Spawn::pass`](super::Spawn::pass) gave.
    pub inherit: Vec<(String, i32)>,
    /// Objects that come from outside: `mnt[KEY]:PATH`, …
    pub external: Vec<String>,
    /// Whether the root task becomes a child of the process that started CRIU, which then has to reap it.
    pub sibling: bool,
    /// Whether pages marked lazy are left out, to be brought through a userfaultfd; CRIU connects to
    /// `lazy-pages.socket` in the work directory.
    pub lazy_pages: bool,
    /// Whether the memory of the pages images is given back page by page as it is read. Afterwards they are holes:
    /// there is one restore in them.
    pub consume: bool,
    /// Whether established TCP connections are restored.
    pub tcp_established: bool,
    /// Whether the masters of terminals without one are handed over, one notification each.
    pub orphan_pts_master: bool,
}

impl RestoreRequest {
    /// A restore of all there is in `images`, memory included.
    pub fn new(images: impl Into<PathBuf>) -> Self {
        Self {
            images: images.into(),
            work: None,
            log_file: "restore.log".to_owned(),
            log_level: 2,
            root: None,
            inherit: Vec::new(),
            external: Vec::new(),
            sibling: true,
            lazy_pages: false,
            consume: false,
            tcp_established: true,
            orphan_pts_master: false,
        }
    }

    pub(super) fn options(&self, directories: Directories) -> Result<Options, CriuError> {
        let inherit = self.inherit.iter();
        Ok(Options {
            root: optional_text("root", self.root.as_deref())?,
            inherit_fd: inherit
                .map(|(key, fd)| InheritFd {
                    key: key.clone(),
                    fd: *fd,
                })
                .collect(),
            external: self.external.clone(),
            rst_sibling: Some(self.sibling),
            lazy_pages: Some(self.lazy_pages),
            auto_dedup: Some(self.consume),
            tcp_established: Some(self.tcp_established),
            orphan_pts_master: Some(self.orphan_pts_master),
            ..common(directories, &self.log_file, self.log_level)
        })
    }
}

/// The numbers, in this process, of the directories a request works in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Directories {
    pub images: i32,
    pub work: i32,
}

/// What every dump and restore has in common.
fn common(directories: Directories, log_file: &str, log_level: i32) -> Options {
    Options {
        images_dir_fd: directories.images,
        work_dir_fd: Some(directories.work),
        log_file: Some(log_file.to_owned()),
        log_level: Some(log_level),
        notify_scripts: Some(true),
        // The network gate is a bridge port, the cgroup is ours: CRIU's own ways cost forks and leak rules.
        network_lock: Some(NetworkLock::Skip as i32),
        manage_cgroups_mode: Some(CgroupMode::Ignore as i32),
        file_locks: Some(true),
        link_remap: Some(true),
        evasive_devices: Some(true),
        ext_unix_sk: Some(false),
        shell_job: Some(false),
        ..Options::default()
    }
}

fn optional_text(option: &'static str, path: Option<&Path>) -> Result<Option<String>, CriuError> {
    path.map(|path| match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(CriuError::NotText {
            option,
            path: path.to_owned(),
        }),
    })
    .transpose()
}

#[cfg(test)]
mod test {
    use super::*;

    const DIRECTORIES: Directories = Directories {
        images: 11,
        work: 12,
    };

    #[test]
    fn a_dump_never_lets_criu_touch_network_or_cgroups() {
        let options = DumpRequest::new(42, "/images")
            .options(DIRECTORIES)
            .unwrap();
        assert_eq!(options.network_lock, Some(3));
        assert_eq!(options.manage_cgroups_mode, Some(0));
        assert_eq!((options.images_dir_fd, options.work_dir_fd), (11, Some(12)));
        assert_eq!(options.leave_running, Some(false));
        assert_eq!(options.notify_scripts, Some(true));
    }

    #[test]
    fn a_restore_hands_its_descriptors_over_by_key() {
        let mut request = RestoreRequest::new("/images");
        request.inherit.push(("pipe:[7]".to_owned(), 9));
        let options = request.options(DIRECTORIES).unwrap();
        assert_eq!(options.inherit_fd[0].key, "pipe:[7]");
        assert_eq!(options.inherit_fd[0].fd, 9);
        assert_eq!(options.rst_sibling, Some(true));
        assert_eq!(options.pid, None);
    }

    #[test]
    fn a_path_that_is_no_text_is_refused_by_name() {
        use std::os::unix::ffi::OsStrExt;
        let mut request = RestoreRequest::new("/images");
        request.root = Some(PathBuf::from(std::ffi::OsStr::from_bytes(b"/a\xff")));
        assert!(matches!(
            request.options(DIRECTORIES),
            Err(CriuError::NotText { option: "root", .. })
        ));
    }
}
