//! WQE segments and CQE fields against C: a program compiled with the installed `<infiniband/mlx5dv.h>` fills the same structs
//! with the same numbers, and prints their bytes; and it prints where the fields of an entry are.

use std::fmt::Write as _;
use std::process::Command;

use super::wqe::{self, Av, Bind, bytes, opcode};
use crate::abi::public::*;

/// One segment: its name, C statements that fill `struct TYPE seg` and our bytes.
fn segments() -> Vec<(&'static str, &'static str, &'static str, Vec<u8>)> {
    let av = Av {
        stat_rate_sl: 0x35,
        fl_mlid: 0x7f,
        rlid: 0x1234,
        rmac: [1, 2, 3, 4, 5, 6],
        tclass: 7,
        hop_limit: 8,
        grh_gid_fl: 0x4021_2345,
        rgid: [
            0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x10,
        ],
    };
    let bind = Bind {
        type_2: true,
        rkey: 0x1234_5678,
        qpn: 0xab_cdef,
        addr: 0x1122_3344_5566_7788,
        length: 0x1000,
        lkey: 0x8765_4321,
        access: IBV_ACCESS_LOCAL_WRITE
            | IBV_ACCESS_REMOTE_WRITE
            | IBV_ACCESS_REMOTE_READ
            | IBV_ACCESS_REMOTE_ATOMIC,
    };
    let units = |bind: &Bind| {
        let (units, count) = bind.units();
        bytes(&units[..count as usize])
    };
    let (bound, unbound) = (units(&bind), units(&Bind::INVALIDATE));
    let type_1 = units(&Bind { type_2: false, ..bind });
    let part = |bytes: &[u8], at: usize, len: usize| bytes[at..at + len].to_vec();
    let flags = wqe::CTRL_CQ_UPDATE | wqe::CTRL_SOLICITED | wqe::CTRL_FENCE;
    vec![
        (
            "ctrl",
            "mlx5_wqe_ctrl_seg",
            "mlx5dv_set_ctrl_seg(&seg, 0xbeef, MLX5_OPCODE_RDMA_WRITE_IMM, 0, 0xabcdef, MLX5_WQE_CTRL_CQ_UPDATE | \
             MLX5_WQE_CTRL_SOLICITED | MLX5_WQE_CTRL_FENCE, 5, 0, htobe32(0x01020304));",
            bytes(&[[
                wqe::ctrl_place(opcode::RDMA_WRITE_IMM, 0xbeef, 0xab_cdef << 8 | 5),
                wqe::ctrl_flags(flags) | wqe::ctrl_imm(0x0102_0304_u32.to_be()),
            ]]),
        ),
        (
            "raddr",
            "mlx5_wqe_raddr_seg",
            "seg.raddr = htobe64(0x1122334455667788); seg.rkey = htobe32(0x01020304);",
            bytes(&[wqe::raddr(0x1122_3344_5566_7788, 0x0102_0304)]),
        ),
        (
            "atomic",
            "mlx5_wqe_atomic_seg",
            "seg.swap_add = htobe64(0x1122334455667788); seg.compare = htobe64(0x99aabbccddeeff00);",
            bytes(&[wqe::atomic(0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00)]),
        ),
        (
            "data",
            "mlx5_wqe_data_seg",
            "mlx5dv_set_data_seg(&seg, 0x01020304, 0x05060708, 0x1122334455667788);",
            bytes(&[wqe::data(0x0102_0304, 0x0506_0708, 0x1122_3344_5566_7788)]),
        ),
        ("end", "mlx5_wqe_data_seg", "seg.lkey = htobe32(MLX5_INVALID_LKEY);", bytes(&[wqe::DATA_END])),
        (
            "inline",
            "mlx5_wqe_inl_data_seg",
            "seg.byte_count = htobe32(MLX5_INLINE_SEG | 77);",
            wqe::inline_head(77).to_ne_bytes().to_vec(),
        ),
        (
            "next",
            "mlx5_wqe_srq_next_seg",
            "seg.next_wqe_index = htobe16(0x1234);",
            bytes(&[wqe::srq_next(0x1234)]),
        ),
        (
            "datagram",
            "mlx5_wqe_datagram_seg",
            "seg.av.key.qkey.qkey = htobe32(0x11223344); seg.av.dqp_dct = htobe32(0x123456 | MLX5_EXTENDED_UD_AV); \
             seg.av.stat_rate_sl = 0x35; seg.av.fl_mlid = 0x7f; seg.av.rlid = htobe16(0x1234); \
             for (int i = 0; i < 6; i++) seg.av.rmac[i] = i + 1; \
             seg.av.tclass = 7; seg.av.hop_limit = 8; seg.av.grh_gid_fl = htobe32(0x40212345); \
             for (int i = 0; i < 15; i++) seg.av.rgid[i] = 0x11 * (i + 1); seg.av.rgid[15] = 0x10;",
            bytes(&wqe::datagram(&av.units(), 0x12_3456, 0x1122_3344)),
        ),
        (
            "umr bind",
            "mlx5_wqe_umr_ctrl_seg",
            "seg.flags = MLX5_WQE_UMR_CTRL_FLAG_TRNSLATION_OFFSET | MLX5_WQE_UMR_CTRL_FLAG_INLINE | \
             MLX5_WQE_UMR_CTRL_FLAG_CHECK_FREE; seg.klm_octowords = htobe16(4); \
             seg.mkey_mask = htobe64(MLX5_WQE_UMR_CTRL_MKEY_MASK_FREE | MLX5_WQE_UMR_CTRL_MKEY_MASK_MKEY | \
             MLX5_WQE_UMR_CTRL_MKEY_MASK_QPN | MLX5_WQE_UMR_CTRL_MKEY_MASK_LEN | \
             MLX5_WQE_UMR_CTRL_MKEY_MASK_START_ADDR | MLX5_WQE_UMR_CTRL_MKEY_MASK_ACCESS_LOCAL_WRITE | \
             MLX5_WQE_UMR_CTRL_MKEY_MASK_ACCESS_REMOTE_READ | MLX5_WQE_UMR_CTRL_MKEY_MASK_ACCESS_REMOTE_WRITE | \
             MLX5_WQE_UMR_CTRL_MKEY_MASK_ACCESS_ATOMIC);",
            part(&bound, 0, 48),
        ),
        (
            "umr invalidate",
            "mlx5_wqe_umr_ctrl_seg",
            "seg.flags = MLX5_WQE_UMR_CTRL_FLAG_TRNSLATION_OFFSET | MLX5_WQE_UMR_CTRL_FLAG_INLINE | \
             MLX5_WQE_UMR_CTRL_FLAG_CHECK_QPN; seg.mkey_mask = htobe64(MLX5_WQE_UMR_CTRL_MKEY_MASK_FREE | \
             MLX5_WQE_UMR_CTRL_MKEY_MASK_MKEY | MLX5_WQE_UMR_CTRL_MKEY_MASK_QPN);",
            part(&unbound, 0, 48),
        ),
        (
            "mkey bind",
            "mlx5_wqe_mkey_context_seg",
            "seg.access_flags = MLX5_WQE_MKEY_CONTEXT_ACCESS_FLAGS_LOCAL_WRITE | \
             MLX5_WQE_MKEY_CONTEXT_ACCESS_FLAGS_REMOTE_WRITE | MLX5_WQE_MKEY_CONTEXT_ACCESS_FLAGS_REMOTE_READ | \
             MLX5_WQE_MKEY_CONTEXT_ACCESS_FLAGS_ATOMIC; seg.qpn_mkey = htobe32(0xabcdef << 8 | 0x78); \
             seg.start_addr = htobe64(0x1122334455667788); seg.len = htobe64(0x1000);",
            part(&bound, 48, 64),
        ),
        (
            "mkey type 1",
            "mlx5_wqe_mkey_context_seg",
            "seg.access_flags = 0x78; seg.qpn_mkey = htobe32(0xffffff78); \
             seg.start_addr = htobe64(0x1122334455667788); seg.len = htobe64(0x1000);",
            part(&type_1, 48, 64),
        ),
        (
            "mkey invalidate",
            "mlx5_wqe_mkey_context_seg",
            "seg.free = MLX5_WQE_MKEY_CONTEXT_FREE; seg.qpn_mkey = htobe32(0xffffff00);",
            part(&unbound, 48, 64),
        ),
        (
            "klm",
            "mlx5_wqe_umr_klm_seg",
            "seg.byte_count = htobe32(0x1000); seg.mkey = htobe32(0x87654321); \
             seg.address = htobe64(0x1122334455667788);",
            part(&bound, 112, 16),
        ),
    ]
}

