//! The rules that values in templates and requests keep, and the errors that tell of them.

use std::path::{Component, Path, PathBuf};

use super::OciError;

/// Where a value was written, for the errors about it.
pub(super) struct Origin(pub(super) String);

impl Origin {
    pub(super) fn wrong(&self, field: &'static str, value: &str, rule: &'static str) -> OciError {
        OciError::Value {
            origin: self.0.clone(),
            field,
            value: value.chars().take(200).collect(),
            rule,
        }
    }

    pub(super) fn missing(&self, field: &'static str, remedy: &'static str) -> OciError {
        let origin = self.0.clone();
        OciError::Missing {
            origin,
            field,
            remedy,
        }
    }
}

pub(super) fn check_command(
    origin: &Origin,
    field: &'static str,
    command: &[String],
) -> Result<(), OciError> {
    match command.first() {
        Some(program) if !program.is_empty() => {}
        _ => return Err(origin.wrong(field, "", "a command starts with the program's name")),
    }
    match command.iter().find(|word| word.contains('\0')) {
        Some(bad) => Err(origin.wrong(field, bad, "the kernel takes no NUL character in a word")),
        None => Ok(()),
    }
}

pub(super) fn check_env(
    origin: &Origin,
    field: &'static str,
    key: &str,
    value: &str,
) -> Result<(), OciError> {
    if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
        let rule =
            "a variable is written KEY=value, its key is not empty and neither has a NUL character";
        Err(origin.wrong(field, key, rule))
    } else {
        Ok(())
    }
}

/// A package's name as Debian's policy (5.6.1) has it. Nothing else may stand here: apt understands far
/// more (patterns, options, paths), and a template is not a command line.
pub(super) fn is_package(text: &str) -> bool {
    let (name, version) = match text.split_once('=') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+.-".contains(&c);
    let of_version = |c: u8| c.is_ascii_alphanumeric() || b"+.-~:".contains(&c);
    (2..=128).contains(&name.len())
        && name.bytes().all(inner)
        && name.as_bytes()[0].is_ascii_alphanumeric()
        // A last '-' would ask apt to remove the package.
        && !name.ends_with('-')
        && version.is_none_or(|v| {
            (1..=128).contains(&v.len())
                && v.as_bytes()[0].is_ascii_alphanumeric()
                && v.bytes().all(of_version)
        })
}

pub(super) fn is_suite(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-')
}

pub(super) fn is_absolute(text: &str) -> bool {
    let path = Path::new(text);
    path.is_absolute()
        && !text.contains('\0')
        && !path.components().any(|part| part == Component::ParentDir)
}

pub(super) fn relative_path(
    origin: &Origin,
    field: &'static str,
    text: &str,
) -> Result<PathBuf, OciError> {
    let path = Path::new(text);
    let mut parts = path.components().peekable();
    let good = parts.peek().is_some()
        && !text.contains('\0')
        && parts.all(|part| matches!(part, Component::Normal(_)));
    if good {
        Ok(path.to_owned())
    } else {
        let rule = "it must be a path below the template's own directory, without '.' and '..'";
        Err(origin.wrong(field, text, rule))
    }
}
