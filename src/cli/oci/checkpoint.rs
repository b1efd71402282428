//! `checkpoint` and `restore` of containers of bundles.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Place;

use crate::runtime::{
    self, Allowed, CheckpointRequest, Ended, Id, Request, RestoreRequest, RuntimeError,
};

/// What both have.
#[derive(Debug, Args)]
struct Common {
    /// The directory of the images.
    #[arg(long, value_name = "DIRECTORY", default_value = "./checkpoint")]
    image_path: PathBuf,
    /// The directory of CRIU's log and statistics: that of the images, if not given.
    #[arg(long, value_name = "DIRECTORY")]
    work_path: Option<PathBuf>,
    /// Keep established TCP connections.
    #[arg(long, overrides_with = "tcp_established")]
    tcp_established: bool,
    /// Let established TCP connections be closed ones after the restore.
    #[arg(long, overrides_with = "tcp_close")]
    tcp_close: bool,
    /// Allow unix sockets whose other end is outside of the container.
    #[arg(long, overrides_with = "ext_unix_sk")]
    ext_unix_sk: bool,
    /// Allow processes that belong to a session or a terminal outside of the container.
    #[arg(long, overrides_with = "shell_job")]
    shell_job: bool,
    /// Keep file locks.
    #[arg(long, overrides_with = "file_locks")]
    file_locks: bool,
    /// What is done about cgroups. They are made anew from config.json: both modes mean the same.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Cgroups::Soft)]
    manage_cgroups_mode: Cgroups,
    /// A namespace of which only the existence is kept. That of a network of the container's own always is one.
    #[arg(long, value_enum, value_name = "NAMESPACE")]
    empty_ns: Vec<Empty>,
    /// Take memory that is in later images out of earlier ones.
    #[arg(long, overrides_with = "auto_dedup")]
    auto_dedup: bool,
}

/// What CRIU is to do about cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cgroups {
    /// Nothing.
    Ignore,
    /// Nothing either: it would restore what it has made itself, and it makes none.
    Soft,
    /// Not supported.
    Full,
    /// Not supported.
    Strict,
}

/// Namespaces that can be left empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Empty {
    /// The network: its devices and addresses are the business of whoever made them.
    Network,
}

impl Common {
    fn allowed(&self) -> Result<Allowed, RuntimeError> {
        if matches!(self.manage_cgroups_mode, Cgroups::Full | Cgroups::Strict) {
            return Err(RuntimeError::Option {
                option: "--manage-cgroups-mode",
                why: "only soft and ignore are supported: a restored container has the limits of its \
                      config.json, put there what it is to have"
                    .to_owned(),
            });
        }
        Ok(Allowed {
            tcp_established: self.tcp_established,
            tcp_close: self.tcp_close,
            tcp_in_flight: false,
            external_unix: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            link_remap: false,
            orphan_terminal: true,
        })
    }
}

/// Write a running container of a bundle to images, and delete it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit checkpoint --image-path /var/tmp/web web
  godwit checkpoint --leave-running --tcp-established web"
)]
pub struct Checkpoint {
    /// The container.
    pub id: Id,
    #[command(flatten)]
    common: Common,
    /// The images of the pre-dump before, relative to the directory of the images.
    #[arg(long, value_name = "DIRECTORY")]
    parent_path: Option<PathBuf>,
    /// Let the container run on.
    #[arg(long, overrides_with = "leave_running")]
    leave_running: bool,
    /// Leave out TCP connections that are just being established.
    #[arg(
        long,
        visible_alias = "skip-in-flight",
        overrides_with = "tcp_skip_in_flight"
    )]
    tcp_skip_in_flight: bool,
    /// Keep files that were removed under the name by which they were opened, and have other names.
    #[arg(long, overrides_with = "link_remap")]
    link_remap: bool,
    /// Write memory alone, and let the container run on. Needs a kernel with soft-dirty bits.
    #[arg(long, overrides_with = "pre_dump")]
    pre_dump: bool,
    /// Leave memory in CRIU, which serves it at the port of --page-server, on every address, to `criu lazy-pages`, and
    /// does not end before all of it was fetched. A connection that breaks before costs the container.
    #[arg(long, overrides_with = "lazy_pages")]
    lazy_pages: bool,
    /// A descriptor that gets a zero byte when memory is served.
    #[arg(long, value_name = "NUMBER", value_parser = status_fd, allow_hyphen_values = true)]
    status_fd: Option<Status>,
    /// Send memory to a `criu page-server`.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = server)]
    page_server: Option<(String, u16)>,
}

/// A descriptor, or -1 for none.
#[derive(Debug, Clone, Copy)]
struct Status(Option<i32>);

fn status_fd(text: &str) -> Result<Status, String> {
    match text.parse::<i32>() {
        Ok(-1) => Ok(Status(None)),
        Ok(number) if number >= 0 => Ok(Status(Some(number))),
        _ => Err("give the number of an open descriptor".to_owned()),
    }
}

