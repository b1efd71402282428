//! Rules of several architectures become one program. Pure.
//!
//! ```text
//! which door? ─┬─ none of ours ──▶ kill the thread
//!              └─▶ the number ──▶ a binary search over ranges of numbers with the same answer
//!                                   ├─▶ an answer
//!                                   └─▶ the rules of one call, first to last ──▶ the answer of the first that is met
//! ```
//!
//! A profile of 400 calls has a hundred ranges, so that a call is decided after seven comparisons. Calls whose answer
//! is "allow" whatever their arguments cost nothing: the kernel finds them out when the filter is loaded, and does
//! not run it for them.

use std::collections::BTreeMap;

use super::assemble::{Assembler, Instruction, Label, Test};
use super::table::{Architecture, X32_BIT};

/// Where `struct seccomp_data` has the number of the call, the architecture, and the arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `SECCOMP_RET_KILL_THREAD`: the answer to a call by a door that the profile does not name.
pub const WRONG_DOOR: u32 = 0;

/// How an argument is compared, without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Not equal.
    Not,
    /// Less.
    Less,
    /// Less, or equal.
    AtMost,
    /// Equal, after masking with this.
    Equal {
        /// The bits that count.
        mask: u64,
    },
    /// Greater, or equal.
    AtLeast,
    /// Greater.
    Greater,
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// How it is compared.
    pub is: Comparison,
    /// With what.
    pub value: u64,
    /// Whether the argument has 64 bits; of others the lower 32 count.
    pub wide: bool,
}

/// An answer for calls whose arguments meet all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub when: Vec<Condition>,
    /// The answer, as the kernel takes it.
    pub answer: u32,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This, whatever its arguments.
    Always(u32),
    /// The answer of the first rule that is met, else the default.
    First(Vec<Rule>),
}

/// The decisions about the calls of one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Of which.
    pub architecture: Architecture,
    /// By number; every other call gets the default answer.
    pub calls: BTreeMap<u32, Decision>,
    /// The answer for numbers above this one, where that is not the default.
    pub above: Option<(u32, u32)>,
}

/// The program for these sections, one for each architecture.
pub fn program(sections: &[Section], default: u32) -> Vec<Instruction> {
    let find = |architecture| sections.iter().find(|s| s.architecture == architecture);
    let mut code = Assembler::default();
    let mut next = code.answer(WRONG_DOOR);
    for section in sections.iter().rev() {
        let body = match section.architecture {
            // Behind the same door as X86_64, and handled there.
            Architecture::X32 => continue,
            Architecture::X86_64 => {
                both_modes(&mut code, section, find(Architecture::X32), default)
            }
            _ => tree(&mut code, section, 0, default),
        };
        let body = code.load(NUMBER, body);
        next = code.test(Test::Equal, section.architecture.audit(), body, next);
    }
    code.load(ARCHITECTURE, next);
    code.finish()
}

/// The door of 64-bit x86, where a bit of the number tells X32 apart.
fn both_modes(
    code: &mut Assembler,
    section: &Section,
    x32: Option<&Section>,
    default: u32,
) -> Label {
    let upper = if let Some(x32) = x32 {
        tree(code, x32, X32_BIT, default)
    } else {
        // A tracer that takes a call away sets its number to -1, which is nobody's.
        let (none, wrong) = (code.answer(default), code.answer(WRONG_DOOR));
        code.test(Test::Equal, u32::MAX, none, wrong)
    };
    let lower = tree(code, section, 0, default);
    code.test(Test::AtLeast, X32_BIT, upper, lower)
}

/// The search among the numbers from `lowest` on.
fn tree(code: &mut Assembler, section: &Section, lowest: u32, default: u32) -> Label {
    search(code, &ranges(section, lowest, default), default)
}

