//! The uAPI as we write it, against the C headers: the installed ones by the C compiler, newer ones by a data file that the
//! same program made of them (`tests/data/uapi`).

use super::event::EventType;
use super::{DriverId, cq, device, ids, mlx5, qp, rwq_ind_table, rxe, srq, sys, wire};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// Every struct we lay out.
fn layouts() -> impl Iterator<Item = &'static wire::Layout> {
    wire::LAYOUTS.iter().chain(rxe::LAYOUTS).chain(rxe::WR_LAYOUTS).chain(mlx5::LAYOUTS)
}

/// Every number we send or compare with. Those of verbs.h are the ones that the kernel's own `ib_verbs.h` repeats.
fn numbers() -> Vec<(&'static str, u64)> {
    let tables =
        [ids::OBJECTS, ids::METHODS, ids::ATTRS, ids::WRITE_CMDS, ids::MLX5_METHODS, ids::MLX5_ATTRS];
    let tables = tables.into_iter().flatten().map(|number| (number.name, number.value));
    let events = [
        ("IBV_EVENT_CQ_ERR", EventType::CQ_ERR),
        ("IBV_EVENT_QP_FATAL", EventType::QP_FATAL),
        ("IBV_EVENT_QP_REQ_ERR", EventType::QP_REQ_ERR),
        ("IBV_EVENT_QP_ACCESS_ERR", EventType::QP_ACCESS_ERR),
        ("IBV_EVENT_COMM_EST", EventType::COMM_EST),
        ("IBV_EVENT_SQ_DRAINED", EventType::SQ_DRAINED),
        ("IBV_EVENT_PATH_MIG", EventType::PATH_MIG),
        ("IBV_EVENT_PATH_MIG_ERR", EventType::PATH_MIG_ERR),
        ("IBV_EVENT_DEVICE_FATAL", EventType::DEVICE_FATAL),
        ("IBV_EVENT_PORT_ACTIVE", EventType::PORT_ACTIVE),
        ("IBV_EVENT_PORT_ERR", EventType::PORT_ERR),
        ("IBV_EVENT_LID_CHANGE", EventType::LID_CHANGE),
        ("IBV_EVENT_PKEY_CHANGE", EventType::PKEY_CHANGE),
        ("IBV_EVENT_SM_CHANGE", EventType::SM_CHANGE),
        ("IBV_EVENT_SRQ_ERR", EventType::SRQ_ERR),
        ("IBV_EVENT_SRQ_LIMIT_REACHED", EventType::SRQ_LIMIT_REACHED),
        ("IBV_EVENT_QP_LAST_WQE_REACHED", EventType::QP_LAST_WQE_REACHED),
        ("IBV_EVENT_CLIENT_REREGISTER", EventType::CLIENT_REREGISTER),
        ("IBV_EVENT_GID_CHANGE", EventType::GID_CHANGE),
        ("IBV_EVENT_WQ_FATAL", EventType::WQ_FATAL),
    ];
    let others = [
        ("RDMA_VERBS_IOCTL", sys::RDMA_VERBS_IOCTL),
        ("UVERBS_ATTR_F_MANDATORY", u32::from(sys::MANDATORY)),
        ("UVERBS_ATTR_F_VALID_OUTPUT", u32::from(sys::VALID_OUTPUT)),
        ("MLX5_IB_ATTR_QUERY_CONTEXT_RESP_UCTX", u32::from(ids::QUERY_CONTEXT_RESP_UCTX.0)),
        ("MLX5_IB_OBJECT_UAR", u32::from(ids::OBJECT_UAR)),
        ("MLX5_LIB_CAP_4K_UAR", mlx5::LIB_CAP_4K_UAR as u32),
        ("MLX5_LIB_CAP_DYN_UAR", mlx5::LIB_CAP_DYN_UAR as u32),
        ("MLX5_IB_ALLOC_UCTX_DEVX", mlx5::ALLOC_UCTX_DEVX),
        ("MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_CORE_CLOCK_OFFSET", mlx5::RESP_MASK_CORE_CLOCK_OFFSET),
        ("MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_DUMP_FILL_MKEY", mlx5::RESP_MASK_DUMP_FILL_MKEY),
        ("MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_ECE", mlx5::RESP_MASK_ECE),
        ("MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_REAL_TIME_TS", mlx5::RESP_MASK_REAL_TIME_TS),
        ("MLX5_USER_CMDS_SUPP_UHW_QUERY_DEVICE", u32::from(mlx5::UHW_QUERY_DEVICE)),
        ("MLX5_USER_CMDS_SUPP_UHW_CREATE_AH", u32::from(mlx5::UHW_CREATE_AH)),
        ("MLX5_USER_INLINE_MODE_NONE", u32::from(mlx5::INLINE_MODE_NONE)),
        ("MLX5_QP_FLAG_SIGNATURE", mlx5::QP_FLAG_SIGNATURE),
        ("MLX5_QP_FLAG_SCATTER_CQE", mlx5::QP_FLAG_SCATTER_CQE),
        ("MLX5_QP_FLAG_BFREG_INDEX", mlx5::QP_FLAG_BFREG_INDEX),
        ("MLX5_QP_FLAG_UAR_PAGE_INDEX", mlx5::QP_FLAG_UAR_PAGE_INDEX),
        ("MLX5_IB_CREATE_CQ_FLAGS_UAR_PAGE_INDEX", u32::from(mlx5::CREATE_CQ_FLAGS_UAR_PAGE_INDEX)),
        ("MLX5_IB_CREATE_CQ_FLAGS_REAL_TIME_TS", u32::from(mlx5::CREATE_CQ_FLAGS_REAL_TIME_TS)),
        ("MLX5_IB_MMAP_REGULAR_PAGE", mlx5::MMAP_REGULAR_PAGE as u32),
        ("MLX5_IB_MMAP_NC_PAGE", mlx5::MMAP_NC_PAGE as u32),
        ("MLX5_IB_MMAP_CORE_CLOCK", mlx5::MMAP_CORE_CLOCK as u32),
        ("MLX5_IB_MMAP_CLOCK_INFO", mlx5::MMAP_CLOCK_INFO as u32),
        ("MLX5_IB_MMAP_DEVICE_MEM", mlx5::MMAP_DEVICE_MEM as u32),
        ("MLX5_IB_CLOCK_INFO_V1", mlx5::CLOCK_INFO_V1),
        ("MLX5_IB_CLOCK_INFO_KERNEL_UPDATING", mlx5::CLOCK_INFO_KERNEL_UPDATING),
        ("MLX5_IB_UAPI_UAR_ALLOC_TYPE_BF", mlx5::UAR_ALLOC_TYPE_BF as u32),
        ("MLX5_IB_UAPI_UAR_ALLOC_TYPE_NC", mlx5::UAR_ALLOC_TYPE_NC as u32),
        ("RDMA_DRIVER_MLX5", DriverId::MLX5.0),
        ("RDMA_DRIVER_RXE", DriverId::RXE.0),
        ("IB_UVERBS_CQ_FLAGS_TIMESTAMP_COMPLETION", cq::TIMESTAMP_COMPLETION),
        ("IB_UVERBS_CQ_FLAGS_IGNORE_OVERRUN", cq::IGNORE_OVERRUN),
        ("IBV_CQ_ATTR_MODERATE", cq::MODERATE),
        ("IB_UVERBS_SRQT_BASIC", srq::BASIC),
        ("IB_UVERBS_SRQT_XRC", srq::XRC),
        ("IB_UVERBS_SRQT_TM", srq::TM),
        ("IB_UVERBS_QP_CREATE_SQ_SIG_ALL", qp::CREATE_SQ_SIG_ALL),
        ("IBV_QPS_ERR", u32::from(qp::STATE_LAST)),
        ("IBV_PORT_ACTIVE_DEFER", u32::from(device::PORT_STATE_LAST)),
        ("IBV_LINK_LAYER_ETHERNET", u32::from(device::LINK_LAYER_LAST)),
        ("IB_USER_VERBS_MAX_LOG_IND_TBL_SIZE", rwq_ind_table::MAX_LOG_SIZE),
        ("RXE_NETWORK_TYPE_IPV4", u32::from(rxe::NETWORK_TYPE_IPV4)),
        ("RXE_NETWORK_TYPE_IPV6", u32::from(rxe::NETWORK_TYPE_IPV6)),
    ];
    let core_support = ("IB_UVERBS_CORE_SUPPORT_OPTIONAL_MR_ACCESS", device::CORE_SUPPORT_OPTIONAL_MR_ACCESS);
    tables
        .chain(events.map(|(name, event)| (name, u64::from(event.0))))
        .chain(others.map(|(name, value)| (name, u64::from(value))))
        .chain([core_support])
        .collect()
}

