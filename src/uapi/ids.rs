//! Numbers of `<rdma/ib_user_ioctl_cmds.h>` and `<rdma/ib_user_verbs.h>`: objects, methods, attributes, write commands.
//!
//! An attribute's type says which way it goes, so that a command cannot pass a read-only buffer where the kernel writes.

use super::sys::{Const, Fd, Idr, In, Method, NewFd, NewIdr, Out};

/// One number of the uAPI, for the test that asks the C compiler.
#[cfg(test)]
pub(super) struct Number {
    /// As C spells the enumerator.
    pub(super) name: &'static str,
    pub(super) value: u64,
}

macro_rules! numbers {
    ($table:ident, $prefix:literal; $($name:ident: $ty:ty = $make:expr, $value:expr;)*) => {
        $(
            #[doc = concat!("`", $prefix, stringify!($name), "`.")]
            pub const $name: $ty = $make;
        )*

        #[cfg(test)]
        pub(super) const $table: &[Number] =
            &[$(Number { name: concat!($prefix, stringify!($name)), value: $value },)*];
    };
}

macro_rules! objects {
    ($($name:ident = $value:literal;)*) => {
        /// Kinds of kernel object.
        pub mod object {
            $(
                #[doc = concat!("`UVERBS_OBJECT_", stringify!($name), "`.")]
                pub const $name: u16 = $value;
            )*
        }

        #[cfg(test)]
        pub(super) const OBJECTS: &[Number] =
            &[$(Number { name: concat!("UVERBS_OBJECT_", stringify!($name)), value: $value },)*];
    };
}

objects! {
    DEVICE = 0;
    PD = 1;
    COMP_CHANNEL = 2;
    CQ = 3;
    QP = 4;
    SRQ = 5;
    AH = 6;
    MR = 7;
    MW = 8;
    FLOW = 9;
    XRCD = 10;
    RWQ_IND_TBL = 11;
    WQ = 12;
    DM = 14;
    COUNTERS = 15;
    ASYNC_EVENT = 16;
}

macro_rules! methods {
    ($($object:ident::$name:ident = $value:literal;)*) => {
        numbers! { METHODS, "UVERBS_METHOD_";
            $($name: Method = Method { object: object::$object, method: $value }, $value;)*
        }
    };
}

methods! {
    DEVICE::INVOKE_WRITE = 0;
    DEVICE::QUERY_PORT = 2;
    DEVICE::GET_CONTEXT = 3;
    DEVICE::QUERY_CONTEXT = 4;
    DEVICE::QUERY_GID_TABLE = 5;
    DEVICE::QUERY_GID_ENTRY = 6;
    CQ::CQ_CREATE = 0;
    CQ::CQ_DESTROY = 1;
    QP::QP_CREATE = 0;
    QP::QP_DESTROY = 1;
    SRQ::SRQ_CREATE = 0;
    SRQ::SRQ_DESTROY = 1;
    WQ::WQ_CREATE = 0;
    WQ::WQ_DESTROY = 1;
    DM::DM_ALLOC = 0;
    DM::DM_FREE = 1;
    MR::DM_MR_REG = 0;
    MR::MR_DESTROY = 1;
    MR::ADVISE_MR = 2;
    MR::QUERY_MR = 3;
    MR::REG_DMABUF_MR = 4;
    COUNTERS::COUNTERS_CREATE = 0;
    COUNTERS::COUNTERS_DESTROY = 1;
    COUNTERS::COUNTERS_READ = 2;
    PD::PD_DESTROY = 0;
    MW::MW_DESTROY = 0;
    XRCD::XRCD_DESTROY = 0;
    AH::AH_DESTROY = 0;
    RWQ_IND_TBL::RWQ_IND_TBL_DESTROY = 0;
    FLOW::FLOW_DESTROY = 0;
    ASYNC_EVENT::ASYNC_EVENT_ALLOC = 0;
}

macro_rules! attrs {
    ($($name:ident: $ty:ident = $value:literal;)*) => {
        numbers! { ATTRS, "UVERBS_ATTR_"; $($name: $ty = $ty($value), $value;)* }
    };
}

