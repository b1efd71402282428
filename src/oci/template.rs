//! A template: what a file tree is made of, and what runs in it.
//!
//! The format is described for people in `rootfs-templates/README.md`. Here what they wrote (`RawTemplate`,
//! all strings) becomes what it means ([`Template`]); whoever holds a `Template` need not check it again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::OciError;
use super::account::UserWish;
use super::quantity::{self, Memory};
use super::rule::{
    Origin, check_command, check_env, is_absolute, is_package, is_suite, relative_path,
};
use crate::model::{Limits, Name, Restart, Userns};

/// A template that keeps all the rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// Its name: that of its directory.
    pub name: Name,
    /// What the file tree is made of.
    pub rootfs: Rootfs,
    /// A directory whose content is laid over the tree, relative to the template's own.
    pub files: Option<PathBuf>,
    /// What a container made from it does, unless told otherwise.
    pub container: Defaults,
}

/// What a file tree is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// Distribution packages, installed by mmdebstrap.
    Packages {
        /// Their names, each perhaps with `=VERSION`; never empty.
        packages: Vec<String>,
        /// The distribution's release; none: the host's own.
        suite: Option<String>,
        /// What there is besides the packages.
        variant: Variant,
        /// Commands run in the finished tree, each with its arguments.
        setup: Vec<Vec<String>>,
    },
    /// A directory that is a file tree already, relative to the template's own.
    Directory(PathBuf),
}

/// What mmdebstrap adds to the packages asked for and their dependencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Nothing; the packages are unpacked, their installation scripts do not run.
    Extract,
    /// Nothing; the packages are installed.
    Custom,
    /// What every package may rely on: a shell, coreutils, dpkg.
    #[default]
    Essential,
    /// And apt.
    Apt,
    /// And everything of priority `required`.
    Minbase,
}

impl Variant {
    /// Its name, as mmdebstrap has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Extract => "extract",
            Self::Custom => "custom",
            Self::Essential => "essential",
            Self::Apt => "apt",
            Self::Minbase => "minbase",
        }
    }
}

