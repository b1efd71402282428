//! The kernel's own description of its types (BTF, `/sys/kernel/btf/vmlinux`), read as far as a program of the kernel
//! needs it: where a member of a structure is, and the number of a function.
//!
//! ```text
//! header: magic u16 │ version u8 │ flags u8 │ length u32 │ types at, length u32 u32 │ names at, length u32 u32
//! type:   name u32 │ vlen u16, kind u8 (its low 5 bits; the highest says how members tell offsets) │ size or type u32 │ …
//! ```
//!
//! The reader is total: bytes that are none of this are an error, and every step is within bounds.

/// `BTF_KIND_*` of linux/btf.h.
const INT: u32 = 1;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC: u32 = 12;
const TYPE_TAG: u32 = 18;

const MAGIC: u16 = 0xeb9f;
/// The part of a type that every kind has.
const COMMON: usize = 12;
/// One member of a structure or union.
const MEMBER: usize = 12;
/// How deep members without a name, and names of types, may be nested.
const DEPTH: u32 = 16;

/// Why something is not to be found in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// It is no BTF, or damaged.
    #[error("it is no description of types at byte {at}")]
    Damaged {
        /// Where that shows.
        at: usize,
    },
    /// It has a kind of type that is newer than this reader.
    #[error("it has types of the kind {kind}, which are not known")]
    NewKind {
        /// Which.
        kind: u32,
    },
    /// This kernel has no such thing.
    #[error("it has no {what}")]
    Missing {
        /// What was looked for.
        what: String,
    },
    /// A member is not what it was.
    #[error("its {what} is no number of 64 bits")]
    NoWord {
        /// Which member.
        what: String,
    },
}

/// A description of types.
pub struct Btf<'a> {
    types: &'a [u8],
    names: &'a [u8],
    /// Where each type begins; the first is number 1.
    at: Vec<usize>,
}

impl<'a> Btf<'a> {
    /// Reads where its types are.
    ///
    /// # Errors
    /// When the bytes are no BTF, or have types that are not known.
    pub fn new(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let damaged = |at| BtfError::Damaged { at };
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(damaged(0));
        }
        let word = |at: usize| word(bytes, at).map(|word| word as usize);
        let header = word(4).ok_or(damaged(4))?;
        let part = |at: usize| {
            let start = header.checked_add(word(at)?)?;
            bytes.get(start..start.checked_add(word(at + 4)?)?)
        };
        let types = part(8).ok_or(damaged(8))?;
        let names = part(16).ok_or(damaged(16))?;
        let mut at = Vec::new();
        let mut next = 0;
        while next < types.len() {
            at.push(next);
            next += size(types, next)?;
        }
        if next > types.len() {
            return Err(damaged(types.len()));
        }
        Ok(Self { types, names, at })
    }

    /// The number of the function `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn function(&self, name: &str) -> Result<u32, BtfError> {
        let found = self.numbers(FUNC, name).next();
        found.ok_or_else(|| BtfError::Missing {
            what: format!("function {name}"),
        })
    }

    /// Where, in bytes, the 64-bit number `member` is in the structure `name`. It may be in a part that has no name.
    ///
    /// # Errors
    /// When there is none, or it is something else.
    pub fn word(&self, name: &str, member: &str) -> Result<i16, BtfError> {
        let what = || format!("{member} of struct {name}");
        let mut structures = self.numbers(STRUCT, name);
        let found = structures.find_map(|number| self.member(number, member, DEPTH));
        let (bits, kind) = found.ok_or_else(|| BtfError::Missing { what: what() })?;
        let fits = bits % 64 == 0 && self.is_word(kind, DEPTH);
        let offset = i16::try_from(bits / 8).ok().filter(|_| fits);
        offset.ok_or_else(|| BtfError::NoWord { what: what() })
    }

    fn numbers(&self, kind: u32, name: &str) -> impl Iterator<Item = u32> {
        let wanted = move |number: &u32| {
            let found = self.kind(*number);
            found == Some(kind) && self.name(*number) == Some(name.as_bytes())
        };
        (1..=u32::try_from(self.at.len()).unwrap_or(u32::MAX)).filter(wanted)
    }

    /// The bits before a member, and the number of its type.
    fn member(&self, number: u32, name: &str, depth: u32) -> Option<(u64, u32)> {
        let depth = depth.checked_sub(1)?;
        let at = self.begin(number)?;
        let info = word(self.types, at + 4)?;
        (0..info as usize & 0xffff).find_map(|index| {
            let member = at + COMMON + index * MEMBER;
            let field = |which: usize| word(self.types, member + 4 * which);
            let (kind, offset) = (field(1)?, field(2)?);
            // With the highest bit set, the upper byte is the size of a bit field.
            let bit_field = info >> 31 == 1 && offset >> 24 != 0;
            if self.text(field(0)?)? == name.as_bytes() {
                return (!bit_field).then_some((offset.into(), kind));
            }
            let nested =
                self.text(field(0)?)?.is_empty() && matches!(self.kind(kind), Some(STRUCT | UNION));
            let (inner, found) = nested.then(|| self.member(kind, name, depth)).flatten()?;
            Some((u64::from(offset) + inner, found))
        })
    }

    /// Whether a type is an integer of 64 bits, under whatever names.
    fn is_word(&self, number: u32, depth: u32) -> bool {
        let size_or_type = || word(self.types, self.begin(number)? + 8);
        match (self.kind(number), depth.checked_sub(1)) {
            (Some(INT), _) => size_or_type() == Some(8),
            (Some(TYPEDEF | VOLATILE | CONST | TYPE_TAG), Some(depth)) => {
                size_or_type().is_some_and(|next| self.is_word(next, depth))
            }
            _ => false,
        }
    }

    fn begin(&self, number: u32) -> Option<usize> {
        self.at.get((number as usize).checked_sub(1)?).copied()
    }

    fn kind(&self, number: u32) -> Option<u32> {
        Some(word(self.types, self.begin(number)? + 4)? >> 24 & 0x1f)
    }

    fn name(&self, number: u32) -> Option<&'a [u8]> {
        self.text(word(self.types, self.begin(number)?)?)
    }

    fn text(&self, at: u32) -> Option<&'a [u8]> {
        let rest = self.names.get(at as usize..)?;
        rest.split(|&byte| byte == 0).next()
    }
}

