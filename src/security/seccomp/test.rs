//! What a profile means against what the program answers.

use std::collections::BTreeSet;

use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;

use super::assemble::{self, Instruction};
use super::plan::Plan;
use super::table::{Architecture, Table, X32_BIT};

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0;
const fn errno(number: i32) -> u32 {
    0x0005_0000 | number as u32
}

/// Runs a program as the kernel would, on `struct seccomp_data`.
fn run(program: &[Instruction], data: &[u32; 16]) -> u32 {
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let step = &program[at];
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        at += 1;
        match step.code {
            assemble::LOAD => accumulator = data[step.k as usize / 4],
            assemble::AND => accumulator &= step.k,
            assemble::JUMP => at += step.k as usize,
            assemble::JUMP_EQUAL => at += jump(accumulator == step.k),
            assemble::JUMP_GREATER => at += jump(accumulator > step.k),
            assemble::JUMP_AT_LEAST => at += jump(accumulator >= step.k),
            assemble::RETURN => return step.k,
            other => panic!("the program has {other:#x}"),
        }
    }
}

fn ask(plan: &Plan, door: Architecture, number: u32, arguments: &[u64]) -> u32 {
    let mut data = [0; 16];
    data[0] = number;
    data[1] = door.audit();
    for (index, argument) in arguments.iter().enumerate() {
        data[4 + 2 * index] = *argument as u32;
        data[5 + 2 * index] = (argument >> 32) as u32;
    }
    run(plan.program(), &data)
}

fn profile(json: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn plan(json: serde_json::Value) -> Plan {
    Plan::of(&profile(json)).unwrap()
}

fn refusal(json: serde_json::Value) -> String {
    Plan::of(&profile(json)).unwrap_err().to_string()
}

fn native() -> Architecture {
    Architecture::native().unwrap()
}

fn answer(plan: &Plan, name: &str, arguments: &[u64]) -> u32 {
    let number = Table::of(native()).number(name).unwrap();
    ask(plan, native(), number, arguments)
}

#[test]
fn every_action_has_its_answer() {
    let listed = plan(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 99,
        "listenerPath": "/run/agent.sock", "listenerMetadata": "m",
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["kill"], "action": "SCMP_ACT_KILL"},
            {"names": ["tkill"], "action": "SCMP_ACT_KILL_THREAD"},
            {"names": ["tgkill"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["chdir"], "action": "SCMP_ACT_TRAP"},
            {"names": ["fchdir"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"},
            {"names": ["umount2"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["sync"], "action": "SCMP_ACT_LOG"},
        ]
    }));
    for (name, expected) in [
        ("read", ALLOW),
        ("write", ALLOW),
        ("kill", KILL),
        ("tkill", KILL),
        ("tgkill", 0x8000_0000),
        ("chdir", 0x0003_0000),
        ("fchdir", errno(1)),
        ("chroot", errno(13)),
        ("mount", 0x7fc0_0000),
        ("umount2", 0x7ff0_0007),
        ("sync", 0x7ffc_0000),
        ("bpf", errno(99)),
    ] {
        assert_eq!(answer(&listed, name, &[]), expected, "{name}");
    }
    assert_eq!(listed.listener().unwrap().metadata, "m");
    listed.check().unwrap();
}

#[test]
fn conditions_of_one_rule_are_all_to_be_met_and_one_of_several_rules() {
    let rules = plan(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
                {"index": 2, "value": 9, "op": "SCMP_CMP_NE"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 2, "op": "SCMP_CMP_LE"}]},
            // Two about the same argument: each by itself, as other runtimes have it.
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 2_114_060_288_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        ]
    }));
    let socket = |arguments: [u64; 3]| answer(&rules, "socket", &arguments);
    assert_eq!(socket([16, 3, 0]), ALLOW);
    assert_eq!(socket([16, 3, 9]), errno(1));
    assert_eq!(socket([2, 3, 9]), ALLOW);
    assert_eq!(socket([3, 3, 0]), errno(1));
    assert_eq!(answer(&rules, "personality", &[8]), ALLOW);
    assert_eq!(answer(&rules, "personality", &[1]), errno(1));
    assert_eq!(answer(&rules, "clone", &[0x0001_0f00]), ALLOW);
    assert_eq!(answer(&rules, "clone", &[0x1000_0000]), errno(1));
}

#[test]
fn a_rule_without_conditions_beats_others_and_the_first_the_later_ones() {
    let one = serde_json::json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
    let rules = plan(serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_KILL", "args": one},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6},
            {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": one},
            {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6, "args": one},
            {"names": ["write"], "action": "SCMP_ACT_ALLOW"},
        ]
    }));
    assert_eq!(answer(&rules, "read", &[1]), errno(5));
    assert_eq!(answer(&rules, "write", &[1]), errno(5));
    assert_eq!(answer(&rules, "write", &[2]), ALLOW);
}

