//! Builds the object that is preloaded into CRIU; see `preload.c`.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=src/criu/preload.c");
    println!("cargo:rerun-if-changed=src/criu/build.rs");
    let out = env::var("OUT_DIR").expect("cargo sets it for build scripts");
    let object = Path::new(&out).join("preload.so");
    let mut compiler = cc::Build::new().opt_level(2).get_compiler().to_command();
    compiler.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-s"]);
    compiler
        .arg("-o")
        .arg(object)
        .arg("src/criu/preload.c")
        .arg("-ldl");
    let status = compiler
        .status()
        .expect("a C compiler is installed by scripts/setup");
    assert!(status.success(), "src/criu/preload.c does not compile");
}
