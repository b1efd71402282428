//! One binary: hidden re-execs first, then the command line.

use std::process::ExitCode;

use godwit::container::shim::{RestoreRequest, Restorer, ShimStdio};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // What follows is decided before any thread exists: these roads fork.
    match arguments.next().as_deref().and_then(|word| word.to_str()) {
        Some("init") => godwit::container::init::run(arguments),
        Some("shim") => godwit::container::shim::run(arguments, &NoRestorer),
        _ => godwit::cli::run(),
    }
}

/// The place of the one who restores containers from images.
struct NoRestorer;

impl Restorer for NoRestorer {
    fn restore(
        &self,
        _: &RestoreRequest,
        _: &ShimStdio,
        _: &mut dyn FnMut(i32) -> bool,
    ) -> Result<i32, String> {
        Err("this godwit cannot restore containers".to_owned())
    }
}
