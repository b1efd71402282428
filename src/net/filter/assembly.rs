//! BPF instructions (RFC 9669), as few of them as the port's filter needs, and jumps by name.

use super::NetError;

/// A register. `R0` has results, `R1` to `R5` are arguments and lost in a call, `R6` to `R9` stay, `FP` is the end of
/// the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    Fp,
}

/// How much is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Byte,
    Half,
    Word,
    Double,
}

/// When a jump is made; the lower 32 bits of the register count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum If {
    Equal(u32),
    Not(u32),
    Below(u32),
    Above(u32),
    AnyOf(u32),
}

/// A place in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_NUMBER: u8 = 0x62;
const JUMP32: u8 = 0x06;

/// A program on its way.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    code: Vec<u64>,
    jumps: Vec<(usize, Label)>,
    places: Vec<Option<usize>>,
}

impl Assembly {
    /// A name for a place that is told later, by [`Assembly::here`].
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label means the next instruction.
    pub fn here(&mut self, label: Label) {
        self.places[label.0] = Some(self.code.len());
    }

    /// `to = from`
    pub fn copy(&mut self, to: Register, from: Register) {
        self.push(0xbf, to as u8, from as u8, 0, 0);
    }

    /// `to = number`
    pub fn set(&mut self, to: Register, number: i32) {
        self.push(0xb7, to as u8, 0, 0, number.cast_unsigned());
    }

    /// `to = address on the stack`
    pub fn stack(&mut self, to: Register, offset: i16) {
        self.copy(to, Register::Fp);
        self.add(to, i32::from(offset));
    }

    /// `to += number`
    pub fn add(&mut self, to: Register, number: i32) {
        self.push(0x07, to as u8, 0, 0, number.cast_unsigned());
    }

    /// `to &= bits`, and the upper half is gone.
    pub fn and(&mut self, to: Register, bits: u32) {
        self.push(0x54, to as u8, 0, 0, bits);
    }

    /// `to <<= bits`
    pub fn shift_left(&mut self, to: Register, bits: u32) {
        self.push(0x67, to as u8, 0, 0, bits);
    }

    /// `to = *(from + offset)`
    pub fn load(&mut self, to: Register, width: Width, from: Register, offset: i16) {
        self.push(LOAD | width.code(), to as u8, from as u8, offset, 0);
    }

    /// `*(stack + offset) = from`
    pub fn store(&mut self, width: Width, offset: i16, from: Register) {
        let code = STORE | width.code();
        self.push(code, Register::Fp as u8, from as u8, offset, 0);
    }

    /// `*(stack + offset) = number`
    pub fn store_number(&mut self, width: Width, offset: i16, number: u32) {
        let code = STORE_NUMBER | width.code();
        self.push(code, Register::Fp as u8, 0, offset, number);
    }

    /// Calls one of the kernel's helpers.
    pub fn call(&mut self, helper: u32) {
        self.push(0x85, 0, 0, 0, helper);
    }

    /// Goes on elsewhere.
    pub fn go(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x05, 0, 0, 0, 0);
    }

    /// Goes on elsewhere if the pointer is null.
    pub fn go_if_null(&mut self, register: Register, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x15, register as u8, 0, 0, 0);
    }

    /// Goes on elsewhere if.
    pub fn go_if(&mut self, register: Register, when: If, to: Label) {
        let (operation, number) = match when {
            If::Equal(number) => (0x10, number),
            If::Above(number) => (0x20, number),
            If::AnyOf(bits) => (0x40, bits),
            If::Not(number) => (0x50, number),
            If::Below(number) => (0xa0, number),
        };
        self.jumps.push((self.code.len(), to));
        self.push(JUMP32 | operation, register as u8, 0, 0, number);
    }

    /// Ends with this result.
    pub fn end(&mut self, result: i32) {
        self.set(Register::R0, result);
        self.push(0x95, 0, 0, 0, 0);
    }

    /// The program. A jump to nowhere, or too far, is a mistake of whoever wrote it.
    pub fn finish(mut self) -> Result<Vec<u64>, NetError> {
        for (from, label) in &self.jumps {
            let to = self.places[label.0].ok_or(NetError::FilterJump { from: *from })?;
            let distance = i16::try_from(to)
                .ok()
                .zip(i16::try_from(*from + 1).ok())
                .map(|(to, after)| to - after)
                .ok_or(NetError::FilterJump { from: *from })?;
            self.code[*from] |= u64::from(distance.cast_unsigned()) << 16;
        }
        Ok(self.code)
    }

    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, number: u32) {
        self.code.push(
            u64::from(code)
                | u64::from(to) << 8
                | u64::from(from) << 12
                | u64::from(offset.cast_unsigned()) << 16
                | u64::from(number) << 32,
        );
    }
}

impl Width {
    const fn code(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}