/// C expressions and what we take them for.
const NUMBERS: &[(&str, u64)] = &[
    ("offsetof(struct mlx5_cqe64, ml_path)", 17),
    ("offsetof(struct mlx5_cqe64, slid)", 22),
    ("offsetof(struct mlx5_cqe64, flags_rqpn)", 24),
    ("offsetof(struct mlx5_cqe64, hds_ip_ext)", 28),
    ("offsetof(struct mlx5_cqe64, l4_hdr_type_etc)", 29),
    ("offsetof(struct mlx5_cqe64, vlan_info)", 30),
    ("offsetof(struct mlx5_cqe64, srqn_uidx)", 32),
    ("offsetof(struct mlx5_cqe64, imm_inval_pkey)", 36),
    ("offsetof(struct mlx5_cqe64, byte_cnt)", 44),
    ("offsetof(struct mlx5_cqe64, timestamp)", 48),
    ("offsetof(struct mlx5_cqe64, sop_drop_qpn)", 56),
    ("offsetof(struct mlx5_cqe64, wqe_counter)", 60),
    ("offsetof(struct mlx5_cqe64, op_own)", 63),
    ("sizeof(struct mlx5_cqe64)", 64),
    ("offsetof(struct mlx5_err_cqe, vendor_err_synd)", 54),
    ("offsetof(struct mlx5_err_cqe, syndrome)", 55),
    ("MLX5_CQE_OWNER_MASK", 1),
    ("MLX5_CQE_REQ", 0),
    ("MLX5_CQE_RESP_WR_IMM", 1),
    ("MLX5_CQE_RESP_SEND", 2),
    ("MLX5_CQE_RESP_SEND_IMM", 3),
    ("MLX5_CQE_RESP_SEND_INV", 4),
    ("MLX5_CQE_RESIZE_CQ", 5),
    ("MLX5_CQE_REQ_ERR", 13),
    ("MLX5_CQE_RESP_ERR", 14),
    ("MLX5_CQE_INVALID", 15),
    ("MLX5_INLINE_SCATTER_32", 4),
    ("MLX5_INLINE_SCATTER_64", 8),
    ("MLX5_CQE_SYNDROME_LOCAL_LENGTH_ERR", 1),
    ("MLX5_CQE_SYNDROME_LOCAL_QP_OP_ERR", 2),
    ("MLX5_CQE_SYNDROME_LOCAL_PROT_ERR", 4),
    ("MLX5_CQE_SYNDROME_WR_FLUSH_ERR", 5),
    ("MLX5_CQE_SYNDROME_MW_BIND_ERR", 6),
    ("MLX5_CQE_SYNDROME_BAD_RESP_ERR", 0x10),
    ("MLX5_CQE_SYNDROME_LOCAL_ACCESS_ERR", 0x11),
    ("MLX5_CQE_SYNDROME_REMOTE_INVAL_REQ_ERR", 0x12),
    ("MLX5_CQE_SYNDROME_REMOTE_ACCESS_ERR", 0x13),
    ("MLX5_CQE_SYNDROME_REMOTE_OP_ERR", 0x14),
    ("MLX5_CQE_SYNDROME_TRANSPORT_RETRY_EXC_ERR", 0x15),
    ("MLX5_CQE_SYNDROME_RNR_RETRY_EXC_ERR", 0x16),
    ("MLX5_CQE_SYNDROME_REMOTE_ABORTED_ERR", 0x22),
    ("MLX5_CQ_DOORBELL", 0x20),
    ("MLX5_CQ_DB_REQ_NOT_SOL", 1 << 24),
    ("MLX5_RCV_DBR", 0),
    ("MLX5_SND_DBR", 1),
    ("MLX5_SEND_WQE_BB", wqe::BB as u64),
    ("MLX5_OPCODE_NOP", opcode::NOP as u64),
    ("MLX5_OPCODE_SEND_INVAL", opcode::SEND_INVAL as u64),
    ("MLX5_OPCODE_RDMA_WRITE", opcode::RDMA_WRITE as u64),
    ("MLX5_OPCODE_RDMA_WRITE_IMM", opcode::RDMA_WRITE_IMM as u64),
    ("MLX5_OPCODE_SEND", opcode::SEND as u64),
    ("MLX5_OPCODE_SEND_IMM", opcode::SEND_IMM as u64),
    ("MLX5_OPCODE_RDMA_READ", opcode::RDMA_READ as u64),
    ("MLX5_OPCODE_ATOMIC_CS", opcode::ATOMIC_CS as u64),
    ("MLX5_OPCODE_ATOMIC_FA", opcode::ATOMIC_FA as u64),
    ("MLX5_OPCODE_UMR", opcode::UMR as u64),
    ("MLX5_WQE_CTRL_CQ_UPDATE", wqe::CTRL_CQ_UPDATE as u64),
    ("MLX5_WQE_CTRL_SOLICITED", wqe::CTRL_SOLICITED as u64),
    ("MLX5_WQE_CTRL_FENCE", wqe::CTRL_FENCE as u64),
    ("MLX5_WQE_CTRL_INITIATOR_SMALL_FENCE", wqe::CTRL_INITIATOR_SMALL_FENCE as u64),
];

