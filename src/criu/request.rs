//! What is asked of CRIU, as values; pure.

use std::path::{Path, PathBuf};

use super::CriuError;
use super::rpc::{CgroupMode, InheritFd, JoinNamespace, NetworkLock, Options, PageServerInfo};

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

/// What CRIU may dump or restore although it reaches beyond the tasks, and would refuse otherwise. Dump and restore
/// have to agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// Established TCP connections.
    pub tcp_established: bool,
    /// Established TCP connections, which are closed ones when they are restored.
    pub tcp_close: bool,
    /// Connections that are being established: they are left out.
    pub tcp_in_flight: bool,
    /// Unix sockets whose other end is outside.
    pub external_unix: bool,
    /// Tasks of a session, or with a terminal, that is not theirs.
    pub shell_job: bool,
    /// File locks.
    pub file_locks: bool,
    /// Files that are open, and removed under the name by which they were opened, while they have others.
    pub link_remap: bool,
    /// A terminal whose master is outside: a restore hands a new master over, by a notification.
    pub orphan_terminal: bool,
}

impl Default for Allowed {
    /// What a container of the daemon may have.
    fn default() -> Self {
        Self {
            tcp_established: true,
            tcp_close: false,
            tcp_in_flight: false,
            external_unix: false,
            shell_job: false,
            file_locks: true,
            link_remap: true,
            orphan_terminal: false,
        }
    }
}

/// Where CRIU sends memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Through our end of a socket pair, as the number that [`Spawn::pass`](super::Spawn::pass) gave.
    Passed(i32),
    /// To a page server that listens there. With lazy pages CRIU itself listens on this port, of every address.
    At(String, u16),
}

/// A dump, or a pre-dump of memory alone.
///
/// One thing is not for the caller to choose: CRIU never touches cgroups.
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
    /// Where memory goes; none: into the images.
    pub page_server: Option<Server>,
    /// Whether CRIU uses soft-dirty bits: pages that are clean and whose address space "has a parent" are told
    /// as holes. Needs [`Features::mem_track`](super::Features), and a parent.
    pub track_mem: bool,
    /// The parent images, relative to the images directory.
    pub parent: Option<PathBuf>,
    /// What may be dumped.
    pub allowed: Allowed,
    /// Who keeps packets away from established connections; a restore does as its dump did.
    pub network_lock: NetworkLock,
    /// Whether of the network namespace nothing but its existence is dumped.
    pub empty_network: bool,
    /// Whether memory that can come later stays in CRIU, which goes on until a restore elsewhere has fetched it.
    pub lazy_pages: bool,
    /// Whether memory that is dumped again is taken out of the parent images.
    pub dedup: bool,
    /// A file with options that win over all these.
    pub config_file: Option<PathBuf>,
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
            allowed: Allowed::default(),
            network_lock: NetworkLock::Skip,
            empty_network: false,
            lazy_pages: false,
            dedup: false,
            config_file: None,
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
            ps: self.page_server.as_ref().map(Server::told),
            track_mem: Some(self.track_mem),
            parent_img: optional_text("parent", self.parent.as_deref())?,
            network_lock: Some(self.network_lock as i32),
            empty_ns: self.empty_network.then_some(EMPTY_NETWORK),
            lazy_pages: Some(self.lazy_pages),
            auto_dedup: Some(self.dedup),
            config_file: optional_text("config_file", self.config_file.as_deref())?,
            external: self.external.clone(),
            // A path that is no text cannot be told; a watch of it is what CRIU will then name.
            irmap_scan_paths: self
                .watched
                .iter()
                .filter_map(|path| path.to_str().map(str::to_owned))
                .collect(),
            ghost_limit: Some(self.ghost_limit),
            timeout: Some(self.timeout),
            ..common(directories, &self.log_file, self.log_level, &self.allowed)
        })
    }
}

impl Server {
    fn told(&self) -> PageServerInfo {
        match self {
            Self::Passed(fd) => PageServerInfo {
                fd: Some(*fd),
                ..PageServerInfo::default()
            },
            Self::At(address, port) => PageServerInfo {
                address: Some(address.clone()),
                port: Some((*port).into()),
                fd: None,
            },
        }
    }
}

/// The clone flag of network namespaces: the only ones that can be dumped empty.
const EMPTY_NETWORK: u32 = libc::CLONE_NEWNET.cast_unsigned();

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
    /// What may be restored.
    pub allowed: Allowed,
    /// Whether of the network namespace nothing but its existence was dumped.
    pub empty_network: bool,
    /// Namespaces that are there and are joined: kind (as `/proc/PID/ns` names it) and path.
    pub join: Vec<(&'static str, PathBuf)>,
    /// The profile of the security module, `TYPE:NAME`; none: as dumped.
    pub lsm_profile: Option<String>,
    /// The SELinux context of mounts that have one; none: as dumped.
    pub lsm_mount_context: Option<String>,
    /// A file with options that win over all these.
    pub config_file: Option<PathBuf>,
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
            allowed: Allowed::default(),
            empty_network: false,
            join: Vec::new(),
            lsm_profile: None,
            lsm_mount_context: None,
            config_file: None,
        }
    }

    pub(super) fn options(&self, directories: Directories) -> Result<Options, CriuError> {
        let inherit = self.inherit.iter();
        let join = self.join.iter();
        let join = join.map(|(kind, path)| {
            Ok(JoinNamespace {
                ns: (*kind).to_owned(),
                ns_file: text("join_ns", path)?,
            })
        });
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
            empty_ns: self.empty_network.then_some(EMPTY_NETWORK),
            join_ns: join.collect::<Result<_, CriuError>>()?,
            lsm_profile: self.lsm_profile.clone(),
            lsm_mount_context: self.lsm_mount_context.clone(),
            config_file: optional_text("config_file", self.config_file.as_deref())?,
            ..common(directories, &self.log_file, self.log_level, &self.allowed)
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
fn common(directories: Directories, log_file: &str, log_level: i32, allowed: &Allowed) -> Options {
    Options {
        images_dir_fd: directories.images,
        work_dir_fd: Some(directories.work),
        log_file: Some(log_file.to_owned()),
        log_level: Some(log_level),
        notify_scripts: Some(true),
        // The cgroup is ours: what CRIU made of it would be the dump's, on whatever host.
        manage_cgroups_mode: Some(CgroupMode::Ignore as i32),
        evasive_devices: Some(true),
        tcp_established: Some(allowed.tcp_established),
        tcp_close: Some(allowed.tcp_close),
        tcp_skip_in_flight: Some(allowed.tcp_in_flight),
        ext_unix_sk: Some(allowed.external_unix),
        shell_job: Some(allowed.shell_job),
        file_locks: Some(allowed.file_locks),
        link_remap: Some(allowed.link_remap),
        orphan_pts_master: Some(allowed.orphan_terminal),
        ..Options::default()
    }
}

fn optional_text(option: &'static str, path: Option<&Path>) -> Result<Option<String>, CriuError> {
    path.map(|path| text(option, path)).transpose()
}

fn text(option: &'static str, path: &Path) -> Result<String, CriuError> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(CriuError::NotText {
            option,
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const DIRECTORIES: Directories = Directories {
        images: 11,
        work: 12,
    };

    #[test]
    fn a_dump_lets_criu_touch_neither_network_nor_cgroups_if_it_is_not_told_to() {
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
