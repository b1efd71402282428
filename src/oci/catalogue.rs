//! The templates of a host: one directory each, `NAME/template.toml`, in one directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{OciError, Template, template};
use crate::model::Name;

/// A template is a page of text; what is bigger is none.
const BIGGEST: u64 = 64 * 1024;

/// Reads the template `name`, and tells which directory it lies in.
pub fn load(templates: &Path, name: &Name) -> Result<(Template, PathBuf), OciError> {
    let directory = templates.join(name.as_str());
    let path = directory.join("template.toml");
    let fail = |source| OciError::Read {
        path: path.clone(),
        source,
    };
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OciError::NoTemplate {
                name: name.to_string(),
                directory: templates.to_owned(),
                known: known(templates),
            });
        }
        result => result.map_err(fail)?,
    };
    let mut text = String::new();
    file.take(BIGGEST + 1)
        .read_to_string(&mut text)
        .map_err(fail)?;
    if text.len() as u64 > BIGGEST {
        return Err(OciError::TooBig {
            path,
            most: BIGGEST,
        });
    }
    Ok((template::parse(&text, name.as_str())?, directory))
}

/// The names of all templates, sorted. Whether each of them is in order only [`load`] tells.
pub fn list(templates: &Path) -> Result<Vec<Name>, OciError> {
    let fail = |source| OciError::Read {
        path: templates.to_owned(),
        source,
    };
    let entries = match fs::read_dir(templates) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if entry.path().join("template.toml").is_file() {
            names.extend(name);
        }
    }
    names.sort();
    Ok(names)
}

/// For a person who has misspelt a name.
fn known(templates: &Path) -> String {
    match list(templates) {
        Ok(names) if !names.is_empty() => {
            let names: Vec<_> = names.iter().map(Name::as_str).collect();
            names.join(", ")
        }
        _ => "none".to_owned(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn templates_are_found_by_the_names_of_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[rootfs]\ndirectory = \"tree\"\n[container]\ncommand = [\"x\"]\n";
        for name in ["b", "a", "Not-A-Name"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("template.toml"), text).unwrap();
        }
        fs::create_dir(dir.path().join("empty")).unwrap();
        let names = list(dir.path()).unwrap();
        assert_eq!(
            names.iter().map(Name::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
        let (template, directory) = load(dir.path(), &names[0]).unwrap();
        assert_eq!(
            (template.name.as_str(), directory),
            ("a", dir.path().join("a"))
        );
        let error = load(dir.path(), &"c".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"c\"") && error.contains("a, b"), "{error}");
        assert!(list(&dir.path().join("missing")).unwrap().is_empty());
    }
}
