//! How a CRIU worker is started.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{CriuError, HideTable};
use crate::sys::before_exec::{self, BeforeExec, before_exec};

/// Where and with what CRIU runs.
#[derive(Debug, Default)]
pub struct Spawn {
    /// The cgroup CRIU is in from its first instruction, and so everything it restores.
    pub cgroup: Option<PathBuf>,
    /// Whether that cgroup becomes the root of a cgroup namespace of its own, for everything restored.
    pub new_cgroup_namespace: bool,
    /// The network namespace CRIU runs in.
    pub network: Option<OwnedFd>,
    /// Where CRIU's own standard error goes; none: kept, and told when it fails.
    pub stderr: Option<File>,
    /// Whether CRIU is to learn the limits of tasks from `/proc` where the kernel tells them to nobody without
    /// CAP_SYS_RESOURCE; see `preload.c`.
    pub limits_from_proc: bool,
    /// The memory that CRIU is not to find; see `preload.c`. Keep a copy of the table to fill it in.
    pub hide: Option<HideTable>,
    /// Whether the kernel is spared the search of its table of connections where that is empty: it walks every
    /// bucket of the whole host's table, twice, with the tasks stopped; see `preload.c`.
    pub spare_conntrack: bool,
    /// Whether CRIU packs and unpacks the little there is in a container's tmpfs itself, instead of starting tar and
    /// gzip, 6 to 12 ms on either side with the tasks stopped; see `preload_tar.c`. Images are good with and without.
    pub spare_tar: bool,
    /// File descriptors CRIU is given; see [`pass`](Self::pass).
    pub passed: Vec<OwnedFd>,
}

impl Spawn {
    /// Gives CRIU a file descriptor, for a page server or for `inherit_fd`, and tells the number to name in the
    /// request. This process's copy is closed as soon as CRIU has been started.
    pub fn pass(&mut self, fd: OwnedFd) -> i32 {
        let number = before_exec::number(&fd);
        self.passed.push(fd);
        number
    }

    /// Starts `program` as a worker that speaks on `socket`. Its errors go to `kept` where no place was named.
    pub(super) fn start(
        self,
        program: &Path,
        socket: OwnedFd,
        kept: &File,
    ) -> Result<Child, CriuError> {
        let failed = |operation| {
            move |source| CriuError::Start {
                operation,
                program: program.to_owned(),
                source,
            }
        };
        let stderr = match self.stderr {
            Some(file) => Ok(file),
            None => kept.try_clone(),
        };
        let cgroup = self.cgroup.map(|cgroup| open_procs(&cgroup)).transpose();
        let mut command = Command::new(program);
        command
            .arg("swrk")
            .arg(before_exec::number(&socket).to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.map_err(failed("share the file for its errors"))?);
        let mut pass = self.passed;
        pass.push(socket);
        let asked = Asked {
            limits: self.limits_from_proc,
            conntrack: self.spare_conntrack,
            tar: self.spare_tar,
            hide: self.hide.as_ref(),
        };
        let preloaded = asked.preload(&mut command);
        pass.extend(preloaded.map_err(failed("make what it preloads"))?);
        let steps = BeforeExec {
            cgroup: cgroup.map_err(failed("open its cgroup"))?,
            new_cgroup_namespace: self.new_cgroup_namespace,
            network: self.network,
            new_session: false,
            pass,
        };
        before_exec(&mut command, steps);
        command
            .spawn()
            .map_err(failed("join its cgroup and namespaces and execute it"))
    }
}

/// What the preloaded object is asked to do.
#[derive(Default)]
struct Asked<'a> {
    limits: bool,
    conntrack: bool,
    tar: bool,
    hide: Option<&'a HideTable>,
}

impl Asked<'_> {
    /// Makes `command` preload the object and tells it what is asked, if anything is; the file descriptors it needs.
    fn preload(&self, command: &mut Command) -> io::Result<Vec<OwnedFd>> {
        let mut pass = Vec::new();
        let asked = [
            (self.limits, "GODWIT_CRIU_LIMITS"),
            (self.conntrack, "GODWIT_CRIU_CONNTRACK"),
            (self.tar, "GODWIT_CRIU_TAR"),
        ];
        for (_, variable) in asked.iter().filter(|(asked, _)| *asked) {
            command.env(variable, "1");
        }
        if let Some(table) = self.hide {
            let table = table.descriptor()?;
            let number = before_exec::number(&table);
            command.env("GODWIT_CRIU_HIDE", number.to_string());
            pass.push(table);
        }
        if self.hide.is_some() || asked.iter().any(|(asked, _)| *asked) {
            let object = object()?;
            let number = before_exec::number(&object);
            command.env("LD_PRELOAD", format!("/proc/self/fd/{number}"));
            pass.push(object);
        }
        Ok(pass)
    }
}

