//! Names the shared library as the driver it stands in for, so that a program that opens
//! `libcuda.so.1` after it was loaded by path gets the same one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
}