attrs! {
    UHW_IN: In = 0x1000;
    UHW_OUT: Out = 0x1001;
    CORE_IN: In = 0;
    CORE_OUT: Out = 1;
    WRITE_CMD: Const = 2;
    QUERY_PORT_PORT_NUM: Const = 0;
    QUERY_PORT_RESP: Out = 1;
    GET_CONTEXT_NUM_COMP_VECTORS: Out = 0;
    GET_CONTEXT_CORE_SUPPORT: Out = 1;
    QUERY_CONTEXT_NUM_COMP_VECTORS: Out = 0;
    QUERY_CONTEXT_CORE_SUPPORT: Out = 1;
    CREATE_CQ_HANDLE: NewIdr = 0;
    CREATE_CQ_CQE: In = 1;
    CREATE_CQ_USER_HANDLE: In = 2;
    CREATE_CQ_COMP_CHANNEL: Fd = 3;
    CREATE_CQ_COMP_VECTOR: In = 4;
    CREATE_CQ_FLAGS: In = 5;
    CREATE_CQ_RESP_CQE: Out = 6;
    CREATE_CQ_EVENT_FD: Fd = 7;
    DESTROY_CQ_HANDLE: Idr = 0;
    DESTROY_CQ_RESP: Out = 1;
    CREATE_QP_HANDLE: NewIdr = 0;
    CREATE_QP_XRCD_HANDLE: Idr = 1;
    CREATE_QP_PD_HANDLE: Idr = 2;
    CREATE_QP_SRQ_HANDLE: Idr = 3;
    CREATE_QP_SEND_CQ_HANDLE: Idr = 4;
    CREATE_QP_RECV_CQ_HANDLE: Idr = 5;
    CREATE_QP_IND_TABLE_HANDLE: Idr = 6;
    CREATE_QP_USER_HANDLE: In = 7;
    CREATE_QP_CAP: In = 8;
    CREATE_QP_TYPE: Const = 9;
    CREATE_QP_FLAGS: In = 10;
    CREATE_QP_SOURCE_QPN: In = 11;
    CREATE_QP_EVENT_FD: Fd = 12;
    CREATE_QP_RESP_CAP: Out = 13;
    CREATE_QP_RESP_QP_NUM: Out = 14;
    DESTROY_QP_HANDLE: Idr = 0;
    DESTROY_QP_RESP: Out = 1;
    CREATE_SRQ_HANDLE: NewIdr = 0;
    CREATE_SRQ_PD_HANDLE: Idr = 1;
    CREATE_SRQ_XRCD_HANDLE: Idr = 2;
    CREATE_SRQ_CQ_HANDLE: Idr = 3;
    CREATE_SRQ_USER_HANDLE: In = 4;
    CREATE_SRQ_MAX_WR: In = 5;
    CREATE_SRQ_MAX_SGE: In = 6;
    CREATE_SRQ_LIMIT: In = 7;
    CREATE_SRQ_MAX_NUM_TAGS: In = 8;
    CREATE_SRQ_TYPE: Const = 9;
    CREATE_SRQ_EVENT_FD: Fd = 10;
    CREATE_SRQ_RESP_MAX_WR: Out = 11;
    CREATE_SRQ_RESP_MAX_SGE: Out = 12;
    CREATE_SRQ_RESP_SRQ_NUM: Out = 13;
    DESTROY_SRQ_HANDLE: Idr = 0;
    DESTROY_SRQ_RESP: Out = 1;
    CREATE_WQ_HANDLE: NewIdr = 0;
    CREATE_WQ_PD_HANDLE: Idr = 1;
    CREATE_WQ_CQ_HANDLE: Idr = 2;
    CREATE_WQ_USER_HANDLE: In = 3;
    CREATE_WQ_TYPE: Const = 4;
    CREATE_WQ_EVENT_FD: Fd = 5;
    CREATE_WQ_MAX_WR: In = 6;
    CREATE_WQ_MAX_SGE: In = 7;
    CREATE_WQ_FLAGS: In = 8;
    CREATE_WQ_RESP_MAX_WR: Out = 9;
    CREATE_WQ_RESP_MAX_SGE: Out = 10;
    CREATE_WQ_RESP_WQ_NUM: Out = 11;
    DESTROY_WQ_HANDLE: Idr = 0;
    DESTROY_WQ_RESP: Out = 1;
    ALLOC_DM_HANDLE: NewIdr = 0;
    ALLOC_DM_LENGTH: In = 1;
    ALLOC_DM_ALIGNMENT: In = 2;
    FREE_DM_HANDLE: Idr = 0;
    REG_DM_MR_HANDLE: NewIdr = 0;
    REG_DM_MR_OFFSET: In = 1;
    REG_DM_MR_LENGTH: In = 2;
    REG_DM_MR_PD_HANDLE: Idr = 3;
    REG_DM_MR_ACCESS_FLAGS: In = 4;
    REG_DM_MR_DM_HANDLE: Idr = 5;
    REG_DM_MR_RESP_LKEY: Out = 6;
    REG_DM_MR_RESP_RKEY: Out = 7;
    DESTROY_MR_HANDLE: Idr = 0;
    ADVISE_MR_PD_HANDLE: Idr = 0;
    ADVISE_MR_ADVICE: Const = 1;
    ADVISE_MR_FLAGS: In = 2;
    ADVISE_MR_SGE_LIST: In = 3;
    QUERY_MR_HANDLE: Idr = 0;
    QUERY_MR_RESP_LKEY: Out = 1;
    QUERY_MR_RESP_RKEY: Out = 2;
    QUERY_MR_RESP_LENGTH: Out = 3;
    QUERY_MR_RESP_IOVA: Out = 4;
    REG_DMABUF_MR_HANDLE: NewIdr = 0;
    REG_DMABUF_MR_PD_HANDLE: Idr = 1;
    REG_DMABUF_MR_OFFSET: In = 2;
    REG_DMABUF_MR_LENGTH: In = 3;
    REG_DMABUF_MR_IOVA: In = 4;
    REG_DMABUF_MR_FD: In = 5;
    REG_DMABUF_MR_ACCESS_FLAGS: In = 6;
    REG_DMABUF_MR_RESP_LKEY: Out = 7;
    REG_DMABUF_MR_RESP_RKEY: Out = 8;
    CREATE_COUNTERS_HANDLE: NewIdr = 0;
    DESTROY_COUNTERS_HANDLE: Idr = 0;
    READ_COUNTERS_HANDLE: Idr = 0;
    READ_COUNTERS_BUFF: Out = 1;
    READ_COUNTERS_FLAGS: In = 2;
    DESTROY_PD_HANDLE: Idr = 0;
    DESTROY_MW_HANDLE: Idr = 0;
    DESTROY_XRCD_HANDLE: Idr = 0;
    DESTROY_AH_HANDLE: Idr = 0;
    DESTROY_RWQ_IND_TBL_HANDLE: Idr = 0;
    DESTROY_FLOW_HANDLE: Idr = 0;
    ASYNC_EVENT_ALLOC_FD_HANDLE: NewFd = 0;
    QUERY_GID_TABLE_ENTRY_SIZE: Const = 0;
    QUERY_GID_TABLE_FLAGS: In = 1;
    QUERY_GID_TABLE_RESP_ENTRIES: Out = 2;
    QUERY_GID_TABLE_RESP_NUM_ENTRIES: Out = 3;
    QUERY_GID_ENTRY_PORT: Const = 0;
    QUERY_GID_ENTRY_GID_INDEX: Const = 1;
    QUERY_GID_ENTRY_FLAGS: In = 2;
    QUERY_GID_ENTRY_RESP_ENTRY: Out = 3;
}

