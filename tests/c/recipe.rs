//! Libraries that look like a libibverbs of a recorded layout, to a provider.

use super::{Workshop, source};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A file of `tests/data/pabi`.
pub fn facts(layout: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/pabi/{layout}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The recorded layouts by name, oldest first.
pub fn layouts() -> Vec<String> {
    let layouts = facts("ops-matrix")["layouts"].clone();
    layouts.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// A library to build, from the recorded facts alone: nothing of `src/abi` enters.
pub struct Recipe {
    pub number: u64,
    pub context_size: u64,
    pub comp_mask: u64,
    pub operations: Vec<String>,
    pub mirrors: Vec<(String, i64)>,
    pub exports: Vec<String>,
    pub flags: Vec<&'static str>,
}

impl Recipe {
    pub fn of(layout: &str) -> Recipe {
        let facts = facts(layout);
        let fields = |name: &str| -> Vec<(String, i64)> {
            let fields = facts["structs"][name]["fields"].as_array().unwrap().iter();
            fields.map(|field| (field[0].as_str().unwrap().to_owned(), field[1].as_i64().unwrap())).collect()
        };
        let at = |name: &str, field: &str| fields(name).iter().find(|known| known.0 == field).unwrap().1;
        let context = at("verbs_context", "context");
        let operations: Vec<String> = fields("verbs_context_ops").into_iter().map(|field| field.0).collect();
        let public = fields("verbs_context").into_iter().map(|(name, offset)| (name, offset - context));
        let context_ops = at("ibv_context", "ops");
        let public =
            public.chain(fields("ibv_context_ops").into_iter().map(|field| (field.0, field.1 + context_ops)));
        let mirrors = public
            .filter_map(|(name, distance)| {
                let bare = name.trim_start_matches("_compat_").trim_start_matches("ibv_");
                // libibverbs has functions of its own in these two places.
                let wrapped = matches!(bare, "create_cq_ex" | "query_port");
                (operations.iter().any(|known| known == bare) && !wrapped)
                    .then(|| (bare.to_owned(), distance))
            })
            .collect();
        let exports =
            facts["public_symbols"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        let own = ["ibv_qp_to_qp_ex", "ibv_get_device_list"];
        let mut exports: Vec<String> =
            exports.filter(|name| !name.contains(' ') && !own.contains(&name.as_str())).collect();
        if !facts["has_ibv_wr_opcode_str"].is_null() {
            exports.push("ibv_wr_opcode_str".to_owned());
        }
        Recipe {
            number: facts["pabi"].as_u64().unwrap(),
            context_size: facts["structs"]["verbs_context"]["size"].as_u64().unwrap(),
            comp_mask: facts["structs"]["ibv_qp_ex"]["size"].as_u64().unwrap(),
            operations,
            mirrors,
            exports,
            flags: Vec::new(),
        }
    }

    pub fn build(&self, workshop: &Workshop, name: &str) -> PathBuf {
        let mut header = String::new();
        for export in &self.exports {
            writeln!(header, "EXPORT({export})").unwrap();
        }
        for (op, distance) in &self.mirrors {
            let index = self.operations.iter().position(|known| known == op).unwrap();
            writeln!(header, "MIRROR({index}, {distance})").unwrap();
        }
        let header = workshop.write(&format!("{name}/layout.h"), &header);
        let arguments = [
            "-shared".to_owned(),
            "-fPIC".to_owned(),
            "-fno-builtin".to_owned(),
            "-Wl,-soname,libibverbs.so.1".to_owned(),
            format!("-I{}", header.parent().unwrap().display()),
            format!("-DNUMBER={}", self.number),
            format!("-DCONTEXT_SIZE={}", self.context_size),
            format!("-DCOMP_MASK={}", self.comp_mask),
            format!("-DOPERATIONS={}", self.operations.len()),
        ];
        let arguments = arguments.into_iter().chain(self.flags.iter().map(|flag| (*flag).to_owned()));
        workshop.build(&format!("{name}/libibverbs.so.1"), &source("libibverbs.c"), arguments)
    }
}
