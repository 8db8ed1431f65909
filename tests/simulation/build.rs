//! Compiles the stand-in for the kernel's random numbers and links it into whatever uses this crate.

fn main() {
    println!("cargo::rerun-if-changed=src/entropy.c");
    // Whole: nothing refers to it by a reference that would pull it out of an archive.
    cc::Build::new()
        .file("src/entropy.c")
        .link_lib_modifier("+whole-archive")
        .compile("simulation_entropy");
}
