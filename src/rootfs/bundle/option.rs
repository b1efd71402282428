//! The options of a mount, as fstab and the runtime specification know them.

use nix::mount::MsFlags;

use crate::sys::mount::{
    ACCESS_TIME, NO_ACCESS_TIME, NO_DEVICES, NO_DIRECTORY_ACCESS_TIME, NO_EXEC, NO_LINKS, NO_SUID,
    READ_ONLY, STRICT_ACCESS_TIME,
};

/// What becomes, on other sides, of what is mounted beneath a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Propagation {
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`.
    pub kind: MsFlags,
    /// Whether it is meant for all mounts beneath, too.
    pub recursive: bool,
}

/// The eight words for it, also those of `linux.rootfsPropagation`.
pub(super) fn propagation(word: &str) -> Option<Propagation> {
    let (recursive, word) = match word.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let kind = match word {
        "private" => MsFlags::MS_PRIVATE,
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { kind, recursive })
}

/// Attributes of a mount, to be set and to be taken away. The last word on each counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    fn say(&mut self, bits: u64, to: bool) {
        self.set &= !bits;
        self.clear &= !bits;
        *(if to { &mut self.set } else { &mut self.clear }) |= bits;
    }

    /// The kinds of access time exclude each other.
    fn access_time(&mut self, kind: u64) {
        self.say(ACCESS_TIME, false);
        self.set |= kind;
    }

    pub fn is_empty(self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

/// What the options of one mount ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Asked {
    /// A bind mount; true: with all that is mounted beneath.
    pub bind: Option<bool>,
    /// What is mounted there already is changed.
    pub remount: bool,
    /// Of the mount itself.
    pub own: Attributes,
    /// Of the mount and all beneath.
    pub all: Attributes,
    /// Of the file system: flags of mount(2).
    filesystem: u64,
    /// In the order asked for.
    pub propagation: Vec<Propagation>,
    /// The tmpfs begins with what it covers.
    pub copy_up: bool,
    /// Owners go through a user namespace's maps; true: beneath, too.
    pub id_map: Option<bool>,
    /// What is the file system's own matter.
    pub data: Vec<String>,
}

impl Asked {
    /// The flags that concern the file system and not the mount.
    pub fn filesystem(&self) -> MsFlags {
        MsFlags::from_bits_retain(self.filesystem)
    }
}

enum Word {
    /// An attribute is set or taken away; and its counterpart for all beneath, with an `r` before it.
    Attribute(u64, bool),
    AccessTime(u64),
    Filesystem(MsFlags, bool),
    Bind(bool),
    Remount,
    CopyUp,
    IdMap(bool),
    Nothing,
}

/// Every word but the ones for propagation, and the `r…` ones of attributes.
const WORDS: [(&str, Word); 36] = [
    ("async", Word::Filesystem(MsFlags::MS_SYNCHRONOUS, false)),
    ("atime", Word::AccessTime(0)),
    ("bind", Word::Bind(false)),
    ("defaults", Word::Nothing),
    ("dev", Word::Attribute(NO_DEVICES, false)),
    ("diratime", Word::Attribute(NO_DIRECTORY_ACCESS_TIME, false)),
    ("dirsync", Word::Filesystem(MsFlags::MS_DIRSYNC, true)),
    ("exec", Word::Attribute(NO_EXEC, false)),
    ("idmap", Word::IdMap(false)),
    ("iversion", Word::Filesystem(MsFlags::MS_I_VERSION, true)),
    ("lazytime", Word::Filesystem(MsFlags::MS_LAZYTIME, true)),
    ("loud", Word::Filesystem(MsFlags::MS_SILENT, false)),
    ("mand", Word::Filesystem(MsFlags::MS_MANDLOCK, true)),
    ("noatime", Word::AccessTime(NO_ACCESS_TIME)),
    ("nodev", Word::Attribute(NO_DEVICES, true)),
    (
        "nodiratime",
        Word::Attribute(NO_DIRECTORY_ACCESS_TIME, true),
    ),
    ("noexec", Word::Attribute(NO_EXEC, true)),
    ("noiversion", Word::Filesystem(MsFlags::MS_I_VERSION, false)),
    ("nolazytime", Word::Filesystem(MsFlags::MS_LAZYTIME, false)),
    ("nomand", Word::Filesystem(MsFlags::MS_MANDLOCK, false)),
    ("norelatime", Word::AccessTime(0)),
    ("nostrictatime", Word::AccessTime(0)),
    ("nosuid", Word::Attribute(NO_SUID, true)),
    ("nosymfollow", Word::Attribute(NO_LINKS, true)),
    ("rbind", Word::Bind(true)),
    ("relatime", Word::AccessTime(0)),
    ("remount", Word::Remount),
    ("ridmap", Word::IdMap(true)),
    ("ro", Word::Attribute(READ_ONLY, true)),
    ("rw", Word::Attribute(READ_ONLY, false)),
    ("silent", Word::Filesystem(MsFlags::MS_SILENT, true)),
    ("strictatime", Word::AccessTime(STRICT_ACCESS_TIME)),
    ("suid", Word::Attribute(NO_SUID, false)),
    ("symfollow", Word::Attribute(NO_LINKS, false)),
    ("sync", Word::Filesystem(MsFlags::MS_SYNCHRONOUS, true)),
    ("tmpcopyup", Word::CopyUp),
];

const PROPAGATION: [&str; 8] = [
    "private",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "shared",
    "slave",
    "unbindable",
];

fn word(option: &str) -> Option<&'static Word> {
    WORDS
        .iter()
        .find(|(name, _)| *name == option)
        .map(|(_, word)| word)
}

/// The options that are understood, sorted; any other is handed to the file system.
pub fn known_options() -> Vec<String> {
    let mut known: Vec<String> = PROPAGATION.iter().map(|&word| word.to_owned()).collect();
    for (name, word) in &WORDS {
        known.push((*name).to_owned());
        if matches!(word, Word::Attribute(..) | Word::AccessTime(_)) {
            known.push(format!("r{name}"));
        }
    }
    known.sort();
    known
}

/// Reads the options of a mount. What is not known here is the file system's.
pub(super) fn read(options: &[String]) -> Asked {
    let mut asked = Asked::default();
    for option in options {
        if let Some(kind) = propagation(option) {
            asked.propagation.push(kind);
        } else if let Some(word) = word(option) {
            take(&mut asked, word);
        } else if !recursive_attribute(&mut asked.all, option) {
            asked.data.push(option.clone());
        }
    }
    asked
}

fn take(asked: &mut Asked, word: &Word) {
    match *word {
        Word::Attribute(bits, to) => asked.own.say(bits, to),
        Word::AccessTime(kind) => asked.own.access_time(kind),
        Word::Filesystem(flag, true) => asked.filesystem |= flag.bits(),
        Word::Filesystem(flag, false) => asked.filesystem &= !flag.bits(),
        Word::Bind(recursive) => asked.bind = Some(recursive),
        Word::Remount => asked.remount = true,
        Word::CopyUp => asked.copy_up = true,
        Word::IdMap(recursive) => asked.id_map = Some(recursive),
        Word::Nothing => {}
    }
}

/// `rro`, `rnosuid` and their like: for the mount and all beneath.
fn recursive_attribute(all: &mut Attributes, option: &str) -> bool {
    match option.strip_prefix('r').and_then(word) {
        Some(Word::Attribute(bits, to)) => all.say(*bits, *to),
        Some(Word::AccessTime(kind)) => all.access_time(*kind),
        _ => return false,
    }
    true
}

/// The flags by which mount(2) knows the attributes and what the file system is asked for.
pub(super) fn classic(asked: &Asked) -> MsFlags {
    const NO_LINKS_FOLLOWED: MsFlags = MsFlags::from_bits_retain(libc::MS_NOSYMFOLLOW);
    const SAME: [(u64, MsFlags); 8] = [
        (NO_LINKS, NO_LINKS_FOLLOWED),
        (READ_ONLY, MsFlags::MS_RDONLY),
        (NO_SUID, MsFlags::MS_NOSUID),
        (NO_DEVICES, MsFlags::MS_NODEV),
        (NO_EXEC, MsFlags::MS_NOEXEC),
        (NO_ACCESS_TIME, MsFlags::MS_NOATIME),
        (STRICT_ACCESS_TIME, MsFlags::MS_STRICTATIME),
        (NO_DIRECTORY_ACCESS_TIME, MsFlags::MS_NODIRATIME),
    ];
    let set = SAME.iter().filter(|(bits, _)| asked.own.set & bits != 0);
    set.fold(asked.filesystem(), |flags, (_, flag)| flags | *flag)
}

#[cfg(test)]
mod test {
    use super::*;

    fn asked(options: &str) -> Asked {
        read(&options.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_word_counts() {
        let own = asked("ro,nosuid,rw,noatime,strictatime").own;
        assert_eq!(own.set, NO_SUID | STRICT_ACCESS_TIME);
        assert_eq!(own.clear, READ_ONLY | ACCESS_TIME);
        let own = asked("noatime,relatime").own;
        assert_eq!((own.set, own.clear), (0, ACCESS_TIME));
    }

    #[test]
    fn an_r_before_a_word_means_all_beneath_but_not_before_every_word() {
        let found = asked("rbind,rro,rnosuid,rstrictatime,rslave,ridmap,remount,rw,relatime");
        assert_eq!(found.all.set, READ_ONLY | NO_SUID | STRICT_ACCESS_TIME);
        assert_eq!(found.own.clear, READ_ONLY | ACCESS_TIME);
        assert_eq!(
            (found.bind, found.id_map, found.remount),
            (Some(true), Some(true), true)
        );
        let slave = Propagation {
            kind: MsFlags::MS_SLAVE,
            recursive: true,
        };
        assert_eq!(found.propagation, [slave]);
        // Not words: no `sync` for all beneath, no remount of anything.
        assert_eq!(asked("rsync,rremount,size=3,rdefaults").data.len(), 4);
    }

    #[test]
    fn what_is_known_is_listed_and_understood() {
        let known = known_options();
        assert!(known.is_sorted());
        for option in &known {
            assert!(
                read(std::slice::from_ref(option)).data.is_empty(),
                "{option}"
            );
        }
        for option in ["rro", "rnosymfollow", "ridmap", "tmpcopyup", "runbindable"] {
            assert!(known.iter().any(|k| k == option), "{option}");
        }
    }

    #[test]
    fn mount_2_is_told_the_same() {
        let flags = classic(&asked("ro,sync,nodev,noatime,suid"));
        let wanted =
            MsFlags::MS_RDONLY | MsFlags::MS_SYNCHRONOUS | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        assert_eq!(flags, wanted);
    }
}
