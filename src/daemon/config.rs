//! The daemon's configuration: one TOML file, in which everything has a default.
//!
//! ```toml
//! # name = "alpha"             # this machine's host name where nothing is said
//! run_dir = "/run/godwit"
//! state_dir = "/var/lib/godwit"
//! templates = "/usr/share/godwit/templates"
//! # image_cache = "/var/cache/godwit"
//!
//! [peer]
//! listen = "0.0.0.0:7447"
//! # advertise = "192.0.2.1:7447"
//!
//! [network]
//! bridge = "godwit0"
//! # uplink = "eth1"
//! subnet = "10.87.0.0"
//! prefix = 24
//! bridge_address = "10.87.0.1"    # "" for none
//! gateway = "10.87.0.1"           # "" for none
//! pool = ["10.87.0.16", "10.87.0.239"]
//!
//! [cgroup]
//! parent = "godwit"
//!
//! [criu]
//! # path = "/usr/sbin/criu"
//!
//! [metrics]
//! # listen = "127.0.0.1:9447"    # nothing where nothing is said
//!
//! [log]
//! filter = "info"
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::Name;
use crate::net::{NetError, NetworkConfig};
use crate::peer::Address;

/// Where the configuration is read from, where nothing else is said.
pub const DEFAULT_FILE: &str = "/etc/godwit/godwit.toml";

/// The longest path of a unix socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: write it, or name another with --config", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML, or it has a field that is unknown or of the wrong kind.
    #[error("cannot use the configuration {}: correct this field, or remove it to have its default", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Where, and what was expected.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A field's value cannot be.
    #[error("the configuration's field {field} is wrong: {problem}; {remedy}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// A field of the network's cannot be.
    #[error("the configuration's network cannot be")]
    Network(#[source] NetError),
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's name among its peers.
    #[serde(default = "host_name")]
    pub name: Name,
    /// Sockets, mount points, pinned namespaces: a tmpfs, gone after a boot.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Records, images, identity: kept over a boot.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where the templates are, one directory each.
    #[serde(default = "default_templates")]
    pub templates: PathBuf,
    /// The `state_dir` of another host's store, where images are looked for before they are built.
    #[serde(default)]
    pub image_cache: Option<PathBuf>,
    /// The link to the other hosts.
    #[serde(default)]
    pub peer: PeerSection,
    /// The containers' network.
    #[serde(default)]
    pub network: NetworkSection,
    /// The containers' cgroups.
    #[serde(default)]
    pub cgroup: CgroupSection,
    /// CRIU.
    #[serde(default)]
    pub criu: CriuSection,
    /// What Prometheus may read.
    #[serde(default)]
    pub metrics: MetricsSection,
    /// The daemon's own log.
    #[serde(default)]
    pub log: LogSection,
}

/// What the kernel calls this machine, up to the first dot, as a name may be written.
fn host_name() -> Name {
    let given = nix::unistd::gethostname().unwrap_or_default();
    name_of(&given.to_string_lossy())
}

/// Host names may be written in any letters (hostname(7)); our names are those that are the same to everybody.
fn name_of(given: &str) -> Name {
    let label = given.split('.').next().unwrap_or_default();
    let letter = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let text: String = label.chars().map(letter).take(63).collect();
    let text = text.trim_matches('-');
    // A machine that has no name.
    let unnamed = || Name::try_from("localhost".to_owned()).expect("it is a DNS label");
    text.parse().unwrap_or_else(|_| unnamed())
}

fn default_run_dir() -> PathBuf {
    "/run/godwit".into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/godwit".into()
}

fn default_templates() -> PathBuf {
    "/usr/share/godwit/templates".into()
}

/// `[peer]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerSection {
    /// Where other hosts reach this one.
    pub listen: SocketAddr,
    /// The address to give them, where it differs from `listen`.
    pub advertise: Option<Address>,
}

impl Default for PeerSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7447)),
            advertise: None,
        }
    }
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSection {
    /// The bridge that joins the containers; made where it does not exist.
    pub bridge: String,
    /// The interface that joins the bridge to the other hosts.
    pub uplink: Option<String>,
    /// The first address of the network.
    pub subnet: Ipv4Addr,
    /// The length of its prefix, in bits.
    pub prefix: u8,
    /// The host's own address on the bridge.
    #[serde(deserialize_with = "address_or_none")]
    pub bridge_address: Option<Ipv4Addr>,
    /// The containers' default gateway.
    #[serde(deserialize_with = "address_or_none")]
    pub gateway: Option<Ipv4Addr>,
    /// The first and the last address that containers get unasked.
    pub pool: (Ipv4Addr, Ipv4Addr),
}

impl Default for NetworkSection {
    fn default() -> Self {
        let address = |last| Ipv4Addr::new(10, 87, 0, last);
        Self {
            bridge: "godwit0".to_owned(),
            uplink: None,
            subnet: address(0),
            prefix: 24,
            bridge_address: Some(address(1)),
            gateway: Some(address(1)),
            pool: (address(16), address(239)),
        }
    }
}

/// TOML has no null: the empty text stands for it, so that a default can be taken away.
fn address_or_none<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Ipv4Addr>, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(None);
    }
    let expected = || format!("{text:?} is not an IPv4 address (\"\" stands for none)");
    text.parse()
        .map(Some)
        .map_err(|_| serde::de::Error::custom(expected()))
}

/// `[cgroup]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CgroupSection {
    /// The cgroup beneath which every container has its own.
    pub parent: String,
}

impl Default for CgroupSection {
    fn default() -> Self {
        Self {
            parent: "godwit".to_owned(),
        }
    }
}

