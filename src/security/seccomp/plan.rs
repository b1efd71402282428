//! A profile of a bundle becomes a filter. Pure.
//!
//! What a profile means is what `libseccomp` makes of it in other runtimes, for that is what profiles are written
//! against:
//!
//! - names that no architecture of ours has are left out: a profile names calls of all kernels and machines;
//! - a rule whose action is the default one is no rule;
//! - conditions of one rule must all be met. When two of them are about the same argument, each is a rule of its own:
//!   other runtimes have always read them so;
//! - a rule without conditions beats those with conditions, and an earlier one a later one;
//! - a call by an architecture that is not listed kills the thread; this machine's own is always listed;
//! - where calls are refused by default, one that is newer than all that the profile names answers ENOSYS, so that
//!   libc takes its older way, as it would on the kernel for which the profile was written.
//!
//! Beyond that: what cannot be done is an error and never left out, and 32-bit x86 has two calls that are many
//! (`socketcall`, `ipc`), behind which nothing hides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::assemble::Instruction;
use super::compile::{self, Comparison, Condition, Decision, Rule, Section};
use super::table::{self, Architecture, Table};
use crate::security::SecurityError;

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel cuts greater ones down to this.
const MAX_ERRNO: u32 = 4095;
/// The longest program the kernel takes, in instructions.
const LONGEST: usize = 4096;
/// What follows the action in an answer.
const DATA: u32 = 0xffff;

/// A filter, checked and compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    program: Vec<Instruction>,
    pub(super) log: bool,
    pub(super) spec_allow: bool,
    pub(super) wait_killable: bool,
    listener: Option<Listener>,
    answers: BTreeSet<u32>,
}

/// Who is to answer the calls of which the filter notifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The socket that gets the descriptor.
    pub path: PathBuf,
    /// What is told with it.
    pub metadata: String,
}

fn refused(field: impl Into<String>, reason: impl Into<String>) -> SecurityError {
    SecurityError::Profile {
        field: field.into(),
        reason: reason.into(),
    }
}

impl Plan {
    /// The filter that a profile means.
    ///
    /// # Errors
    /// What the profile asks for that cannot be, with the field's name.
    pub fn of(profile: &LinuxSeccomp) -> Result<Self, SecurityError> {
        let Some(native) = Architecture::native() else {
            let reason = "the system calls of this processor are not known to this program";
            return Err(refused("architectures", reason));
        };
        let default = answer(
            "defaultAction",
            profile.default_action(),
            profile.default_errno_ret(),
        )?;
        if default == NOTIFY {
            let reason = "SCMP_ACT_NOTIFY would stop the call that hands the listener over; give it to single calls";
            return Err(refused("defaultAction", reason));
        }
        let entries = entries(profile.syscalls().as_deref().unwrap_or_default())?;
        let listed = listed(profile, native);
        let above = newer_than_the_profile(profile, default);
        let sections: Vec<Section> = doors(native, &listed)
            .map(|door| {
                let above = above.filter(|_| listed.contains(&door));
                section(door, &entries, default, above)
            })
            .collect();
        let program = compile::program(&sections, default);
        if program.len() > LONGEST {
            let reason = format!(
                "the rules make {} instructions, and the kernel takes {LONGEST}",
                program.len()
            );
            return Err(refused("syscalls", reason));
        }
        let answers = answers(&sections, default);
        let listener = listener(profile, answers.contains(&NOTIFY))?;
        if listener.is_some() {
            can_hand_over(&sections[0], default)?;
        }
        let flags = profile.flags().as_deref().unwrap_or_default();
        let has = |flag| flags.contains(&flag);
        Ok(Self {
            program,
            log: has(LinuxSeccompFilterFlag::SeccompFilterFlagLog),
            spec_allow: has(LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow),
            wait_killable: has(LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv),
            listener,
            answers,
        })
    }

    /// The program, as the kernel will get it.
    pub fn program(&self) -> &[Instruction] {
        &self.program
    }

    /// Who is to get the descriptor that loading the filter returns.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// Every answer that the filter can give, without its data: what the kernel must know.
    pub(super) fn answers(&self) -> impl Iterator<Item = u32> {
        self.answers.iter().copied()
    }
}

/// An action as the kernel's filters answer it.
fn answer(
    field: &str,
    action: LinuxSeccompAction,
    errno: Option<u32>,
) -> Result<u32, SecurityError> {
    let data = |limit: u32| match errno.unwrap_or(EPERM) {
        data if data <= limit => Ok(data),
        data => Err(refused(
            field,
            format!("the error number {data} is above {limit}"),
        )),
    };
    let plain = |answer| match errno {
        None => Ok(answer),
        Some(_) => Err(refused(
            field,
            format!("{action} takes no errnoRet; leave it out"),
        )),
    };
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            plain(KILL_THREAD)
        }
        LinuxSeccompAction::ScmpActKillProcess => plain(KILL_PROCESS),
        LinuxSeccompAction::ScmpActTrap => plain(TRAP),
        LinuxSeccompAction::ScmpActErrno => Ok(ERRNO | data(MAX_ERRNO)?),
        LinuxSeccompAction::ScmpActNotify => plain(NOTIFY),
        LinuxSeccompAction::ScmpActTrace => Ok(TRACE | data(DATA)?),
        LinuxSeccompAction::ScmpActLog => plain(LOG),
        LinuxSeccompAction::ScmpActAllow => plain(ALLOW),
    }
}