#[test]
fn what_is_newer_than_the_profile_is_not_there() {
    let json = |default: serde_json::Value| {
        let mut json = serde_json::json!({
            "architectures": ["SCMP_ARCH_NATIVE"],
            "syscalls": [{"names": ["clone3", "from_next_year"], "action": "SCMP_ACT_ALLOW"}],
        });
        let fields = json.as_object_mut().unwrap();
        fields.extend(default.as_object().unwrap().clone());
        plan(json)
    };
    let refusing = json(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO"}));
    assert_eq!(answer(&refusing, "clone3", &[]), ALLOW);
    assert_eq!(answer(&refusing, "fsopen", &[]), errno(1));
    assert_eq!(answer(&refusing, "openat2", &[]), errno(38));
    assert_eq!(ask(&refusing, native(), 5000, &[]), errno(38));
    let allowing = json(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(ask(&allowing, native(), 5000, &[]), ALLOW);
    let killing = json(serde_json::json!({"defaultAction": "SCMP_ACT_KILL_PROCESS"}));
    assert_eq!(answer(&killing, "fsopen", &[]), 0x8000_0000);
    assert_eq!(answer(&killing, "openat2", &[]), errno(38));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn each_door_has_its_own_numbers_and_one_that_is_not_listed_is_shut() {
    let json = |architectures: serde_json::Value| {
        plan(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{"names": ["socket", "ioctl"], "action": "SCMP_ACT_ERRNO"}],
        }))
    };
    let all = json(serde_json::json!([
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32"
    ]));
    let (x86_64, x86) = (Architecture::X86_64, Architecture::X86);
    assert_eq!(ask(&all, x86_64, 41, &[]), errno(1));
    assert_eq!(ask(&all, x86, 41, &[]), ALLOW);
    assert_eq!(ask(&all, x86, 359, &[]), errno(1));
    assert_eq!(ask(&all, x86_64, X32_BIT | 41, &[]), errno(1));
    assert_eq!(ask(&all, x86_64, X32_BIT | 514, &[]), errno(1));
    assert_eq!(ask(&all, x86_64, X32_BIT | 16, &[]), ALLOW);
    // The same by the call that is many, whatever its upper half says; its neighbours are not meant.
    assert_eq!(ask(&all, x86, 102, &[1]), errno(1));
    assert_eq!(ask(&all, x86, 102, &[0xdead_0000_0000_0001]), errno(1));
    assert_eq!(ask(&all, x86, 102, &[2]), ALLOW);
    let alone = json(serde_json::json!(["SCMP_ARCH_MIPS64", "SCMP_ARCH_X86_64"]));
    assert_eq!(ask(&alone, x86_64, 41, &[]), errno(1));
    assert_eq!(ask(&alone, x86_64, 0, &[]), ALLOW);
    assert_eq!(ask(&alone, x86, 41, &[]), KILL);
    assert_eq!(ask(&alone, x86_64, X32_BIT, &[]), KILL);
    // A tracer's way to take a call away.
    assert_eq!(ask(&alone, x86_64, u32::MAX, &[]), ALLOW);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_condition_that_cannot_be_seen_refuses_all_and_allows_nothing() {
    let json = |default: &str, action: &str| {
        plan(serde_json::json!({
            "defaultAction": default, "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [{"names": ["socket"], "action": action, "args": [
                {"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]}],
        }))
    };
    let x86 = Architecture::X86;
    let refusing = json("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO");
    assert_eq!(ask(&refusing, x86, 359, &[40]), errno(1));
    assert_eq!(ask(&refusing, x86, 359, &[2]), ALLOW);
    assert_eq!(ask(&refusing, x86, 102, &[1]), errno(1));
    let allowing = json("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW");
    assert_eq!(ask(&allowing, x86, 359, &[40]), ALLOW);
    assert_eq!(ask(&allowing, x86, 102, &[1]), errno(1));
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    let with = |call: serde_json::Value| {
        refusal(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]}))
    };
    for (call, word) in [
        (
            serde_json::json!({"names": [], "action": "SCMP_ACT_ALLOW"}),
            "syscalls[0]",
        ),
        (
            serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}),
            "errnoRet",
        ),
        (
            serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000}),
            "70000",
        ),
        (
            serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}),
            "index 6",
        ),
        (
            serde_json::json!({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}),
            "listenerPath",
        ),
    ] {
        let text = with(call);
        assert!(text.contains(word), "{text}");
    }
    let text = refusal(serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
    assert!(text.contains("defaultAction"), "{text}");
    let text = refusal(serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s",
        "syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}));
    assert!(text.contains("`write`"), "{text}");
    let text =
        refusal(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}));
    assert!(text.contains("listenerMetadata"), "{text}");
}

