//! Which devices the processes of a cgroup may open or make: rules become a program for the kernel.
//!
//! Each of the three accesses (read, write, make a node) is decided by the last rule that speaks of it and of the
//! device; what no rule speaks of is refused. So the program walks through the rules from the last to the first and
//! crosses out what is allowed: nothing left, allowed; something refused, refused; rules at an end, refused.
//!
//! The devices that every container has by the runtime specification come last, and nothing takes them away. Nodes may
//! be made for all devices (package managers and backups do that), which says nothing about opening them.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::cgroup::CgroupError;
use crate::sys::bpf::Instruction;

const MAKE: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MAKE | READ | WRITE;

/// The kinds of devices, as the kernel numbers them for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A block device.
    Block = 1,
    /// A character device.
    Character = 2,
}

/// One rule. What is absent is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

const fn always(kind: Kind, major: u32, minor: Option<u32>) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major: Some(major),
        minor,
        access: ALL,
    }
}

const fn make_any(kind: Kind) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major: None,
        minor: None,
        access: MAKE,
    }
}

/// What every container has.
const GIVEN: [Rule; 11] = [
    make_any(Kind::Character),
    make_any(Kind::Block),
    // null, zero, full, random, urandom, tty
    always(Kind::Character, 1, Some(3)),
    always(Kind::Character, 1, Some(5)),
    always(Kind::Character, 1, Some(7)),
    always(Kind::Character, 1, Some(8)),
    always(Kind::Character, 1, Some(9)),
    always(Kind::Character, 5, Some(0)),
    // The terminals of its own devpts, and where new ones come from.
    always(Kind::Character, 136, None),
    always(Kind::Character, 5, Some(2)),
    // Tunnels of its own network: other runtimes give it too, and whoever mounts /dev/net/tun counts on it.
    always(Kind::Character, 10, Some(200)),
];

/// The rules of a bundle, and after them what every container has.
///
/// # Errors
/// What is not a rule, by its place in the list.
pub fn rules(listed: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, CgroupError> {
    let rule = |(index, rule)| of(rule).map_err(|reason| refused(index, reason));
    let mut rules: Vec<Rule> = listed
        .iter()
        .enumerate()
        .map(rule)
        .collect::<Result<_, _>>()?;
    rules.extend(GIVEN);
    Ok(rules)
}

fn refused(index: usize, reason: String) -> CgroupError {
    CgroupError::Resource {
        field: format!("devices[{index}]"),
        reason,
    }
}

fn of(rule: &LinuxDeviceCgroup) -> Result<Rule, String> {
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(Kind::Block),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Character),
        LinuxDeviceType::P => {
            return Err("a FIFO is no device that is guarded; leave the rule out".to_owned());
        }
    };
    let number = |name, number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| format!("{name} {number} is no device number; -1 or nothing is any")),
    };
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number("major", rule.major())?,
        minor: number("minor", rule.minor())?,
        access: access(rule.access().as_deref().unwrap_or_default())?,
    })
}

/// The accesses that a text names; none is all.
fn access(text: &str) -> Result<u8, String> {
    let bit = |letter| match letter {
        'r' => Ok(READ),
        'w' => Ok(WRITE),
        'm' => Ok(MAKE),
        other => Err(format!("access {other:?}: use r, w and m")),
    };
    let bits = text
        .chars()
        .try_fold(0, |all, letter| Ok::<_, String>(all | bit(letter)?))?;
    Ok(if bits == 0 { ALL } else { bits })
}

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ASKED: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbc;
const SET: u8 = 0xb4;
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_IF_NOT: u8 = 0x56;
const EXIT: u8 = 0x95;

/// The operations are those of 32 bits; a constant is the 32 bits it has, whatever its sign.
fn on(code: u8, register: u8, constant: u32) -> Instruction {
    Instruction {
        code,
        registers: register,
        offset: 0,
        immediate: constant.cast_signed(),
    }
}

fn from(code: u8, register: u8, source: u8, offset: i16) -> Instruction {
    Instruction {
        code,
        registers: register | source << 4,
        offset,
        immediate: 0,
    }
}

fn skip(code: u8, register: u8, constant: u32, instructions: usize) -> Instruction {
    Instruction {
        // At most seven: the length of what is left of a rule.
        offset: i16::try_from(instructions).unwrap_or(i16::MAX),
        ..on(code, register, constant)
    }
}

fn answer(allowed: bool) -> [Instruction; 2] {
    [on(SET, RESULT, u32::from(allowed)), on(EXIT, 0, 0)]
}