/// `MLX5_IB_ATTR_QUERY_CONTEXT_RESP_UCTX`: of [`QUERY_CONTEXT`], in the driver's own number space.
pub const QUERY_CONTEXT_RESP_UCTX: Out = Out(0x1000);

/// `UVERBS_METHOD_QUERY_PORT_SPEED`; newer kernels (7.2 has it, 6.12 not).
pub const QUERY_PORT_SPEED: Method = Method { object: object::DEVICE, method: 7 };
/// `UVERBS_ATTR_QUERY_PORT_SPEED_PORT_NUM`.
pub const QUERY_PORT_SPEED_PORT_NUM: Const = Const(0);
/// `UVERBS_ATTR_QUERY_PORT_SPEED_RESP`.
pub const QUERY_PORT_SPEED_RESP: Out = Out(1);

/// `MLX5_IB_OBJECT_UAR`.
pub const OBJECT_UAR: u16 = 0x1008;

numbers! { MLX5_METHODS, "MLX5_IB_METHOD_";
    UAR_OBJ_ALLOC: Method = Method { object: OBJECT_UAR, method: 0x1000 }, 0x1000;
    UAR_OBJ_DESTROY: Method = Method { object: OBJECT_UAR, method: 0x1001 }, 0x1001;
    DM_QUERY: Method = Method { object: object::DM, method: 0x1001 }, 0x1001;
    PD_QUERY: Method = Method { object: object::PD, method: 0x1000 }, 0x1000;
}