/// The object of `preload.c`, as a file without a name.
fn object() -> io::Result<OwnedFd> {
    static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
    let file = File::from(memfd_create("criu-preload", MFdFlags::MFD_CLOEXEC)?);
    (&file).write_all(OBJECT)?;
    Ok(file.into())
}

fn open_procs(cgroup: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    /// Whether owners and devices can be made; says so where not.
    fn root(name: &str) -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some();
            assert!(!required, "{name} needs root");
            println!("SKIP {name}: needs root");
        }
        root
    }

    /// What CRIU packs and unpacks with.
    const PACK: &str = "tar --create --gzip --no-unquote --no-wildcards --one-file-system --check-links \
                        --preserve-permissions --sparse --numeric-owner --directory /proc/self/fd/0 .";
    const UNPACK: &str = "tar --extract --gzip --no-unquote --no-wildcards --directory";

    /// Becomes `arguments` the way CRIU does, by `execvp`, with the object preloaded or without.
    fn run(inside: bool, arguments: &[&str], input: &Path, output: &Path) -> bool {
        let mut command = Command::new("env");
        let asked = Asked {
            tar: inside,
            ..Asked::default()
        };
        let pass = asked.preload(&mut command).unwrap();
        let steps = BeforeExec {
            pass,
            ..BeforeExec::default()
        };
        before_exec(&mut command, steps);
        command
            .args(arguments)
            .stdin(File::open(input).unwrap())
            .stdout(File::create(output).unwrap());
        command.status().unwrap().success()
    }

    fn pack(inside: bool, from: &Path, to: &Path) -> bool {
        run(
            inside,
            &PACK.split_whitespace().collect::<Vec<_>>(),
            from,
            to,
        )
    }

    fn unpack(inside: bool, from: &Path, to: &Path) -> bool {
        let mut arguments: Vec<&str> = UNPACK.split_whitespace().collect();
        arguments.push(to.to_str().unwrap());
        run(inside, &arguments, from, Path::new("/dev/null"))
    }

    /// Whether an archive was made without gzip: its blocks are stored, the first of 64 KiB or all there is.
    fn stored(archive: &Path) -> bool {
        let bytes = fs::read(archive).unwrap();
        bytes[10] <= 1 && bytes[11] == !bytes[13] && bytes[12] == !bytes[14]
    }

    /// Mode, owner, group, device, time and content of a name.
    type Facts = (u32, u32, u32, u64, i64, Vec<u8>);

    /// Everything there is to know about a tree.
    fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
        let mut facts = BTreeMap::new();
        let mut next = vec![root.to_owned()];
        while let Some(path) = next.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = match () {
                () if meta.is_symlink() => fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes(),
                () if meta.is_file() => fs::read(&path).unwrap(),
                () => Vec::new(),
            };
            if meta.is_dir() {
                next.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
            let name = path.strip_prefix(root).unwrap().to_owned();
            let told = (
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.rdev(),
                meta.mtime(),
                content,
            );
            facts.insert(name, told);
        }
        facts
    }

    /// What is in a container's `/dev`, and more.
    fn tree(root: &Path) {
        fs::create_dir(root.join("shm")).unwrap();
        fs::write(root.join("shm/large"), vec![7; 200_000]).unwrap();
        fs::write(root.join("shm/empty"), b"").unwrap();
        fs::create_dir(root.join("shm/inner")).unwrap();
        fs::write(root.join("shm/inner/file"), b"content").unwrap();
        fs::set_permissions(root.join("shm"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(
            root.join("shm/inner/file"),
            fs::Permissions::from_mode(0o4640),
        )
        .unwrap();
        symlink("/proc/self/fd", root.join("fd")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&root.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
        std::os::unix::fs::chown(root.join("shm/inner"), Some(1000), Some(2000)).unwrap();
        std::os::unix::fs::lchown(root.join("fd"), Some(5), Some(6)).unwrap();
        for name in ["shm/inner", "shm", ""] {
            let path = File::open(root.join(name)).unwrap();
            let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
            path.set_modified(then).unwrap();
        }
    }

    #[test]
    fn a_tree_packed_and_unpacked_inside_is_what_tar_makes_of_it() {
        if !root("a_tree_packed_and_unpacked_inside_is_what_tar_makes_of_it") {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let from = scratch.path().join("from");
        fs::create_dir(&from).unwrap();
        tree(&from);
        let before = facts(&from);
        for (packs, unpacks) in [(true, true), (true, false), (false, true)] {
            let archive = scratch.path().join("archive");
            let to = scratch.path().join(format!("to-{packs}-{unpacks}"));
            fs::create_dir(&to).unwrap();
            assert!(pack(packs, &from, &archive));
            assert_eq!(stored(&archive), packs);
            assert!(unpack(unpacks, &archive, &to));
            assert_eq!(facts(&to), before, "{packs} {unpacks}");
        }
    }

    #[test]
    fn what_is_large_or_unusual_is_left_to_tar() {
        if !root("what_is_large_or_unusual_is_left_to_tar") {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let archive = scratch.path().join("archive");
        let cases: [&dyn Fn(&Path); 3] = [
            &|root| fs::write(root.join("large"), vec![7; 2 << 20]).unwrap(),
            &|root| fs::write(root.join("n".repeat(120)), b"").unwrap(),
            &|root| {
                fs::write(root.join("one"), b"").unwrap();
                fs::hard_link(root.join("one"), root.join("two")).unwrap();
            },
        ];
        for (number, make) in cases.iter().enumerate() {
            let [from, to] = ["from", "to"].map(|s| scratch.path().join(format!("{s}-{number}")));
            fs::create_dir(&from).unwrap();
            fs::create_dir(&to).unwrap();
            make(&from);
            assert!(pack(true, &from, &archive));
            assert!(!stored(&archive), "{number}");
            assert!(unpack(true, &archive, &to));
            assert_eq!(facts(&to), facts(&from), "{number}");
        }
    }

    #[test]
    fn an_archive_that_is_damaged_or_leads_outside_makes_nothing_there() {
        if !root("an_archive_that_is_damaged_or_leads_outside_makes_nothing_there") {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let [from, to, archive] = ["from", "to", "archive"].map(|n| scratch.path().join(n));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("file"), b"content").unwrap();
        assert!(pack(true, &from, &archive));
        let good = fs::read(&archive).unwrap();
        // A byte of the content that is not what the checksum says: tar is asked too, and says no.
        let mut bad = good.clone();
        let at = good.windows(7).position(|w| w == b"content").unwrap();
        bad[at] ^= 1;
        fs::write(&archive, &bad).unwrap();
        assert!(!unpack(true, &archive, &to));
        assert_ne!(
            fs::read(to.join("file")).ok().as_deref(),
            Some(&b"content"[..])
        );
        for cut in [0, 9, 11, 100, 600, good.len() - 1] {
            fs::write(&archive, &good[..cut]).unwrap();
            assert!(!unpack(true, &archive, &to), "{cut}");
        }
        // Whole, but with a name that leads outside, which tar refuses as well.
        let mut bad = good;
        let at = bad.windows(6).position(|w| w == b"./file").unwrap();
        bad[at..at + 6].copy_from_slice(b"../fil");
        repair(&mut bad, at);
        File::create(&archive)
            .unwrap()
            .write_all_at(&bad, 0)
            .unwrap();
        assert!(!unpack(true, &archive, &to));
        assert!(!scratch.path().join("fil").exists());
    }

    /// Makes the checksums right again after a change in the record at `at`.
    fn repair(archive: &mut [u8], at: usize) {
        let sum: u32 = (0..512)
            .map(|n| {
                if (148..156).contains(&n) {
                    32
                } else {
                    u32::from(archive[at + n])
                }
            })
            .sum();
        archive[at + 148..at + 155].copy_from_slice(format!("{sum:07o}").as_bytes());
        let end = archive.len() - 8;
        let mut crc = !0u32;
        for byte in &archive[15..end] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 {
                    0xedb8_8320 ^ crc >> 1
                } else {
                    crc >> 1
                };
            }
        }
        archive[end..end + 4].copy_from_slice(&(!crc).to_le_bytes());
    }
}