/// Those that only the newest headers have.
fn newer_numbers(newest: bool) -> impl Iterator<Item = (&'static str, u64)> {
    let numbers = [
        ("UVERBS_METHOD_QUERY_PORT_SPEED", ids::QUERY_PORT_SPEED.method),
        ("UVERBS_ATTR_QUERY_PORT_SPEED_PORT_NUM", ids::QUERY_PORT_SPEED_PORT_NUM.0),
        ("UVERBS_ATTR_QUERY_PORT_SPEED_RESP", ids::QUERY_PORT_SPEED_RESP.0),
    ];
    numbers.into_iter().filter(move |_| newest).map(|(name, value)| (name, u64::from(value)))
}

/// A field as C spells it, unless it is padding that C does not name.
fn c_field(name: &'static str) -> Option<&'static str> {
    let name = name.trim_start_matches("r#");
    (!name.starts_with("_pad")).then_some(name)
}

/// What we believe (but for alignment, which does not travel), one fact a line, as the C program prints them.
fn believed(newest: bool) -> String {
    let mut facts = String::new();
    for layout in layouts().filter(|layout| newest || layout.since.is_none()) {
        writeln!(facts, "{} size {}", layout.name, layout.size).unwrap();
        for (name, offset, size) in layout.fields {
            if let Some(name) = c_field(name) {
                writeln!(facts, "{}.{name} at {offset} size {size}", layout.name).unwrap();
            }
        }
    }
    for (name, value) in numbers().into_iter().chain(newer_numbers(newest)) {
        writeln!(facts, "{name} = {value}").unwrap();
    }
    facts
}

/// A C program that prints the same facts of the headers it is compiled with. verbs.h comes last: it has copies of some.
fn program(newest: bool) -> String {
    let mut c = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <rdma/ib_user_verbs.h>\n\
         #include <rdma/ib_user_ioctl_verbs.h>\n#include <rdma/ib_user_ioctl_cmds.h>\n\
         #include <rdma/rdma_user_ioctl_cmds.h>\n#include <rdma/rdma_user_rxe.h>\n\
         #include <rdma/mlx5_user_ioctl_cmds.h>\n\
         #include <rdma/mlx5_user_ioctl_verbs.h>\n#include <rdma/mlx5-abi.h>\n#include <infiniband/verbs.h>\nint main(void) {\n",
    );
    for layout in layouts().filter(|layout| newest || layout.since.is_none()) {
        let name = layout.name;
        let ty = match name.strip_prefix("wr.") {
            Some(member) => format!("__typeof__(((struct rxe_send_wr *)0)->wr.{member})"),
            None => name.to_owned(),
        };
        writeln!(c, "printf(\"{name} size %zu\\n\", sizeof({ty}));").unwrap();
        for field in layout.fields.iter().filter_map(|(name, ..)| c_field(name)) {
            writeln!(
                c,
                "printf(\"{name}.{field} at %zu size %zu\\n\", offsetof({ty}, {field}), sizeof((({ty} *)0)->{field}));"
            )
            .unwrap();
        }
    }
    for (name, _) in numbers().into_iter().chain(newer_numbers(newest)) {
        writeln!(c, "printf(\"{name} = %llu\\n\", (unsigned long long)({name}));").unwrap();
    }
    c.push_str("return 0; }\n");
    c
}

