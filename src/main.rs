//! One binary: hidden re-execs first, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    godwit::cli::run()
}