#[test]
fn a_profile_of_all_calls_is_decided_after_a_few_comparisons() {
    // Every second call, so that no two of them make a range.
    let names: Vec<String> = syscalls_by_number().into_iter().step_by(2).collect();
    let filter = plan(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    }));
    let mut most = 0;
    for number in 0..500 {
        let (mut at, mut steps) = (0, 0);
        let data = [number, native().audit()];
        let mut accumulator = 0_u32;
        loop {
            let step = &filter.program()[at];
            (at, steps) = (at + 1, steps + 1);
            let jump = |taken| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                assemble::LOAD => accumulator = data[step.k as usize / 4],
                assemble::JUMP => at += step.k as usize,
                assemble::JUMP_EQUAL => at += jump(accumulator == step.k),
                assemble::JUMP_AT_LEAST => at += jump(accumulator >= step.k),
                assemble::RETURN => break,
                other => panic!("{other:#x}"),
            }
        }
        most = most.max(steps);
    }
    assert!(most <= 20, "{most} instructions");
    assert!(filter.program().len() < 2000, "{}", filter.program().len());
}

fn syscalls_by_number() -> Vec<String> {
    let mut calls: Vec<_> = syscalls::Sysno::iter().collect();
    calls.sort_by_key(syscalls::Sysno::id);
    calls.iter().map(|call| call.name().to_owned()).collect()
}

/// The meaning of a profile, told without a filter: name by name, rule by rule.
fn meaning(profile: &LinuxSeccomp, name: &str, wide: bool, arguments: &[u64; 6]) -> u32 {
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let calls = profile.syscalls().as_deref().unwrap_or_default();
    let mut conditional = Vec::new();
    for call in calls
        .iter()
        .filter(|call| call.names().iter().any(|n| n == name))
    {
        let action = call.action().as_u32(call.errno_ret());
        let arguments_of = call.args().as_deref().unwrap_or_default();
        if action == default {
            continue;
        }
        if arguments_of.is_empty() {
            return action;
        }
        let indexes: BTreeSet<usize> = arguments_of.iter().map(|a| a.index()).collect();
        let met = |a: &oci_spec::runtime::LinuxSeccompArg| {
            use oci_spec::runtime::LinuxSeccompOperator as Op;
            let cut = |n: u64| if wide { n } else { n & 0xffff_ffff };
            let (is, value) = (cut(arguments[a.index()]), cut(a.value()));
            match a.op() {
                Op::ScmpCmpNe => is != value,
                Op::ScmpCmpLt => is < value,
                Op::ScmpCmpLe => is <= value,
                Op::ScmpCmpEq => is == value,
                Op::ScmpCmpGe => is >= value,
                Op::ScmpCmpGt => is > value,
                Op::ScmpCmpMaskedEq => is & value == cut(a.value_two().unwrap_or(0)) & value,
            }
        };
        let all = if indexes.len() == arguments_of.len() {
            arguments_of.iter().all(met)
        } else {
            arguments_of.iter().any(met)
        };
        conditional.push((all, action));
    }
    let first = conditional.iter().find(|(met, _)| *met);
    first.map_or(default, |(_, action)| *action)
}

const NAMES: [&str; 12] = [
    "read", "openat", "close", "mmap", "clone", "execveat", "prctl", "ioctl", "ptrace", "bpf",
    "clone3", "openat2",
];

/// Numbers around which comparisons turn.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4_u64,
        Just(u64::MAX),
        Just(0xffff_ffff),
        Just(0x1_0000_0000),
        Just(0x1_0000_0001),
        any::<u64>(),
    ]
}

fn rule() -> impl Strategy<Value = serde_json::Value> {
    let operator = prop::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]);
    let argument =
        (0..6_u8, value(), value(), operator).prop_map(|(index, value, two, operator)| {
            serde_json::json!({"index": index, "value": value, "valueTwo": two,
            "op": format!("SCMP_CMP_{operator}")})
        });
    let action = prop::sample::select(vec![
        "ALLOW",
        "ERRNO",
        "KILL",
        "TRAP",
        "LOG",
        "KILL_PROCESS",
    ]);
    let names = prop::sample::subsequence(NAMES.to_vec(), 1..4);
    (names, action, prop::collection::vec(argument, 0..4)).prop_map(|(names, action, args)| {
        serde_json::json!({"names": names, "action": format!("SCMP_ACT_{action}"), "args": args})
    })
}

proptest! {
    #[test]
    fn the_program_answers_what_the_profile_means(
        rules in prop::collection::vec(rule(), 0..40),
        default in prop::sample::select(vec!["ALLOW", "LOG"]),
        arguments in prop::collection::vec([value(), value(), value(), value(), value(), value()], 8),
    ) {
        let profile = profile(serde_json::json!({
            "defaultAction": format!("SCMP_ACT_{default}"),
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32",
                "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            "syscalls": rules,
        }));
        let plan = Plan::of(&profile).unwrap();
        for door in native().doors() {
            let table = Table::of(*door);
            for name in NAMES {
                let Some(number) = table.number(name) else { continue };
                for arguments in &arguments {
                    let expected = meaning(&profile, name, door.is_wide(), arguments);
                    prop_assert_eq!(ask(&plan, *door, number, arguments), expected, "{} {:?}", name, door);
                }
            }
        }
    }
}