/// The facts of the headers in `include`, or of the installed ones.
fn facts_of_headers(include: Option<&Path>, newest: bool) -> String {
    let out = std::env::temp_dir().join(format!("holdfast-uapi-{}-{newest}", std::process::id()));
    let source = out.with_extension("c");
    std::fs::write(&source, program(newest)).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut compile = Command::new(&cc);
    if let Some(include) = include {
        compile.arg("-I").arg(include);
    }
    let compiled = compile.arg("-o").arg(&out).arg(&source).output();
    let why = match compiled {
        Err(error) => Some(format!("cannot run {cc}: {error}")),
        Ok(output) if !output.status.success() => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Ok(_) => None,
    };
    std::fs::remove_file(&source).unwrap();
    if let Some(why) = why {
        panic!(
            "the uAPI structs cannot be compared with the C headers.\n{why}\nInstall a C compiler and the headers \
             (Debian: gcc linux-libc-dev libibverbs-dev), or set HOLDFAST_SKIP_C=1 to go without this check."
        );
    }
    let printed = Command::new(&out).output().unwrap();
    std::fs::remove_file(&out).unwrap();
    assert!(printed.status.success());
    String::from_utf8(printed.stdout).unwrap()
}

/// Fails with the lines in which `ours` and `theirs` differ.
fn same(ours: &str, theirs: &str, of: &str) {
    let differ: Vec<String> = ours
        .lines()
        .zip(theirs.lines())
        .filter(|(ours, theirs)| ours != theirs)
        .map(|(ours, theirs)| format!("ours: {ours}\n{of}: {theirs}"))
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

#[test]
fn structs_and_numbers_are_those_of_the_installed_headers() {
    if std::env::var_os("HOLDFAST_SKIP_C").is_some_and(|value| value == "1") {
        eprintln!(
            "SKIPPED: HOLDFAST_SKIP_C=1, the uAPI structs were not compared with the installed C headers"
        );
        return;
    }
    same(&believed(false), &facts_of_headers(None, false), "C");
}

/// Where the facts of the newest headers are kept. They are made by the test below.
const NEWEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/uapi/linux-7.2.txt");

#[test]
fn structs_and_numbers_are_those_of_linux_7_2() {
    let facts = std::fs::read_to_string(NEWEST).unwrap();
    let facts: String = facts.lines().filter(|line| !line.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
    same(&believed(true), &facts, "linux-7.2.txt");
}

#[test]
#[ignore = "writes tests/data/uapi/linux-7.2.txt from the headers in HOLDFAST_UAPI_INCLUDE"]
fn take_the_facts_of_newer_headers() {
    let include = std::env::var("HOLDFAST_UAPI_INCLUDE").unwrap();
    let head = "# Sizes, offsets and numbers of the uAPI headers of Linux 7.2, as the C compiler sees them.\n\
                # Made by: HOLDFAST_UAPI_INCLUDE=DIR cargo test --lib take_the_facts -- --ignored\n";
    let facts = facts_of_headers(Some(Path::new(&include)), true);
    std::fs::write(NEWEST, format!("{head}{facts}")).unwrap();
}

#[test]
fn fields_follow_each_other_to_the_end() {
    for layout in layouts() {
        let mut end = 0;
        for (name, offset, size) in layout.fields {
            assert_eq!(*offset, end, "{}.{name}", layout.name);
            end += size;
        }
        assert_eq!(end, layout.size, "{}", layout.name);
    }
}
