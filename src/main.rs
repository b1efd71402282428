//! One binary: hidden re-execs first, then the command line.

use std::process::ExitCode;

use godwit::checkpoint::CriuRestorer;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // What follows is decided before any thread exists: these roads fork.
    match arguments.next().as_deref().and_then(|word| word.to_str()) {
        Some("init") => godwit::container::init::run(arguments),
        Some("fill") => godwit::memory::fill::run(arguments),
        Some("shim") => godwit::container::shim::run(arguments, &CriuRestorer::default()),
        None if std::env::var_os(godwit::cli::cni::COMMAND).is_some() => godwit::cli::cni::run(),
        _ => godwit::cli::run(),
    }
}
