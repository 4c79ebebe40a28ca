//! The layouts of `src/abi` against the recorded facts in `tests/data/pabi`, field by field.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may say what it did"
)]

use holdfast::abi::detect::{self, Probe};
use holdfast::abi::layout::{LAYOUTS, Layout};
use holdfast::abi::ops::Op;
use holdfast::abi::public::{
    C_STRUCTS, CKind, CStruct, PORT_ATTR_SIZE_MIN, PRIVATE_STRUCTS, VERBS_DEVICE_SIZE, ibv_context,
    ibv_port_attr,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::path::{Path, PathBuf};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pabi")
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every recorded layout with ours, in order.
fn pairs() -> Vec<(Value, &'static Layout)> {
    let names = json(&data().join("ops-matrix.json"))["layouts"].clone();
    let names = names.as_array().unwrap();
    let files = std::fs::read_dir(data()).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_str().is_some_and(|name| name.starts_with("pabi-"))
    });
    assert_eq!(
        files.count(),
        LAYOUTS.len(),
        "a recorded layout without a file in src/abi/layouts, or the reverse"
    );
    assert_eq!(names.len(), LAYOUTS.len());
    names
        .iter()
        .zip(LAYOUTS)
        .map(|(name, layout)| (json(&data().join(format!("{}.json", name.as_str().unwrap()))), *layout))
        .collect()
}

/// A recorded struct, of the newest release of its layout where releases differ.
fn recorded<'a>(facts: &'a Value, name: &str) -> Option<&'a Value> {
    let found = facts["structs"].get(name)?;
    Some(found.get("variants").map_or(found, |variants| variants.as_array().unwrap().last().unwrap()))
}

fn size(facts: &Value, name: &str) -> usize {
    let found = recorded(facts, name).unwrap_or_else(|| panic!("no {name} in {}", facts["layout"]));
    usize::try_from(found["size"].as_u64().unwrap()).unwrap()
}

/// Fields of a struct by name, with offset and size; members of unnamed fields count as the struct's own.
fn fields(facts: &Value, name: &str) -> BTreeMap<String, (usize, usize)> {
    let found = recorded(facts, name).unwrap_or_else(|| panic!("no {name} in {}", facts["layout"]));
    let mut out = BTreeMap::new();
    collect(&found["fields"], 0, &mut out);
    out
}

fn collect(fields: &Value, base: usize, out: &mut BTreeMap<String, (usize, usize)>) {
    for field in fields.as_array().unwrap() {
        let name = field[0].as_str().unwrap();
        let number = |at: usize| usize::try_from(field[at].as_u64().unwrap()).unwrap();
        let offset = base + number(1);
        if name.is_empty() {
            collect(&field[3], offset, out);
        } else {
            out.insert(name.to_owned(), (offset, number(2)));
        }
    }
}

#[test]
fn numbers_releases_and_sizes_agree() {
    for (facts, layout) in pairs() {
        let name = &facts["layout"];
        assert_eq!(facts["pabi"], layout.number, "{name}");
        let releases = layout.releases.replace(" to ", "-").replace(" and ", "-");
        assert_eq!(facts["releases"], releases, "{name}");
        assert_eq!(facts["register_symbol"], layout.register_symbol().to_str().unwrap());
        assert_eq!(size(&facts, "verbs_context"), layout.verbs_context_size, "{name}");
        assert_eq!(size(&facts, "ibv_qp_ex"), layout.qp_ex_size, "{name}");
        assert_eq!(fields(&facts, "verbs_qp")["comp_mask"].0, layout.comp_mask(), "{name}");
        let qp_ex = fields(&facts, "ibv_qp_ex");
        assert_eq!(qp_ex.contains_key("wr_atomic_write"), layout.has_wr_atomic_write(), "{name}");
        assert_eq!(qp_ex.contains_key("wr_flush"), layout.has_wr_flush(), "{name}");
        assert_eq!(size(&facts, "verbs_device"), VERBS_DEVICE_SIZE, "{name}");
        for function in ["_verbs_init_and_alloc_context", "verbs_set_ops", "verbs_uninit_context"] {
            assert_eq!(facts["private_symbols"][function][0]["releases"], "all", "{name}: {function}");
        }
    }
}

