//! Which image came of which recipe: the file `templates.json` of a store.
//!
//! It only saves work. A host that has lost it, or cannot read it, builds again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::store_error::StoreError;
use crate::model::Digest;
use crate::sys::file;

/// The file `templates.json` of a store.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The template that was built; for people.
    template: String,
    /// What came of it.
    image: Digest,
}

impl Book {
    /// The book of the store in `state_dir`.
    pub(super) fn of(state_dir: &Path) -> Self {
        let path = state_dir.join("templates.json");
        Self { path }
    }

    /// The image that came of `recipe`, as far as it is written down.
    pub(super) fn find(&self, recipe: Digest) -> Option<Digest> {
        self.read().get(&recipe).map(|entry| entry.image)
    }

    /// Writes down that `image` came of `recipe`. The caller holds the store's lock.
    pub(super) fn write(
        &self,
        recipe: Digest,
        template: &str,
        image: Digest,
    ) -> Result<(), StoreError> {
        let mut entries = self.read();
        let template = template.to_owned();
        entries.insert(recipe, Entry { template, image });
        self.replace(&entries)
    }

    /// Strikes out all recipes of `image`. The caller holds the store's lock.
    pub(super) fn strike(&self, image: Digest) -> Result<(), StoreError> {
        let mut entries = self.read();
        let before = entries.len();
        entries.retain(|_, entry| entry.image != image);
        if entries.len() == before {
            Ok(())
        } else {
            self.replace(&entries)
        }
    }

    fn replace(&self, entries: &BTreeMap<Digest, Entry>) -> Result<(), StoreError> {
        serde_json::to_vec_pretty(entries)
            .map_err(io::Error::from)
            .and_then(|bytes| file::replace(&self.path, &bytes))
            .map_err(StoreError::io("write", &self.path))
    }

    fn read(&self) -> BTreeMap<Digest, Entry> {
        let read = fs::read(&self.path);
        let parsed = read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match parsed {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, path = ?self.path, "cannot read which images were built; they will be built again");
                BTreeMap::new()
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_book_remembers_until_it_is_told_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::of(dir.path());
        let (recipe, other, image) = (Digest([1; 32]), Digest([2; 32]), Digest([3; 32]));
        assert_eq!(book.find(recipe), None);
        book.write(recipe, "redis", image).unwrap();
        book.write(other, "nginx", Digest([4; 32])).unwrap();
        assert_eq!(Book::of(dir.path()).find(recipe), Some(image));
        book.strike(image).unwrap();
        assert_eq!(
            (book.find(recipe), book.find(other)),
            (None, Some(Digest([4; 32])))
        );
    }

    #[test]
    fn a_damaged_book_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("templates.json"), "{\"x\": ").unwrap();
        let book = Book::of(dir.path());
        assert_eq!(book.find(Digest([1; 32])), None);
        book.write(Digest([1; 32]), "redis", Digest([3; 32]))
            .unwrap();
        assert_eq!(book.find(Digest([1; 32])), Some(Digest([3; 32])));
    }
}