/// What a container does, unless the request for it says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// The command and its arguments; never empty.
    pub command: Vec<String>,
    /// The environment, by name.
    pub env: BTreeMap<String, String>,
    /// Where it starts; absolute.
    pub cwd: PathBuf,
    /// Whom it runs as.
    pub user: UserWish,
    /// The TCP ports it serves.
    pub ports: Vec<u16>,
    /// What it may use.
    pub limits: Limits,
    /// When its command is started again.
    pub restart: Restart,
    /// Whether it has users of its own.
    pub userns: Userns,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTemplate {
    rootfs: RawRootfs,
    container: RawContainer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRootfs {
    packages: Option<Vec<String>>,
    suite: Option<String>,
    variant: Option<Variant>,
    setup: Option<Vec<Vec<String>>>,
    directory: Option<String>,
    files: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawContainer {
    command: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    user: Option<String>,
    #[serde(default)]
    ports: Vec<u16>,
    #[serde(default)]
    limits: RawLimits,
    restart: Option<String>,
    userns: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    memory: Option<Memory>,
    cpus: Option<f64>,
    pids: Option<u64>,
}

/// Reads the text of a `template.toml`. `name` is the template's name, that of its directory.
pub fn parse(text: &str, name: &str) -> Result<Template, OciError> {
    let name: Name = name
        .parse()
        .map_err(|source| OciError::TemplateName { source })?;
    let origin = Origin(format!("{name}/template.toml"));
    let raw: RawTemplate = toml::from_str(text).map_err(|source| OciError::Toml {
        origin: origin.0.clone(),
        source: Box::new(source),
    })?;
    let files = raw.rootfs.files.as_deref();
    let files = files
        .map(|path| relative_path(&origin, "rootfs.files", path))
        .transpose()?;
    Ok(Template {
        files,
        rootfs: rootfs(&origin, raw.rootfs)?,
        container: defaults(&origin, raw.container)?,
        name,
    })
}

fn rootfs(origin: &Origin, raw: RawRootfs) -> Result<Rootfs, OciError> {
    let conflict = |one, other| OciError::Conflict {
        origin: origin.0.clone(),
        one,
        other,
    };
    let Some(directory) = raw.directory else {
        return packages(origin, raw);
    };
    for (given, field) in [
        (raw.packages.is_some(), "rootfs.packages"),
        (raw.suite.is_some(), "rootfs.suite"),
        (raw.variant.is_some(), "rootfs.variant"),
        (raw.setup.is_some(), "rootfs.setup"),
    ] {
        if given {
            return Err(conflict("rootfs.directory", field));
        }
    }
    relative_path(origin, "rootfs.directory", &directory).map(Rootfs::Directory)
}

fn packages(origin: &Origin, raw: RawRootfs) -> Result<Rootfs, OciError> {
    let packages = raw.packages.unwrap_or_default();
    if packages.is_empty() {
        let remedy = "write packages = [\"NAME\", ...] or directory = \"PATH\" under [rootfs]";
        return Err(origin.missing("rootfs.packages", remedy));
    }
    if let Some(bad) = packages.iter().find(|package| !is_package(package)) {
        let rule =
            "a package is named as in its archive, with '=VERSION' where one version is meant";
        return Err(origin.wrong("rootfs.packages", bad, rule));
    }
    if let Some(bad) = raw.suite.as_deref().filter(|suite| !is_suite(suite)) {
        let rule = "a suite is a release's code name, like \"bookworm\"";
        return Err(origin.wrong("rootfs.suite", bad, rule));
    }
    let setup = raw.setup.unwrap_or_default();
    for command in &setup {
        check_command(origin, "rootfs.setup", command)?;
    }
    Ok(Rootfs::Packages {
        packages,
        suite: raw.suite,
        variant: raw.variant.unwrap_or_default(),
        setup,
    })
}

fn defaults(origin: &Origin, raw: RawContainer) -> Result<Defaults, OciError> {
    let Some(command) = raw.command else {
        let remedy = "write command = [\"PROGRAM\", \"ARGUMENT\", ...] under [container]";
        return Err(origin.missing("container.command", remedy));
    };
    check_command(origin, "container.command", &command)?;
    for (key, value) in &raw.env {
        check_env(origin, "container.env", key, value)?;
    }
    let cwd = raw.cwd.unwrap_or_else(|| "/".to_owned());
    if !is_absolute(&cwd) {
        let rule = "it must be an absolute path without '..'";
        return Err(origin.wrong("container.cwd", &cwd, rule));
    }
    let user = raw.user.unwrap_or_else(|| "root".to_owned());
    let Some(wish) = UserWish::parse(&user) else {
        return Err(origin.wrong("container.user", &user, UserWish::RULE));
    };
    let mut ports = raw.ports;
    if ports.contains(&0) {
        return Err(origin.wrong("container.ports", "0", "a port is a number from 1 to 65535"));
    }
    ports.sort_unstable();
    ports.dedup();
    let restart = raw.restart.as_deref().unwrap_or("no");
    let restart = restart.parse().map_err(|_| {
        let rule = "it is no, on-failure, on-failure:5 or always";
        origin.wrong("container.restart", restart, rule)
    })?;
    let userns = raw.userns.as_deref().unwrap_or("auto");
    let userns = userns.parse().map_err(|_| {
        let rule = "it is auto (a user namespace of its own) or host (none)";
        origin.wrong("container.userns", userns, rule)
    })?;
    Ok(Defaults {
        command,
        env: raw.env,
        cwd: PathBuf::from(cwd),
        user: wish,
        ports,
        limits: limits(origin, &raw.limits)?,
        restart,
        userns,
    })
}

fn limits(origin: &Origin, raw: &RawLimits) -> Result<Limits, OciError> {
    let cpu_millis = match raw.cpus.map(|cpus| (cpus, quantity::cpu_millis(cpus))) {
        Some((cpus, None)) => {
            let field = "container.limits.cpus";
            return Err(origin.wrong(field, &cpus.to_string(), quantity::CPUS_RULE));
        }
        other => other.and_then(|(_, millis)| millis),
    };
    if raw.pids == Some(0) {
        let rule = "a container needs at least one process";
        return Err(origin.wrong("container.limits.pids", "0", rule));
    }
    Ok(Limits {
        memory: raw.memory.map(|memory| memory.0),
        cpu_millis,
        pids: raw.pids,
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::Bytes;
    use std::path::Path;

    const SMALL: &str =
        "[rootfs]\npackages = [\"redis-server\"]\n[container]\ncommand = [\"redis-server\"]\n";

    #[track_caller]
    fn check_refused(text: &str, parts: &[&str]) {
        let error = anyhow::Error::from(parse(text, "web").unwrap_err());
        let message = format!("{error:#}");
        for part in parts.iter().chain(&["web/template.toml"]) {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    /// `SMALL` with lines added to its end, that is to `[container]`.
    fn with(lines: &str) -> String {
        format!("{SMALL}{lines}\n")
    }

    /// A template with this `[rootfs]`.
    fn of(rootfs: &str) -> String {
        format!("[rootfs]\n{rootfs}\n[container]\ncommand = [\"x\"]\n")
    }

    #[test]
    fn a_small_template_has_sensible_defaults() {
        let template = parse(SMALL, "web").unwrap();
        assert_eq!(template.name.as_str(), "web");
        let Rootfs::Packages {
            packages,
            suite,
            variant,
            setup,
        } = template.rootfs
        else {
            panic!("not packages");
        };
        assert_eq!(
            (packages.len(), suite, variant),
            (1, None, Variant::Essential)
        );
        assert!(setup.is_empty() && template.files.is_none());
        assert_eq!(template.container.cwd, Path::new("/"));
        assert_eq!(template.container.user, UserWish::parse("root").unwrap());
        assert_eq!(template.container.limits, Limits::default());
    }

    #[test]
    fn everything_written_is_kept() {
        let text = r#"
            [rootfs]
            packages = ["g++", "libc6=2.36-9+deb12u1"]
            suite = "bookworm"
            variant = "custom"
            setup = [["/bin/busybox", "--install", "-s"]]
            files = "files"
            [container]
            command = ["a", "b c"]
            env = { KEY = "value=1" }
            cwd = "/srv/www"
            user = "www:www"
            ports = [443, 80, 80]
            limits = { memory = "512 MiB", cpus = 2, pids = 100 }
        "#;
        let template = parse(text, "all").unwrap();
        let container = template.container;
        assert_eq!(template.files, Some(PathBuf::from("files")));
        assert_eq!(container.ports, [80, 443]);
        assert_eq!(container.env["KEY"], "value=1");
        let limits = Limits {
            memory: Some(Bytes(512 << 20)),
            cpu_millis: Some(2000),
            pids: Some(100),
        };
        assert_eq!(container.limits, limits);
    }

    #[test]
    fn an_unknown_field_is_refused_by_its_name() {
        check_refused(
            &with("comand = [\"x\"]"),
            &["comand", "expected one of", "line 5"],
        );
        check_refused(&with("[network]"), &["network"]);
        check_refused(&with("limits = { memmory = 1 }"), &["memmory"]);
        check_refused(&of("packages = [\"ab\"]\nmirror = \"x\""), &["mirror"]);
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_field_and_the_rule() {
        check_refused(&of(""), &["rootfs.packages", "directory ="]);
        check_refused(&of("packages = []"), &["rootfs.packages"]);
        for bad in [
            "-y", "ab-", "Redis", "a b", "./x.deb", "?all", "a", "ab=", "ab=-o", "ab/sid",
        ] {
            check_refused(
                &of(&format!("packages = [{bad:?}]")),
                &["rootfs.packages", bad],
            );
        }
        check_refused(
            &of("packages = [\"ab\"]\nsuite = \"--x\""),
            &["rootfs.suite", "--x"],
        );
        check_refused(
            &of("packages = [\"ab\"]\nvariant = \"big\""),
            &["big", "essential"],
        );
        check_refused(&of("packages = [\"ab\"]\nsetup = [[]]"), &["rootfs.setup"]);
        check_refused(
            &of("packages = [\"ab\"]\ndirectory = \"d\""),
            &["directory", "packages"],
        );
        for bad in ["", "..", "../x", "/etc", "a/../..", "./a"] {
            check_refused(
                &of(&format!("directory = {bad:?}")),
                &["rootfs.directory", "below"],
            );
        }
        check_refused(&with("cwd = \"srv\""), &["container.cwd", "absolute"]);
        check_refused(&with("cwd = \"/a/../b\""), &["container.cwd"]);
        check_refused(&with("user = \"a:b:c\""), &["container.user", "a:b:c"]);
        check_refused(&with("ports = [0]"), &["container.ports"]);
        check_refused(&with("ports = [65536]"), &["ports", "65536"]);
        check_refused(
            &with("env = { \"A=B\" = \"x\" }"),
            &["container.env", "A=B"],
        );
        check_refused(
            &with("limits = { memory = \"1.5G\" }"),
            &["memory", "512 MiB"],
        );
        check_refused(
            &with("limits = { cpus = -1 }"),
            &["container.limits.cpus", "-1"],
        );
        check_refused(
            &with("restart = \"sometimes\""),
            &["container.restart", "sometimes"],
        );
        check_refused(
            &with("userns = \"own\""),
            &["container.userns", "own", "auto"],
        );
        check_refused(&with("limits = { pids = 0 }"), &["container.limits.pids"]);
        check_refused(
            "[rootfs]\ndirectory = \"d\"\n[container]\n",
            &["container.command"],
        );
        check_refused("[rootfs]\ndirectory = \"d\"\n", &["container"]);
    }

    #[test]
    fn a_template_is_named_like_a_host() {
        assert!(matches!(
            parse(SMALL, "../x"),
            Err(OciError::TemplateName { .. })
        ));
    }
}
