//! Capabilities whose names nobody knows here: told of and left out, as the specification asks ("runtimes SHOULD NOT
//! fail"). An engine that is newer than this program names them.

use std::path::Path;

use oci_spec::runtime::Capability;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::RuntimeError;
use super::store;

/// Parses JSON in which there is a process at this place: a pointer of RFC 6901, empty for the whole.
pub(super) fn parse<T: DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
    process: &str,
) -> Result<T, RuntimeError> {
    let strict = store::parse(path, bytes);
    // Nearly always they are all known, and nothing is parsed twice.
    let Err(RuntimeError::Unreadable { field, .. }) = &strict else {
        return strict;
    };
    if !field.contains("capabilities.") {
        return strict;
    }
    let Ok(mut document) = serde_json::from_slice::<Value>(bytes) else {
        return strict;
    };
    let sets = document.pointer_mut(&format!("{process}/capabilities"));
    let unknown = sets.map(leave_out).unwrap_or_default();
    if unknown.is_empty() {
        return strict;
    }
    tracing::warn!(
        "capabilities that are not known here are left out: {}",
        unknown.join(", ")
    );
    store::parse(path, document.to_string().as_bytes())
}

/// Takes them out of all sets, and tells them.
fn leave_out(sets: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = sets.as_object_mut().into_iter().flatten();
    for list in sets.filter_map(|(_, list)| list.as_array_mut()) {
        list.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            // What is no text at all is an error, and not a capability.
            let keep = known || !name.is_string();
            if !keep {
                unknown.push(name.as_str().unwrap_or_default().to_owned());
            }
            keep
        });
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod test {
    use super::*;
    use oci_spec::runtime::{Process, Spec};

    fn process(capabilities: &str) -> String {
        format!(
            r#"{{"user": {{"uid": 0, "gid": 0}}, "args": ["sh"], "cwd": "/", "capabilities": {capabilities}}}"#
        )
    }

    #[test]
    fn unknown_ones_are_left_out_of_every_set() {
        let text = process(r#"{"bounding": ["CAP_KILL", "CAP_NEW"], "effective": ["CAP_NEW"]}"#);
        let found: Process = parse(Path::new("p"), text.as_bytes(), "").unwrap();
        let sets = found.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(sets.effective().as_ref().unwrap().len(), 0);
        let text = format!(r#"{{"ociVersion": "1.2.0", "process": {text}}}"#);
        let found: Spec = parse(Path::new("p"), text.as_bytes(), "/process").unwrap();
        let process = found.process().as_ref().unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn what_is_wrong_otherwise_is_an_error() {
        for wrong in [r#"{"bounding": [7]}"#, r#"{"bounding": "CAP_KILL"}"#] {
            let error = parse::<Process>(Path::new("p"), process(wrong).as_bytes(), "");
            let said = error.unwrap_err().to_string();
            assert!(said.contains("capabilities.bounding"), "{said}");
        }
    }
}
