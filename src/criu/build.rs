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
fn link() {
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
