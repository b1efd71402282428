//! `list` and `ps` of containers of bundles.

use std::process::Command;

use super::super::table::table;
use super::{Format, Place, print};
use crate::runtime::manage;
use crate::runtime::{Ended, Id, Root, RuntimeError, Shown, state};

/// All containers of a root. One that is just being deleted is left out.
fn shown(root: &Root) -> Result<Vec<Shown>, RuntimeError> {
    let ids = root.ids()?;
    let read = |id: &Id| root.read(id).ok();
    let shown = ids.iter().filter_map(read).map(|record| {
        let status = root.status(&record);
        state::shown(&record, status)
    });
    Ok(shown.collect())
}

/// Prints them.
pub fn all(place: &Place, quiet: bool) -> Result<Ended, RuntimeError> {
    let all = shown(&place.root)?;
    if quiet {
        let ids: String = all.iter().map(|one| format!("{}\n", one.id)).collect();
        return print(&ids);
    }
    let text = match place.format {
        Format::Json => serde_json::to_string(&all).unwrap_or_default(),
        Format::Table => {
            let headings = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
            let mut table = table(&headings);
            for one in &all {
                table.add_row([
                    one.id.to_string(),
                    one.pid.to_string(),
                    one.status.to_string(),
                    one.bundle.display().to_string(),
                    one.created.clone(),
                    one.owner.clone(),
                ]);
            }
            table.trim_fmt()
        }
    };
    print(&format!("{text}\n"))
}

/// Prints the processes of a container: their ids as JSON, or what ps(1) says of them.
pub fn processes(place: &Place, id: &Id, options: &[String]) -> Result<Ended, RuntimeError> {
    let pids = manage::processes(&place.root, id)?;
    if place.format == Format::Json {
        let text = serde_json::to_string(&pids).unwrap_or_default();
        return print(&format!("{text}\n"));
    }
    let usual = ["-ef".to_owned()];
    let options = if options.is_empty() {
        &usual[..]
    } else {
        options
    };
    let output = Command::new("ps").args(options).output();
    let output = output.map_err(|source| RuntimeError::System {
        operation: "run ps(1); --format json needs none",
        source,
    })?;
    if !output.status.success() {
        return Err(RuntimeError::Option {
            option: "ps",
            why: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|word| word == "PID");
    let column = column.ok_or_else(|| RuntimeError::Option {
        option: "ps",
        why: "its output has no PID column; choose options that show it".to_owned(),
    })?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column);
        pid.and_then(|pid| pid.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    };
    let lines: Vec<&str> = [heading].into_iter().chain(lines.filter(ours)).collect();
    print(&format!("{}\n", lines.join("\n")))
}
