//! The verbs.h types a provider touches, and those of libibverbs's private header whose layout never changed.
//!
//! Names of types, fields and constants are C's, so that a manual page or a header can be searched for them; what they
//! mean is said there (`ibv_create_qp(3)` and so on). Only what C does not say is said here.
//!
//! Integers stay integers: C may put any value where its header says `enum`, so no Rust enum is ever read from C. A
//! struct that holds a mutex is not `Clone`: a copy of a mutex is no mutex.
//!
//! Sizes and offsets are asserted at build time, and compared with the installed `<infiniband/verbs.h>` and with the
//! recorded layouts of every supported release by tests ([`C_STRUCTS`], [`C_CONSTS`]).
#![allow(unsafe_code, reason = "one `zeroed` for all plain C structs")]
#![allow(non_camel_case_types, reason = "the names are verbs.h's, to be searched for")]
#![allow(missing_docs, reason = "fields and constants mean what verbs.h and its manual pages say")]

use core::ffi::{c_char, c_int, c_uint, c_void};

use libc::{pthread_cond_t, pthread_mutex_t, timespec};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A struct or union as C sees it, for the tests that compare.
#[derive(Clone, Copy, Debug)]
pub struct CStruct {
    /// Its name in C.
    pub name: &'static str,
    /// How C and we call and size it.
    pub kind: CKind,
    /// Its size here.
    pub size: usize,
    /// Its fields.
    pub fields: &'static [CField],
}

/// What sort of C type a [`CStruct`] mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CKind {
    /// `struct name`.
    Struct,
    /// `union name`.
    Union,
    /// A member type without a name: reachable only through the struct that holds it.
    Anonymous,
    /// `struct name`, of which only the beginning is mirrored.
    Prefix,
    /// `struct name`, which older headers do not have.
    Newer,
}

/// A field of a [`CStruct`].
#[derive(Clone, Copy, Debug)]
pub struct CField {
    /// Its name in C.
    pub name: &'static str,
    /// Its offset.
    pub offset: usize,
    /// Its size.
    pub size: usize,
    /// Whether older headers of the supported range do not have it.
    pub newer: bool,
}

/// A constant of C.
#[derive(Clone, Copy, Debug)]
pub struct CConst {
    /// Its name in C.
    pub name: &'static str,
    /// Its value, cast to 32 bits.
    pub value: u32,
    /// Whether older headers of the supported range do not have it.
    pub newer: bool,
}

macro_rules! c_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $c:literal) => {
        $c
    };
}

macro_rules! is_newer {
    () => {
        false
    };
    (newer) => {
        true
    };
}

macro_rules! c_kind {
    () => {
        CKind::Struct
    };
    (union) => {
        CKind::Union
    };
    (anonymous) => {
        CKind::Anonymous
    };
    (prefix) => {
        CKind::Prefix
    };
    (newer) => {
        CKind::Newer
    };
}

