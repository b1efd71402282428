//! Templates, as the API tells of them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::api::types::TemplateInfo;
use crate::model::{Limits, Name, Restart, Userns};
use crate::oci::account::{Account, UserWish};
use crate::oci::{self, Defaults, OciError, Rootfs, Template};
use crate::rootfs::ImageStore;

/// What is known of the template `name`. One that is not in order is told of, too.
pub fn info(directory: &Path, images: &ImageStore, name: Name) -> TemplateInfo {
    match oci::catalogue::load(directory, &name) {
        Ok((template, dir)) => {
            let built = images.built(&template, &dir);
            TemplateInfo {
                name,
                rootfs: rootfs(&template.rootfs),
                command: template.container.command,
                ports: template.container.ports,
                problem: built.as_ref().err().map(|e| super::chain(e)),
                image: built.unwrap_or(None),
            }
        }
        Err(e) => broken(name, &e),
    }
}

fn broken(name: Name, error: &OciError) -> TemplateInfo {
    TemplateInfo {
        name,
        rootfs: String::new(),
        command: Vec::new(),
        ports: Vec::new(),
        image: None,
        problem: Some(super::chain(error)),
    }
}

fn rootfs(rootfs: &Rootfs) -> String {
    match rootfs {
        Rootfs::Packages {
            packages, suite, ..
        } => {
            let suite = suite.as_deref().unwrap_or("the host's release");
            format!("{} of {suite}", packages.join(" "))
        }
        Rootfs::Directory(path) => format!("the directory {}", path.display()),
    }
}

/// What a container made of an image alone does where the request does not say: it runs as root in `/`, and
/// the command has to be given.
pub fn of_bare_image() -> Template {
    Template {
        name: Name::try_from("image".to_owned()).expect("it is a DNS label"),
        rootfs: Rootfs::Directory(".".into()),
        files: None,
        container: Defaults {
            command: Vec::new(),
            env: BTreeMap::new(),
            cwd: "/".into(),
            user: UserWish {
                user: Account::Id(0),
                group: Some(Account::Id(0)),
            },
            ports: Vec::new(),
            limits: Limits::default(),
            restart: Restart::No,
            userns: Userns::Auto,
        },
    }
}
