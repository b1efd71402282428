//! What mmdebstrap and apt say: which lines a waiting person wants to see, and why a build has failed.
//! Nothing here reads or runs anything.

/// Why a build failed, as far as its output tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// The archive has no such package, or not in this version (`NAME=VERSION`).
    UnknownPackage(String),
    /// The archive did not answer; with what apt said of it.
    Unreachable(String),
    /// Something else.
    Other,
}

/// Finds the cause in a line of output. `asked` are the packages that were asked for: a version that does not
/// exist is told as they have it.
pub(super) fn cause(line: &str, asked: &[String]) -> Option<Cause> {
    let line = line.trim();
    let complaint = line
        .strip_prefix("E: ")
        .or_else(|| line.strip_prefix("W: "));
    let complaint = complaint.unwrap_or(line);
    if let Some(name) = complaint.strip_prefix("Unable to locate package ") {
        return Some(Cause::UnknownPackage(name.trim().to_owned()));
    }
    if let Some(rest) = complaint.strip_prefix("Package '") {
        let (name, rest) = rest.split_once('\'')?;
        if rest.contains("has no installation candidate") {
            return Some(Cause::UnknownPackage(name.to_owned()));
        }
    }
    if let Some(rest) = complaint.strip_prefix("Version '") {
        let (version, rest) = rest.split_once('\'')?;
        let name = rest.split('\'').nth(1)?;
        if rest.contains("was not found") {
            let asked = asked
                .iter()
                .find(|a| a.split_once('=').is_some_and(|(n, _)| n == name));
            let package = asked
                .cloned()
                .unwrap_or_else(|| format!("{name}={version}"));
            return Some(Cause::UnknownPackage(package));
        }
    }
    const UNREACHABLE: [&str; 6] = [
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect to",
        "Failed to fetch",
        "does not have a Release file",
        "Network is unreachable",
    ];
    UNREACHABLE
        .iter()
        .any(|sign| complaint.contains(sign))
        .then(|| Cause::Unreachable(complaint.to_owned()))
}

/// What a line tells a waiting person; none where it tells nothing.
pub(super) fn progress(line: &str) -> Option<String> {
    let line = line.trim();
    if let Some(step) = line.strip_prefix("I: ") {
        let dull = [
            "main()",
            "success in",
            "automatically chosen",
            "finding correct",
            "running --",
        ];
        let told = !dull.iter().any(|start| step.starts_with(start));
        return told.then(|| step.trim_end_matches("...").to_owned());
    }
    if let Some(rest) = line.strip_prefix("Get:") {
        // Get:7 http://deb.debian.org/debian bookworm/main amd64 redis-server amd64 5:7.0 [72.4 kB]
        let words: Vec<&str> = rest.split_whitespace().collect();
        return match words.as_slice() {
            [_, _, _, _, package, _, _, size @ ..] if !size.is_empty() => {
                Some(format!("downloading {package} {}", size.join(" ")))
            }
            _ => None,
        };
    }
    let package = line.strip_prefix("Setting up ")?;
    let package = package.split([' ', ':']).next()?;
    Some(format!("setting up {package}"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_unknown_package_is_named() {
        let unknown = |name: &str| Some(Cause::UnknownPackage(name.to_owned()));
        let asked = ["redis-server=9:1".to_owned()];
        let of = |line| cause(line, &asked);
        assert_eq!(
            of("E: Unable to locate package no-such-thing"),
            unknown("no-such-thing")
        );
        assert_eq!(
            of("E: Package 'exim' has no installation candidate"),
            unknown("exim")
        );
        assert_eq!(
            of("E: Version '9:1' for 'redis-server' was not found"),
            unknown("redis-server=9:1")
        );
        assert_eq!(
            of("E: Version '2' for 'bash' was not found"),
            unknown("bash=2")
        );
    }

    #[test]
    fn a_silent_archive_is_told_from_a_broken_build() {
        let line = "W: Failed to fetch http://deb.debian.org/debian/dists/bookworm/InRelease  \
            Temporary failure resolving 'deb.debian.org'";
        assert!(matches!(cause(line, &[]), Some(Cause::Unreachable(l)) if l.starts_with("Failed")));
        for line in [
            "",
            "E: setup failed: E: apt-get ... failed",
            "Version '",
            "Package 'x",
            "E: ",
        ] {
            assert_eq!(cause(line, &[]), None, "{line}");
        }
    }

    #[test]
    fn a_waiting_person_sees_the_steps() {
        let get = "Get:7 http://x/debian bookworm/main amd64 redis-server amd64 5:7.0.15 [72.4 kB]";
        assert_eq!(progress(get).unwrap(), "downloading redis-server [72.4 kB]");
        assert_eq!(
            progress("Setting up libc6:amd64 (2.36) ...").unwrap(),
            "setting up libc6"
        );
        assert_eq!(
            progress("I: extracting archives...").unwrap(),
            "extracting archives"
        );
        let dull = [
            "I: main() received signal",
            "Reading package lists...",
            "",
            "Get:",
            "Get:1 a b c",
        ];
        for line in dull {
            assert_eq!(progress(line), None, "{line}");
        }
    }
}
