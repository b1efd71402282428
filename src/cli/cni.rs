//! The plugin of the Container Network Interface: an engine starts this program without a word, and says in the
//! environment and on standard input what it wants. A network namespace that it has made then gets a port of the
//! container network, with an address that goes with its container to other hosts.
//!
//! The protocol is that of the specification (containernetworking/cni, SPEC.md, 0.3.1 to 1.0.0).

use std::env;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::types::{PortInfo, PortRequest};
use crate::api::{Client, ClientError};
use crate::model::Name;

/// The variable that says what is wanted: where it is set, and there are no arguments, this is a plugin.
pub const COMMAND: &str = "CNI_COMMAND";
/// The versions of the protocol that are spoken.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Where the daemon is, where nobody says.
const SOCKET: &str = "/run/godwit/api.sock";
/// The interface in a container.
const INTERFACE: &str = "eth0";

/// Codes of failures, as the specification has them; from 100 on they are the plugin's own.
const BAD_VERSION: u32 = 1;
const BAD_ENVIRONMENT: u32 = 4;
const BAD_INPUT: u32 = 6;
const BAD_CONFIG: u32 = 7;
const LATER: u32 = 11;
const REFUSED: u32 = 100;

/// What stands on standard input, as far as it concerns us.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    cni_version: String,
    socket: Option<PathBuf>,
    runtime_config: Wishes,
    args: Args,
    prev_result: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Wishes,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wishes {
    ips: Vec<String>,
}

/// Why it could not be done, as an engine is told.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    code: u32,
    text: String,
}

fn problem<T>(code: u32, text: impl Into<String>) -> Result<T, Problem> {
    let text = text.into();
    Err(Problem { code, text })
}

/// Does what the environment says; what comes of it is printed, failures too.
pub fn run() -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().take(1 << 20).read_to_end(&mut input);
    let config = match (read, serde_json::from_slice::<Config>(&input)) {
        (Ok(_), Ok(config)) => config,
        (Err(error), _) => return told("", problem(BAD_INPUT, error.to_string())),
        (_, Err(error)) => return told("", problem(BAD_INPUT, format!("standard input: {error}"))),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(carry_out(&config)),
        Err(error) => problem(REFUSED, error.to_string()),
    };
    told(&config.cni_version, done)
}

fn told(version: &str, done: Result<Option<Value>, Problem>) -> ExitCode {
    match done {
        Ok(answer) => {
            if let Some(answer) = answer {
                println!("{answer}");
            }
            ExitCode::SUCCESS
        }
        Err(problem) => {
            let version = if version.is_empty() { "1.0.0" } else { version };
            let told = json!({"cniVersion": version, "code": problem.code, "msg": problem.text});
            println!("{told}");
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(config: &Config) -> Result<Option<Value>, Problem> {
    let command = env::var(COMMAND).unwrap_or_default();
    if command == "VERSION" {
        let spoken = json!({"cniVersion": config.cni_version, "supportedVersions": VERSIONS});
        return Ok(Some(spoken));
    }
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        let text = format!(
            "cniVersion {:?} is not spoken: one of {} is",
            config.cni_version,
            VERSIONS.join(", ")
        );
        return problem(BAD_VERSION, text);
    }
    let socket = config.socket.as_deref().unwrap_or(Path::new(SOCKET));
    let client = Client::new(socket);
    if command == "STATUS" {
        let listed: Result<Vec<PortInfo>, _> = client.get("/v1/ports").await;
        return listed.map(|_| None).map_err(|error| Problem {
            code: 50,
            text: crate::daemon::chain(&error),
        });
    }
    let name = name(&variable("CNI_CONTAINERID")?)?;
    match command.as_str() {
        "ADD" => {
            let request = PortRequest {
                name,
                netns: variable("CNI_NETNS")?.into(),
                ip: wished(config, &env::var("CNI_ARGS").unwrap_or_default())?,
            };
            interface()?;
            let port: PortInfo = client.post("/v1/ports", &request).await.map_err(refused)?;
            Ok(Some(result(
                &config.cni_version,
                &port,
                config.prev_result.as_ref(),
            )))
        }
        "DEL" => {
            let removed = client.delete(&format!("/v1/ports/{name}")).await;
            removed.map(|()| None).map_err(refused)
        }
        "CHECK" => {
            interface()?;
            let ports: Vec<PortInfo> = client.get("/v1/ports").await.map_err(refused)?;
            match ports.iter().any(|port| port.name == name && port.there) {
                true => Ok(None),
                false => problem(REFUSED, format!("{name} has no port")),
            }
        }
        // Namespaces that are gone have taken their ports with them.
        "GC" => Ok(None),
        other => problem(BAD_ENVIRONMENT, format!("{COMMAND}={other} is not known")),
    }
}

fn variable(name: &str) -> Result<String, Problem> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        _ => problem(BAD_ENVIRONMENT, format!("{name} is not set")),
    }
}

