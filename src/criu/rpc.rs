//! The messages of CRIU's RPC: the subset of its `rpc.proto` that Godwit speaks, tag for tag.
//!
//! Written by hand, so that building needs no protocol compiler. CRIU's schema is proto2: every field keeps
//! "was it said at all" apart from its value, and CRIU leaves alone what was not said.

use prost::Message;

/// `criu_page_server_info`: where CRIU's page server client finds its server; or, of a dump with lazy pages, where
/// CRIU serves them: of that only the port counts, as it listens on every address.
#[derive(Clone, PartialEq, Message)]
pub struct PageServerInfo {
    /// An address to connect to.
    #[prost(string, optional, tag = "1")]
    pub address: Option<String>,
    /// The port.
    #[prost(int32, optional, tag = "2")]
    pub port: Option<i32>,
    /// A file descriptor *of the CRIU process*: a connected stream socket.
    #[prost(int32, optional, tag = "4")]
    pub fd: Option<i32>,
}

/// `inherit_fd`: a file descriptor of the CRIU process that a restore uses instead of opening something.
#[derive(Clone, PartialEq, Message)]
pub struct InheritFd {
    /// What it stands for, as CRIU names it: `pipe:[123]`, `extRootNetNS`, …
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// Its number in the CRIU process.
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// `join_namespace`: a namespace that is there and that restored tasks are to be in.
#[derive(Clone, PartialEq, Message)]
pub struct JoinNamespace {
    /// Its kind, as `/proc/PID/ns` names it.
    #[prost(string, required, tag = "1")]
    pub ns: String,
    /// Where it is.
    #[prost(string, required, tag = "2")]
    pub ns_file: String,
}

/// `criu_cg_mode`: what CRIU does about cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum CgroupMode {
    /// Nothing at all.
    Ignore = 0,
}

/// `criu_network_lock_method`: how CRIU keeps packets away from a frozen container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum NetworkLock {
    /// iptables rules.
    Iptables = 1,
    /// An nftables table.
    Nftables = 2,
    /// It does not: somebody else does.
    Skip = 3,
}

/// `criu_opts`: everything a request may ask for.
#[derive(Clone, PartialEq, Message)]
pub struct Options {
    /// Where the images are: a file descriptor of the *client*, which CRIU opens through `/proc`.
    #[prost(int32, required, tag = "1", default = "-1")]
    pub images_dir_fd: i32,
    /// The root of the process tree to dump.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// Let the tasks run on after the dump.
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    /// Allow unix sockets whose other end is outside.
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    /// Dump and restore established TCP connections.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// Take any path to a device when its own is gone.
    #[prost(bool, optional, tag = "6")]
    pub evasive_devices: Option<bool>,
    /// The tasks belong to a session and terminal outside.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// Dump and restore file locks.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// 0 nothing, 1 errors, 2 warnings, 3 information, 4 everything.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// A file in the work directory.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// The page server.
    #[prost(message, optional, tag = "11")]
    pub ps: Option<PageServerInfo>,
    /// Ask the client at every step that has a notification.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// The root directory of a restore with a mount namespace of its own.
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    /// The directory of the parent images, relative to the images directory.
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    /// Track memory changes (soft-dirty).
    #[prost(bool, optional, tag = "15")]
    pub track_mem: Option<bool>,
    /// Give the memory of images back as they are read.
    #[prost(bool, optional, tag = "16")]
    pub auto_dedup: Option<bool>,
    /// Where log and statistics go: a file descriptor of the *client*, as `images_dir_fd`.
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// Give files that are open and removed a name again, for the restore.
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    /// Restore the root task as a child of the client, not of CRIU.
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    /// File descriptors given to a restore.
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    /// What to do about cgroups.
    #[prost(enumeration = "CgroupMode", optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// The largest removed file whose content is put into the images, in bytes.
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    /// Below which paths the names of watched files are looked for.
    #[prost(string, repeated, tag = "36")]
    pub irmap_scan_paths: Vec<String>,
    /// Objects that belong to somebody else.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Namespaces of which only the existence is kept, as clone flags: the network alone.
    #[prost(uint32, optional, tag = "38")]
    pub empty_ns: Option<u32>,
    /// Namespaces that are joined by a restore.
    #[prost(message, repeated, tag = "39")]
    pub join_ns: Vec<JoinNamespace>,
    /// The cgroup whose freezer stops the tasks.
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    /// How long stopping the tasks may take, in seconds.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    /// Leave connections out that are not yet established.
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    /// Restore without the pages that a userfaultfd will bring.
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    /// Send the master end of terminals whose master is outside.
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
    /// A file with options, which win over those of the request.
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    /// Restore established connections as closed ones.
    #[prost(bool, optional, tag = "52")]
    pub tcp_close: Option<bool>,
    /// The profile of the security module that the restored tasks get: `apparmor:NAME`, `selinux:LABEL`.
    #[prost(string, optional, tag = "53")]
    pub lsm_profile: Option<String>,
    /// The SELinux context that mounts with a context get.
    #[prost(string, optional, tag = "63")]
    pub lsm_mount_context: Option<String>,
    /// How packets are kept away.
    #[prost(enumeration = "NetworkLock", optional, tag = "64")]
    pub network_lock: Option<i32>,
    /// Leave the tasks stopped after the dump.
    #[prost(bool, optional, tag = "69")]
    pub leave_stopped: Option<bool>,
}