/// The architectures that are listed, as this machine knows them. One that it cannot execute is left out: nobody can
/// make a call by it here.
fn listed(profile: &LinuxSeccomp, native: Architecture) -> BTreeSet<Architecture> {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    listed
        .iter()
        .filter_map(|arch| match arch {
            Arch::ScmpArchNative => Some(native),
            Arch::ScmpArchX86_64 => Some(Architecture::X86_64),
            Arch::ScmpArchX86 => Some(Architecture::X86),
            Arch::ScmpArchX32 => Some(Architecture::X32),
            Arch::ScmpArchAarch64 => Some(Architecture::Aarch64),
            Arch::ScmpArchArm => Some(Architecture::Arm),
            _ => None,
        })
        .collect()
}

/// The doors that the filter is about: this machine's own, which comes first, and those listed.
fn doors(
    native: Architecture,
    listed: &BTreeSet<Architecture>,
) -> impl Iterator<Item = Architecture> {
    let doors = native.doors().iter().copied();
    doors.filter(move |door| *door == native || listed.contains(door))
}

/// The answer for calls newer than the profile, where it is not the default.
fn newer_than_the_profile(profile: &LinuxSeccomp, default: u32) -> Option<u32> {
    // A tracer is expected to know what it does with new calls.
    let lets_pass = matches!(default & !DATA, ALLOW | LOG | TRACE);
    let says_so = profile.default_errno_ret() == Some(ENOSYS);
    (!lets_pass && !says_so).then_some(ERRNO | ENOSYS)
}

/// One entry of the profile, checked: its names and its rules.
struct Entry<'a> {
    names: &'a [String],
    answer: u32,
    /// No rule: whatever the arguments.
    rules: Vec<Vec<Compared>>,
}

/// A condition before the width of the argument is known.
#[derive(Clone, Copy)]
struct Compared {
    argument: u8,
    is: Comparison,
    value: u64,
}

impl Compared {
    fn of(field: &str, arg: &LinuxSeccompArg) -> Result<Self, SecurityError> {
        let argument = match u8::try_from(arg.index()) {
            Ok(index @ 0..6) => index,
            _ => {
                let reason = format!("index {}: a call has the arguments 0 to 5", arg.index());
                return Err(refused(field, reason));
            }
        };
        let equal = Comparison::Equal { mask: u64::MAX };
        let (is, value) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (Comparison::Not, arg.value()),
            LinuxSeccompOperator::ScmpCmpLt => (Comparison::Less, arg.value()),
            LinuxSeccompOperator::ScmpCmpLe => (Comparison::AtMost, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => (equal, arg.value()),
            LinuxSeccompOperator::ScmpCmpGe => (Comparison::AtLeast, arg.value()),
            LinuxSeccompOperator::ScmpCmpGt => (Comparison::Greater, arg.value()),
            LinuxSeccompOperator::ScmpCmpMaskedEq => (
                Comparison::Equal { mask: arg.value() },
                arg.value_two().unwrap_or_default(),
            ),
        };
        Ok(Self {
            argument,
            is,
            value,
        })
    }

    fn on(self, architecture: Architecture) -> Condition {
        Condition {
            argument: self.argument,
            is: self.is,
            value: self.value,
            wide: architecture.is_wide(),
        }
    }
}

fn entries(calls: &[LinuxSyscall]) -> Result<Vec<Entry<'_>>, SecurityError> {
    let entry = |(index, call)| {
        let call: &LinuxSyscall = call;
        let field = format!("syscalls[{index}]");
        if call.names().is_empty() || call.names().iter().any(String::is_empty) {
            return Err(refused(field, "it names no system call"));
        }
        let answer = answer(&field, call.action(), call.errno_ret())?;
        let arguments = call.args().as_deref().unwrap_or_default();
        let compared: Vec<Compared> = arguments
            .iter()
            .map(|argument| Compared::of(&format!("{field}.args"), argument))
            .collect::<Result<_, _>>()?;
        let different: BTreeSet<u8> = compared.iter().map(|c| c.argument).collect();
        let rules = if compared.is_empty() {
            Vec::new()
        } else if different.len() < compared.len() {
            compared.into_iter().map(|one| vec![one]).collect()
        } else {
            vec![compared]
        };
        Ok(Entry {
            names: call.names(),
            answer,
            rules,
        })
    };
    calls.iter().enumerate().map(entry).collect()
}

