//! Link arguments of the provider. Nothing is generated and nothing is fetched.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The name other files may record; no libibverbs in DT_NEEDED, whatever the host's linker defaults to.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libholdfast.so");
    // libibverbs keeps our function pointers for the life of the process, and so may a thread of ours.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now");
}
