//! What the device says that it can do.
//!
//! It is chosen for what the drivers then do: an InfiniBand port that is set up by virtual port commands, memory
//! regions made by CREATE_MKEY with their pages, no flow tables, no on-demand paging.

use super::device_memory;
use crate::pci::{DEVICE_MEMORY_LEN, DEVICE_MEMORY_START};
use crate::prm::layouts::{atomic_caps, cmd_hca_cap as cap, device_mem_cap};
use crate::prm::{Field, set};

/// The length of a block of capabilities.
pub(super) const BYTES: usize = 4096;

const GENERAL: &[(Field, u64)] = &[
    (cap::PORT_TYPE, 0),
    (cap::NUM_PORTS, 1),
    (cap::IB_VIRT, 1),
    (cap::VHCA_ID, 1),
    // Services.
    (cap::RC, 1),
    (cap::UC, 1),
    (cap::UD, 1),
    (cap::XRC, 1),
    (cap::ATOMIC, 1),
    (cap::IMAICL, 1),
    (cap::PKV, 1),
    (cap::QKV, 1),
    (cap::SET_DETH_SQPN, 1),
    (cap::COMPACT_ADDRESS_VECTOR, 1),
    (cap::LOG_MAX_RA_REQ_QP, 4),
    (cap::LOG_MAX_RA_RES_QP, 4),
    (cap::LOCAL_CA_ACK_DELAY, 16),
    (cap::LOG_MAX_MSG, 30),
    // Queues.
    (cap::LOG_MAX_QP, 18),
    (cap::LOG_MAX_QP_SZ, 15),
    (cap::LOG_MAX_SRQ, 16),
    (cap::LOG_MAX_SRQ_SZ, 15),
    (cap::LOG_MAX_CQ, 16),
    (cap::LOG_MAX_CQ_SZ, 22),
    (cap::LOG_MAX_EQ, 6),
    (cap::LOG_MAX_EQ_SZ, 22),
    (cap::MAX_NUM_EQS, 63),
    (cap::LOG_MAX_RMP, 16),
    (cap::LOG_MAX_RQ, 16),
    (cap::LOG_MAX_SQ, 16),
    (cap::LOG_MAX_TIR, 10),
    (cap::LOG_MAX_TIS, 10),
    (cap::LOG_MAX_RQT, 10),
    (cap::MAX_WQE_SZ_SQ, 1024),
    (cap::MAX_WQE_SZ_RQ, 512),
    (cap::MAX_WQE_SZ_SQ_DC, 1024),
    (cap::CQE_VERSION, 1),
    (cap::CQ_OI, 1),
    (cap::CQ_RESIZE, 1),
    (cap::CQ_MODERATION, 1),
    (cap::SCTR_DATA_CQE, 1),
    (cap::LOG_MAX_MCG, 10),
    (cap::MAX_QP_MCG, 64),
    // Keys.
    (cap::LOG_MAX_MKEY, 20),
    (cap::LOG_MAX_MRW_SZ, 64),
    (cap::MAX_INDIRECTION, 4),
    (cap::LOG_MAX_KLM_LIST_SIZE, 16),
    (cap::LOG_MAX_BSF_LIST_SIZE, 5),
    (cap::UMR_MODIFY_ENTITY_SIZE_DISABLED, 1),
    // Domains.
    (cap::LOG_MAX_PD, 16),
    (cap::LOG_MAX_XRCD, 16),
    (cap::LOG_MAX_TRANSPORT_DOMAIN, 16),
    // Doorbell pages, clock, teardown.
    (cap::LOG_PG_SZ, 12),
    (cap::BF, 1),
    (cap::LOG_BF_REG_SIZE, 9),
    (cap::UAR_SZ, 5),
    (cap::NUM_OF_UARS_PER_PAGE, 1),
    (cap::DEVICE_FREQUENCY_KHZ, 156_250),
    (cap::DEVICE_FREQUENCY_MHZ, 156),
    (cap::FORCE_TEARDOWN, 1),
    (cap::DEVICE_MEMORY, 1),
];

const COMPARE_SWAP: u64 = 1;
const FETCH_ADD: u64 = 2;
const EIGHT_BYTES: u64 = 8;

const ATOMIC: &[(Field, u64)] = &[
    (atomic_caps::SUPPORTED_ATOMIC_REQ_8B_ENDIANNESS_MODE_1, 1),
    (atomic_caps::ATOMIC_OPERATIONS, COMPARE_SWAP | FETCH_ADD),
    (atomic_caps::ATOMIC_SIZE_QP, EIGHT_BYTES),
];

const DEVICE_MEMORY: &[(Field, u64)] = &[
    (device_mem_cap::MEMIC, 1),
    (device_mem_cap::LOG_MIN_MEMIC_ALLOC_SIZE, 6),
    (device_mem_cap::LOG_MAX_MEMIC_ADDR_ALIGNMENT, 6),
    (device_mem_cap::MEMIC_BAR_START_ADDR, DEVICE_MEMORY_START),
    (device_mem_cap::MEMIC_BAR_SIZE, DEVICE_MEMORY_LEN),
    (device_mem_cap::MAX_MEMIC_SIZE, device_memory::MOST),
];

fn block(fields: &[(Field, u64)]) -> Vec<u8> {
    let mut block = vec![0; BYTES];
    fields.iter().for_each(|(field, value)| set(&mut block, *field, *value));
    block
}

pub(super) fn general() -> Vec<u8> {
    block(GENERAL)
}

pub(super) fn device_memory() -> Vec<u8> {
    block(DEVICE_MEMORY)
}

pub(super) fn atomic() -> Vec<u8> {
    block(ATOMIC)
}
