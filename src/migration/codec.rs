//! Frames between two hosts: a header of 8 bytes, then a payload.
//!
//! ```text
//! 0      1          4            8
//! ┌──────┬──────────┬────────────┬───────────────┐
//! │ kind │ zero × 3 │ length, LE │ payload       │
//! └──────┴──────────┴────────────┴───────────────┘
//! ```
//!
//! Integrity and order are TLS's; what this layer promises is that a decoder is total and that nothing is
//! allocated for a length beyond [`MAX_PAYLOAD`].

/// Length of a frame's header, in bytes.
pub const HEADER: usize = 8;

/// Longest payload of any frame, in bytes: a record or page frame of 1 MiB and its own small header.
pub const MAX_PAYLOAD: usize = (1 << 20) + (64 << 10);

/// Longest payload of a control message, in bytes.
pub const MAX_CONTROL: usize = 256 << 10;

/// Length of a frame's number, in bytes.
pub const NUMBER: usize = 8;

/// What a payload is. Zero is never valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`super::Message`] in JSON.
    Control = 1,
    /// A file record of the read-only image.
    Image = 2,
    /// A file record of the overlay's upper layer.
    Storage = 3,
    /// Pages of memory: a [`Numbered`] batch.
    Pages = 4,
    /// A piece of a CRIU image: see [`Chunk`].
    Dump = 5,
    /// How many frames of this stream have been taken, 8 bytes, little-endian: from the destination, on streams of
    /// pages alone.
    Taken = 6,
    /// What a destination asks for of what was left behind: see [`Ask`](super::behind::wire::Ask).
    Ask = 7,
    /// A file record of the copies of what was bound in a container that was made of a bundle.
    Copies = 8,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// The payload, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// An unknown kind, or reserved bytes that are not zero.
    #[error("frame header {header:02x?} is not one of this protocol")]
    Header {
        /// The header.
        header: [u8; HEADER],
    },
    /// Longer than its kind may be.
    #[error("a {kind:?} frame of {length} bytes is longer than the {limit} allowed")]
    TooLong {
        /// Which kind.
        kind: Kind,
        /// Its length.
        length: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// A frame that begins with a number, cut short in it.
    #[error("a frame's number is malformed")]
    Number,
    /// What a destination asks for is malformed.
    #[error("a question for pages is malformed: {what}")]
    Ask {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A chunk of a CRIU image that is cut short or has no plain file name.
    #[error("an image chunk is malformed: {what}")]
    Chunk {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Control),
            2 => Some(Self::Image),
            3 => Some(Self::Storage),
            4 => Some(Self::Pages),
            5 => Some(Self::Dump),
            6 => Some(Self::Taken),
            7 => Some(Self::Ask),
            8 => Some(Self::Copies),
            _ => None,
        }
    }

    fn limit(self) -> usize {
        match self {
            Self::Control => MAX_CONTROL,
            Self::Taken => NUMBER,
            Self::Ask => super::behind::wire::LONGEST,
            _ => MAX_PAYLOAD,
        }
    }
}

/// The header of a frame with this payload.
///
/// # Errors
/// [`CodecError::TooLong`] for a payload that no peer would take.
pub fn header(kind: Kind, payload: &[u8]) -> Result<[u8; HEADER], CodecError> {
    header_of(kind, payload.len())
}

/// The header of a frame with a payload of this length.
///
/// # Errors
/// As [`header`].
pub fn header_of(kind: Kind, length: usize) -> Result<[u8; HEADER], CodecError> {
    let limit = kind.limit();
    let wire = u32::try_from(length).ok().filter(|_| length <= limit);
    let wire = wire.ok_or(CodecError::TooLong {
        kind,
        length,
        limit,
    })?;
    let mut out = [0; HEADER];
    out[0] = kind as u8;
    out[4..].copy_from_slice(&wire.to_le_bytes());
    Ok(out)
}

/// What a header announces: the kind and the payload's length, within its limit.
///
/// # Errors
/// For anything that [`header`] does not produce.
pub fn parse_header(bytes: [u8; HEADER]) -> Result<(Kind, usize), CodecError> {
    let kind = Kind::of(bytes[0]).filter(|_| bytes[1..4] == [0; 3]);
    let kind = kind.ok_or(CodecError::Header { header: bytes })?;
    let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
    let limit = kind.limit();
    if length > limit {
        Err(CodecError::TooLong {
            kind,
            length,
            limit,
        })
    } else {
        Ok((kind, length))
    }
}

/// Pages of memory and their number: all frames of pages of a migration are counted from 0, whichever stream they go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered<'a> {
    /// Its number.
    pub number: u64,
    /// The batch of page frames.
    pub batch: &'a [u8],
}

