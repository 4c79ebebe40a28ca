//! The structs and constants of `src/abi/public.rs` against the `<infiniband/verbs.h>` of this machine.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may say what it did"
)]

mod c;

use holdfast::abi::public::{C_CONSTS, C_STRUCTS, CKind};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

/// The header that `#include <infiniband/verbs.h>` means (`CPATH` may say another), with everything it includes.
fn preprocessed(workshop: &c::Workshop) -> String {
    let source = workshop.write("verbs.c", "#include <infiniband/verbs.h>\n");
    let output = Command::new(std::env::var_os("CC").unwrap_or_else(|| "gcc".into()))
        .args(["-E", "-dD", "-P"])
        .arg(source)
        .output()
        .unwrap_or_else(|error| panic!("cannot run the C compiler: {error}. {}", c::WAY_OUT));
    assert!(output.status.success(), "{}\n{}", c::WAY_OUT, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn sizes_offsets_and_constants_are_those_of_the_installed_header() {
    if !c::wanted("abi_header") {
        return;
    }
    let workshop = c::Workshop::new();
    let header = preprocessed(&workshop);
    let words: std::collections::BTreeSet<&str> =
        header.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let mut expected = BTreeMap::new();
    let mut program = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n\
         #define SIZE(t) printf(\"%s %zu\\n\", #t, sizeof(t))\n\
         #define FIELD(t, f) printf(\"%s.%s %zu %zu\\n\", #t, #f, offsetof(t, f), sizeof(((t *)0)->f))\n\
         #define CONST(c) printf(\"%s %u\\n\", #c, (unsigned int)(c))\n\
         int main(void) {\n",
    );
    for ours in C_STRUCTS {
        let kind = match ours.kind {
            CKind::Struct => "struct",
            CKind::Union => "union",
            CKind::Newer if words.contains(ours.name) => "struct",
            // Compared through the struct that holds it, or not there yet.
            CKind::Anonymous | CKind::Newer => continue,
            CKind::Prefix => panic!("{} is not public", ours.name),
        };
        let name = format!("{kind} {}", ours.name);
        let body = header
            .split_once(&format!("{name} {{"))
            .map_or("", |(_, rest)| rest.split("\n};").next().unwrap());
        let has =
            |word: &str| body.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|known| known == word);
        let known = |field: &&holdfast::abi::public::CField| !field.newer || has(field.name);
        if ours.fields.iter().all(|field| known(&field)) {
            writeln!(program, "SIZE({name});").unwrap();
            expected.insert(name.clone(), format!("{}", ours.size));
        }
        for field in ours.fields.iter().filter(known) {
            writeln!(program, "FIELD({name}, {});", field.name).unwrap();
            expected.insert(format!("{name}.{}", field.name), format!("{} {}", field.offset, field.size));
        }
    }
    // Members of types without a name, through the struct that holds them.
    for (path, offset) in [
        ("wr.rdma.remote_addr", 40),
        ("wr.rdma.rkey", 48),
        ("wr.atomic.remote_addr", 40),
        ("wr.atomic.compare_add", 48),
        ("wr.atomic.swap", 56),
        ("wr.atomic.rkey", 64),
        ("wr.ud.ah", 40),
        ("wr.ud.remote_qpn", 48),
        ("wr.ud.remote_qkey", 52),
        ("qp_type.xrc.remote_srqn", 72),
        ("bind_mw.mw", 80),
        ("bind_mw.rkey", 88),
        ("bind_mw.bind_info", 96),
        ("tso.hdr", 80),
        ("tso.hdr_sz", 88),
        ("tso.mss", 90),
        ("invalidate_rkey", 36),
    ] {
        writeln!(
            program,
            "printf(\"%s %zu\\n\", \"ibv_send_wr.{path}\", offsetof(struct ibv_send_wr, {path}));"
        )
        .unwrap();
        expected.insert(format!("ibv_send_wr.{path}"), offset.to_string());
    }
    for constant in C_CONSTS {
        if words.contains(constant.name) || !constant.newer {
            writeln!(program, "CONST({});", constant.name).unwrap();
            expected.insert(constant.name.to_owned(), constant.value.to_string());
        }
    }
    program.push_str("return 0;\n}\n");

    let source = workshop.write("layout.c", &program);
    let binary = workshop.build("layout", &source, [""; 0]);
    let output = c::stdout(&Command::new(binary).output().unwrap());
    let mut compared = 0;
    for line in output.lines() {
        let (name, found) = match line.strip_prefix("struct ").or(line.strip_prefix("union ")) {
            Some(rest) => {
                let (name, found) = rest.split_once(' ').unwrap();
                (&line[..line.len() - rest.len() + name.len()], found)
            }
            None => line.split_once(' ').unwrap(),
        };
        assert_eq!(
            expected.get(name).map(String::as_str),
            Some(found),
            "{name}: the header has the right side"
        );
        compared += 1;
    }
    assert_eq!(compared, expected.len());
    assert!(compared > 700, "only {compared} facts were compared");
}
