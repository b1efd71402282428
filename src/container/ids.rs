//! Which ids of this host are which container's: one symbolic link for each range, whose content is the name.
//!
//! They are given on this host, for as long as the container lives on it, and are free again when it leaves. What is
//! theirs on the disk is written down by the ids inside, and means the same everywhere.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{ContainerError, Host};
use crate::model::Name;
use crate::namespace::IdRange;

/// Where ranges are given to the users of this host (subuid(5)).
const SUBORDINATE: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// Gives a container a range that is nobody else's. One that it has already, from before a crash, it keeps.
pub(super) fn claim(host: &Host, name: &Name) -> Result<IdRange, ContainerError> {
    if let Some(ids) = of(host, name)? {
        return Ok(ids);
    }
    let directory = host.ids();
    let failed = || ContainerError::file("give out ids in", &directory);
    fs::create_dir_all(&directory).map_err(failed())?;
    let others = SUBORDINATE.map(|path| fs::read_to_string(path).unwrap_or_default());
    let others: Vec<(u32, u32)> = others.iter().flat_map(|text| given(text)).collect();
    // Not in order: other hosts that share this kernel, as those of a lab, are not asked.
    let free = IdRange::all_from(rand::random())
        .filter(|ids| !others.iter().any(|&(first, count)| ids.meets(first, count)));
    for ids in free {
        match symlink(name.as_str(), directory.join(ids.slot().to_string())) {
            Ok(()) => return Ok(ids),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed()(error)),
        }
    }
    Err(failed()(io::Error::other("all are in use")))
}

/// The range of a container; none where it has none.
pub fn of(host: &Host, name: &Name) -> Result<Option<IdRange>, ContainerError> {
    Ok(claims(&host.ids(), name)?.pop())
}

/// Takes the range of a container back, if it has one. Nothing of the container may be left.
pub(super) fn release(host: &Host, name: &Name) -> Result<(), ContainerError> {
    for ids in claims(&host.ids(), name)? {
        let link = host.ids().join(ids.slot().to_string());
        fs::remove_file(&link).map_err(ContainerError::file("remove", &link))?;
    }
    Ok(())
}

fn claims(directory: &Path, name: &Name) -> Result<Vec<IdRange>, ContainerError> {
    let failed = || ContainerError::file("look for ids in", directory);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    let mut claims = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed())?;
        // One that goes away just now is another container's.
        if fs::read_link(entry.path()).is_ok_and(|whose| whose == Path::new(name.as_str())) {
            let slot = entry
                .file_name()
                .to_str()
                .and_then(|slot| slot.parse().ok());
            claims.extend(slot.and_then(IdRange::at));
        }
    }
    Ok(claims)
}

/// The ranges that a file gives out: `user:first:count` a line.
fn given(text: &str) -> impl Iterator<Item = (u32, u32)> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(1).map(|field| field.trim().parse());
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ranges_of_users_are_read_and_nonsense_is_not() {
        let text = "root:100000:65536\n# nothing\nkim:524288:65536\nbad:x:1\nshort:1\n";
        let ranges: Vec<(u32, u32)> = given(text).collect();
        assert_eq!(ranges, [(100_000, 65_536), (524_288, 65_536)]);
    }
}