impl<'a> Numbered<'a> {
    /// Out of the payload of a [`Kind::Pages`] frame.
    ///
    /// # Errors
    /// For a payload cut short.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CodecError> {
        let parts = payload.split_first_chunk::<NUMBER>();
        let (number, batch) = parts.ok_or(CodecError::Number)?;
        let number = u64::from_le_bytes(*number);
        Ok(Self { number, batch })
    }
}

/// How many frames have been taken, out of the payload of a [`Kind::Taken`] frame.
///
/// # Errors
/// For a payload of another length.
pub fn taken(payload: &[u8]) -> Result<u64, CodecError> {
    let number = payload.try_into().map_err(|_| CodecError::Number)?;
    Ok(u64::from_le_bytes(number))
}

/// A piece of a CRIU image file: `u16 length of the name, name, u64 offset, bytes`, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// A plain file name: letters, digits, `.`, `_` and `-`, not starting with a dot.
    pub name: &'a str,
    /// Where in the file the bytes go.
    pub offset: u64,
    /// The bytes; none for an empty file.
    pub bytes: &'a [u8],
}

/// Longest name of an image file, in bytes.
const MAX_NAME: usize = 128;
/// Largest image file, in bytes. Memory is not in these files, so this is generous.
const MAX_IMAGE: u64 = 1 << 32;

impl<'a> Chunk<'a> {
    /// As the payload of a [`Kind::Dump`] frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 + self.name.len() + 8 + self.bytes.len());
        out.extend_from_slice(
            &u16::try_from(self.name.len())
                .unwrap_or(u16::MAX)
                .to_le_bytes(),
        );
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(self.bytes);
        out
    }

    /// Out of the payload of a [`Kind::Dump`] frame.
    ///
    /// # Errors
    /// For a payload cut short, a name that is not a plain file name, a file beyond 4 GiB.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CodecError> {
        let bad = |what| CodecError::Chunk { what };
        let (length, rest) = payload.split_first_chunk::<2>().ok_or(bad("cut short"))?;
        let length = usize::from(u16::from_le_bytes(*length));
        let (name, rest) = rest
            .split_at_checked(length)
            .ok_or(bad("cut short in its name"))?;
        let (offset, bytes) = rest
            .split_first_chunk::<8>()
            .ok_or(bad("cut short in its offset"))?;
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|n| is_plain(n))
            .ok_or(bad("not a plain file name"))?;
        let offset = u64::from_le_bytes(*offset);
        let end = offset
            .checked_add(bytes.len() as u64)
            .filter(|&end| end <= MAX_IMAGE);
        end.ok_or(bad("beyond the largest image file"))?;
        Ok(Self {
            name,
            offset,
            bytes,
        })
    }
}

/// Whether a name is safe as a file name and is one CRIU would give.
pub fn is_plain(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_header_survives_and_nothing_else_does() {
        for kind in [
            Kind::Control,
            Kind::Image,
            Kind::Storage,
            Kind::Pages,
            Kind::Dump,
            Kind::Copies,
        ] {
            let made = header(kind, &[7; 300]).unwrap();
            assert_eq!(parse_header(made), Ok((kind, 300)));
            let mut reserved = made;
            reserved[2] = 1;
            assert!(parse_header(reserved).is_err());
        }
        assert!(parse_header([0; HEADER]).is_err());
        assert!(parse_header([9, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(header(Kind::Taken, &[0; NUMBER + 1]).is_err());
        assert!(parse_header([4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(header(Kind::Control, &vec![0; MAX_CONTROL + 1]).is_err());
        assert!(header(Kind::Pages, &vec![0; MAX_PAYLOAD]).is_ok());
    }

    #[test]
    fn a_chunk_survives_and_every_truncation_is_refused() {
        let chunk = Chunk {
            name: "core-1.img",
            offset: 77,
            bytes: b"abc",
        };
        let wire = chunk.encode();
        assert_eq!(Chunk::decode(&wire).unwrap(), chunk);
        for cut in 0..wire.len() - 3 {
            assert!(Chunk::decode(&wire[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_chunk_never_names_another_directory() {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            ".hidden",
            "a\0b",
            "ä",
            &"x".repeat(129),
        ] {
            let wire = Chunk {
                name,
                offset: 0,
                bytes: b"",
            }
            .encode();
            assert!(Chunk::decode(&wire).is_err(), "{name:?}");
        }
        let wire = Chunk {
            name: "a",
            offset: u64::MAX,
            bytes: b"x",
        }
        .encode();
        assert!(Chunk::decode(&wire).is_err());
    }
}
