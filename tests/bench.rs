//! The benchmark measures what it says: a short run, whose figures nobody looks at, with each work request accounted for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may say what it did"
)]

mod c;

use holdfast_bench::Options;

/// A run of the fewest turns, with what this test run built.
fn options(workshop: &c::Workshop, rows: &str) -> Options {
    let lib = workshop.path().join("libholdfast.so");
    std::os::unix::fs::symlink(c::provider(), &lib).unwrap();
    for number in [33, 34, 57, 59, 64, 65] {
        let plugin = workshop.path().join(format!("libholdfast-rdmav{number}.so"));
        std::os::unix::fs::symlink(c::provider(), plugin).unwrap();
    }
    Options {
        command: env!("CARGO_BIN_EXE_holdfast").into(),
        lib: Some(lib),
        bed: Some(c::provider().with_file_name("libholdfast_sim.so")),
        bare: None,
        out: workshop.path().join("out"),
        cpu: None,
        rounds: 2,
        starts: 1,
        bursts: 1,
        programs: 0,
        counts: false,
        rows: rows.split(' ').map(str::to_owned).collect(),
        forget: false,
    }
}

#[test]
fn every_row_is_measured_with_every_work_request_accounted_for() {
    if !c::wanted("the benchmark") {
        return;
    }
    let workshop = c::Workshop::new();
    let options = options(&workshop, "*");
    let found = holdfast_bench::run(&options).unwrap();
    for name in
        ["post-write8-inline", "poll-send-16.single", "srq-16.domain", "open-device", "floor-post", "size-qp"]
    {
        assert!(found.rows.iter().any(|row| row["name"] == name), "no row {name}");
    }
    for row in &found.rows {
        let [stock, holdfast, ratio] =
            ["stock", "holdfast", "ratio"].map(|field| row[field].as_f64().unwrap());
        assert!(stock > 0.0 && holdfast > 0.0 && ratio > 0.0, "{row}");
        assert!(row["unit"] != "cycles" || row["turns"] == 2, "{row}");
    }
    let text = std::fs::read_to_string(options.out.join("bench.json")).unwrap();
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["rows"].as_array().unwrap(), &found.rows);
    assert!(
        std::fs::read_to_string(options.out.join("bench.svg")).unwrap().contains("post-write8-inline.domain")
    );
    let table = holdfast_bench::readme(&[options.out.join("bench.json")]).unwrap();
    assert!(table.contains("| RDMA write, 8 bytes inline |"), "{table}");
}

#[test]
fn instructions_are_counted_and_programs_run() {
    if !c::wanted("the benchmark") {
        return;
    }
    let workshop = c::Workshop::new();
    let options = Options { counts: true, programs: 1, ..options(&workshop, "poll-srq-16 ibv_rc_pingpong") };
    let found = holdfast_bench::run(&options).unwrap();
    let number = |name: &str, field: &str| {
        let row =
            found.rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name}"));
        row[field].as_f64()
    };
    // A completion of either provider takes some tens.
    let likely = |count: Option<f64>| count.is_some_and(|count| count > 20.0 && count < 5000.0);
    if std::path::Path::new("/usr/include/valgrind/callgrind.h").exists() {
        for name in ["poll-srq-16", "poll-srq-16.single", "poll-srq-16.domain"] {
            for field in ["stock_instructions", "holdfast_instructions"] {
                assert!(likely(number(name, field)), "{name}: {field} {:?}", number(name, field));
            }
        }
    } else {
        eprintln!("\n*** instructions are not counted: there is no valgrind ***\n");
    }
    assert!(number("ibv_rc_pingpong", "stock").is_some());
}

#[test]
fn a_run_that_leaves_out_a_work_request_fails() {
    if !c::wanted("the benchmark") {
        return;
    }
    for rows in ["post-write8-inline", "recv", "srq", "wr-write64", "floor-post"] {
        let workshop = c::Workshop::new();
        let options = Options { forget: true, ..options(&workshop, rows) };
        let error = holdfast_bench::run(&options).expect_err(rows);
        assert!(format!("{error:#}").contains("ended"), "{error:#}");
    }
}

#[test]
fn a_row_that_there_is_not_is_an_error() {
    if !c::wanted("the benchmark") {
        return;
    }
    let workshop = c::Workshop::new();
    let error = holdfast_bench::run(&options(&workshop, "posts")).unwrap_err();
    assert!(error.to_string().contains("post-write64"), "{error:#}");
}
