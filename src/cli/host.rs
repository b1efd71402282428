//! `godwit host`: what this host is, and what it can do.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Session;
use super::output::Failure;
use super::table::table;
use crate::model::{Ability, HostFacts, TrackerOffer};

/// Show what this host is.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit host\n  godwit host check\n  godwit host --format json")]
pub struct Host {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what this host can do for a migration, and why it cannot do the rest.
    ///
    /// It was found out when the daemon started: restart it after a change. Exits with 0 only when containers can
    /// move from and to this host.
    #[command(after_help = "Example:\n  godwit host check\n  godwit host check --format json")]
    Check,
}

/// One thing that a host can do or cannot.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    usable: bool,
    why: String,
}

impl Host {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let facts: HostFacts = session.client.get("/v1/host").await?;
        match self.verb {
            None => session.print(&facts, show),
            Some(Verb::Check) => {
                session.print(&checks(&facts), |checks| {
                    let mut table = table(&["CHECK", "USABLE", "WHY"]);
                    for check in checks {
                        let usable = if check.usable { "yes" } else { "no" };
                        table.add_row([&check.what, usable, &check.why]);
                    }
                    table.trim_fmt()
                })?;
                Ok(if criu(&facts).usable {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                })
            }
        }
    }
}

fn checks(facts: &HostFacts) -> Vec<Check> {
    let check = |what: &str, Ability { usable, why }| Check {
        what: what.to_owned(),
        usable,
        why,
    };
    let tracker = |offer: &TrackerOffer| Check {
        what: format!("tracker {}", offer.kind),
        usable: offer.usable,
        why: offer.why.clone(),
    };
    let mut checks = vec![check("criu", criu(facts))];
    checks.extend(facts.trackers.iter().map(tracker));
    checks.push(check("memory hidden from criu", facts.hides_pages.clone()));
    checks.push(check("criu spared smaps", facts.spares_smaps.clone()));
    checks.push(check("lazy restore", facts.lazy_restore.clone()));
    checks.push(check("user namespaces", facts.userns.clone()));
    checks.push(check("lazy restore into them", facts.lazy_userns.clone()));
    checks.push(check("throttle", facts.throttle.clone()));
    checks
}

fn criu(facts: &HostFacts) -> Ability {
    let (usable, why) = match (&facts.criu, &facts.criu_problem) {
        (_, Some(problem)) => (false, problem.clone()),
        (Some(version), None) => (true, format!("version {version} moved a task of its own")),
        (None, None) => (false, "it is missing; run scripts/setup".to_owned()),
    };
    Ability { usable, why }
}

fn show(facts: &HostFacts) -> String {
    let mut table = table(&["FACT", "VALUE"]);
    let criu = match (&facts.criu, &facts.criu_problem) {
        (_, Some(problem)) => format!("cannot be used: {problem}"),
        (Some(version), None) => version.to_string(),
        (None, None) => "missing".to_owned(),
    };
    let tracked = if facts.soft_dirty { "yes" } else { "no" };
    let flags = facts.cpu.flags.len();
    let rows = [
        ("name", facts.name.to_string()),
        ("godwit", facts.godwit.clone()),
        ("kernel", facts.kernel.clone()),
        (
            "processor",
            format!("{} {}, {flags} flags", facts.cpu.arch, facts.cpu.vendor),
        ),
        ("criu", criu),
        ("soft-dirty pages", tracked.to_owned()),
        ("trackers", trackers(facts)),
        ("memory available", facts.memory_available.to_string()),
    ];
    for (fact, value) in rows {
        table.add_row([fact.to_owned(), value]);
    }
    table.trim_fmt()
}

/// Those that can be used, the best first.
fn trackers(facts: &HostFacts) -> String {
    let usable = facts.trackers.iter().filter(|offer| offer.usable);
    let names: Vec<&str> = usable.map(|offer| offer.kind.as_str()).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Bytes, CpuFacts, TrackerChoice};

    fn given_facts() -> HostFacts {
        let ability = |usable, why: &str| Ability {
            usable,
            why: why.to_owned(),
        };
        HostFacts {
            name: "alpha".parse().unwrap(),
            godwit: "0.1.0".into(),
            kernel: "6.18".into(),
            cpu: CpuFacts {
                arch: "x86_64".into(),
                vendor: "GenuineIntel".into(),
                flags: Default::default(),
            },
            criu: Some("4.2.1".parse().unwrap()),
            criu_problem: None,
            soft_dirty: false,
            memory_available: Bytes(1 << 30),
            trackers: vec![
                TrackerOffer {
                    kind: TrackerChoice::SoftDirty,
                    usable: false,
                    why: "the kernel is built without it".into(),
                },
                TrackerOffer {
                    kind: TrackerChoice::Hash,
                    usable: true,
                    why: "it needs nothing".into(),
                },
            ],
            lazy_restore: ability(true, "userfaultfd works"),
            userns: ability(true, "files are shown"),
            lazy_userns: ability(false, "no device"),
            hides_pages: ability(false, "criu is linked statically"),
            spares_smaps: ability(false, "no types are described"),
            throttle: ability(false, "no cpu controller"),
        }
    }

    #[test]
    fn every_check_says_why() {
        let facts = given_facts();
        let all: Vec<String> = checks(&facts)
            .iter()
            .map(|c| format!("{} {} {}", c.what, c.usable, c.why))
            .collect();
        assert_eq!(
            all,
            [
                "criu true version 4.2.1 moved a task of its own",
                "tracker soft-dirty false the kernel is built without it",
                "tracker hash true it needs nothing",
                "memory hidden from criu false criu is linked statically",
                "criu spared smaps false no types are described",
                "lazy restore true userfaultfd works",
                "user namespaces true files are shown",
                "lazy restore into them false no device",
                "throttle false no cpu controller",
            ]
        );
        assert!(show(&facts).contains("trackers          hash"));
    }

    #[test]
    fn a_criu_that_cannot_be_used_is_told_with_its_problem() {
        let mut facts = given_facts();
        facts.criu_problem = Some("too old".into());
        assert!(!criu(&facts).usable && criu(&facts).why == "too old");
        facts.criu_problem = None;
        facts.criu = None;
        assert!(!criu(&facts).usable && criu(&facts).why.contains("scripts/setup"));
    }
}