/// `[criu]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriuSection {
    /// The program; looked for in the usual places otherwise.
    pub path: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSection {
    /// Where `GET /metrics` is answered to whoever comes. The API's socket has them in any case.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter per module: `info,godwit::migration=debug`.
    pub filter: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(&text, file)
    }

    /// Parses and checks a text; `file` is for the message only.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        Ok(config)
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    fn check(&self) -> Result<(), ConfigError> {
        let paths = [
            ("run_dir", &self.run_dir),
            ("state_dir", &self.state_dir),
            ("templates", &self.templates),
        ];
        let more = [
            ("image_cache", &self.image_cache),
            ("criu.path", &self.criu.path),
        ];
        let more = more
            .into_iter()
            .filter_map(|(field, path)| Some((field, path.as_ref()?)));
        for (field, path) in paths.into_iter().chain(more) {
            if !path.is_absolute() {
                let problem = format!("{} is a relative path", path.display());
                return wrong(field, problem, "write a path that begins with /");
            }
        }
        if self.run_dir == self.state_dir {
            let problem = "it is the same as state_dir".to_owned();
            return wrong("run_dir", problem, "give each a directory of its own");
        }
        if self.socket().as_os_str().len() > SOCKET_PATH_MAX {
            let problem = "it is too long a path for a socket".to_owned();
            return wrong("run_dir", problem, "choose one of at most 98 bytes");
        }
        NetworkConfig::from(&self.network)
            .check()
            .map_err(ConfigError::Network)?;
        let parent = &self.cgroup.parent;
        let sane = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !parent.split('/').all(sane) {
            let problem = format!("{parent:?} is not a path beneath the root of the cgroups");
            return wrong(
                "cgroup.parent",
                problem,
                "write one like \"godwit\" or \"system.slice/godwit\"",
            );
        }
        Ok(())
    }
}

impl From<&NetworkSection> for NetworkConfig {
    fn from(section: &NetworkSection) -> Self {
        Self {
            bridge: section.bridge.clone(),
            uplink: section.uplink.clone(),
            subnet: section.subnet,
            prefix: section.prefix,
            bridge_address: section.bridge_address,
            gateway: section.gateway,
            pool: section.pool,
        }
    }
}

fn wrong(field: &'static str, problem: String, remedy: &'static str) -> Result<(), ConfigError> {
    Err(ConfigError::Field {
        field,
        problem,
        remedy,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("godwit.toml"))
    }

    #[test]
    fn nothing_must_be_said() {
        let config = parse("").unwrap();
        assert_eq!(config.socket(), Path::new("/run/godwit/api.sock"));
        assert_eq!(config.network, NetworkSection::default());
    }

    #[test]
    fn the_documented_configuration_is_the_default() {
        let documented: String = include_str!("config.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! "))
            .skip_while(|line| *line != "```toml")
            .skip(1)
            .take_while(|line| *line != "```")
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(parse(&documented).unwrap(), parse("").unwrap());
    }

    /// Every line of the package's configuration that is switched off says what holds without it, and those that
    /// only show how something would be written are marked.
    #[test]
    fn the_packaged_configuration_is_the_default() {
        let packaged = include_str!("../../scripts/package.d/godwit.toml");
        assert_eq!(parse(packaged).unwrap(), parse("").unwrap());
        let switched_on: String = packaged
            .lines()
            .filter(|line| !line.ends_with("# for example"))
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with([' ', '#']) => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert!(switched_on.contains("\nbridge = "), "{switched_on}");
        assert_eq!(parse(&switched_on).unwrap(), parse("").unwrap());
    }

    #[test]
    fn a_host_is_called_as_its_machine_is() {
        for (given, name) in [
            ("alpha", "alpha"),
            ("Node_7.example.org", "node-7"),
            ("-x-", "x"),
            ("", "localhost"),
            ("_", "localhost"),
        ] {
            assert_eq!(name_of(given).as_str(), name, "{given:?}");
        }
    }

    #[test]
    fn an_unknown_or_mistyped_field_is_named() {
        for (text, named) in [
            ("name = \"A\"", "is not a name"),
            ("name = \"a\"\ncolour = 1", "colour"),
            ("name = \"a\"\n[network]\nbrigde = \"b\"", "brigde"),
            ("name = \"a\"\n[peer]\nlisten = 7", "listen"),
            (
                "name = \"a\"\n[network]\ngateway = \"x\"",
                "not an IPv4 address",
            ),
        ] {
            let error = parse(text).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(named), "{text:?}: {source}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_with_its_field() {
        for (text, named) in [
            ("run_dir = \"run\"", "run_dir"),
            ("image_cache = \"c\"", "image_cache"),
            ("[criu]\npath = \"criu\"", "criu.path"),
            ("run_dir = \"/x\"\nstate_dir = \"/x\"", "run_dir"),
            ("[cgroup]\nparent = \"../x\"", "cgroup.parent"),
        ] {
            match parse(&format!("name = \"a\"\n{text}")) {
                Err(ConfigError::Field { field, .. }) => assert_eq!(field, named),
                other => panic!("{text:?}: {other:?}"),
            }
        }
        match parse("name = \"a\"\n[network]\ngateway = \"10.88.0.1\"") {
            Err(ConfigError::Network(e)) => {
                assert!(e.to_string().contains("network.gateway"), "{e}")
            }
            other => panic!("{other:?}"),
        }
        assert!(parse("name = \"a\"\n[peer]\nadvertise = \"0.0.0.0:1\"").is_err());
    }
}
