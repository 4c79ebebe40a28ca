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
        programs: 1,
        counts: true,
        rows: vec![rows.to_owned()],
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
    for name in [
        "post-write8-inline",
        "poll-send-16.single",
        "srq-16.domain",
        "open-device",
        "floor-post",
        "size-qp",
        "ibv_rc_pingpong",
    ] {
        assert!(found.rows.iter().any(|row| row["name"] == name), "no row {name}");
    }
    let counted = |name: &str| {
        found.rows.iter().any(|row| row["name"] == name && row["holdfast_instructions"].is_number())
    };
    let valgrind = std::path::Path::new("/usr/include/valgrind/callgrind.h").exists();
    assert_eq!(counted("post-write8-inline") && counted("poll-srq-16.domain"), valgrind);
    for row in &found.rows {
        let [stock, holdfast, ratio] =
            ["stock", "holdfast", "ratio"].map(|field| row[field].as_f64().unwrap());
        assert!(stock > 0.0 && holdfast > 0.0 && ratio > 0.0 && row["turns"].as_u64() > Some(0), "{row}");
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
fn a_run_that_leaves_out_a_work_request_fails() {
    if !c::wanted("the benchmark") {
        return;
    }
    for rows in ["post-write8-inline", "recv", "srq", "wr-write64", "floor-post"] {
        let workshop = c::Workshop::new();
        let options = Options { forget: true, counts: false, ..options(&workshop, rows) };
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