fn interface() -> Result<(), Problem> {
    match variable("CNI_IFNAME")? {
        name if name == INTERFACE => Ok(()),
        other => problem(
            BAD_ENVIRONMENT,
            format!(
                "CNI_IFNAME is {other}: the interface is called {INTERFACE}, here and on every host it moves to"
            ),
        ),
    }
}

fn name(id: &str) -> Result<Name, Problem> {
    let found = Name::of_id(id);
    found.map_or_else(
        || {
            problem(
                BAD_ENVIRONMENT,
                format!("CNI_CONTAINERID {id:?} has no name in it"),
            )
        },
        Ok,
    )
}

/// The address that is wished, by whichever of the ways there are to say so; its prefix is the network's.
fn wished(config: &Config, arguments: &str) -> Result<Option<Ipv4Addr>, Problem> {
    let argument = arguments
        .split(';')
        .find_map(|word| word.strip_prefix("IP="));
    let lists = [&config.runtime_config.ips, &config.args.cni.ips];
    let listed = lists.into_iter().flatten().map(String::as_str);
    let all: Vec<&str> = listed.chain(argument).collect();
    let Some(first) = all.first() else {
        return Ok(None);
    };
    let address = first.split('/').next().unwrap_or_default().parse();
    address.map(Some).or_else(|_| {
        problem(
            BAD_CONFIG,
            format!("{first:?} is not an IPv4 address; there are no others here"),
        )
    })
}

fn refused(error: ClientError) -> Problem {
    let remedy = error
        .remedy()
        .map_or_else(String::new, |remedy| format!("; {remedy}"));
    let absent = matches!(error, ClientError::Connect { .. });
    Problem {
        code: if absent { LATER } else { REFUSED },
        text: format!("{}{remedy}", crate::daemon::chain(&error)),
    }
}

/// What an engine is told of an interface that it has got.
fn result(version: &str, port: &PortInfo, before: Option<&Value>) -> Value {
    let lease = &port.lease;
    let empty = Value::Null;
    let before = before.unwrap_or(&empty);
    let list = |key: &str| before[key].as_array().cloned().unwrap_or_default();
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    let mut address = json!({
        "address": format!("{}/{}", lease.address, lease.prefix),
        "interface": interfaces.len(),
    });
    if let Some(gateway) = lease.gateway {
        address["gateway"] = gateway.to_string().into();
        routes.push(json!({"dst": "0.0.0.0/0", "gw": gateway.to_string()}));
    }
    if version.starts_with("0.") {
        address["version"] = "4".into();
    }
    interfaces.push(json!({
        "name": INTERFACE,
        "mac": lease.mac.to_string(),
        "sandbox": port.netns,
    }));
    ips.push(address);
    json!({"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": {}})
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Lease, Mac};

    #[test]
    fn an_address_is_wished_in_three_ways() {
        let config = |text: &str| serde_json::from_str::<Config>(text).unwrap();
        let of = |text: &str, arguments: &str| wished(&config(text), arguments);
        let wanted = Ok(Some(Ipv4Addr::new(10, 88, 0, 9)));
        assert_eq!(of("{}", ""), Ok(None));
        assert_eq!(of("{}", "IgnoreUnknown=1;IP=10.88.0.9"), wanted);
        assert_eq!(
            of(r#"{"runtimeConfig": {"ips": ["10.88.0.9/16"]}}"#, ""),
            wanted
        );
        assert_eq!(
            of(r#"{"args": {"cni": {"ips": ["10.88.0.9"]}}}"#, ""),
            wanted
        );
        let bad = of("{}", "IP=fd00::1").unwrap_err();
        assert!(bad.code == BAD_CONFIG && bad.text.contains("fd00::1"));
    }

    #[test]
    fn an_engine_is_told_what_the_container_has_got() {
        let address = Ipv4Addr::new(10, 88, 0, 9);
        let port = PortInfo {
            name: "web".parse().unwrap(),
            netns: "/run/netns/web".into(),
            lease: Lease {
                address,
                prefix: 16,
                gateway: Some(Ipv4Addr::new(10, 88, 0, 1)),
                mac: Mac::of(address),
            },
            there: true,
        };
        let told = result("1.0.0", &port, None);
        assert_eq!(told["ips"][0]["address"], "10.88.0.9/16");
        assert_eq!(told["ips"][0]["interface"], 0);
        assert_eq!(told["ips"][0]["version"], Value::Null);
        assert_eq!(told["interfaces"][0]["sandbox"], "/run/netns/web");
        assert_eq!(told["routes"][0]["gw"], "10.88.0.1");
        let before = json!({"interfaces": [{"name": "other"}], "ips": [{"address": "1.2.3.4/5"}]});
        let told = result("0.4.0", &port, Some(&before));
        assert_eq!(told["ips"][1]["interface"], 1);
        assert_eq!(told["ips"][1]["version"], "4");
        assert_eq!(told["interfaces"][0]["name"], "other");
    }
}
