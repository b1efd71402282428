//! A tree from packages: mmdebstrap, run so that nothing of it outlives a failure.
//!
//! mmdebstrap mounts `/proc`, `/sys` and `/dev` in the tree it builds, and a killed one leaves them mounted.
//! So it runs in a mount and a process namespace of its own: when it dies, of itself or because we do,
//! every process of the build and every mount of it is gone, and the directory can be removed safely.
//!
//! ```text
//! godwit ── setpriv --pdeathsig ── unshare --kill-child ──┬── mmdebstrap ── apt, dpkg, scripts, setup
//!           dies with us           dies with setpriv      └ the namespaces end with it
//! ```

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::copy::{self, Content};
use super::diagnosis::{self, Cause};
use super::recipe::{Base, Packages, Recipe};
use super::staging::Staging;
use super::store_error::StoreError;
use super::{files, furnish};
use crate::oci::Variant;

/// Sets up merged `/bin` and `/usr/bin` without the package that would do it, and perl with it (50 MB).
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/maybe-merged-usr";

/// Tools that write the time into what they make write this one instead (reproducible-builds.org), so that
/// two builds of one recipe from one archive are equal: 2023-01-01.
const SOURCE_DATE: &str = "1672531200";

/// The host's apt settings that decide whether an archive is reached and believed.
const APT_SETTINGS: [&str; 7] = [
    "Acquire::Check-Date",
    "Acquire::Check-Valid-Until",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
    "Acquire::Retries",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
];

/// How much of a failed build's output goes into the error.
const TAIL: usize = 12;

/// Fills `staging` with what `recipe` says.
pub(super) fn make(
    recipe: &Recipe,
    staging: &Staging,
    progress: &mut dyn FnMut(&str),
) -> Result<(), StoreError> {
    let root = staging.path();
    match &recipe.base {
        Base::Directory(from) => {
            progress("copying the directory");
            copy::copy(from, root, Content::Copied)?;
            furnish::after_directory(root)?;
        }
        Base::Packages(packages) => {
            bootstrap(&recipe.template, packages, staging, progress)?;
            progress("removing caches and documentation");
            furnish::after_packages(root)?;
        }
    }
    if let Some(extra) = &recipe.files {
        progress("adding the template's files");
        files::lay(extra, root)?;
    }
    Ok(())
}

fn bootstrap(
    template: &str,
    packages: &Packages,
    staging: &Staging,
    progress: &mut dyn FnMut(&str),
) -> Result<(), StoreError> {
    let missing = |program, package, source| StoreError::NoProgram {
        template: template.to_owned(),
        program,
        package,
        source,
    };
    let there = Command::new("mmdebstrap").arg("--version").output();
    there.map_err(|source| missing("mmdebstrap", "mmdebstrap", source))?;

    let (output, sink) = io::pipe().map_err(StoreError::io("make a pipe for", staging.path()))?;
    let mut command = command(packages, staging);
    let sink2 = sink
        .try_clone()
        .map_err(StoreError::io("make a pipe for", staging.path()))?;
    command.stdin(Stdio::null()).stdout(sink).stderr(sink2);
    let child = command
        .spawn()
        .map_err(|source| missing("setpriv", "util-linux", source))?;
    // The command holds our ends of the pipe, which would never end while it lives.
    drop(command);
    let mut running = Running(child);
    let heard = listen(output, &packages.packages, progress).map_err(StoreError::io(
        "read the output of mmdebstrap for",
        staging.path(),
    ))?;
    let status = running
        .0
        .wait()
        .map_err(StoreError::io("wait for mmdebstrap in", staging.path()))?;
    if status.success() {
        return Ok(());
    }
    let (template, suite) = (template.to_owned(), packages.suite.clone());
    Err(match heard.cause {
        Cause::UnknownPackage(package) => StoreError::UnknownPackage {
            template,
            package,
            suite,
        },
        Cause::Unreachable(line) => StoreError::Unreachable {
            template,
            suite,
            line,
        },
        Cause::Other => StoreError::Build {
            template,
            suite,
            status: status.to_string(),
            tail: heard.tail.into_iter().collect::<Vec<_>>().join("\n"),
        },
    })
}