#[test]
fn segments_and_numbers_are_those_of_the_installed_mlx5dv_h() {
    if std::env::var_os("HOLDFAST_SKIP_C").is_some_and(|value| value == "1") {
        eprintln!("SKIPPED: HOLDFAST_SKIP_C=1, WQE layouts were not compared with the installed mlx5dv.h");
        return;
    }
    let mut c = String::from(
        "#include <endian.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n\
         #include <infiniband/mlx5dv.h>\nint main(void) {\n",
    );
    let mut ours = String::new();
    for (name, ty, fill, bytes) in segments() {
        writeln!(
            c,
            "{{ struct {ty} seg; memset(&seg, 0, sizeof(seg)); {fill} printf(\"{name}:\"); \
             for (size_t i = 0; i < sizeof(seg); i++) printf(\" %02x\", ((unsigned char *)&seg)[i]); puts(\"\"); }}"
        )
        .unwrap();
        let hex: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
        writeln!(ours, "{name}:{hex}").unwrap();
    }
    for (expression, value) in NUMBERS {
        writeln!(c, "printf(\"{expression} = %llu\\n\", (unsigned long long)({expression}));").unwrap();
        writeln!(ours, "{expression} = {value}").unwrap();
    }
    c.push_str("return 0; }\n");
    let out = std::env::temp_dir().join(format!("holdfast-mlx5dv-{}", std::process::id()));
    let source = out.with_extension("c");
    std::fs::write(&source, c).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let compiled = Command::new(&cc).arg("-o").arg(&out).arg(&source).output();
    std::fs::remove_file(&source).unwrap();
    let compiled =
        compiled.unwrap_or_else(|error| panic!("cannot run {cc}: {error}; or set HOLDFAST_SKIP_C=1"));
    assert!(
        compiled.status.success(),
        "{}\nInstall the headers (Debian: libibverbs-dev), or set HOLDFAST_SKIP_C=1",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let printed = Command::new(&out).output().unwrap();
    std::fs::remove_file(&out).unwrap();
    let theirs = String::from_utf8(printed.stdout).unwrap();
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}