/// The numbers from `lowest` on as ranges with the same decision: where each begins.
fn ranges(section: &Section, lowest: u32, default: u32) -> Vec<(u32, Decision)> {
    let otherwise = Decision::Always(default);
    let mut ranges = Vec::with_capacity(2 * section.calls.len() + 2);
    let mut next = lowest;
    for (number, decision) in section.calls.range(lowest..) {
        if *number > next {
            ranges.push((next, otherwise.clone()));
        }
        ranges.push((*number, decision.clone()));
        next = number.saturating_add(1);
    }
    match section.above {
        Some((last, answer)) if last < next => ranges.push((next, Decision::Always(answer))),
        Some((last, answer)) => {
            ranges.push((next, otherwise));
            ranges.push((last.saturating_add(1), Decision::Always(answer)));
        }
        None => ranges.push((next, otherwise)),
    }
    ranges.dedup_by(|(_, decision), (_, before)| decision == before);
    ranges
}

fn search(code: &mut Assembler, ranges: &[(u32, Decision)], default: u32) -> Label {
    match ranges {
        [] => code.answer(default),
        [(_, decision)] => decide(code, decision, default),
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let begin = right[0].0;
            let right = search(code, right, default);
            let left = search(code, left, default);
            code.test(Test::AtLeast, begin, right, left)
        }
    }
}

fn decide(code: &mut Assembler, decision: &Decision, default: u32) -> Label {
    match decision {
        Decision::Always(answer) => code.answer(*answer),
        Decision::First(rules) => {
            let otherwise = code.answer(default);
            rules.iter().rev().fold(otherwise, |next, rule| {
                let met = code.answer(rule.answer);
                let when = rule.when.iter().rev();
                when.fold(met, |met, condition| compare(code, *condition, met, next))
            })
        }
    }
}

/// Compares an argument: the upper half first, where there is one, for a filter knows words of 32 bits only.
fn compare(code: &mut Assembler, condition: Condition, yes: Label, no: Label) -> Label {
    match condition.is {
        Comparison::Not => equal(code, condition, u64::MAX, no, yes),
        Comparison::Equal { mask } => equal(code, condition, mask, yes, no),
        Comparison::Greater => ordered(code, condition, Test::Greater, yes, no),
        Comparison::AtLeast => ordered(code, condition, Test::AtLeast, yes, no),
        Comparison::AtMost => ordered(code, condition, Test::Greater, no, yes),
        Comparison::Less => ordered(code, condition, Test::AtLeast, no, yes),
    }
}

/// The halves of a number.
fn halves(number: u64) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation)]
    ((number >> 32) as u32, number as u32)
}

/// Where the halves of an argument are; every architecture we know has the lower one first.
fn places(argument: u8) -> (u32, u32) {
    let low = ARGUMENTS + 8 * u32::from(argument);
    (low + 4, low)
}

fn equal(code: &mut Assembler, condition: Condition, mask: u64, yes: Label, no: Label) -> Label {
    let ((high, low), (high_mask, low_mask)) = (halves(condition.value & mask), halves(mask));
    let (high_place, low_place) = places(condition.argument);
    let mut part = |place, value, mask, yes| match mask {
        0 => yes,
        u32::MAX => {
            let test = code.test(Test::Equal, value, yes, no);
            code.load(place, test)
        }
        _ => {
            let test = code.test(Test::Equal, value, yes, no);
            let masked = code.mask(mask, test);
            code.load(place, masked)
        }
    };
    let lower = part(low_place, low, low_mask, yes);
    if condition.wide {
        part(high_place, high, high_mask, lower)
    } else {
        lower
    }
}

fn ordered(code: &mut Assembler, condition: Condition, test: Test, yes: Label, no: Label) -> Label {
    let (high, low) = halves(condition.value);
    let (high_place, low_place) = places(condition.argument);
    let lower = code.test(test, low, yes, no);
    let lower = code.load(low_place, lower);
    if !condition.wide {
        return lower;
    }
    let same = code.test(Test::Equal, high, lower, no);
    let upper = code.test(Test::Greater, high, yes, same);
    code.load(high_place, upper)
}
