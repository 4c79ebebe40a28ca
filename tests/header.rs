//! `include/holdfast.h` is what cbindgen makes of `src/capi`, and C and C++ compilers take it.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> PathBuf {
    root().join("include/holdfast.h")
}

fn generated() -> String {
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        style: cbindgen::Style::Tag,
        cpp_compat: true,
        include_guard: Some("HOLDFAST_H".into()),
        header: Some(
            "/* SPDX-License-Identifier: MIT OR Apache-2.0\n * The C API of holdfast. Made from src/capi by cbindgen; do not \
             edit.\n */"
            .into(),
        ),
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        after_includes: Some("\nstruct ibv_context; /* <infiniband/verbs.h> */\nstruct ibv_qp;".into()),
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        ..cbindgen::Config::default()
    };
    // A type that cbindgen does not see gets no tag of its own accord.
    for name in ["ibv_context", "ibv_qp"] {
        config.export.rename.insert(name.into(), format!("struct {name}"));
    }
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root().join("src/capi/mod.rs"))
        .generate()
        .unwrap();
    let mut bytes = Vec::new();
    bindings.write(&mut bytes);
    // How to keep a Rust promise is no news for C.
    let mut out = String::new();
    let mut skipping = false;
    for line in String::from_utf8(bytes).unwrap().lines() {
        skipping = match line.trim_start() {
            "* # Safety" => {
                // The empty line of the comment before it goes too.
                let kept = out.trim_end_matches('\n').rfind('\n').map_or(0, |at| at + 1);
                if out.get(kept..).is_some_and(|last| last.trim() == "*") {
                    out.truncate(kept);
                }
                true
            }
            text if text.starts_with("*/") => false,
            _ => skipping,
        };
        if !skipping {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[test]
fn the_checked_in_header_is_the_generated_one() {
    if std::env::var_os("HOLDFAST_WRITE_HEADER").is_some() {
        std::fs::create_dir_all(header().parent().unwrap()).unwrap();
        std::fs::write(header(), generated()).unwrap();
    }
    let kept = std::fs::read_to_string(header()).unwrap_or_default();
    assert!(
        kept == generated(),
        "include/holdfast.h is not what src/capi says; write it anew: HOLDFAST_WRITE_HEADER=1 cargo test --test header"
    );
}

#[test]
fn every_exported_function_of_ours_is_in_the_header() {
    let source = std::fs::read_to_string(root().join("src/capi/mod.rs")).unwrap();
    let names: Vec<&str> = source
        .lines()
        .filter_map(|line| line.split("extern \"C\" fn ").nth(1)?.split('(').next())
        .filter(|name| name.starts_with("holdfast_"))
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    let header = std::fs::read_to_string(header()).unwrap();
    for name in names {
        assert!(header.contains(&format!("{name}(")), "{name}");
    }
}

#[test]
fn c_and_cpp_take_the_header() {
    for (compiler, language) in [("cc", "c"), ("c++", "c++")] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("use");
        std::fs::write(
            &source,
            "#include \"holdfast.h\"\n#include \"holdfast.h\"\n\
             const char *use(const struct ibv_context *c)\n{ return holdfast_version() ? holdfast_context_family(c) : \
             holdfast_abi_layout(); }\n",
        )
        .unwrap();
        let output = Command::new(compiler)
            .args(["-x", language, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"])
            .arg(root().join("include"))
            .arg(&source)
            .output();
        // A compiler for C is needed to build holdfast at all; one for C++ is not.
        let output = match output {
            Err(_) if language == "c++" => continue,
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
