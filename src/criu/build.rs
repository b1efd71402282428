//! Builds the object that is preloaded into CRIU, see `preload.c`; and says how the program is linked.

use std::env;
use std::path::Path;

fn main() {
    link();
    let sources = [
        "src/criu/preload.c",
        "src/criu/preload_segments.c",
        "src/criu/preload_smaps.c",
        "src/criu/preload_tar.c",
        "src/criu/preload_userns.c",
    ];
    for source in sources.iter().chain(&["src/criu/preload.h"]) {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-changed=src/criu/build.rs");
    let out = env::var("OUT_DIR").expect("cargo sets it for build scripts");
    let object = Path::new(&out).join("preload.so");
    let mut compiler = cc::Build::new().opt_level(2).get_compiler().to_command();
    compiler.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-s"]);
    compiler.arg("-o").arg(object).args(sources).arg("-ldl");
    let status = compiler
        .status()
        .expect("a C compiler is installed by scripts/setup");
    assert!(
        status.success(),
        "what is preloaded into CRIU does not compile"
    );
}

/// Some 36000 places of the program hold its load address and a number. Packed they take 11 KiB of the file instead of
/// 880, which the loader reads at every start: what `godwit create` has resident went from 13.9 to 11.6 MiB. It takes
/// glibc 2.36 (Debian 12) or newer.
///
/// What unwinds the stack of a panic is linked into the program: as a library of its own, which it is by default, it took
/// the loader a tenth of each start.
fn link() {
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    let mut compiler = cc::Build::new().get_compiler().to_command();
    let found = compiler.arg("-print-file-name=libgcc_eh.a").output();
    let path = found.map_or_else(
        |_| String::new(),
        |out| String::from_utf8_lossy(&out.stdout).trim().to_owned(),
    );
    // What the compiler does not have it prints as it was asked.
    if let Some(directory) = Path::new(&path).parent().filter(|d| d.is_absolute()) {
        println!("cargo:rustc-link-search=native={}", directory.display());
        println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
    }
}