#[test]
fn every_operation_is_in_its_place() {
    let matrix = json(&data().join("ops-matrix.json"));
    for (column, (facts, layout)) in pairs().into_iter().enumerate() {
        let declared = facts["operations"].as_array().unwrap();
        let names: Vec<&str> =
            declared.iter().map(|declaration| split(declaration.as_str().unwrap()).1).collect();
        let ours: Vec<&str> = layout.ops.iter().map(Op::name).collect();
        assert_eq!(names, ours, "{}", facts["layout"]);
        assert_eq!(size(&facts, "verbs_context_ops"), 8 * layout.ops.len());
        for (index, name) in names.iter().enumerate() {
            assert_eq!(layout.op_index(Op::from_name(name).unwrap()), Some(index));
        }
        let indices = matrix["index"].as_object().unwrap();
        assert_eq!(indices.len(), Op::ALL.len(), "an operation without a type in src/abi/ops.rs");
        for op in Op::ALL {
            let index = indices[op.name()][column].as_u64().map(|index| usize::try_from(index).unwrap());
            assert_eq!(layout.op_index(*op), index, "{} in {}", op.name(), facts["layout"]);
        }
    }
}

/// `int (*name)(args)` into `int`, `name`, `args`.
fn split(declaration: &str) -> (&str, &str, &str) {
    let (returned, rest) = declaration.split_once("(*").unwrap();
    let (name, rest) = rest.split_once(")(").unwrap();
    (returned.trim(), name, rest.strip_suffix(')').unwrap())
}

/// The Rust type that stands for a C type in `src/abi`.
fn rust_type(c: &str) -> String {
    let c = c.trim();
    if let Some(inner) = c.strip_suffix('*') {
        let inner = inner.trim();
        return match inner.strip_prefix("const ") {
            Some(constant) if !constant.ends_with('*') => format!("*const {}", rust_type(constant)),
            _ => format!("*mut {}", rust_type(inner)),
        };
    }
    if c.starts_with("enum ") {
        return "u32".to_owned();
    }
    match c {
        "int" => "c_int",
        "unsigned int" => "c_uint",
        "void" => "c_void",
        "size_t" => "usize",
        "uint8_t" => "u8",
        "uint16_t" => "u16",
        "uint32_t" => "u32",
        "uint64_t" => "u64",
        other => other.strip_prefix("struct ").or(other.strip_prefix("union ")).unwrap_or(other),
    }
    .to_owned()
}

#[test]
fn every_operation_has_its_c_type() {
    let mut seen = BTreeSet::new();
    for (facts, _) in pairs() {
        for declaration in facts["operations"].as_array().unwrap() {
            let (returned, name, arguments) = split(declaration.as_str().unwrap());
            let arguments: String = arguments
                .split(',')
                .map(|argument| {
                    // The type ends where the parameter's name begins.
                    let end = argument.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap() + 1;
                    rust_type(&argument[..end]) + ", "
                })
                .collect();
            let returned = match returned {
                "void" => String::new(),
                other => format!(" -> {}", rust_type(other)),
            };
            let signature = Op::from_name(name).unwrap().signature().replace("  ", " ");
            assert_eq!(signature, format!("({arguments}){returned}"), "{name} in {}", facts["layout"]);
            seen.insert(name.to_owned());
        }
    }
    assert_eq!(seen.len(), Op::ALL.len());
}

#[test]
fn what_verbs_set_ops_mirrors_is_where_we_look_for_it() {
    for (facts, layout) in pairs() {
        let name = &facts["layout"];
        let verbs_context = fields(&facts, "verbs_context");
        let context = verbs_context["context"].0;
        assert_eq!(context, layout.before_context(), "{name}");
        assert_eq!(
            layout.verbs_context_size,
            context + size_of::<ibv_context>(),
            "{name}: the context is not last"
        );
        let from_context =
            |field: &str| verbs_context.get(field).map(|at| at.0.cast_signed() - context.cast_signed());
        assert_eq!(from_context("sz"), Some(Layout::SZ), "{name}");
        assert_eq!(from_context("priv"), Some(Layout::PRIV), "{name}");
        assert_eq!(fields(&facts, "verbs_ex_private")["ops"].0, Layout::PRIV_OPS, "{name}");

        let ops = fields(&facts, "ibv_context")["ops"].0;
        let context_ops = fields(&facts, "ibv_context_ops");
        let mut mirrored = BTreeSet::new();
        for (op, distance) in layout.mirrors() {
            assert!(layout.op_index(op).is_some(), "{name}: {} is mirrored but does not exist", op.name());
            assert!(mirrored.insert(op), "{name}: {} twice", op.name());
            let expected = if distance > 0 {
                let compat = format!("_compat_{}", op.name());
                let field = context_ops.get(op.name()).or_else(|| context_ops.get(&compat));
                field.map(|at| (ops + at.0).cast_signed())
            } else {
                from_context(op.name()).or_else(|| from_context(&format!("ibv_{}", op.name())))
            };
            assert_eq!(Some(distance), expected, "{name}: {}", op.name());
        }
        // Whatever the public part of a context has a place for is compared, but for what libibverbs wraps itself.
        for op in layout.ops.iter().filter(|op| !mirrored.contains(op)) {
            let wrapped = matches!(op.name(), "create_cq_ex" | "query_port");
            assert!(wrapped || from_context(op.name()).is_none(), "{name}: {} is not compared", op.name());
            assert!(wrapped || !context_ops.contains_key(op.name()), "{name}: {} is not compared", op.name());
        }
    }
}

