//! `exec` in a container of a bundle.

use std::path::PathBuf;

use clap::Args;
use oci_spec::runtime::{Capability, Process, User};

use super::Place;
use crate::runtime::{self, Ended, ExecRequest, Id, RuntimeError};

/// What only containers of bundles have.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options for containers of OCI bundles")]
pub struct ExecOptions {
    /// A file with the process, as in config.json, instead of a command.
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// A file that gets the id of the process.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// A unix socket that gets the master of its terminal.
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// A unix socket that gets a pidfd of the process.
    #[arg(long, value_name = "PATH")]
    pidfd_socket: Option<PathBuf>,
    /// One more group of its user; can be given again.
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// One more capability, like CAP_SYS_PTRACE; can be given again.
    #[arg(short, long, value_name = "NAME")]
    cap: Vec<String>,
    /// Its AppArmor profile.
    #[arg(long, value_name = "NAME")]
    apparmor: Option<String>,
    /// Its SELinux label.
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// It may not gain privileges by set-user-id programs.
    #[arg(long)]
    no_new_privs: bool,
    /// A cgroup below the container's to be in.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Even when the container is paused.
    #[arg(long)]
    ignore_paused: bool,
    /// Pass this many descriptors after the first three to it.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    preserve_fds: u32,
}

/// What both kinds of container have.
pub struct Common<'a> {
    /// Lines of the environment.
    pub env: &'a [String],
    /// `UID[:GID]`.
    pub user: Option<&'a str>,
    /// The working directory.
    pub cwd: Option<&'a str>,
    /// The command.
    pub command: &'a [String],
}

impl ExecOptions {
    /// Runs it.
    pub fn run(self, place: &Place, id: Id, common: &Common<'_>) -> Result<Ended, RuntimeError> {
        runtime::seal()?;
        let process = self.wished(place, &id, common)?;
        let detach = self.detach;
        let request = ExecRequest {
            id,
            process,
            console_socket: self.console_socket,
            pidfd_socket: self.pidfd_socket,
            pid_file: self.pid_file,
            cgroup: self.cgroup,
            preserve_fds: self.preserve_fds,
            ignore_paused: self.ignore_paused,
        };
        runtime::run_in(&place.root, &request, detach)
    }

    fn wished(&self, place: &Place, id: &Id, common: &Common<'_>) -> Result<Process, RuntimeError> {
        if let Some(path) = &self.process {
            let mut process = runtime::read_process(path)?;
            if self.tty {
                process.set_terminal(Some(true));
            }
            return Ok(process);
        }
        let mut process = runtime::template(&place.root, id)?;
        process.set_args(Some(common.command.to_vec()));
        process.set_terminal(Some(self.tty));
        process.set_console_size(None);
        if let Some(cwd) = common.cwd {
            process.set_cwd(PathBuf::from(cwd));
        }
        if !common.env.is_empty() {
            let mut env = process.env().clone().unwrap_or_default();
            env.extend_from_slice(common.env);
            process.set_env(Some(env));
        }
        if let Some(user) = common.user {
            process.set_user(parse_user(user)?);
        }
        if !self.additional_gids.is_empty() {
            let mut groups = process.user().additional_gids().clone().unwrap_or_default();
            groups.extend_from_slice(&self.additional_gids);
            process.user_mut().set_additional_gids(Some(groups));
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if let Some(label) = &self.process_label {
            process.set_selinux_label(Some(label.clone()));
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        let more = self.cap.iter().map(|name| parse_capability(name));
        let more = more.collect::<Result<Vec<_>, _>>()?;
        if !more.is_empty() {
            runtime::add_capabilities(&mut process, &more);
        }
        Ok(process)
    }
}

fn parse_user(text: &str) -> Result<User, RuntimeError> {
    let bad = || RuntimeError::Option {
        option: "--user",
        why: format!("{text:?} is not UID or UID:GID"),
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let mut user = User::default();
    user.set_uid(uid.parse().map_err(|_| bad())?);
    user.set_gid(gid.parse().map_err(|_| bad())?);
    Ok(user)
}

fn parse_capability(name: &str) -> Result<Capability, RuntimeError> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    plain.parse().map_err(|_| RuntimeError::Option {
        option: "--cap",
        why: format!("{name:?} is not a capability; give a name like CAP_SYS_PTRACE"),
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn users_and_capabilities_are_read() {
        let user = parse_user("1000:33").unwrap();
        assert_eq!((user.uid(), user.gid()), (1000, 33));
        assert_eq!(parse_user("7").unwrap().uid(), 7);
        assert!(parse_user("root").is_err());
        assert_eq!(
            parse_capability("cap_sys_ptrace").unwrap(),
            Capability::SysPtrace
        );
        assert_eq!(parse_capability("NET_RAW").unwrap(), Capability::NetRaw);
        assert!(parse_capability("CAP_NOPE").is_err());
    }
}