/// C structs with the offset of each field and the size: `offset => field ("C name" if another) newer: type`.
macro_rules! c_structs {
    ($list:ident; $(
        $(#[$attr:meta])*
        pub struct $name:ident $($kind:ident)? [$size:literal] {
            $($(#[$fattr:meta])* $offset:literal => $field:ident $(($c:literal))? $($newer:ident)? : $ty:ty,)*
        }
    )*) => {
        $(
            $(#[$attr])*
            #[repr(C)]
            pub struct $name {
                $($(#[$fattr])* pub $field: $ty,)*
            }

            const _: () = assert!(size_of::<$name>() == $size);
            $(const _: () = assert!(core::mem::offset_of!($name, $field) == $offset);)*

            impl $name {
                /// All bytes zero: NULL, no callback, an unlocked mutex, nobody waiting.
                #[must_use]
                pub const fn zeroed() -> $name {
                    // SAFETY: integers, raw pointers, `Option`s of functions and glibc's pthread objects (whose
                    // initialisers are all zero) are valid when zero; the list holds nothing else.
                    unsafe { core::mem::zeroed() }
                }
            }
        )*

        /// The structs above, for the tests that compare them with C.
        pub const $list: &[CStruct] = &[$(CStruct {
            name: stringify!($name),
            kind: c_kind!($($kind)?),
            size: $size,
            fields: &[$(CField {
                name: c_name!($field $($c)?),
                offset: $offset,
                size: size_of::<$ty>(),
                newer: is_newer!($($newer)?),
            },)*],
        },)*];
    };
}

macro_rules! c_consts {
    ($list:ident; $($name:ident $($newer:ident)? = $value:expr;)*) => {
        $(pub const $name: u32 = $value;)*

        /// The constants above, for the test that compares them with C.
        pub const $list: &[CConst] = &[$(CConst { name: stringify!($name), value: $name, newer: is_newer!($($newer)?) },)*];
    };
}

/// Types that only pass through our hands, by address.
macro_rules! opaque {
    ($($name:ident)*) => {
        $(
            #[repr(C)]
            pub struct $name {
                opaque: [u8; 0],
            }
        )*
    };
}

opaque! {
    ibv_buf ibv_comp_cntr ibv_comp_cntr_caps ibv_comp_cntr_init_attr ibv_counter_attach_attr
    ibv_counters ibv_counters_init_attr ibv_dmah ibv_dmah_init_attr ibv_flow ibv_flow_action
    ibv_flow_action_esp_attr ibv_flow_attr ibv_ops_wr ibv_qp_attach_comp_cntr_attr
    ibv_qp_rate_limit_attr ibv_rwq_ind_table ibv_rwq_ind_table_init_attr ibv_wq ibv_wq_attr ibv_wq_init_attr
    verbs_xrcd
    _compat_ibv_port_attr
}

opaque! {
    verbs_context
}

/// The `wr` member of [`ibv_send_wr`].
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_send_wr_wr {
    pub rdma: ibv_send_wr_rdma,
    pub atomic: ibv_send_wr_atomic,
    pub ud: ibv_send_wr_ud,
}

/// The `qp_type` member of [`ibv_send_wr`] (`qp_type.xrc` in C).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ibv_send_wr_qp_type {
    pub remote_srqn: u32,
}

/// The last, unnamed member of [`ibv_send_wr`].
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_send_wr_tail {
    pub bind_mw: ibv_send_wr_bind_mw,
    pub tso: ibv_send_wr_tso,
}

/// What an [`ibv_async_event`] is about; which member holds is told by `event_type`.
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_async_event_element {
    pub cq: *mut ibv_cq,
    pub qp: *mut ibv_qp,
    pub srq: *mut ibv_srq,
    pub wq: *mut ibv_wq,
    pub port_num: c_int,
}

/// How a [`verbs_match_ent`] matches.
#[derive(Clone, Copy)]
#[repr(C)]
pub union verbs_match_ent_u {
    pub modalias: *const c_char,
    pub driver_id: u64,
}

c_structs! { C_STRUCTS;
    /// A GID, in network byte order.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(align(8))]
    pub struct ibv_gid union [16] {
        0 => raw: [u8; 16],
    }

    /// Must stay zeroed: libibverbs asserts it.
    pub struct _ibv_device_ops [16] {
        0 => _dummy1: Option<unsafe extern "C" fn(*mut ibv_device, c_int) -> *mut ibv_context>,
        8 => _dummy2: Option<unsafe extern "C" fn(*mut ibv_context)>,
    }

    /// A device, as libibverbs hands it out; the first member of [`verbs_device`].
    pub struct ibv_device [664] {
        0 => _ops: _ibv_device_ops,
        16 => node_type: u32,
        20 => transport_type: u32,
        24 => name: [c_char; 64],
        88 => dev_name: [c_char; 64],
        152 => dev_path: [c_char; 256],
        408 => ibdev_path: [c_char; 256],
    }

    /// The operations public inline functions call; written by `verbs_set_ops`, never by a provider.
    pub struct ibv_context_ops [256] {
        0 => _compat_query_device: Option<unsafe extern "C" fn(*mut ibv_context, *mut ibv_device_attr) -> c_int>,
        8 => _compat_query_port: Option<unsafe extern "C" fn(*mut ibv_context, u8, *mut _compat_ibv_port_attr) -> c_int>,
        16 => _compat_alloc_pd: Option<unsafe extern "C" fn() -> *mut c_void>,
        24 => _compat_dealloc_pd: Option<unsafe extern "C" fn() -> *mut c_void>,
        32 => _compat_reg_mr: Option<unsafe extern "C" fn() -> *mut c_void>,
        40 => _compat_rereg_mr: Option<unsafe extern "C" fn() -> *mut c_void>,
        48 => _compat_dereg_mr: Option<unsafe extern "C" fn() -> *mut c_void>,
        56 => alloc_mw: Option<unsafe extern "C" fn(*mut ibv_pd, u32) -> *mut ibv_mw>,
        64 => bind_mw: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_mw, *mut ibv_mw_bind) -> c_int>,
        72 => dealloc_mw: Option<unsafe extern "C" fn(*mut ibv_mw) -> c_int>,
        80 => _compat_create_cq: Option<unsafe extern "C" fn() -> *mut c_void>,
        88 => poll_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int>,
        96 => req_notify_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int>,
        104 => _compat_cq_event: Option<unsafe extern "C" fn() -> *mut c_void>,
        112 => _compat_resize_cq: Option<unsafe extern "C" fn() -> *mut c_void>,
        120 => _compat_destroy_cq: Option<unsafe extern "C" fn() -> *mut c_void>,
        128 => _compat_create_srq: Option<unsafe extern "C" fn() -> *mut c_void>,
        136 => _compat_modify_srq: Option<unsafe extern "C" fn() -> *mut c_void>,
        144 => _compat_query_srq: Option<unsafe extern "C" fn() -> *mut c_void>,
        152 => _compat_destroy_srq: Option<unsafe extern "C" fn() -> *mut c_void>,
        160 => post_srq_recv: Option<unsafe extern "C" fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int>,
        168 => _compat_create_qp: Option<unsafe extern "C" fn() -> *mut c_void>,
        176 => _compat_query_qp: Option<unsafe extern "C" fn() -> *mut c_void>,
        184 => _compat_modify_qp: Option<unsafe extern "C" fn() -> *mut c_void>,
        192 => _compat_destroy_qp: Option<unsafe extern "C" fn() -> *mut c_void>,
        200 => post_send: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int>,
        208 => post_recv: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int>,
        216 => _compat_create_ah: Option<unsafe extern "C" fn() -> *mut c_void>,
        224 => _compat_destroy_ah: Option<unsafe extern "C" fn() -> *mut c_void>,
        232 => _compat_attach_mcast: Option<unsafe extern "C" fn() -> *mut c_void>,
        240 => _compat_detach_mcast: Option<unsafe extern "C" fn() -> *mut c_void>,
        248 => _compat_async_event: Option<unsafe extern "C" fn() -> *mut c_void>,
    }

    /// The public part of an open device; it ends the `verbs_context` in every layout (see [`super::layout`]).
    pub struct ibv_context [328] {
        0 => device: *mut ibv_device,
        8 => ops: ibv_context_ops,
        264 => cmd_fd: c_int,
        268 => async_fd: c_int,
        272 => num_comp_vectors: c_int,
        280 => mutex: pthread_mutex_t,
        320 => abi_compat: *mut c_void,
    }

    pub struct ibv_pd [16] {
        0 => context: *mut ibv_context,
        8 => handle: u32,
    }

    pub struct ibv_td [8] {
        0 => context: *mut ibv_context,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_td_init_attr [4] {
        0 => comp_mask: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_parent_domain_init_attr [48] {
        0 => pd: *mut ibv_pd,
        8 => td: *mut ibv_td,
        16 => comp_mask: u32,
        24 => alloc: Option<unsafe extern "C" fn(*mut ibv_pd, *mut c_void, usize, usize, u64) -> *mut c_void>,
        32 => free: Option<unsafe extern "C" fn(*mut ibv_pd, *mut c_void, *mut c_void, u64)>,
        40 => pd_context: *mut c_void,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_alloc_dm_attr [16] {
        0 => length: usize,
        8 => log_align_req: u32,
        12 => comp_mask: u32,
    }

    pub struct ibv_dm [32] {
        0 => context: *mut ibv_context,
        8 => memcpy_to_dm: Option<unsafe extern "C" fn(*mut ibv_dm, u64, *const c_void, usize) -> c_int>,
        16 => memcpy_from_dm: Option<unsafe extern "C" fn(*mut c_void, *mut ibv_dm, u64, usize) -> c_int>,
        24 => comp_mask: u32,
        28 => handle newer: u32,
    }

    pub struct ibv_xrcd [8] {
        0 => context: *mut ibv_context,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_xrcd_init_attr [12] {
        0 => comp_mask: u32,
        4 => fd: c_int,
        8 => oflags: c_int,
    }

    /// Kept by value inside [`verbs_mr`]; `addr` and `length` are set by libibverbs after `reg_mr`.
    pub struct ibv_mr [48] {
        0 => context: *mut ibv_context,
        8 => pd: *mut ibv_pd,
        16 => addr: *mut c_void,
        24 => length: usize,
        32 => handle: u32,
        36 => lkey: u32,
        40 => rkey: u32,
    }

    /// Input of `reg_mr_ex`.
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_mr_init_attr newer [72] {
        0 => length: usize,
        8 => access: c_int,
        16 => comp_mask: u64,
        24 => iova: u64,
        32 => addr: *mut c_void,
        40 => fd: c_int,
        48 => fd_offset: u64,
        56 => dmah: *mut ibv_dmah,
        64 => buf newer: *mut ibv_buf,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_mw_bind_info [32] {
        0 => mr: *mut ibv_mr,
        8 => addr: u64,
        16 => length: u64,
        24 => mw_access_flags: c_uint,
    }

    pub struct ibv_mw [32] {
        0 => context: *mut ibv_context,
        8 => pd: *mut ibv_pd,
        16 => rkey: u32,
        20 => handle: u32,
        24 => type_ ("type"): u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_mw_bind [48] {
        0 => wr_id: u64,
        8 => send_flags: c_uint,
        16 => bind_info: ibv_mw_bind_info,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_global_route [24] {
        0 => dgid: ibv_gid,
        16 => flow_label: u32,
        20 => sgid_index: u8,
        21 => hop_limit: u8,
        22 => traffic_class: u8,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_ah_attr [32] {
        0 => grh: ibv_global_route,
        24 => dlid: u16,
        26 => sl: u8,
        27 => src_path_bits: u8,
        28 => static_rate: u8,
        29 => is_global: u8,
        30 => port_num: u8,
    }

    pub struct ibv_ah [24] {
        0 => context: *mut ibv_context,
        8 => pd: *mut ibv_pd,
        16 => handle: u32,
    }

    /// The 40 bytes in front of a datagram; multi-byte fields in network byte order.
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_grh [40] {
        0 => version_tclass_flow: u32,
        4 => paylen: u16,
        6 => next_hdr: u8,
        7 => hop_limit: u8,
        8 => sgid: ibv_gid,
        24 => dgid: ibv_gid,
    }

    pub struct ibv_comp_channel [16] {
        0 => context: *mut ibv_context,
        8 => fd: c_int,
        12 => refcnt: c_int,
    }

    /// libibverbs writes all but `handle` and `cqe` after `create_cq` returns.
    pub struct ibv_cq [128] {
        0 => context: *mut ibv_context,
        8 => channel: *mut ibv_comp_channel,
        16 => cq_context: *mut c_void,
        24 => handle: u32,
        28 => cqe: c_int,
        32 => mutex: pthread_mutex_t,
        72 => cond: pthread_cond_t,
        120 => comp_events_completed: u32,
        124 => async_events_completed: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_poll_cq_attr [4] {
        0 => comp_mask: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_wc_tm_info [16] {
        0 => tag: u64,
        8 => priv_ ("priv"): u32,
    }

    /// The first fields are those of [`ibv_cq`].
    pub struct ibv_cq_ex [288] {
        0 => context: *mut ibv_context,
        8 => channel: *mut ibv_comp_channel,
        16 => cq_context: *mut c_void,
        24 => handle: u32,
        28 => cqe: c_int,
        32 => mutex: pthread_mutex_t,
        72 => cond: pthread_cond_t,
        120 => comp_events_completed: u32,
        124 => async_events_completed: u32,
        128 => comp_mask: u32,
        132 => status: u32,
        136 => wr_id: u64,
        144 => start_poll: Option<unsafe extern "C" fn(*mut ibv_cq_ex, *mut ibv_poll_cq_attr) -> c_int>,
        152 => next_poll: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> c_int>,
        160 => end_poll: Option<unsafe extern "C" fn(*mut ibv_cq_ex)>,
        168 => read_opcode: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        176 => read_vendor_err: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        184 => read_byte_len: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        192 => read_imm_data: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        200 => read_qp_num: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        208 => read_src_qp: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        216 => read_wc_flags: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> c_uint>,
        224 => read_slid: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        232 => read_sl: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u8>,
        240 => read_dlid_path_bits: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u8>,
        248 => read_completion_ts: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u64>,
        256 => read_cvlan: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u16>,
        264 => read_flow_tag: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32>,
        272 => read_tm_info: Option<unsafe extern "C" fn(*mut ibv_cq_ex, *mut ibv_wc_tm_info)>,
        280 => read_completion_wallclock_ns: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u64>,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_cq_init_attr_ex [56] {
        0 => cqe: u32,
        8 => cq_context: *mut c_void,
        16 => channel: *mut ibv_comp_channel,
        24 => comp_vector: u32,
        32 => wc_flags: u64,
        40 => comp_mask: u32,
        44 => flags: u32,
        48 => parent_domain: *mut ibv_pd,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_moderate_cq [4] {
        0 => cq_count: u16,
        2 => cq_period: u16,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_modify_cq_attr [8] {
        0 => attr_mask: u32,
        4 => moderate: ibv_moderate_cq,
    }

    pub struct ibv_srq [128] {
        0 => context: *mut ibv_context,
        8 => srq_context: *mut c_void,
        16 => pd: *mut ibv_pd,
        24 => handle: u32,
        32 => mutex: pthread_mutex_t,
        72 => cond: pthread_cond_t,
        120 => events_completed: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_srq_attr [12] {
        0 => max_wr: u32,
        4 => max_sge: u32,
        8 => srq_limit: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_srq_init_attr [24] {
        0 => srq_context: *mut c_void,
        8 => attr: ibv_srq_attr,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_tm_cap [8] {
        0 => max_num_tags: u32,
        4 => max_ops: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_srq_init_attr_ex [64] {
        0 => srq_context: *mut c_void,
        8 => attr: ibv_srq_attr,
        20 => comp_mask: u32,
        24 => srq_type: u32,
        32 => pd: *mut ibv_pd,
        40 => xrcd: *mut ibv_xrcd,
        48 => cq: *mut ibv_cq,
        56 => tm_cap: ibv_tm_cap,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_qp_cap [20] {
        0 => max_send_wr: u32,
        4 => max_recv_wr: u32,
        8 => max_send_sge: u32,
        12 => max_recv_sge: u32,
        16 => max_inline_data: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_qp_init_attr [64] {
        0 => qp_context: *mut c_void,
        8 => send_cq: *mut ibv_cq,
        16 => recv_cq: *mut ibv_cq,
        24 => srq: *mut ibv_srq,
        32 => cap: ibv_qp_cap,
        52 => qp_type: u32,
        56 => sq_sig_all: c_int,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_rx_hash_conf [24] {
        0 => rx_hash_function: u8,
        1 => rx_hash_key_len: u8,
        8 => rx_hash_key: *mut u8,
        16 => rx_hash_fields_mask: u64,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_qp_init_attr_ex [136] {
        0 => qp_context: *mut c_void,
        8 => send_cq: *mut ibv_cq,
        16 => recv_cq: *mut ibv_cq,
        24 => srq: *mut ibv_srq,
        32 => cap: ibv_qp_cap,
        52 => qp_type: u32,
        56 => sq_sig_all: c_int,
        60 => comp_mask: u32,
        64 => pd: *mut ibv_pd,
        72 => xrcd: *mut ibv_xrcd,
        80 => create_flags: u32,
        84 => max_tso_header: u16,
        88 => rwq_ind_tbl: *mut ibv_rwq_ind_table,
        96 => rx_hash_conf: ibv_rx_hash_conf,
        120 => source_qpn: u32,
        128 => send_ops_flags: u64,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_qp_open_attr [32] {
        0 => comp_mask: u32,
        4 => qp_num: u32,
        8 => xrcd: *mut ibv_xrcd,
        16 => qp_context: *mut c_void,
        24 => qp_type: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_qp_attr [144] {
        0 => qp_state: u32,
        4 => cur_qp_state: u32,
        8 => path_mtu: u32,
        12 => path_mig_state: u32,
        16 => qkey: u32,
        20 => rq_psn: u32,
        24 => sq_psn: u32,
        28 => dest_qp_num: u32,
        32 => qp_access_flags: c_uint,
        36 => cap: ibv_qp_cap,
        56 => ah_attr: ibv_ah_attr,
        88 => alt_ah_attr: ibv_ah_attr,
        120 => pkey_index: u16,
        122 => alt_pkey_index: u16,
        124 => en_sqd_async_notify: u8,
        125 => sq_draining: u8,
        126 => max_rd_atomic: u8,
        127 => max_dest_rd_atomic: u8,
        128 => min_rnr_timer: u8,
        129 => port_num: u8,
        130 => timeout: u8,
        131 => retry_cnt: u8,
        132 => rnr_retry: u8,
        133 => alt_port_num: u8,
        134 => alt_timeout: u8,
        136 => rate_limit: u32,
    }

    /// libibverbs initialises none of it for an extended QP: the provider does, mutex and cond included.
    pub struct ibv_qp [160] {
        0 => context: *mut ibv_context,
        8 => qp_context: *mut c_void,
        16 => pd: *mut ibv_pd,
        24 => send_cq: *mut ibv_cq,
        32 => recv_cq: *mut ibv_cq,
        40 => srq: *mut ibv_srq,
        48 => handle: u32,
        52 => qp_num: u32,
        56 => state: u32,
        60 => qp_type: u32,
        64 => mutex: pthread_mutex_t,
        104 => cond: pthread_cond_t,
        152 => events_completed: u32,
    }

    /// In its newest form. Layouts before 34 of rdma-core 44 and 45 end before `wr_atomic_write` and `wr_flush`: there the same bytes
    /// hold `verbs_qp.comp_mask` ([`Layout::comp_mask`](super::layout::Layout::comp_mask)).
    pub struct ibv_qp_ex [360] {
        0 => qp_base: ibv_qp,
        160 => comp_mask: u64,
        168 => wr_id: u64,
        176 => wr_flags: c_uint,
        184 => wr_atomic_cmp_swp: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u64, u64)>,
        192 => wr_atomic_fetch_add: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u64)>,
        200 => wr_bind_mw: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut ibv_mw, u32, *const ibv_mw_bind_info)>,
        208 => wr_local_inv: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)>,
        216 => wr_rdma_read: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64)>,
        224 => wr_rdma_write: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64)>,
        232 => wr_rdma_write_imm: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32)>,
        240 => wr_send: Option<unsafe extern "C" fn(*mut ibv_qp_ex)>,
        248 => wr_send_imm: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)>,
        256 => wr_send_inv: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)>,
        264 => wr_send_tso: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut c_void, u16, u16)>,
        272 => wr_set_ud_addr: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut ibv_ah, u32, u32)>,
        280 => wr_set_xrc_srqn: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)>,
        288 => wr_set_inline_data: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut c_void, usize)>,
        296 => wr_set_inline_data_list: Option<unsafe extern "C" fn(*mut ibv_qp_ex, usize, *const ibv_data_buf)>,
        304 => wr_set_sge: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32)>,
        312 => wr_set_sge_list: Option<unsafe extern "C" fn(*mut ibv_qp_ex, usize, *const ibv_sge)>,
        320 => wr_start: Option<unsafe extern "C" fn(*mut ibv_qp_ex)>,
        328 => wr_complete: Option<unsafe extern "C" fn(*mut ibv_qp_ex) -> c_int>,
        336 => wr_abort: Option<unsafe extern "C" fn(*mut ibv_qp_ex)>,
        344 => wr_atomic_write newer: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, *const c_void)>,
        352 => wr_flush newer: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, usize, u8, u8)>,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_ece [12] {
        0 => vendor_id: u32,
        4 => options: u32,
        8 => comp_mask: u32,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    pub struct ibv_sge [16] {
        0 => addr: u64,
        8 => length: u32,
        12 => lkey: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_data_buf [16] {
        0 => addr: *mut c_void,
        8 => length: usize,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_recv_wr [32] {
        0 => wr_id: u64,
        8 => next: *mut ibv_recv_wr,
        16 => sg_list: *mut ibv_sge,
        24 => num_sge: c_int,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_send_wr_rdma anonymous [16] {
        0 => remote_addr: u64,
        8 => rkey: u32,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_send_wr_atomic anonymous [32] {
        0 => remote_addr: u64,
        8 => compare_add: u64,
        16 => swap: u64,
        24 => rkey: u32,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_send_wr_ud anonymous [16] {
        0 => ah: *mut ibv_ah,
        8 => remote_qpn: u32,
        12 => remote_qkey: u32,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_send_wr_bind_mw anonymous [48] {
        0 => mw: *mut ibv_mw,
        8 => rkey: u32,
        16 => bind_info: ibv_mw_bind_info,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_send_wr_tso anonymous [16] {
        0 => hdr: *mut c_void,
        8 => hdr_sz: u16,
        10 => mss: u16,
    }

    /// Read it through [`super::wr::SendWr`].
    #[derive(Clone, Copy)]
    pub struct ibv_send_wr [128] {
        0 => wr_id: u64,
        8 => next: *mut ibv_send_wr,
        16 => sg_list: *mut ibv_sge,
        24 => num_sge: c_int,
        28 => opcode: u32,
        32 => send_flags: c_uint,
        /// In network byte order; the same bytes are `invalidate_rkey`, in host order.
        36 => imm_data: u32,
        40 => wr: ibv_send_wr_wr,
        72 => qp_type: ibv_send_wr_qp_type,
        80 => tail ("bind_mw"): ibv_send_wr_tail,
    }

    #[derive(Clone, Copy, Debug, zerocopy::FromBytes)]
    pub struct ibv_wc [48] {
        0 => wr_id: u64,
        8 => status: u32,
        12 => opcode: u32,
        16 => vendor_err: u32,
        20 => byte_len: u32,
        /// In network byte order; with `IBV_WC_WITH_INV` it is `invalidated_rkey`, in host order.
        24 => imm_data: u32,
        28 => qp_num: u32,
        32 => src_qp: u32,
        36 => wc_flags: c_uint,
        40 => pkey_index: u16,
        42 => slid: u16,
        44 => sl: u8,
        45 => dlid_path_bits: u8,
    }

    #[derive(Clone, Copy)]
    pub struct ibv_async_event [16] {
        0 => element: ibv_async_event_element,
        8 => event_type: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_device_attr [232] {
        0 => fw_ver: [c_char; 64],
        64 => node_guid: u64,
        72 => sys_image_guid: u64,
        80 => max_mr_size: u64,
        88 => page_size_cap: u64,
        96 => vendor_id: u32,
        100 => vendor_part_id: u32,
        104 => hw_ver: u32,
        108 => max_qp: c_int,
        112 => max_qp_wr: c_int,
        116 => device_cap_flags: c_uint,
        120 => max_sge: c_int,
        124 => max_sge_rd: c_int,
        128 => max_cq: c_int,
        132 => max_cqe: c_int,
        136 => max_mr: c_int,
        140 => max_pd: c_int,
        144 => max_qp_rd_atom: c_int,
        148 => max_ee_rd_atom: c_int,
        152 => max_res_rd_atom: c_int,
        156 => max_qp_init_rd_atom: c_int,
        160 => max_ee_init_rd_atom: c_int,
        164 => atomic_cap: u32,
        168 => max_ee: c_int,
        172 => max_rdd: c_int,
        176 => max_mw: c_int,
        180 => max_raw_ipv6_qp: c_int,
        184 => max_raw_ethy_qp: c_int,
        188 => max_mcast_grp: c_int,
        192 => max_mcast_qp_attach: c_int,
        196 => max_total_mcast_qp_attach: c_int,
        200 => max_ah: c_int,
        204 => max_fmr: c_int,
        208 => max_map_per_fmr: c_int,
        212 => max_srq: c_int,
        216 => max_srq_wr: c_int,
        220 => max_srq_sge: c_int,
        224 => max_pkeys: u16,
        226 => local_ca_ack_delay: u8,
        227 => phys_port_cnt: u8,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_query_device_ex_input [4] {
        0 => comp_mask: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_odp_caps_per_transport anonymous [12] {
        0 => rc_odp_caps: u32,
        4 => uc_odp_caps: u32,
        8 => ud_odp_caps: u32,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_odp_caps [24] {
        0 => general_caps: u64,
        8 => per_transport_caps: ibv_odp_caps_per_transport,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_tso_caps [8] {
        0 => max_tso: u32,
        4 => supported_qpts: u32,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_rss_caps [32] {
        0 => supported_qpts: u32,
        4 => max_rwq_indirection_tables: u32,
        8 => max_rwq_indirection_table_size: u32,
        16 => rx_hash_fields_mask: u64,
        24 => rx_hash_function: u8,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_packet_pacing_caps [12] {
        0 => qp_rate_limit_min: u32,
        4 => qp_rate_limit_max: u32,
        8 => supported_qpts: u32,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_tm_caps [20] {
        0 => max_rndv_hdr_size: u32,
        4 => max_num_tags: u32,
        8 => flags: u32,
        12 => max_ops: u32,
        16 => max_sge: u32,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_cq_moderation_caps [4] {
        0 => max_cq_count: u16,
        2 => max_cq_period: u16,
    }
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_pci_atomic_caps [6] {
        0 => fetch_add: u16,
        2 => swap: u16,
        4 => compare_swap: u16,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_device_attr_ex [400] {
        0 => orig_attr: ibv_device_attr,
        232 => comp_mask: u32,
        240 => odp_caps: ibv_odp_caps,
        264 => completion_timestamp_mask: u64,
        272 => hca_core_clock: u64,
        280 => device_cap_flags_ex: u64,
        288 => tso_caps: ibv_tso_caps,
        296 => rss_caps: ibv_rss_caps,
        328 => max_wq_type_rq: u32,
        332 => packet_pacing_caps: ibv_packet_pacing_caps,
        344 => raw_packet_caps: u32,
        348 => tm_caps: ibv_tm_caps,
        368 => cq_mod_caps: ibv_cq_moderation_caps,
        376 => max_dm_size: u64,
        384 => pci_atomic_caps: ibv_pci_atomic_caps,
        392 => xrc_odp_caps: u32,
        396 => phys_port_cnt_ex newer: u32,
    }

    /// Libraries before 49.0 hand out only the first [`PORT_ATTR_SIZE_MIN`] bytes.
    #[derive(Clone, Copy, Debug)]
    pub struct ibv_port_attr [56] {
        0 => state: u32,
        4 => max_mtu: u32,
        8 => active_mtu: u32,
        12 => gid_tbl_len: c_int,
        16 => port_cap_flags: u32,
        20 => max_msg_sz: u32,
        24 => bad_pkey_cntr: u32,
        28 => qkey_viol_cntr: u32,
        32 => pkey_tbl_len: u16,
        34 => lid: u16,
        36 => sm_lid: u16,
        38 => lmc: u8,
        39 => max_vl_num: u8,
        40 => sm_sl: u8,
        41 => subnet_timeout: u8,
        42 => init_type_reply: u8,
        43 => active_width: u8,
        44 => active_speed: u8,
        45 => phys_state: u8,
        46 => link_layer: u8,
        47 => flags: u8,
        48 => port_cap_flags2: u16,
        52 => active_speed_ex newer: u32,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct ibv_values_ex [24] {
        0 => comp_mask: u32,
        8 => raw_clock: timespec,
    }
}

c_structs! { PRIVATE_STRUCTS;
    /// One line of a match table; ends with `kind` [`VERBS_MATCH_SENTINEL`].
    pub struct verbs_match_ent [24] {
        0 => driver_data: *mut c_void,
        /// `driver_id`, or the address of a `modalias` string.
        8 => u: verbs_match_ent_u,
        16 => vendor: u16,
        18 => device: u16,
        20 => kind: u8,
    }

    pub struct list_node [16] {
        0 => next: *mut list_node,
        8 => prev: *mut list_node,
    }

    /// A device found, for `match_device` and `alloc_device`. What lies beyond these fields differs from layout to layout: never read there,
    /// and never take the size of this for that of C.
    pub struct verbs_sysfs_dev prefix [968] {
        0 => entry: list_node,
        16 => provider_data: *mut c_void,
        24 => match_ ("match"): *const verbs_match_ent,
        32 => flags: c_uint,
        36 => sysfs_name: [c_char; 64],
        104 => sysfs_cdev: libc::dev_t,
        112 => ibdev_name: [c_char; 64],
        176 => ibdev_path: [c_char; 256],
        432 => modalias: [c_char; 512],
        944 => node_guid: u64,
        952 => driver_id: u32,
        956 => node_type: u32,
        960 => ibdev_idx: c_int,
    }

    /// What a provider registers.
    pub struct verbs_device_ops [72] {
        0 => name: *const c_char,
        8 => match_min_abi_version: u32,
        12 => match_max_abi_version: u32,
        16 => match_table: *const verbs_match_ent,
        24 => static_providers: *mut *const verbs_device_ops,
        32 => match_device: Option<unsafe extern "C" fn(*mut verbs_sysfs_dev) -> bool>,
        40 => alloc_context: Option<unsafe extern "C" fn(*mut ibv_device, c_int, *mut c_void) -> *mut verbs_context>,
        48 => import_context: Option<unsafe extern "C" fn(*mut ibv_device, c_int) -> *mut verbs_context>,
        56 => alloc_device: Option<unsafe extern "C" fn(*mut verbs_sysfs_dev) -> *mut verbs_device>,
        64 => uninit_device: Option<unsafe extern "C" fn(*mut verbs_device)>,
    }

    /// A device of a provider; allocated zeroed by `alloc_device`. `sysfs` is freed before `uninit_device` runs.
    pub struct verbs_device [712] {
        0 => device: ibv_device,
        664 => ops: *const verbs_device_ops,
        672 => refcount: c_int,
        680 => entry: list_node,
        696 => sysfs: *mut verbs_sysfs_dev,
        704 => core_support: u64,
    }

    /// `mr_type` and `access` are the provider's to set: `dereg_mr` and the fork handling read them.
    pub struct verbs_mr [56] {
        0 => ibv_mr: ibv_mr,
        48 => mr_type: u32,
        52 => access: c_int,
    }

    pub struct verbs_srq [160] {
        0 => srq: ibv_srq,
        128 => srq_type: u32,
        136 => xrcd: *mut verbs_xrcd,
        144 => cq: *mut ibv_cq,
        152 => srq_num: u32,
    }
}

// SAFETY: a match table is constant data: nothing writes it or through it.
unsafe impl Sync for verbs_match_ent {}
// SAFETY: as above; the name and the table it points at are `'static` constants.
unsafe impl Sync for verbs_device_ops {}

c_consts! { C_CONSTS;
    // enum ibv_gid_type
    IBV_GID_TYPE_IB = 0;
    IBV_GID_TYPE_ROCE_V1 = 1;
    IBV_GID_TYPE_ROCE_V2 = 2;
    // enum ibv_node_type
    IBV_NODE_UNKNOWN = u32::MAX;
    IBV_NODE_CA = 1;
    IBV_NODE_SWITCH = 2;
    IBV_NODE_ROUTER = 3;
    IBV_NODE_RNIC = 4;
    IBV_NODE_USNIC = 5;
    IBV_NODE_USNIC_UDP = 6;
    IBV_NODE_UNSPECIFIED = 7;
    // enum ibv_transport_type
    IBV_TRANSPORT_UNKNOWN = u32::MAX;
    IBV_TRANSPORT_IB = 0;
    IBV_TRANSPORT_IWARP = 1;
    IBV_TRANSPORT_USNIC = 2;
    IBV_TRANSPORT_USNIC_UDP = 3;
    IBV_TRANSPORT_UNSPECIFIED = 4;
    // enum ibv_device_cap_flags
    IBV_DEVICE_RESIZE_MAX_WR = 1 << 0;
    IBV_DEVICE_BAD_PKEY_CNTR = 1 << 1;
    IBV_DEVICE_BAD_QKEY_CNTR = 1 << 2;
    IBV_DEVICE_RAW_MULTI = 1 << 3;
    IBV_DEVICE_AUTO_PATH_MIG = 1 << 4;
    IBV_DEVICE_CHANGE_PHY_PORT = 1 << 5;
    IBV_DEVICE_UD_AV_PORT_ENFORCE = 1 << 6;
    IBV_DEVICE_CURR_QP_STATE_MOD = 1 << 7;
    IBV_DEVICE_SHUTDOWN_PORT = 1 << 8;
    IBV_DEVICE_INIT_TYPE = 1 << 9;
    IBV_DEVICE_PORT_ACTIVE_EVENT = 1 << 10;
    IBV_DEVICE_SYS_IMAGE_GUID = 1 << 11;
    IBV_DEVICE_RC_RNR_NAK_GEN = 1 << 12;
    IBV_DEVICE_SRQ_RESIZE = 1 << 13;
    IBV_DEVICE_N_NOTIFY_CQ = 1 << 14;
    IBV_DEVICE_MEM_WINDOW = 1 << 17;
    IBV_DEVICE_UD_IP_CSUM = 1 << 18;
    IBV_DEVICE_XRC = 1 << 20;
    IBV_DEVICE_MEM_MGT_EXTENSIONS = 1 << 21;
    IBV_DEVICE_MEM_WINDOW_TYPE_2A = 1 << 23;
    IBV_DEVICE_MEM_WINDOW_TYPE_2B = 1 << 24;
    IBV_DEVICE_RC_IP_CSUM = 1 << 25;
    IBV_DEVICE_RAW_IP_CSUM = 1 << 26;
    IBV_DEVICE_MANAGED_FLOW_STEERING = 1 << 29;
    // enum ibv_atomic_cap
    IBV_ATOMIC_NONE = 0;
    IBV_ATOMIC_HCA = 1;
    IBV_ATOMIC_GLOB = 2;
    // enum ibv_odp_general_caps
    IBV_ODP_SUPPORT = 1 << 0;
    IBV_ODP_SUPPORT_IMPLICIT = 1 << 1;
    // enum ibv_odp_transport_cap_bits
    IBV_ODP_SUPPORT_SEND = 1 << 0;
    IBV_ODP_SUPPORT_RECV = 1 << 1;
    IBV_ODP_SUPPORT_WRITE = 1 << 2;
    IBV_ODP_SUPPORT_READ = 1 << 3;
    IBV_ODP_SUPPORT_ATOMIC = 1 << 4;
    IBV_ODP_SUPPORT_SRQ_RECV = 1 << 5;
    IBV_ODP_SUPPORT_FLUSH newer = 1 << 6;
    IBV_ODP_SUPPORT_ATOMIC_WRITE newer = 1 << 7;
    // enum ibv_raw_packet_caps
    IBV_RAW_PACKET_CAP_CVLAN_STRIPPING = 1 << 0;
    IBV_RAW_PACKET_CAP_SCATTER_FCS = 1 << 1;
    IBV_RAW_PACKET_CAP_IP_CSUM = 1 << 2;
    IBV_RAW_PACKET_CAP_DELAY_DROP = 1 << 3;
    // enum ibv_mtu
    IBV_MTU_256 = 1;
    IBV_MTU_512 = 2;
    IBV_MTU_1024 = 3;
    IBV_MTU_2048 = 4;
    IBV_MTU_4096 = 5;
    // enum ibv_port_state
    IBV_PORT_NOP = 0;
    IBV_PORT_DOWN = 1;
    IBV_PORT_INIT = 2;
    IBV_PORT_ARMED = 3;
    IBV_PORT_ACTIVE = 4;
    IBV_PORT_ACTIVE_DEFER = 5;
    // Link layers of a port.
    IBV_LINK_LAYER_UNSPECIFIED = 0;
    IBV_LINK_LAYER_INFINIBAND = 1;
    IBV_LINK_LAYER_ETHERNET = 2;
    // enum ibv_event_type
    IBV_EVENT_CQ_ERR = 0;
    IBV_EVENT_QP_FATAL = 1;
    IBV_EVENT_QP_REQ_ERR = 2;
    IBV_EVENT_QP_ACCESS_ERR = 3;
    IBV_EVENT_COMM_EST = 4;
    IBV_EVENT_SQ_DRAINED = 5;
    IBV_EVENT_PATH_MIG = 6;
    IBV_EVENT_PATH_MIG_ERR = 7;
    IBV_EVENT_DEVICE_FATAL = 8;
    IBV_EVENT_PORT_ACTIVE = 9;
    IBV_EVENT_PORT_ERR = 10;
    IBV_EVENT_LID_CHANGE = 11;
    IBV_EVENT_PKEY_CHANGE = 12;
    IBV_EVENT_SM_CHANGE = 13;
    IBV_EVENT_SRQ_ERR = 14;
    IBV_EVENT_SRQ_LIMIT_REACHED = 15;
    IBV_EVENT_QP_LAST_WQE_REACHED = 16;
    IBV_EVENT_CLIENT_REREGISTER = 17;
    IBV_EVENT_GID_CHANGE = 18;
    IBV_EVENT_WQ_FATAL = 19;
    IBV_EVENT_DEVICE_SPEED_CHANGE newer = 20;
    // enum ibv_wc_status
    IBV_WC_SUCCESS = 0;
    IBV_WC_LOC_LEN_ERR = 1;
    IBV_WC_LOC_QP_OP_ERR = 2;
    IBV_WC_LOC_EEC_OP_ERR = 3;
    IBV_WC_LOC_PROT_ERR = 4;
    IBV_WC_WR_FLUSH_ERR = 5;
    IBV_WC_MW_BIND_ERR = 6;
    IBV_WC_BAD_RESP_ERR = 7;
    IBV_WC_LOC_ACCESS_ERR = 8;
    IBV_WC_REM_INV_REQ_ERR = 9;
    IBV_WC_REM_ACCESS_ERR = 10;
    IBV_WC_REM_OP_ERR = 11;
    IBV_WC_RETRY_EXC_ERR = 12;
    IBV_WC_RNR_RETRY_EXC_ERR = 13;
    IBV_WC_LOC_RDD_VIOL_ERR = 14;
    IBV_WC_REM_INV_RD_REQ_ERR = 15;
    IBV_WC_REM_ABORT_ERR = 16;
    IBV_WC_INV_EECN_ERR = 17;
    IBV_WC_INV_EEC_STATE_ERR = 18;
    IBV_WC_FATAL_ERR = 19;
    IBV_WC_RESP_TIMEOUT_ERR = 20;
    IBV_WC_GENERAL_ERR = 21;
    IBV_WC_TM_ERR = 22;
    IBV_WC_TM_RNDV_INCOMPLETE = 23;
    // enum ibv_wc_opcode
    IBV_WC_SEND = 0;
    IBV_WC_RDMA_WRITE = 1;
    IBV_WC_RDMA_READ = 2;
    IBV_WC_COMP_SWAP = 3;
    IBV_WC_FETCH_ADD = 4;
    IBV_WC_BIND_MW = 5;
    IBV_WC_LOCAL_INV = 6;
    IBV_WC_TSO = 7;
    IBV_WC_FLUSH newer = 8;
    IBV_WC_ATOMIC_WRITE newer = 9;
    IBV_WC_RECV = 128;
    IBV_WC_RECV_RDMA_WITH_IMM = 129;
    IBV_WC_TM_ADD = 130;
    IBV_WC_TM_DEL = 131;
    IBV_WC_TM_SYNC = 132;
    IBV_WC_TM_RECV = 133;
    IBV_WC_TM_NO_TAG = 134;
    IBV_WC_DRIVER1 = 135;
    IBV_WC_DRIVER2 newer = 136;
    IBV_WC_DRIVER3 newer = 137;
    // enum ibv_create_cq_wc_flags
    IBV_WC_EX_WITH_BYTE_LEN = 1 << 0;
    IBV_WC_EX_WITH_IMM = 1 << 1;
    IBV_WC_EX_WITH_QP_NUM = 1 << 2;
    IBV_WC_EX_WITH_SRC_QP = 1 << 3;
    IBV_WC_EX_WITH_SLID = 1 << 4;
    IBV_WC_EX_WITH_SL = 1 << 5;
    IBV_WC_EX_WITH_DLID_PATH_BITS = 1 << 6;
    IBV_WC_EX_WITH_COMPLETION_TIMESTAMP = 1 << 7;
    IBV_WC_EX_WITH_CVLAN = 1 << 8;
    IBV_WC_EX_WITH_FLOW_TAG = 1 << 9;
    IBV_WC_EX_WITH_TM_INFO = 1 << 10;
    IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK = 1 << 11;
    // Sets of the above.
    IBV_WC_STANDARD_FLAGS = 127;
    IBV_CREATE_CQ_SUP_WC_FLAGS = 0xfff;
    // enum ibv_wc_flags
    IBV_WC_GRH = 1 << 0;
    IBV_WC_WITH_IMM = 1 << 1;
    IBV_WC_IP_CSUM_OK = 1 << 2;
    IBV_WC_WITH_INV = 1 << 3;
    IBV_WC_TM_SYNC_REQ = 1 << 4;
    IBV_WC_TM_MATCH = 1 << 5;
    IBV_WC_TM_DATA_VALID = 1 << 6;
    // enum ibv_access_flags
    IBV_ACCESS_LOCAL_WRITE = 1 << 0;
    IBV_ACCESS_REMOTE_WRITE = 1 << 1;
    IBV_ACCESS_REMOTE_READ = 1 << 2;
    IBV_ACCESS_REMOTE_ATOMIC = 1 << 3;
    IBV_ACCESS_MW_BIND = 1 << 4;
    IBV_ACCESS_ZERO_BASED = 1 << 5;
    IBV_ACCESS_ON_DEMAND = 1 << 6;
    IBV_ACCESS_HUGETLB = 1 << 7;
    IBV_ACCESS_FLUSH_GLOBAL newer = 1 << 8;
    IBV_ACCESS_FLUSH_PERSISTENT newer = 1 << 9;
    IBV_ACCESS_RELAXED_ORDERING = 1 << 20;
    // enum ibv_rereg_mr_flags
    IBV_REREG_MR_CHANGE_TRANSLATION = 1 << 0;
    IBV_REREG_MR_CHANGE_PD = 1 << 1;
    IBV_REREG_MR_CHANGE_ACCESS = 1 << 2;
    IBV_REREG_MR_FLAGS_SUPPORTED = 7;
    // enum ibv_mr_init_attr_mask
    IBV_REG_MR_MASK_IOVA newer = 1 << 0;
    IBV_REG_MR_MASK_ADDR newer = 1 << 1;
    IBV_REG_MR_MASK_FD newer = 1 << 2;
    IBV_REG_MR_MASK_FD_OFFSET newer = 1 << 3;
    IBV_REG_MR_MASK_DMAH newer = 1 << 4;
    IBV_REG_MR_MASK_BUF newer = 1 << 5;
    // enum ibv_mw_type
    IBV_MW_TYPE_1 = 1;
    IBV_MW_TYPE_2 = 2;
    // enum ibv_srq_attr_mask
    IBV_SRQ_MAX_WR = 1 << 0;
    IBV_SRQ_LIMIT = 1 << 1;
    // enum ibv_srq_type
    IBV_SRQT_BASIC = 0;
    IBV_SRQT_XRC = 1;
    IBV_SRQT_TM = 2;
    // enum ibv_srq_init_attr_mask
    IBV_SRQ_INIT_ATTR_TYPE = 1 << 0;
    IBV_SRQ_INIT_ATTR_PD = 1 << 1;
    IBV_SRQ_INIT_ATTR_XRCD = 1 << 2;
    IBV_SRQ_INIT_ATTR_CQ = 1 << 3;
    IBV_SRQ_INIT_ATTR_TM = 1 << 4;
    // enum ibv_qp_type
    IBV_QPT_RC = 2;
    IBV_QPT_UC = 3;
    IBV_QPT_UD = 4;
    IBV_QPT_RAW_PACKET = 8;
    IBV_QPT_XRC_SEND = 9;
    IBV_QPT_XRC_RECV = 10;
    IBV_QPT_DRIVER = 255;
    // enum ibv_qp_init_attr_mask
    IBV_QP_INIT_ATTR_PD = 1 << 0;
    IBV_QP_INIT_ATTR_XRCD = 1 << 1;
    IBV_QP_INIT_ATTR_CREATE_FLAGS = 1 << 2;
    IBV_QP_INIT_ATTR_MAX_TSO_HEADER = 1 << 3;
    IBV_QP_INIT_ATTR_IND_TABLE = 1 << 4;
    IBV_QP_INIT_ATTR_RX_HASH = 1 << 5;
    IBV_QP_INIT_ATTR_SEND_OPS_FLAGS = 1 << 6;
    // enum ibv_qp_create_flags
    IBV_QP_CREATE_BLOCK_SELF_MCAST_LB = 1 << 1;
    IBV_QP_CREATE_SCATTER_FCS = 1 << 8;
    IBV_QP_CREATE_CVLAN_STRIPPING = 1 << 9;
    IBV_QP_CREATE_SOURCE_QPN = 1 << 10;
    IBV_QP_CREATE_PCI_WRITE_END_PADDING = 1 << 11;
    // enum ibv_qp_create_send_ops_flags
    IBV_QP_EX_WITH_RDMA_WRITE = 1 << 0;
    IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM = 1 << 1;
    IBV_QP_EX_WITH_SEND = 1 << 2;
    IBV_QP_EX_WITH_SEND_WITH_IMM = 1 << 3;
    IBV_QP_EX_WITH_RDMA_READ = 1 << 4;
    IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP = 1 << 5;
    IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD = 1 << 6;
    IBV_QP_EX_WITH_LOCAL_INV = 1 << 7;
    IBV_QP_EX_WITH_BIND_MW = 1 << 8;
    IBV_QP_EX_WITH_SEND_WITH_INV = 1 << 9;
    IBV_QP_EX_WITH_TSO = 1 << 10;
    IBV_QP_EX_WITH_FLUSH newer = 1 << 11;
    IBV_QP_EX_WITH_ATOMIC_WRITE newer = 1 << 12;
    // enum ibv_qp_attr_mask
    IBV_QP_STATE = 1 << 0;
    IBV_QP_CUR_STATE = 1 << 1;
    IBV_QP_EN_SQD_ASYNC_NOTIFY = 1 << 2;
    IBV_QP_ACCESS_FLAGS = 1 << 3;
    IBV_QP_PKEY_INDEX = 1 << 4;
    IBV_QP_PORT = 1 << 5;
    IBV_QP_QKEY = 1 << 6;
    IBV_QP_AV = 1 << 7;
    IBV_QP_PATH_MTU = 1 << 8;
    IBV_QP_TIMEOUT = 1 << 9;
    IBV_QP_RETRY_CNT = 1 << 10;
    IBV_QP_RNR_RETRY = 1 << 11;
    IBV_QP_RQ_PSN = 1 << 12;
    IBV_QP_MAX_QP_RD_ATOMIC = 1 << 13;
    IBV_QP_ALT_PATH = 1 << 14;
    IBV_QP_MIN_RNR_TIMER = 1 << 15;
    IBV_QP_SQ_PSN = 1 << 16;
    IBV_QP_MAX_DEST_RD_ATOMIC = 1 << 17;
    IBV_QP_PATH_MIG_STATE = 1 << 18;
    IBV_QP_CAP = 1 << 19;
    IBV_QP_DEST_QPN = 1 << 20;
    IBV_QP_RATE_LIMIT = 1 << 25;
    // enum ibv_query_qp_data_in_order_flags
    IBV_QUERY_QP_DATA_IN_ORDER_RETURN_CAPS newer = 1 << 0;
    IBV_QUERY_QP_DATA_IN_ORDER_DEVICE_ONLY newer = 1 << 1;
    // enum ibv_query_qp_data_in_order_caps
    IBV_QUERY_QP_DATA_IN_ORDER_WHOLE_MSG newer = 1 << 0;
    IBV_QUERY_QP_DATA_IN_ORDER_ALIGNED_128_BYTES newer = 1 << 1;
    // enum ibv_qp_state
    IBV_QPS_RESET = 0;
    IBV_QPS_INIT = 1;
    IBV_QPS_RTR = 2;
    IBV_QPS_RTS = 3;
    IBV_QPS_SQD = 4;
    IBV_QPS_SQE = 5;
    IBV_QPS_ERR = 6;
    IBV_QPS_UNKNOWN = 7;
    // enum ibv_mig_state
    IBV_MIG_MIGRATED = 0;
    IBV_MIG_REARM = 1;
    IBV_MIG_ARMED = 2;
    // enum ibv_wr_opcode
    IBV_WR_RDMA_WRITE = 0;
    IBV_WR_RDMA_WRITE_WITH_IMM = 1;
    IBV_WR_SEND = 2;
    IBV_WR_SEND_WITH_IMM = 3;
    IBV_WR_RDMA_READ = 4;
    IBV_WR_ATOMIC_CMP_AND_SWP = 5;
    IBV_WR_ATOMIC_FETCH_AND_ADD = 6;
    IBV_WR_LOCAL_INV = 7;
    IBV_WR_BIND_MW = 8;
    IBV_WR_SEND_WITH_INV = 9;
    IBV_WR_TSO = 10;
    IBV_WR_DRIVER1 = 11;
    IBV_WR_FLUSH newer = 14;
    IBV_WR_ATOMIC_WRITE newer = 15;
    // enum ibv_send_flags
    IBV_SEND_FENCE = 1 << 0;
    IBV_SEND_SIGNALED = 1 << 1;
    IBV_SEND_SOLICITED = 1 << 2;
    IBV_SEND_INLINE = 1 << 3;
    IBV_SEND_IP_CSUM = 1 << 4;
    // enum ibv_placement_type
    IBV_FLUSH_GLOBAL newer = 1 << 0;
    IBV_FLUSH_PERSISTENT newer = 1 << 1;
    // enum ibv_selectivity_level
    IBV_FLUSH_RANGE newer = 0;
    IBV_FLUSH_MR newer = 1;
    // enum ibv_cq_attr_mask
    IBV_CQ_ATTR_MODERATE = 1 << 0;
    // enum ibv_cq_init_attr_mask
    IBV_CQ_INIT_ATTR_MASK_FLAGS = 1 << 0;
    IBV_CQ_INIT_ATTR_MASK_PD = 1 << 1;
    // enum ibv_create_cq_attr_flags
    IBV_CREATE_CQ_ATTR_SINGLE_THREADED = 1 << 0;
    IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN = 1 << 1;
    // enum ibv_parent_domain_init_attr_mask
    IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS = 1 << 0;
    IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT = 1 << 1;
    IBV_PARENT_DOMAIN_INIT_ATTR_ALLOW_CC_UNPROTECTED_ALLOC newer = 1 << 2;
    // enum ibv_dm_mask
    IBV_DM_MASK_HANDLE newer = 1 << 0;
    // enum ibv_values_mask
    IBV_VALUES_MASK_RAW_CLOCK = 1 << 0;
    // enum ibv_qp_open_attr_mask
    IBV_QP_OPEN_ATTR_NUM = 1 << 0;
    IBV_QP_OPEN_ATTR_XRCD = 1 << 1;
    IBV_QP_OPEN_ATTR_CONTEXT = 1 << 2;
    IBV_QP_OPEN_ATTR_TYPE = 1 << 3;
    // enum ibv_xrcd_init_attr_mask
    IBV_XRCD_INIT_ATTR_FD = 1 << 0;
    IBV_XRCD_INIT_ATTR_OFLAGS = 1 << 1;
    // enum ibv_ops_wr_opcode
    IBV_WR_TAG_ADD = 0;
    IBV_WR_TAG_DEL = 1;
    IBV_WR_TAG_SYNC = 2;
    // enum ibv_wq_type
    IBV_WQT_RQ = 0;
    // `ibv_advise_mr` (uAPI `ib_uverbs_advise_mr_advice`, `_flag`).
    IBV_ADVISE_MR_ADVICE_PREFETCH = 0;
    IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE = 1;
    IBV_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT = 2;
    IBV_ADVISE_MR_FLAG_FLUSH = 1;
}

/// Unsignalled relaxed ordering and other access bits that a device may ignore.
pub const IBV_ACCESS_OPTIONAL_RANGE: u32 = 0x3ff0_0000;

/// The size of [`ibv_port_attr`] before 49.0; a `query_port` of such a library must not write more.
pub const PORT_ATTR_SIZE_MIN: usize = 52;

/// The least a `verbs_device` may occupy, in every layout.
pub const VERBS_DEVICE_SIZE: usize = size_of::<verbs_device>();

pub const VERBS_MATCH_SENTINEL: u8 = 0;
pub const VERBS_MATCH_PCI: u8 = 1;
pub const VERBS_MATCH_MODALIAS: u8 = 2;
pub const VERBS_MATCH_DRIVER_ID: u8 = 3;

/// Bit of `verbs_qp.comp_mask`: an XRC domain is attached.
pub const VERBS_QP_XRCD: u32 = 1;
/// Bit of `verbs_qp.comp_mask`: the QP has the [`ibv_qp_ex`] part; without it `ibv_qp_to_qp_ex` gives NULL.
pub const VERBS_QP_EX: u32 = 2;

/// Values of `verbs_mr.mr_type`.
pub const IBV_MR_TYPE_MR: u32 = 0;
pub const IBV_MR_TYPE_NULL_MR: u32 = 1;
pub const IBV_MR_TYPE_IMPORTED_MR: u32 = 2;
pub const IBV_MR_TYPE_DMABUF_MR: u32 = 3;