#[test]
fn every_struct_agrees_in_every_layout() {
    let oldest = &pairs()[0].0;
    let mut compared = 0;
    for (facts, _) in pairs() {
        for ours in C_STRUCTS.iter().chain(PRIVATE_STRUCTS) {
            if recorded(&facts, ours.name).is_some() {
                compare(&facts, ours);
                compared += 1;
            } else {
                // Types of members without a name, and those that only a field of a compared struct has.
                let nowhere = recorded(oldest, ours.name).is_none();
                assert!(nowhere && ours.kind != CKind::Prefix, "{} left {}", ours.name, facts["layout"]);
            }
        }
    }
    assert!(compared > 50 * LAYOUTS.len(), "only {compared} structs were compared");
}

fn compare(facts: &Value, ours: &CStruct) {
    let at = format!("{} in {}", ours.name, facts["layout"]);
    let theirs = fields(facts, ours.name);
    for field in ours.fields {
        match theirs.get(field.name) {
            Some(found) => {
                assert_eq!((field.offset, field.size), *found, "{at}: {}", field.name)
            }
            None => assert!(field.newer, "{at}: no {}", field.name),
        }
    }
    let newer = ours.fields.iter().any(|field| field.newer && !theirs.contains_key(field.name));
    if ours.kind == CKind::Prefix {
        assert!(ours.size <= size(facts, ours.name), "{at}");
    } else if !newer {
        assert_eq!(ours.size, size(facts, ours.name), "{at}");
    }
    // Nothing of theirs is missing here, but the members of unnamed unions, of which one stands for all.
    let unions = ["invalidate_rkey", "invalidated_rkey", "tso"];
    for (name, (offset, _)) in &theirs {
        let known = ours.fields.iter().any(|field| field.name == name);
        let beyond = ours.kind == CKind::Prefix && *offset >= 964;
        assert!(known || beyond || unions.contains(&name.as_str()), "{at}: {name} is not declared");
    }
}

struct Recorded<'a>(&'a Value);

impl Probe for Recorded<'_> {
    fn has(&self, symbol: &CStr) -> bool {
        let symbol = symbol.to_str().unwrap();
        let public = self.0["public_symbols"].as_array().unwrap().iter().any(|name| name == symbol);
        let wr_opcode_str = symbol == "ibv_wr_opcode_str" && !self.0["has_ibv_wr_opcode_str"].is_null();
        public || wr_opcode_str || self.0["private_symbols"].get(symbol).is_some()
    }

    fn comp_mask(&self) -> Option<usize> {
        Some(fields(self.0, "verbs_qp")["comp_mask"].0)
    }
}

#[test]
fn each_recorded_library_is_recognised_as_itself() {
    for (facts, layout) in pairs() {
        let found = detect::detect(&Recorded(&facts)).unwrap();
        assert!(core::ptr::eq(found.layout, layout), "{} taken for {}", facts["layout"], found.layout);
        let variants = facts["structs"]["ibv_port_attr"].get("variants").and_then(Value::as_array);
        let (oldest, newest) = match variants {
            Some(variants) => (&variants[0]["size"], &variants[variants.len() - 1]["size"]),
            None => (&facts["structs"]["ibv_port_attr"]["size"], &facts["structs"]["ibv_port_attr"]["size"]),
        };
        assert_eq!(*newest, found.port_attr_size, "{}", facts["layout"]);
        // The release that grew it is the release that exports the function it is told by.
        if oldest != newest {
            assert_eq!(
                (oldest, newest),
                (&Value::from(PORT_ATTR_SIZE_MIN), &Value::from(size_of::<ibv_port_attr>()))
            );
            let grown = &variants.unwrap().last().unwrap()["releases"];
            assert_eq!(*grown, facts["has_ibv_wr_opcode_str"][0]["releases"]);
        }
    }
}
