//! The operations of a provider: every one a libibverbs from 33 to 65 can call, by name and with its C type.
//!
//! The types are the same in every layout; what differs is which operations exist and, with that, their places in the
//! table ([`super::layout`]). [`Ops`] is what the verbs layer fills in; a layout turns it into the table of its library.
#![allow(non_camel_case_types, reason = "operations are called as in C")]

use core::ffi::{c_int, c_uint, c_void};

use super::public::{
    ibv_ah, ibv_ah_attr, ibv_alloc_dm_attr, ibv_async_event, ibv_buf, ibv_comp_channel, ibv_comp_cntr,
    ibv_comp_cntr_caps, ibv_comp_cntr_init_attr, ibv_context, ibv_counter_attach_attr, ibv_counters,
    ibv_counters_init_attr, ibv_cq, ibv_cq_ex, ibv_cq_init_attr_ex, ibv_device_attr_ex, ibv_dm, ibv_dmah,
    ibv_dmah_init_attr, ibv_ece, ibv_flow, ibv_flow_action, ibv_flow_action_esp_attr, ibv_flow_attr, ibv_gid,
    ibv_modify_cq_attr, ibv_mr, ibv_mr_init_attr, ibv_mw, ibv_mw_bind, ibv_ops_wr,
    ibv_parent_domain_init_attr, ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_attach_comp_cntr_attr, ibv_qp_attr,
    ibv_qp_init_attr, ibv_qp_init_attr_ex, ibv_qp_open_attr, ibv_qp_rate_limit_attr,
    ibv_query_device_ex_input, ibv_recv_wr, ibv_rwq_ind_table, ibv_rwq_ind_table_init_attr, ibv_send_wr,
    ibv_sge, ibv_srq, ibv_srq_attr, ibv_srq_init_attr, ibv_srq_init_attr_ex, ibv_td, ibv_td_init_attr,
    ibv_values_ex, ibv_wc, ibv_wq, ibv_wq_attr, ibv_wq_init_attr, ibv_xrcd, ibv_xrcd_init_attr, verbs_mr,
};

/// The operations, in the order of libibverbs: by name.
macro_rules! ops {
    ($($op:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        /// The name of an operation.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Op {
            $(#[doc = concat!("`", stringify!($op), "`")] $op,)*
        }

        impl Op {
            /// All of them, in order.
            pub const ALL: &'static [Op] = &[$(Op::$op,)*];

            /// As C calls it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Op::$op => stringify!($op),)* }
            }

            /// The type of its function here, for the test that compares it with C's.
            #[must_use]
            pub const fn signature(self) -> &'static str {
                match self { $(Op::$op => concat!("(", $(stringify!($ty), ", ",)* ")" $(, " -> ", stringify!($ret))?),)* }
            }
        }

        /// What a provider implements; libibverbs answers for what is `None`.
        #[derive(Clone, Copy)]
        #[repr(C)]
        #[allow(missing_docs, reason = "operations are named as the verbs they serve")]
        pub struct Ops {
            $(pub $op: Option<unsafe extern "C" fn($($arg: $ty),*) $(-> $ret)?>,)*
        }

        impl Ops {
            /// Nothing is implemented.
            pub const NONE: Ops = Ops { $($op: None,)* };

            /// The address for the table; NULL for what is not implemented.
            #[must_use]
            pub fn address(&self, op: Op) -> *const c_void {
                match op {
                    $(Op::$op => self.$op.map_or(core::ptr::null(), |function| function as *const c_void),)*
                }
            }
        }
    };
}