fn server(text: &str) -> Result<(String, u16), String> {
    let (address, port) = text.rsplit_once(':').ok_or("give ADDRESS:PORT")?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let port: u16 = port
        .parse()
        .map_err(|_| format!("{port:?} is not a port, from 1 to 65535"))?;
    if address.is_empty() || port == 0 {
        return Err("give ADDRESS:PORT, with a port from 1 to 65535".to_owned());
    }
    Ok((address.to_owned(), port))
}

impl Checkpoint {
    /// Writes them.
    pub fn carry_out(self, place: &Place) -> Result<Ended, RuntimeError> {
        let allowed = Allowed {
            tcp_in_flight: self.tcp_skip_in_flight,
            link_remap: self.link_remap,
            ..self.common.allowed()?
        };
        let request = CheckpointRequest {
            id: self.id,
            images: self.common.image_path,
            work: self.common.work_path,
            parent: self.parent_path,
            leave_running: self.leave_running,
            pre_dump: self.pre_dump,
            lazy_pages: self.lazy_pages,
            status_fd: self.status_fd.and_then(|Status(number)| number),
            page_server: self.page_server,
            dedup: self.common.auto_dedup,
            allowed,
            criu: place.criu.clone(),
        };
        runtime::checkpoint(&place.root, &request)?;
        Ok(Ended::With(0))
    }
}

/// Make a container of the images that `checkpoint` has written.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit restore --detach --image-path /var/tmp/web --bundle /srv/web web
  godwit restore --tcp-established web"
)]
pub struct Restore {
    /// The container's id, which must be free; it may be another than the one that was checkpointed.
    pub id: Id,
    #[command(flatten)]
    common: Common,
    /// The bundle's directory.
    #[arg(short, long, value_name = "DIRECTORY", default_value = ".")]
    bundle: PathBuf,
    /// Do not wait for the container's end.
    #[arg(short, long, overrides_with = "detach")]
    detach: bool,
    /// Do not delete the container after its end.
    #[arg(long)]
    keep: bool,
    /// Leave processes that lose their parent to others.
    #[arg(long)]
    no_subreaper: bool,
    /// Accepted, and without meaning: CRIU changes the root.
    #[arg(long)]
    no_pivot: bool,
    /// A unix socket that gets the master of the container's terminal.
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// A unix socket that gets a pidfd of the container's process.
    #[arg(long, value_name = "PATH")]
    pidfd_socket: Option<PathBuf>,
    /// A file that gets the id of the container's process.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Let memory come later, from the `criu lazy-pages` that runs in the directory of the log.
    #[arg(long, overrides_with = "lazy_pages")]
    lazy_pages: bool,
    /// The profile of the security module that the processes get, instead of the one they had.
    #[arg(long, value_name = "TYPE:NAME", value_parser = lsm_profile)]
    lsm_profile: Option<String>,
    /// The SELinux context of mounts that have one, instead of the one they had.
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
}

fn lsm_profile(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("apparmor" | "selinux", name)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("give apparmor:PROFILE or selinux:LABEL".to_owned()),
    }
}

impl Restore {
    /// Makes it.
    pub fn carry_out(self, place: &Place) -> Result<Ended, RuntimeError> {
        let allowed = self.common.allowed()?;
        if !self.detach && !self.no_subreaper {
            super::create::reap()?;
        }
        let request = RestoreRequest {
            create: Request {
                id: self.id,
                bundle: self.bundle,
                console_socket: self.console_socket,
                pidfd_socket: self.pidfd_socket,
                pid_file: self.pid_file,
                no_pivot: self.no_pivot,
                no_new_keyring: true,
                preserve_fds: 0,
                systemd: place.systemd,
            },
            images: self.common.image_path,
            work: self.common.work_path,
            lazy_pages: self.lazy_pages,
            dedup: self.common.auto_dedup,
            allowed,
            lsm_profile: self.lsm_profile,
            lsm_mount_context: self.lsm_mount_context,
            criu: place.criu.clone(),
        };
        runtime::restore(&place.root, &request, self.detach, self.keep)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(server("10.0.0.1:27").unwrap(), ("10.0.0.1".to_owned(), 27));
        assert_eq!(server("[::1]:27").unwrap(), ("::1".to_owned(), 27));
        for bad in ["10.0.0.1", ":27", "host:0", "host:x", "host:65536"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_profile_has_a_type() {
        for good in ["apparmor:web", "selinux:system_u:system_r:container_t:s0"] {
            assert_eq!(lsm_profile(good).unwrap(), good);
        }
        for bad in ["web", "apparmor:", "smack:x"] {
            assert!(lsm_profile(bad).is_err(), "{bad}");
        }
    }
}
