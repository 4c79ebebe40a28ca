//! The operations of a family's contexts.
//!
//! What is not named here, or not served by the family, is left to libibverbs, which answers `EOPNOTSUPP` for it (`ENOSYS` in
//! older releases): flows and their counters, work queues, rate limits.

use super::{context, cq, dm, domains, import, memory, qp, query, srq};
use crate::abi::ops::Ops;
use crate::family::{Family, Verbs};

/// The table for family `F`. Where no thread watches the device, those calls look that programs make all the time.
pub(crate) fn table<F: Family>(watched: bool) -> Ops {
    let has = |verbs| F::VERBS.contains(verbs);
    Ops {
        alloc_dm: has(Verbs::DEVICE_MEMORY).then_some(dm::alloc_dm::<F>),
        free_dm: has(Verbs::DEVICE_MEMORY).then_some(dm::free_dm::<F>),
        import_dm: has(Verbs::IMPORT).then_some(dm::import_dm::<F>),
        import_mr: has(Verbs::IMPORT).then_some(import::import_mr::<F>),
        import_pd: has(Verbs::IMPORT).then_some(import::import_pd::<F>),
        reg_dm_mr: has(Verbs::DEVICE_MEMORY).then_some(dm::reg_dm_mr::<F>),
        unimport_dm: has(Verbs::IMPORT).then_some(dm::unimport_dm),
        unimport_mr: has(Verbs::IMPORT).then_some(import::unimport_mr),
        unimport_pd: has(Verbs::IMPORT).then_some(import::unimport_pd::<F>),
        alloc_null_mr: has(Verbs::NULL_MR).then_some(memory::alloc_null_mr::<F>),
        alloc_parent_domain: has(Verbs::THREAD_DOMAINS).then_some(memory::alloc_parent_domain::<F>),
        alloc_td: has(Verbs::THREAD_DOMAINS).then_some(domains::alloc_td::<F>),
        close_xrcd: has(Verbs::XRC).then_some(domains::close_xrcd),
        cq_event: Some(cq::cq_event::<F>),
        dealloc_td: has(Verbs::THREAD_DOMAINS).then_some(domains::dealloc_td::<F>),
        get_srq_num: has(Verbs::XRC).then_some(srq::get_srq_num),
        open_qp: has(Verbs::XRC).then_some(qp::open_qp::<F>),
        open_xrcd: has(Verbs::XRC).then_some(domains::open_xrcd::<F>),
        query_ece: has(Verbs::ECE).then_some(domains::query_ece::<F>),
        query_port_speed: has(Verbs::PORT_SPEED).then_some(query::query_port_speed::<F>),
        query_rt_values: has(Verbs::CLOCK).then_some(domains::query_rt_values::<F>),
        set_ece: has(Verbs::ECE).then_some(domains::set_ece::<F>),
        advise_mr: Some(memory::advise_mr::<F>),
        alloc_mw: Some(memory::alloc_mw::<F>),
        alloc_pd: Some(memory::alloc_pd::<F>),
        async_event: Some(context::async_event::<F>),
        attach_mcast: Some(qp::attach_mcast::<F>),
        bind_mw: Some(memory::bind_mw::<F>),
        create_ah: Some(memory::create_ah::<F>),
        create_cq: Some(cq::create_cq::<F>),
        create_cq_ex: Some(cq::create_cq_ex::<F>),
        create_qp: Some(qp::create_qp::<F>),
        create_qp_ex: Some(qp::create_qp_ex::<F>),
        create_srq: Some(srq::create_srq::<F>),
        create_srq_ex: Some(srq::create_srq_ex::<F>),
        dealloc_mw: Some(memory::dealloc_mw::<F>),
        dealloc_pd: Some(memory::dealloc_pd::<F>),
        dereg_mr: Some(memory::dereg_mr::<F>),
        destroy_ah: Some(memory::destroy_ah::<F>),
        destroy_cq: Some(cq::destroy_cq::<F>),
        destroy_qp: Some(qp::destroy_qp::<F>),
        destroy_srq: Some(srq::destroy_srq::<F>),
        detach_mcast: Some(qp::detach_mcast::<F>),
        free_context: Some(context::free_context::<F>),
        modify_cq: Some(cq::modify_cq::<F>),
        modify_qp: Some(qp::modify_qp::<F>),
        modify_srq: Some(srq::modify_srq::<F>),
        poll_cq: Some(if watched { cq::poll_cq::<F> } else { cq::poll_cq_and_look::<F> }),
        post_recv: Some(qp::post_recv::<F>),
        post_send: Some(qp::post_send::<F>),
        post_srq_recv: Some(srq::post_srq_recv::<F>),
        query_device_ex: Some(query::query_device_ex::<F>),
        query_port: Some(query::query_port::<F>),
        query_qp: Some(qp::query_qp::<F>),
        query_srq: Some(srq::query_srq::<F>),
        reg_dmabuf_mr: Some(memory::reg_dmabuf_mr::<F>),
        reg_mr: Some(memory::reg_mr::<F>),
        req_notify_cq: Some(if watched { cq::req_notify_cq::<F> } else { cq::req_notify_cq_and_look::<F> }),
        rereg_mr: Some(memory::rereg_mr::<F>),
        resize_cq: Some(cq::resize_cq::<F>),
        ..Ops::NONE
    }
}