/// The program. It gets a `struct bpf_cgroup_dev_ctx`: access and kind in one word, major, minor.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        from(LOAD_WORD, ASKED, CONTEXT, 0),
        from(COPY, KIND, ASKED, 0),
        on(AND, KIND, 0xffff),
        on(SHIFT_RIGHT, ASKED, 16),
        from(LOAD_WORD, MAJOR, CONTEXT, 4),
        from(LOAD_WORD, MINOR, CONTEXT, 8),
        // Whoever asks for nothing gets it.
        skip(JUMP_IF_NOT, ASKED, 0, 2),
    ];
    program.extend(answer(true));
    for rule in rules.iter().rev() {
        let verdict = verdict(rule);
        let tests = tests(rule);
        for (done, (register, value)) in tests.iter().enumerate() {
            let rest = tests.len() - done - 1 + verdict.len();
            program.push(skip(JUMP_IF_NOT, *register, *value, rest));
        }
        program.extend(verdict);
        if tests.is_empty() && rule.access == ALL {
            // What comes before it is never reached, and the kernel takes no program with such parts.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// What a device must be for a rule to speak of it.
fn tests(rule: &Rule) -> Vec<(u8, u32)> {
    let kind = rule.kind.map(|kind| (KIND, kind as u32));
    let major = rule.major.map(|major| (MAJOR, major));
    let minor = rule.minor.map(|minor| (MINOR, minor));
    [kind, major, minor].into_iter().flatten().collect()
}

fn verdict(rule: &Rule) -> Vec<Instruction> {
    let spoken_of = u32::from(rule.access);
    let mut verdict = match (rule.allow, rule.access) {
        (_, ALL) => Vec::new(),
        (true, _) => vec![on(AND, ASKED, !spoken_of), skip(JUMP_IF_NOT, ASKED, 0, 2)],
        (false, _) => vec![
            from(COPY, RESULT, ASKED, 0),
            on(AND, RESULT, spoken_of),
            skip(JUMP_IF_EQUAL, RESULT, 0, 2),
        ],
    };
    verdict.extend(answer(rule.allow));
    verdict
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], kind: u32, major: u32, minor: u32, access: u8) -> bool {
        let context = [u32::from(access) << 16 | kind, major, minor];
        let mut registers = [0_u32; 16];
        let mut at = 0;
        loop {
            let step = program[at];
            let (to, from) = (step.registers & 15, step.registers >> 4);
            let (to, from) = (usize::from(to), usize::from(from));
            let constant = step.immediate.cast_unsigned();
            at += 1;
            match step.code {
                LOAD_WORD => registers[to] = context[step.offset as usize / 4],
                AND => registers[to] &= constant,
                SHIFT_RIGHT => registers[to] >>= constant,
                COPY => registers[to] = registers[from],
                SET => registers[to] = constant,
                JUMP_IF_EQUAL if registers[to] == constant => at += step.offset as usize,
                JUMP_IF_NOT if registers[to] != constant => at += step.offset as usize,
                JUMP_IF_EQUAL | JUMP_IF_NOT => {}
                EXIT => return registers[0] == 1,
                other => panic!("the program has {other:#x}"),
            }
        }
    }

    /// The meaning of the rules, access by access.
    fn meaning(rules: &[Rule], kind: u32, major: u32, minor: u32, access: u8) -> bool {
        let fits = |rule: &&Rule| {
            rule.kind.is_none_or(|k| k as u32 == kind)
                && rule.major.is_none_or(|m| m == major)
                && rule.minor.is_none_or(|m| m == minor)
        };
        let allowed = |bit: u8| {
            let mut speaking = rules.iter().filter(fits).filter(|r| r.access & bit != 0);
            speaking.next_back().is_some_and(|rule| rule.allow)
        };
        let asked = [MAKE, READ, WRITE]
            .into_iter()
            .filter(|bit| access & bit != 0);
        asked.into_iter().all(allowed)
    }

    fn listed(json: serde_json::Value) -> Result<Vec<Rule>, CgroupError> {
        let listed: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).unwrap();
        rules(&listed)
    }

    #[test]
    fn an_engines_rules_allow_what_is_given_and_what_is_listed() {
        let rules = listed(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "w"},
            {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "r"},
        ]))
        .unwrap();
        let program = program(&rules);
        let may = |kind, major, minor, access| run(&program, kind, major, minor, access);
        let (block, character) = (1, 2);
        assert!(may(character, 1, 3, READ | WRITE));
        assert!(may(character, 136, 77, READ | WRITE));
        assert!(may(character, 10, 229, READ | WRITE));
        assert!(may(block, 8, 16, READ) && !may(block, 8, 16, READ | WRITE));
        assert!(may(block, 8, 16, MAKE) && !may(block, 9, 0, READ));
        assert!(!may(character, 1, 1, READ), "the memory of the host");
    }

    #[test]
    fn what_is_no_rule_is_refused_by_its_place() {
        for (rule, word) in [
            (serde_json::json!({"allow": true, "access": "rx"}), "'x'"),
            (serde_json::json!({"allow": true, "type": "p"}), "FIFO"),
            (
                serde_json::json!({"allow": true, "type": "c", "major": -2}),
                "-2",
            ),
        ] {
            let text = listed(serde_json::json!([{"allow": false}, rule]))
                .unwrap_err()
                .to_string();
            assert!(text.contains("devices[1]") && text.contains(word), "{text}");
        }
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let kind = prop::sample::select(vec![None, Some(Kind::Block), Some(Kind::Character)]);
        let number = || prop_oneof![Just(None), (0..3_u32).prop_map(Some), Just(Some(u32::MAX))];
        (any::<bool>(), kind, number(), number(), 1..=ALL).prop_map(
            |(allow, kind, major, minor, access)| Rule {
                allow,
                kind,
                major,
                minor,
                access,
            },
        )
    }

    proptest! {
        #[test]
        fn the_program_decides_what_the_rules_mean(
            rules in prop::collection::vec(any_rule(), 0..12),
        ) {
            let program = program(&rules);
            for kind in [1, 2] {
                for major in [0, 1, 2, 3, u32::MAX] {
                    for minor in [0, 1, 2, 3, u32::MAX] {
                        for access in 0..=ALL {
                            prop_assert_eq!(
                                run(&program, kind, major, minor, access),
                                meaning(&rules, kind, major, minor, access)
                            );
                        }
                    }
                }
            }
        }
    }
}
