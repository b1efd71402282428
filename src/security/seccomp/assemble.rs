//! An assembler for classic BPF that works from the end to the beginning.
//!
//! All jumps of a filter go forward, so that the target of every jump is known when the jump is written: there is
//! nothing to patch. A conditional jump reaches 255 instructions; what is farther away is reached by an unconditional
//! one that is put in its way.

use std::collections::HashMap;

/// One instruction, as `struct sock_filter` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions are skipped when its test is met …
    pub jt: u8,
    /// … and when not.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

/// A test of the accumulator against a constant, without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// Equal.
    Equal,
    /// Greater.
    Greater,
    /// Greater, or equal.
    AtLeast,
}

/// An instruction that is written already, as the distance from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Loads a word of `struct seccomp_data`.
pub const LOAD: u16 = 0x20;
/// Masks the accumulator.
pub const AND: u16 = 0x54;
/// Jumps.
pub const JUMP: u16 = 0x05;
/// Jumps if equal.
pub const JUMP_EQUAL: u16 = 0x15;
/// Jumps if greater.
pub const JUMP_GREATER: u16 = 0x25;
/// Jumps if greater or equal.
pub const JUMP_AT_LEAST: u16 = 0x35;
/// Ends with an answer.
pub const RETURN: u16 = 0x06;

/// As far as a conditional jump may reach, with room for one instruction in between.
const REACH: usize = 254;

/// A program in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    reversed: Vec<Instruction>,
    returns: HashMap<u32, Label>,
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32, jt: usize, jf: usize) -> Label {
        // Both are within reach: the caller has seen to it.
        let near = |distance: usize| u8::try_from(distance).unwrap_or(u8::MAX);
        self.reversed.push(Instruction {
            code,
            jt: near(jt),
            jf: near(jf),
            k,
        });
        Label(self.reversed.len())
    }

    /// How many instructions lie between the next one written and `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0
    }

    /// Ends with this answer. One that is near is used again.
    pub fn answer(&mut self, answer: u32) -> Label {
        if let Some(label) = self.returns.get(&answer)
            && self.distance(*label) < REACH / 2
        {
            return *label;
        }
        let label = self.push(RETURN, answer, 0, 0);
        self.returns.insert(answer, label);
        label
    }

    /// A jump to `label`, if it is too far away for a conditional one.
    fn near(&mut self, label: Label) -> Label {
        if self.distance(label) < REACH {
            label
        } else {
            self.jump(label)
        }
    }

    fn jump(&mut self, to: Label) -> Label {
        let distance = u32::try_from(self.distance(to)).unwrap_or(u32::MAX);
        self.push(JUMP, distance, 0, 0)
    }

    /// Goes on at `yes` or at `no`.
    pub fn test(&mut self, test: Test, value: u32, yes: Label, no: Label) -> Label {
        let (yes, no) = (self.near(yes), self.near(no));
        let code = match test {
            Test::Equal => JUMP_EQUAL,
            Test::Greater => JUMP_GREATER,
            Test::AtLeast => JUMP_AT_LEAST,
        };
        self.push(code, value, self.distance(yes), self.distance(no))
    }

    /// Masks the accumulator, and goes on at `then`.
    pub fn mask(&mut self, mask: u32, then: Label) -> Label {
        self.follow(then);
        self.push(AND, mask, 0, 0)
    }

    /// Loads the word at `offset` of `struct seccomp_data`, and goes on at `then`.
    pub fn load(&mut self, offset: u32, then: Label) -> Label {
        self.follow(then);
        self.push(LOAD, offset, 0, 0)
    }

    /// Sees to it that whoever comes by here goes on at `label`.
    fn follow(&mut self, label: Label) {
        if self.distance(label) > 0 {
            self.jump(label);
        }
    }

    /// The program, which begins with the instruction written last.
    pub fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}
