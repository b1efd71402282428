//! What is said while a host joins. Pure: bytes to values and back.
//!
//! A message is one byte of kind (never 0), four bytes of length (little endian, at most [`LONGEST_BODY`]) and a
//! body; a text is two bytes of length and UTF-8. A body with anything left over is refused, so that every value
//! has exactly one form.
//!
//! ```text
//! 1 Ask        secret[32] name address     B → A
//! 2 Welcome    name address                A → B
//! 3 Refused    code[1]                     A → B
//! 4 Kept                                   B → A   A is pinned there
//! 5 Withdrawn                              B → A   it is not: forget B again
//! ```

use crate::model::Name;

use super::address::Address;
use super::token::Secret;

/// The first byte on a stream between pinned hosts, sent by the one that listens: you are known here.
pub(super) const WELCOME: u8 = 1;

/// The length of what precedes every body.
pub(super) const HEADER: usize = 5;
/// No body is longer; nothing is allocated for one that claims to be.
const LONGEST_BODY: usize = 512;

/// One message of the joining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// Let me in: this is my secret, my name and where I listen.
    Ask {
        secret: Secret,
        name: Name,
        address: Address,
    },
    /// You are pinned here: this is my name and where I listen.
    Welcome { name: Name, address: Address },
    /// You are not let in.
    Refused(Refusal),
    /// I have pinned you too.
    Kept,
    /// I cannot pin you: forget me.
    Withdrawn,
}

/// Why a host was not let in. The text is what a person sees at the host that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such token.
    #[error("this token is not known there; ask for a new one with `godwit peer token`")]
    UnknownToken,
    /// Too late.
    #[error("this token has expired; ask for a new one with `godwit peer token`")]
    ExpiredToken,
    /// Too late in another way.
    #[error("this token was already used; ask for a new one with `godwit peer token`")]
    UsedToken,
    /// The two hosts could not tell each other apart.
    #[error("both hosts have the same name; give one of them another name, the token stays good")]
    SameName,
    /// Another host with that name is pinned.
    #[error(
        "another peer there has the name of this host; give this host another name or remove that peer there with \
         `godwit peer remove`, the token stays good"
    )]
    NameTaken,
    /// The book is full.
    #[error("that host has as many peers as it can; remove one there with `godwit peer remove`")]
    Full,
    /// The book could not be written.
    #[error("that host could not record its new peer; its log says why")]
    Failed,
    /// Said by a newer version.
    #[error("the reason has code {0}, which this version does not know")]
    Unrecognised(u8),
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Self::UnknownToken => 1,
            Self::ExpiredToken => 2,
            Self::UsedToken => 3,
            Self::SameName => 4,
            Self::NameTaken => 5,
            Self::Full => 6,
            Self::Failed => 7,
            Self::Unrecognised(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::UnknownToken,
            2 => Self::ExpiredToken,
            3 => Self::UsedToken,
            4 => Self::SameName,
            5 => Self::NameTaken,
            6 => Self::Full,
            7 => Self::Failed,
            code => Self::Unrecognised(code),
        }
    }
}

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// An unknown kind of message.
    #[error("a message of kind {kind} is not part of joining")]
    Kind {
        /// The kind.
        kind: u8,
    },
    /// A body beyond all bounds.
    #[error("a message of {length} bytes is too long: at most {LONGEST_BODY} are allowed")]
    Length {
        /// The length it claims.
        length: u32,
    },
    /// A body that ends too early, or too late.
    #[error("the body of a message of kind {kind} has the wrong length")]
    Body {
        /// The kind.
        kind: u8,
    },
    /// A field with a value that it cannot have.
    #[error("the field {field} of a message of kind {kind} is malformed")]
    Field {
        /// The kind.
        kind: u8,
        /// The field.
        field: &'static str,
    },
}

/// What a header says: the kind, and how long a body follows.
pub(super) fn decode_header(header: [u8; HEADER]) -> Result<(u8, usize), WireError> {
    let [kind, a, b, c, d] = header;
    if !(1..=5).contains(&kind) {
        return Err(WireError::Kind { kind });
    }
    let length = u32::from_le_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(size) if size <= LONGEST_BODY => Ok((kind, size)),
        _ => Err(WireError::Length { length }),
    }
}

impl Message {
    /// The message with its header.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Ask {
                secret,
                name,
                address,
            } => {
                body.extend_from_slice(&secret.0);
                put_text(&mut body, name.as_str());
                put_text(&mut body, address.as_str());
                1
            }
            Self::Welcome { name, address } => {
                put_text(&mut body, name.as_str());
                put_text(&mut body, address.as_str());
                2
            }
            Self::Refused(refusal) => {
                body.push(refusal.code());
                3
            }
            Self::Kept => 4,
            Self::Withdrawn => 5,
        };
        let length = u32::try_from(body.len()).expect("names and addresses are short");
        let mut out = vec![kind];
        out.extend_from_slice(&length.to_le_bytes());
        out.append(&mut body);
        out
    }

    /// The message of this kind with this body.
    pub(super) fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let mut rest = Rest { kind, bytes: body };
        let message = match kind {
            1 => Self::Ask {
                secret: Secret(rest.array()?),
                name: rest.text("name")?,
                address: rest.text("address")?,
            },
            2 => Self::Welcome {
                name: rest.text("name")?,
                address: rest.text("address")?,
            },
            3 => match rest.array()? {
                [0] => {
                    return Err(WireError::Field {
                        kind,
                        field: "code",
                    });
                }
                [code] => Self::Refused(Refusal::from_code(code)),
            },
            4 => Self::Kept,
            5 => Self::Withdrawn,
            kind => return Err(WireError::Kind { kind }),
        };
        if rest.bytes.is_empty() {
            Ok(message)
        } else {
            Err(WireError::Body { kind })
        }
    }
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("names and addresses are short");
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(text.as_bytes());
}