fn section(
    architecture: Architecture,
    entries: &[Entry<'_>],
    default: u32,
    above: Option<u32>,
) -> Section {
    let table = Table::of(architecture);
    let mut calls = BTreeMap::new();
    let names = entries.iter().flat_map(|entry| entry.names);
    let last = names.filter_map(|name| table.number(name)).max();
    for entry in entries.iter().filter(|entry| entry.answer != default) {
        for name in entry.names {
            if let Some(number) = table.number(name) {
                add(&mut calls, number, entry, architecture);
            }
            if let Some((by, which)) = table::also_by(architecture, name)
                && let Some(number) = table.number(by)
            {
                add_many(&mut calls, number, which, entry, default);
            }
        }
    }
    Section {
        architecture,
        calls,
        above: last.zip(above),
    }
}

fn add(
    calls: &mut BTreeMap<u32, Decision>,
    number: u32,
    entry: &Entry<'_>,
    architecture: Architecture,
) {
    if entry.rules.is_empty() {
        always(calls, number, entry.answer);
    }
    for rule in &entry.rules {
        let when = rule.iter().map(|condition| condition.on(architecture));
        first(calls, number, when.collect(), entry.answer);
    }
}

/// The same for a call that is many, of which this is the one with the number `which`. Its arguments are in memory,
/// where a filter does not see them: a rule about them that refuses something refuses all, and one that allows
/// something allows nothing.
fn add_many(
    calls: &mut BTreeMap<u32, Decision>,
    number: u32,
    which: u32,
    entry: &Entry<'_>,
    default: u32,
) {
    // The kernel's own order: of two answers it takes the lesser, with sign.
    let strictness = |answer: u32| (answer & !DATA).cast_signed();
    if entry.rules.is_empty() || strictness(entry.answer) < strictness(default) {
        let this = Condition {
            argument: 0,
            is: Comparison::Equal { mask: 0xffff },
            value: u64::from(which),
            wide: false,
        };
        first(calls, number, vec![this], entry.answer);
    }
}

fn always(calls: &mut BTreeMap<u32, Decision>, number: u32, answer: u32) {
    let decision = calls.entry(number).or_insert(Decision::Always(answer));
    if let Decision::First(_) = decision {
        *decision = Decision::Always(answer);
    }
}

fn first(calls: &mut BTreeMap<u32, Decision>, number: u32, when: Vec<Condition>, answer: u32) {
    let decision = calls.entry(number).or_insert(Decision::First(Vec::new()));
    if let Decision::First(rules) = decision {
        rules.push(Rule { when, answer });
    }
}

fn answers(sections: &[Section], default: u32) -> BTreeSet<u32> {
    let decided = |decision: &Decision| match decision {
        Decision::Always(answer) => vec![*answer],
        Decision::First(rules) => rules.iter().map(|rule| rule.answer).collect(),
    };
    let calls = sections.iter().flat_map(|section| section.calls.values());
    let above = sections.iter().filter_map(|section| section.above);
    calls
        .flat_map(decided)
        .chain(above.map(|(_, answer)| answer))
        .chain([default])
        .map(|answer| answer & !DATA)
        .collect()
}

fn listener(profile: &LinuxSeccomp, notifies: bool) -> Result<Option<Listener>, SecurityError> {
    let path = profile.listener_path().as_deref();
    let path = path.filter(|path| *path != Path::new(""));
    let metadata = profile.listener_metadata().clone().unwrap_or_default();
    match path {
        None if !metadata.is_empty() => Err(refused(
            "listenerMetadata",
            "it goes to a listener, and there is no listenerPath",
        )),
        None if notifies => Err(refused(
            "listenerPath",
            "SCMP_ACT_NOTIFY needs somebody who answers; name the socket that gets the listener",
        )),
        Some(path) if notifies => Ok(Some(Listener {
            path: path.to_owned(),
            metadata,
        })),
        _ => Ok(None),
    }
}

/// The filter is loaded when the process tells the runtime which descriptor its listener is: `write` must pass.
fn can_hand_over(native: &Section, default: u32) -> Result<(), SecurityError> {
    let passes = |answer: &u32| matches!(*answer, ALLOW | LOG);
    let number = Table::of(native.architecture).number("write");
    let may = match number.and_then(|number| native.calls.get(&number)) {
        Some(Decision::Always(answer)) => passes(answer),
        Some(Decision::First(rules)) => {
            passes(&default) && rules.iter().all(|rule| passes(&rule.answer))
        }
        None => passes(&default),
    };
    if may {
        return Ok(());
    }
    let reason = "with SCMP_ACT_NOTIFY, `write` must be allowed: by it the listener is handed over";
    Err(refused("syscalls", reason))
}