ops! {
    advise_mr(pd: *mut ibv_pd, advice: u32, flags: u32, sg_list: *mut ibv_sge, num_sges: u32) -> c_int;
    alloc_buf(pd: *mut ibv_pd, size: usize, buf: *mut *mut ibv_buf) -> *mut c_void;
    alloc_dm(context: *mut ibv_context, attr: *mut ibv_alloc_dm_attr) -> *mut ibv_dm;
    alloc_dmah(context: *mut ibv_context, attr: *mut ibv_dmah_init_attr) -> *mut ibv_dmah;
    alloc_mw(pd: *mut ibv_pd, type_: u32) -> *mut ibv_mw;
    alloc_null_mr(pd: *mut ibv_pd) -> *mut ibv_mr;
    alloc_parent_domain(context: *mut ibv_context, attr: *mut ibv_parent_domain_init_attr) -> *mut ibv_pd;
    alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
    alloc_td(context: *mut ibv_context, init_attr: *mut ibv_td_init_attr) -> *mut ibv_td;
    async_event(context: *mut ibv_context, event: *mut ibv_async_event);
    attach_counters_point_flow(counters: *mut ibv_counters, attr: *mut ibv_counter_attach_attr, flow: *mut ibv_flow) -> c_int;
    attach_mcast(qp: *mut ibv_qp, gid: *const ibv_gid, lid: u16) -> c_int;
    bind_mw(qp: *mut ibv_qp, mw: *mut ibv_mw, mw_bind: *mut ibv_mw_bind) -> c_int;
    close_xrcd(xrcd: *mut ibv_xrcd) -> c_int;
    cq_event(cq: *mut ibv_cq);
    create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah;
    create_comp_cntr(context: *mut ibv_context, attr: *mut ibv_comp_cntr_init_attr) -> *mut ibv_comp_cntr;
    create_counters(context: *mut ibv_context, init_attr: *mut ibv_counters_init_attr) -> *mut ibv_counters;
    create_cq(context: *mut ibv_context, cqe: c_int, channel: *mut ibv_comp_channel, comp_vector: c_int) -> *mut ibv_cq;
    create_cq_ex(context: *mut ibv_context, init_attr: *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex;
    create_flow(qp: *mut ibv_qp, flow_attr: *mut ibv_flow_attr) -> *mut ibv_flow;
    create_flow_action_esp(context: *mut ibv_context, attr: *mut ibv_flow_action_esp_attr) -> *mut ibv_flow_action;
    create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp;
    create_qp_ex(context: *mut ibv_context, qp_init_attr_ex: *mut ibv_qp_init_attr_ex) -> *mut ibv_qp;
    create_rwq_ind_table(context: *mut ibv_context, init_attr: *mut ibv_rwq_ind_table_init_attr) -> *mut ibv_rwq_ind_table;
    create_srq(pd: *mut ibv_pd, srq_init_attr: *mut ibv_srq_init_attr) -> *mut ibv_srq;
    create_srq_ex(context: *mut ibv_context, srq_init_attr_ex: *mut ibv_srq_init_attr_ex) -> *mut ibv_srq;
    create_wq(context: *mut ibv_context, wq_init_attr: *mut ibv_wq_init_attr) -> *mut ibv_wq;
    dealloc_dmah(dmah: *mut ibv_dmah) -> c_int;
    dealloc_mw(mw: *mut ibv_mw) -> c_int;
    dealloc_pd(pd: *mut ibv_pd) -> c_int;
    dealloc_td(td: *mut ibv_td) -> c_int;
    dereg_mr(vmr: *mut verbs_mr) -> c_int;
    destroy_ah(ah: *mut ibv_ah) -> c_int;
    destroy_comp_cntr(comp_cntr: *mut ibv_comp_cntr) -> c_int;
    destroy_counters(counters: *mut ibv_counters) -> c_int;
    destroy_cq(cq: *mut ibv_cq) -> c_int;
    destroy_flow(flow: *mut ibv_flow) -> c_int;
    destroy_flow_action(action: *mut ibv_flow_action) -> c_int;
    destroy_qp(qp: *mut ibv_qp) -> c_int;
    destroy_rwq_ind_table(rwq_ind_table: *mut ibv_rwq_ind_table) -> c_int;
    destroy_srq(srq: *mut ibv_srq) -> c_int;
    destroy_wq(wq: *mut ibv_wq) -> c_int;
    detach_mcast(qp: *mut ibv_qp, gid: *const ibv_gid, lid: u16) -> c_int;
    dm_export_dmabuf_fd(dm: *mut ibv_dm) -> c_int;
    free_buf(buf: *mut ibv_buf);
    free_context(context: *mut ibv_context);
    free_dm(dm: *mut ibv_dm) -> c_int;
    get_srq_num(srq: *mut ibv_srq, srq_num: *mut u32) -> c_int;
    import_dm(context: *mut ibv_context, dm_handle: u32) -> *mut ibv_dm;
    import_mr(pd: *mut ibv_pd, mr_handle: u32) -> *mut ibv_mr;
    import_pd(context: *mut ibv_context, pd_handle: u32) -> *mut ibv_pd;
    inc_comp_cntr(comp_cntr: *mut ibv_comp_cntr, amount: u64) -> c_int;
    inc_err_comp_cntr(comp_cntr: *mut ibv_comp_cntr, amount: u64) -> c_int;
    modify_cq(cq: *mut ibv_cq, attr: *mut ibv_modify_cq_attr) -> c_int;
    modify_flow_action_esp(action: *mut ibv_flow_action, attr: *mut ibv_flow_action_esp_attr) -> c_int;
    modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, attr_mask: c_int) -> c_int;
    modify_qp_rate_limit(qp: *mut ibv_qp, attr: *mut ibv_qp_rate_limit_attr) -> c_int;
    modify_srq(srq: *mut ibv_srq, srq_attr: *mut ibv_srq_attr, srq_attr_mask: c_int) -> c_int;
    modify_wq(wq: *mut ibv_wq, wq_attr: *mut ibv_wq_attr) -> c_int;
    open_qp(context: *mut ibv_context, attr: *mut ibv_qp_open_attr) -> *mut ibv_qp;
    open_xrcd(context: *mut ibv_context, xrcd_init_attr: *mut ibv_xrcd_init_attr) -> *mut ibv_xrcd;
    poll_cq(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int;
    post_recv(qp: *mut ibv_qp, wr: *mut ibv_recv_wr, bad_wr: *mut *mut ibv_recv_wr) -> c_int;
    post_send(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int;
    post_srq_ops(srq: *mut ibv_srq, op: *mut ibv_ops_wr, bad_op: *mut *mut ibv_ops_wr) -> c_int;
    post_srq_recv(srq: *mut ibv_srq, recv_wr: *mut ibv_recv_wr, bad_recv_wr: *mut *mut ibv_recv_wr) -> c_int;
    qp_attach_comp_cntr(qp: *mut ibv_qp, comp_cntr: *mut ibv_comp_cntr, attr: *mut ibv_qp_attach_comp_cntr_attr) -> c_int;
    query_comp_cntr_caps(context: *mut ibv_context, caps: *mut ibv_comp_cntr_caps, caps_size: usize) -> c_int;
    query_device_ex(context: *mut ibv_context, input: *const ibv_query_device_ex_input, attr: *mut ibv_device_attr_ex, attr_size: usize) -> c_int;
    query_ece(qp: *mut ibv_qp, ece: *mut ibv_ece) -> c_int;
    query_port(context: *mut ibv_context, port_num: u8, port_attr: *mut ibv_port_attr) -> c_int;
    query_port_speed(context: *mut ibv_context, port_num: u32, speed: *mut u64) -> c_int;
    query_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, attr_mask: c_int, init_attr: *mut ibv_qp_init_attr) -> c_int;
    query_qp_data_in_order(qp: *mut ibv_qp, op: u32, flags: u32) -> c_int;
    query_rt_values(context: *mut ibv_context, values: *mut ibv_values_ex) -> c_int;
    query_srq(srq: *mut ibv_srq, srq_attr: *mut ibv_srq_attr) -> c_int;
    read_comp_cntr(comp_cntr: *mut ibv_comp_cntr, value: *mut u64) -> c_int;
    read_counters(counters: *mut ibv_counters, counters_value: *mut u64, ncounters: u32, flags: u32) -> c_int;
    read_err_comp_cntr(comp_cntr: *mut ibv_comp_cntr, value: *mut u64) -> c_int;
    reg_dm_mr(pd: *mut ibv_pd, dm: *mut ibv_dm, dm_offset: u64, length: usize, access: c_uint) -> *mut ibv_mr;
    reg_dmabuf_mr(pd: *mut ibv_pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int) -> *mut ibv_mr;
    reg_mr(pd: *mut ibv_pd, addr: *mut c_void, length: usize, hca_va: u64, access: c_int) -> *mut ibv_mr;
    reg_mr_ex(pd: *mut ibv_pd, mr_init_attr: *mut ibv_mr_init_attr) -> *mut ibv_mr;
    req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int;
    rereg_mr(vmr: *mut verbs_mr, flags: c_int, pd: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> c_int;
    resize_cq(cq: *mut ibv_cq, cqe: c_int) -> c_int;
    set_comp_cntr(comp_cntr: *mut ibv_comp_cntr, value: u64) -> c_int;
    set_ece(qp: *mut ibv_qp, ece: *mut ibv_ece) -> c_int;
    set_err_comp_cntr(comp_cntr: *mut ibv_comp_cntr, value: u64) -> c_int;
    unimport_dm(dm: *mut ibv_dm);
    unimport_mr(mr: *mut ibv_mr);
    unimport_pd(pd: *mut ibv_pd);
}

impl Op {
    /// The operation C calls `name`.
    #[must_use]
    pub const fn from_name(name: &str) -> Option<Op> {
        let mut rest = Op::ALL;
        while let [op, tail @ ..] = rest {
            if same(op.name().as_bytes(), name.as_bytes()) {
                return Some(*op);
            }
            rest = tail;
        }
        None
    }
}

/// `a == b`, at build time.
const fn same(mut a: &[u8], mut b: &[u8]) -> bool {
    while let ([x, a_rest @ ..], [y, b_rest @ ..]) = (a, b) {
        if *x != *y {
            return false;
        }
        (a, b) = (a_rest, b_rest);
    }
    a.is_empty() && b.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_sorted_and_found_by_name() {
        assert!(
            Op::ALL.is_sorted_by(|a, b| a.name() < b.name()),
            "a place in the table is counted by this order"
        );
        assert!(Op::ALL.iter().enumerate().all(|(at, op)| *op as usize == at));
        assert!(Op::ALL.iter().all(|op| Op::from_name(op.name()) == Some(*op)));
        assert_eq!((Op::from_name("poll"), Op::from_name("poll_cqs"), Op::from_name("")), (None, None, None));
    }

    #[test]
    fn an_address_is_that_of_the_named_field() {
        extern "C" fn mine(_: *mut ibv_cq, _: c_int) -> c_int {
            7
        }
        let ops = Ops { resize_cq: Some(mine), ..Ops::NONE };
        for op in Op::ALL {
            assert_eq!(!ops.address(*op).is_null(), *op == Op::resize_cq, "{}", op.name());
        }
    }
}