/// The whole command line. Everything in it that comes from the template has been checked to be a plain
/// name, or is quoted for the shell that runs the hook.
fn command(packages: &Packages, staging: &Staging) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
        ])
        .args(["--mount-proc", "--kill-child=KILL", "--"])
        .args([
            "mmdebstrap",
            "--mode=root",
            "--format=directory",
            "--verbose",
        ])
        .arg(format!("--variant={}", packages.variant.as_str()))
        .arg(format!("--include={}", packages.packages.join(",")));
    // The store writes the whole tree to the disk before it counts; dpkg need not do it file by file.
    command.arg("--dpkgopt=force-unsafe-io");
    let essential = !matches!(packages.variant, Variant::Extract | Variant::Custom);
    if essential && Path::new(MERGED_USR).is_dir() {
        command.arg(format!("--hook-directory={MERGED_USR}"));
    }
    for setting in host_settings() {
        command.arg(format!("--aptopt={setting}"));
    }
    // With the variant that runs no scripts mmdebstrap stops after unpacking, and so do its hooks.
    let stage = match packages.variant {
        Variant::Extract => "extract",
        _ => "customize",
    };
    for words in &packages.setup {
        command.arg(format!("--{stage}-hook={}", hook(words)));
    }
    command
        .arg("--")
        .arg(&packages.suite)
        .arg(staging.path())
        .args(&packages.sources);
    let proxies = std::env::vars_os().filter(|(key, _)| {
        ["http_proxy", "https_proxy", "no_proxy"]
            .iter()
            .any(|k| key == k)
    });
    let proxies: Vec<_> = proxies.collect();
    command
        .env_clear()
        .envs(proxies)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE)
        // What mmdebstrap puts aside goes with the staging directory, however it ends.
        .env("TMPDIR", staging.scratch())
        .current_dir("/");
    command
}

/// A command in the tree, as a hook: mmdebstrap gives it to a shell with the tree as `$1`.
fn hook(words: &[String]) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    format!("chroot \"$1\" {}", quoted.join(" "))
}

/// The host's values of `APT_SETTINGS`; none where apt cannot tell.
fn host_settings() -> Vec<String> {
    let Ok(output) = Command::new("apt-config")
        .arg("dump")
        .env("LC_ALL", "C")
        .output()
    else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| {
            let key = line.split(' ').next().unwrap_or("");
            APT_SETTINGS.contains(&key) && line.ends_with("\";") && !line.ends_with(" \"\";")
        })
        .map(str::to_owned)
        .collect()
}

struct Heard {
    cause: Cause,
    tail: VecDeque<String>,
}

/// Reads everything the build says, tells the caller what a person wants to know, and keeps what explains
/// a failure.
fn listen(
    output: PipeReader,
    asked: &[String],
    progress: &mut dyn FnMut(&str),
) -> io::Result<Heard> {
    let mut heard = Heard {
        cause: Cause::Other,
        tail: VecDeque::new(),
    };
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        // A program without line ends must not fill our memory.
        if output
            .by_ref()
            .take(16 * 1024)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(heard);
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if let Some(step) = diagnosis::progress(line) {
            progress(&step);
        }
        match diagnosis::cause(line, asked) {
            // The package is the surer cause: a source that is not reached may be one of many.
            Some(found @ Cause::UnknownPackage(_)) => heard.cause = found,
            Some(found) if heard.cause == Cause::Other => heard.cause = found,
            _ => {}
        }
        if !line.is_empty() {
            heard.tail.push_back(line.to_owned());
        }
        if heard.tail.len() > TAIL {
            heard.tail.pop_front();
        }
    }
}

/// The build's first process: killed, and everything of the build with it, when we go before it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // It may have ended in between, which is what is wanted.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_setup_command_reaches_its_program_word_by_word() {
        let words = ["echo", "a b", "it's", "$HOME;rm", ""].map(str::to_owned);
        let hook = hook(&words).replace("chroot \"$1\"", "printf '%s|'");
        let output = Command::new("sh").args(["-c", &hook]).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(told, "echo|a b|it's|$HOME;rm||");
    }
}