/// What is still unread of a body.
struct Rest<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or(WireError::Body { kind: self.kind })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let kind = self.kind;
        self.take(N)?
            .try_into()
            .map_err(|_| WireError::Body { kind })
    }

    /// A text that parses. The one accepted form of an address is the one it prints as.
    fn text<T: std::str::FromStr + ToString>(
        &mut self,
        field: &'static str,
    ) -> Result<T, WireError> {
        let kind = self.kind;
        let length = u16::from_le_bytes(self.array()?);
        let bytes = self.take(usize::from(length))?;
        let text = std::str::from_utf8(bytes).ok();
        text.and_then(|text| text.parse::<T>().ok().filter(|v| v.to_string() == text))
            .ok_or(WireError::Field { kind, field })
    }
}

#[cfg(test)]
mod test {
    use std::time::{Duration, Instant};

    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, RngCore, SeedableRng};

    fn decode_all(bytes: &[u8]) -> Result<Message, WireError> {
        let (header, body) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or(WireError::Body { kind: 0 })?;
        let (kind, size) = decode_header(*header)?;
        if body.len() == size {
            Message::decode(kind, body)
        } else {
            Err(WireError::Body { kind })
        }
    }

    fn samples() -> Vec<Message> {
        let name: Name = "alpha".parse().unwrap();
        let address: Address = "[fd00::1]:7447".parse().unwrap();
        let longest: Address = format!(
            "{}:65535",
            ["x".repeat(63).as_str(); 4].join(".")[2..].to_owned()
        )
        .parse()
        .unwrap();
        assert_eq!(longest.as_str().len(), 253 + 6);
        vec![
            Message::Ask {
                secret: Secret([7; 32]),
                name: name.clone(),
                address: address.clone(),
            },
            Message::Ask {
                secret: Secret([0; 32]),
                name: "n".repeat(63).parse().unwrap(),
                address: longest,
            },
            Message::Welcome { name, address },
            Message::Refused(Refusal::UsedToken),
            Message::Refused(Refusal::Unrecognised(200)),
            Message::Kept,
            Message::Withdrawn,
        ]
    }

    #[test]
    fn every_message_survives_the_wire_and_no_part_of_it_does() {
        for message in samples() {
            let bytes = message.encode();
            assert_eq!(decode_all(&bytes).unwrap(), message);
            for cut in 0..bytes.len() {
                assert!(
                    decode_all(&bytes[..cut]).is_err(),
                    "{message:?} cut at {cut}"
                );
            }
            let mut longer = bytes.clone();
            longer.push(0);
            longer[1] = longer[1].wrapping_add(1);
            assert!(decode_all(&longer).is_err(), "{message:?} with a byte more");
        }
        for code in 1..=255 {
            assert_eq!(Refusal::from_code(code).code(), code);
        }
        assert!(Message::decode(3, &[0]).is_err());
    }

    #[test]
    fn a_length_is_bounded_before_anything_is_read() {
        assert_eq!(decode_header([1, 0, 2, 0, 0]), Ok((1, 512)));
        assert_eq!(
            decode_header([1, 1, 2, 0, 0]),
            Err(WireError::Length { length: 513 })
        );
        assert!(decode_header([1, 255, 255, 255, 255]).is_err());
        assert!(decode_header([0; 5]).is_err() && decode_header([6, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn hostile_bytes_are_refused_or_have_exactly_one_meaning() {
        let mut rng = StdRng::seed_from_u64(0x90d_817);
        let samples: Vec<Vec<u8>> = samples().iter().map(Message::encode).collect();
        let seconds = std::env::var("GODWIT_FUZZ_SECONDS").ok();
        let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(0);
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut understood = 0;
        for round in 0.. {
            if round >= 200_000 && Instant::now() >= until {
                break;
            }
            let mut bytes = if round % 4 == 0 {
                let mut bytes = vec![0; rng.random_range(0..64)];
                rng.fill_bytes(&mut bytes);
                bytes
            } else {
                samples[rng.random_range(0..samples.len())].clone()
            };
            for _ in 0..rng.random_range(0..4) {
                match (rng.random_range(0..3), bytes.len()) {
                    (0, length) if length > 0 => {
                        bytes[rng.random_range(0..length)] ^= 1 << rng.random_range(0..8)
                    }
                    (1, length) => bytes.truncate(rng.random_range(0..=length)),
                    _ => bytes.push(rng.random()),
                }
            }
            if let Ok(message) = decode_all(&bytes) {
                understood += 1;
                assert_eq!(message.encode(), bytes);
            }
        }
        assert!(
            understood > 10_000,
            "the fuzzing reached nothing: {understood}"
        );
    }
}
