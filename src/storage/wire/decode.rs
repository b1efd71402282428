//! Bytes into records: any bytes, whoever made them.

use super::{
    Attributes, FileTime, MAX_BATCH, MAX_DATA, MAX_NAME, MAX_PATH, MAX_TARGET, MAX_VALUE, NodeKind,
    Record, TreePath, VERSION, WireError,
};

/// The records of a batch. Total: any bytes give records or an error, and never a panic.
pub fn decode(batch: &[u8]) -> Result<Vec<Record<'_>>, WireError> {
    if batch.len() > MAX_BATCH {
        return Err(WireError::TooLong);
    }
    let mut rest = Reader { rest: batch };
    let [found] = rest.array("version")?;
    if found != VERSION {
        return Err(WireError::Version { found });
    }
    let mut records = Vec::new();
    while !rest.rest.is_empty() {
        let body = rest.field("length", MAX_BATCH)?;
        records.push(decode_record(body)?);
    }
    Ok(records)
}

fn decode_record(body: &[u8]) -> Result<Record<'_>, WireError> {
    let mut from = Reader { rest: body };
    let [kind] = from.array("kind")?;
    let path = from.path("path")?;
    let record = match kind {
        1 => Record::Directory { path },
        2 => Record::File {
            path,
            size: from.position("size")?,
        },
        3 => Record::Resize {
            path,
            size: from.position("size")?,
        },
        4 => Record::Data {
            path,
            offset: from.position("offset")?,
            bytes: from.field("contents", MAX_DATA)?,
        },
        5 => Record::Hole {
            path,
            offset: from.position("offset")?,
            length: from.position("length of a hole")?,
        },
        6 => Record::Symlink {
            path,
            target: from.text("target", MAX_TARGET)?,
        },
        7 => Record::Node {
            path,
            kind: NodeKind::from_code(from.array::<1>("kind of special file")?[0])?,
            rdev: u64::from_le_bytes(from.array("device")?),
        },
        8 => Record::Link {
            path,
            to: from.path("other name")?,
        },
        9 => Record::Attributes {
            path,
            attributes: from.attributes()?,
        },
        10 => Record::Xattr {
            path,
            name: from.text("name of an attribute", MAX_NAME)?,
            value: from.field("value of an attribute", MAX_VALUE)?,
        },
        11 => Record::Delete { path },
        _ => return Err(WireError::Kind { kind }),
    };
    match from.rest.len() {
        0 => Ok(record),
        extra => Err(WireError::Extra { kind, extra }),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Truncated { field })?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn field(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let length = usize::try_from(self.u32(field)?).unwrap_or(usize::MAX);
        if length > limit {
            return Err(WireError::Field {
                field,
                rule: "it is too long",
            });
        }
        let (bytes, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(WireError::Truncated { field })?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A field that the kernel takes as a text: not empty, and without a zero byte.
    fn text(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let text = self.field(field, limit)?;
        if text.is_empty() || text.contains(&0) {
            return Err(WireError::Field {
                field,
                rule: "it is empty or contains a zero byte",
            });
        }
        Ok(text)
    }

    fn path(&mut self, field: &'static str) -> Result<TreePath<'a>, WireError> {
        TreePath::new(self.field(field, MAX_PATH)?)
    }

    /// A length or a place in a file: the kernel counts them with a sign.
    fn position(&mut self, field: &'static str) -> Result<u64, WireError> {
        let value = u64::from_le_bytes(self.array(field)?);
        if i64::try_from(value).is_err() {
            return Err(WireError::Field {
                field,
                rule: "it is larger than any file",
            });
        }
        Ok(value)
    }

    fn attributes(&mut self) -> Result<Attributes<'a>, WireError> {
        let mode = self.u32("mode")?;
        if mode > 0o7777 {
            return Err(WireError::Field {
                field: "mode",
                rule: "it has only permission, set-id and sticky bits",
            });
        }
        let (uid, gid) = (self.u32("owner")?, self.u32("group")?);
        if uid == u32::MAX || gid == u32::MAX {
            return Err(WireError::Field {
                field: "owner or group",
                rule: "the largest number means none",
            });
        }
        let mtime = FileTime {
            secs: i64::from_le_bytes(self.array("time")?),
            nanos: self.u32("time")?,
        };
        if mtime.nanos >= 1_000_000_000 {
            return Err(WireError::Field {
                field: "time",
                rule: "a second has fewer nanoseconds",
            });
        }
        let mut xattrs = Vec::new();
        while !self.rest.is_empty() {
            xattrs.push((
                self.text("name of an attribute", MAX_NAME)?,
                self.field("value of an attribute", MAX_VALUE)?,
            ));
        }
        Ok(Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        })
    }
}

impl NodeKind {
    fn from_code(code: u8) -> Result<Self, WireError> {
        Ok(match code {
            1 => Self::Fifo,
            2 => Self::Character,
            3 => Self::Block,
            4 => Self::Socket,
            _ => {
                return Err(WireError::Field {
                    field: "kind of special file",
                    rule: "it is one of 1 to 4",
                });
            }
        })
    }
}