/// The bytes of the type that begins at `at`.
fn size(types: &[u8], at: usize) -> Result<usize, BtfError> {
    let info = word(types, at + 4).ok_or(BtfError::Damaged { at })?;
    let members = info as usize & 0xffff;
    let rest = match info >> 24 & 0x1f {
        // Pointers, forwards, the names of types, functions.
        2 | 7 | TYPEDEF..=FUNC | 16 | TYPE_TAG => 0,
        // Integers, variables, tags of declarations.
        INT | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        STRUCT | UNION => MEMBER * members,
        // Enumerations, the parameters of functions.
        6 | 13 => 8 * members,
        // The variables of a section, enumerations of 64 bits.
        15 | 19 => 12 * members,
        kind => return Err(BtfError::NewKind { kind }),
    };
    Ok(COMMON + rest)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod test {
    use super::*;

    /// Types by hand: names, and words of the types.
    fn made(names: &[u8], words: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let types = 4 * words.len() as u32;
        for word in [24, 0, types, types, names.len() as u32]
            .iter()
            .chain(words)
        {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(names);
        bytes
    }

    /// `typedef u64 flags_t; struct s { u64 a; union { const flags_t b; }; u32 c; int d : 3; }; void f();`
    fn sample() -> Vec<u8> {
        let names = b"\0u64\0flags_t\0s\0a\0b\0c\0d\0f\0u32\0";
        let kind = |kind: u32, members: u32| kind << 24 | members;
        let words = [
            [1, kind(INT, 0), 8].as_slice(),
            &[64],
            &[5, kind(TYPEDEF, 0), 1],
            &[0, kind(CONST, 0), 2],
            &[0, kind(UNION, 1), 8],
            &[17, 3, 0],
            &[13, kind(STRUCT, 4) | 1 << 31, 24],
            &[15, 1, 0],
            &[0, 4, 64],
            &[19, 6, 128],
            &[21, 6, 3 << 24 | 160],
            &[25, kind(INT, 0), 4],
            &[32],
            &[23, kind(FUNC, 0), 0],
        ]
        .concat();
        made(names, &words)
    }

    #[test]
    fn members_are_found_where_they_are_and_only_words_are_given() {
        let bytes = sample();
        let btf = Btf::new(&bytes).unwrap();
        assert_eq!(btf.word("s", "a"), Ok(0));
        assert_eq!(btf.word("s", "b"), Ok(8));
        assert_eq!(btf.function("f"), Ok(7));
        assert!(matches!(btf.word("s", "c"), Err(BtfError::NoWord { .. })));
        assert!(matches!(btf.word("s", "d"), Err(BtfError::Missing { .. })));
        assert!(matches!(btf.word("t", "a"), Err(BtfError::Missing { .. })));
        assert!(matches!(btf.function("s"), Err(BtfError::Missing { .. })));
    }

    #[test]
    fn whatever_the_bytes_are_there_is_an_answer() {
        let good = sample();
        let ask = |bytes: &[u8]| {
            if let Ok(btf) = Btf::new(bytes) {
                let _ = (btf.word("s", "b"), btf.word("s", "d"), btf.function("f"));
            }
        };
        for length in 0..good.len() {
            ask(&good[..length]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                ask(&bad);
            }
        }
        assert_eq!(Btf::new(b"no").err(), Some(BtfError::Damaged { at: 0 }));
        let new = made(b"\0", &[0, 30 << 24, 0]);
        assert_eq!(Btf::new(&new).err(), Some(BtfError::NewKind { kind: 30 }));
    }

    #[test]
    fn this_kernel_describes_its_mappings_or_nothing() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIP: this kernel describes no types");
            return;
        };
        let btf = Btf::new(&bytes).unwrap();
        let [start, end] = ["vm_start", "vm_end"].map(|m| btf.word("vm_area_struct", m).unwrap());
        assert_ne!(start, end);
        assert!(btf.function("bpf_iter_task_vma").unwrap() > 0);
    }
}
