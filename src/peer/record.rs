//! The book as a file: JSON, replaced as a whole.

use std::fs;
use std::io;
use std::path::Path;

use crate::sys::file;

use super::error::PeerError;
use super::state::Contents;

/// The book on the disk; a missing file is an empty book.
pub(super) fn read(path: &Path) -> Result<Contents, PeerError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
        Err(source) => {
            return Err(PeerError::File {
                action: "read",
                path: path.to_owned(),
                source,
            });
        }
    };
    serde_json::from_slice(&text).map_err(|source| PeerError::BookFormat {
        path: path.to_owned(),
        source,
    })
}

/// Puts the whole book on the disk, or leaves the old one there.
pub(super) fn write(path: &Path, contents: &Contents) -> Result<(), PeerError> {
    let mut text = serde_json::to_vec_pretty(contents).map_err(|source| PeerError::BookFormat {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    file::replace(path, &text).map_err(|source| PeerError::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}
