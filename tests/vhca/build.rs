//! Turns `data/layouts.json` (the device's command layouts, as data) into one module of field constants a structure.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use serde_json::Value;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=data/layouts.json");
    let layouts: Value = serde_json::from_str(&fs::read_to_string("data/layouts.json")?)?;
    let mut out = String::new();
    for (name, layout) in layouts.get("structs").and_then(Value::as_object).ok_or("no structs")? {
        writeln!(out, "pub mod {name} {{ use super::Field;")?;
        writeln!(
            out,
            "pub const BYTES: usize = {};",
            layout.get("bits").and_then(Value::as_u64).ok_or("no size")? / 8
        )?;
        for field in layout.get("fields").and_then(Value::as_array).ok_or("no fields")? {
            let number = |name| field.get(name).and_then(Value::as_u64).ok_or("no number");
            let (bit, bits) = (number("bit")?, number("bits")?);
            let name = field.get("name").and_then(Value::as_str).ok_or("no name")?.to_uppercase();
            writeln!(out, "pub const {name}: Field = Field::new({bit}, {bits});")?;
        }
        out.push_str("}\n");
    }
    let opcodes = layouts.get("opcodes").and_then(Value::as_object).ok_or("no opcodes")?;
    out.push_str("pub mod op {\n");
    for (name, value) in opcodes {
        let rust = if name.starts_with(|c: char| c.is_ascii_digit()) {
            format!("TO_{}", &name[1..])
        } else {
            name.clone()
        };
        writeln!(out, "pub const {rust}: u16 = {value};")?;
    }
    out.push_str("}\npub const OPCODES: &[(u16, &str)] = &[\n");
    for (name, value) in opcodes {
        writeln!(out, "({value}, \"{name}\"),")?;
    }
    out.push_str("];\n");
    let path = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("layouts.rs");
    fs::write(path, out)?;
    Ok(())
}