/// `criu_features`: asked for with `true`, answered with what is so.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FeatureFlags {
    /// The kernel tracks soft-dirty pages.
    #[prost(bool, optional, tag = "1")]
    pub mem_track: Option<bool>,
    /// The kernel has what lazy restores need.
    #[prost(bool, optional, tag = "2")]
    pub lazy_pages: Option<bool>,
    /// The kernel has pidfd_open and pidfd_getfd.
    #[prost(bool, optional, tag = "3")]
    pub pidfd_store: Option<bool>,
}

/// `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// CRIU's answer to something it did not understand.
    Empty = 0,
    /// Write images of a process tree.
    Dump = 1,
    /// Make a process tree of images.
    Restore = 2,
    /// Look whether the kernel has what CRIU needs.
    Check = 3,
    /// A notification, and the answer to it.
    Notify = 6,
    /// Which features there are.
    FeatureCheck = 9,
    /// Which version this is.
    Version = 10,
    /// Dump memory alone, and let the tasks run on.
    SinglePreDump = 13,
}

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// What is asked.
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// How.
    #[prost(message, optional, tag = "2")]
    pub opts: Option<Options>,
    /// The answer to a notification.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    /// The features asked for.
    #[prost(message, optional, tag = "5")]
    pub features: Option<FeatureFlags>,
}

/// `criu_restore_resp`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Restored {
    /// The root task.
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Notification {
    /// The step's name.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// The root task, where there is one to tell.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// `criu_version`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Version {
    /// First number.
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    /// Second number.
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    /// Third number.
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// Which request is answered, or [`Kind::Notify`].
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// Whether it was done.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// The answer to a restore.
    #[prost(message, optional, tag = "4")]
    pub restore: Option<Restored>,
    /// The notification.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notification>,
    /// Why it was not done.
    #[prost(int32, optional, tag = "7")]
    pub cr_errno: Option<i32>,
    /// The features there are.
    #[prost(message, optional, tag = "8")]
    pub features: Option<FeatureFlags>,
    /// The first error CRIU logged.
    #[prost(string, optional, tag = "9")]
    pub cr_errmsg: Option<String>,
    /// The version.
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_dump_request_has_the_bytes_that_criu_expects() {
        let request = Request {
            kind: Kind::Dump as i32,
            opts: Some(Options {
                images_dir_fd: 5,
                pid: Some(300),
                network_lock: Some(NetworkLock::Skip as i32),
                manage_cgroups_mode: Some(CgroupMode::Ignore as i32),
                ..Options::default()
            }),
            ..Request::default()
        };
        // Tags by hand: 1 = Dump; 2 { 1 = 5; 2 = 300; 34 = 0; 64 = 3 }.
        let expected = [
            0x08, 0x01, 0x12, 0x0b, 0x08, 0x05, 0x10, 0xac, 0x02, 0x90, 0x02, 0x00, 0x80, 0x04,
            0x03,
        ];
        assert_eq!(request.encode_to_vec(), expected);
    }

    #[test]
    fn no_images_directory_is_said_and_not_left_out() {
        let bytes = Options::default().encode_to_vec();
        assert_eq!(
            Options::decode(&bytes[..]).unwrap(),
            Options {
                images_dir_fd: -1,
                ..Options::default()
            }
        );
        assert_eq!(bytes[0], 0x08);
    }
}