numbers! { MLX5_ATTRS, "MLX5_IB_ATTR_";
    UAR_OBJ_ALLOC_HANDLE: NewIdr = NewIdr(0x1000), 0x1000;
    UAR_OBJ_ALLOC_TYPE: Const = Const(0x1001), 0x1001;
    UAR_OBJ_ALLOC_MMAP_OFFSET: Out = Out(0x1002), 0x1002;
    UAR_OBJ_ALLOC_MMAP_LENGTH: Out = Out(0x1003), 0x1003;
    UAR_OBJ_ALLOC_PAGE_ID: Out = Out(0x1004), 0x1004;
    UAR_OBJ_DESTROY_HANDLE: Idr = Idr(0x1000), 0x1000;
    ALLOC_DM_RESP_START_OFFSET: Out = Out(0x1000), 0x1000;
    ALLOC_DM_RESP_PAGE_INDEX: Out = Out(0x1001), 0x1001;
    ALLOC_DM_REQ_TYPE: Const = Const(0x1002), 0x1002;
    QUERY_DM_REQ_HANDLE: Idr = Idr(0x1000), 0x1000;
    QUERY_DM_RESP_START_OFFSET: Out = Out(0x1001), 0x1001;
    QUERY_DM_RESP_PAGE_INDEX: Out = Out(0x1002), 0x1002;
    QUERY_DM_RESP_LENGTH: Out = Out(0x1003), 0x1003;
    QUERY_PD_HANDLE: Idr = Idr(0x1000), 0x1000;
    QUERY_PD_RESP_PDN: Out = Out(0x1001), 0x1001;
}

macro_rules! write_cmds {
    ({ $($name:ident = $value:literal;)* } { $($ex:ident = $ex_value:literal;)* }) => {
        /// Commands of the write form; those called `EX_` carry `IB_USER_VERBS_CMD_FLAG_EXTENDED`.
        pub mod write {
            /// `IB_USER_VERBS_CMD_FLAG_EXTENDED`.
            pub const FLAG_EXTENDED: u32 = 0x8000_0000;
            $(
                #[doc = concat!("`IB_USER_VERBS_CMD_", stringify!($name), "`.")]
                pub const $name: u32 = $value;
            )*
            $(
                #[doc = concat!("`IB_USER_VERBS_", stringify!($ex), "`, flagged.")]
                pub const $ex: u32 = FLAG_EXTENDED | $ex_value;
            )*
        }

        #[cfg(test)]
        pub(super) const WRITE_CMDS: &[Number] = &[
            Number { name: "IB_USER_VERBS_CMD_FLAG_EXTENDED", value: write::FLAG_EXTENDED as u64 },
            $(Number { name: concat!("IB_USER_VERBS_CMD_", stringify!($name)), value: $value },)*
            $(Number { name: concat!("IB_USER_VERBS_", stringify!($ex)), value: $ex_value },)*
        ];
    };
}

write_cmds! { {
    QUERY_DEVICE = 1;
    ALLOC_PD = 3;
    CREATE_AH = 5;
    REG_MR = 9;
    REREG_MR = 11;
    ALLOC_MW = 14;
    CREATE_COMP_CHANNEL = 17;
    RESIZE_CQ = 19;
    REQ_NOTIFY_CQ = 23;
    QUERY_QP = 25;
    MODIFY_QP = 26;
    POST_SEND = 28;
    ATTACH_MCAST = 30;
    DETACH_MCAST = 31;
    MODIFY_SRQ = 33;
    QUERY_SRQ = 34;
    OPEN_XRCD = 37;
    OPEN_QP = 40;
} {
    EX_CMD_QUERY_DEVICE = 1;
    EX_CMD_MODIFY_QP = 26;
    EX_CMD_CREATE_FLOW = 50;
    EX_CMD_MODIFY_WQ = 53;
    EX_CMD_CREATE_RWQ_IND_TBL = 55;
    EX_CMD_MODIFY_CQ = 57;
} }
