//! Every command against a kernel that answers anything at all.

use super::sys::twin::Kernel;
use super::wire::{AhAttr, ExModifyQp, ExModifyWq, FlowAttr, GidEntry, ModifyQp, Sge};
use super::{
    CmdFd, DriverId, Handle, Udata, ah, counters, cq, device, dm, event, flow, mr, mw, pd, qp, rwq_ind_table,
    rxe, srq, wq, xrcd,
};
use crate::error::Errno;

/// Runs every command, the kernel's answers made of `data`. Nothing may panic, whatever they are; what a decoder lets
/// through keeps what its documentation says.
pub fn fuzz_decode(data: &[u8]) {
    let kernel = Kernel::scripted();
    let data = data.to_vec();
    let mut rest = data.into_iter();
    let mut noise = move || rest.next().unwrap_or(0);
    let mut of_read = noise.clone();
    kernel.read(1, move |buf| {
        let n = usize::from(of_read()) % (buf.len() + 2);
        buf.iter_mut().for_each(|byte| *byte = of_read());
        Ok(n)
    });
    let desc = event::read_async_event(1);
    let _ = desc.map(event::AsyncEvent::try_from);
    kernel.serve(move |io| {
        if noise().is_multiple_of(8) {
            return Err(Errno::new(i32::from(noise())));
        }
        io.scribble(&mut noise);
        Ok(())
    });
    commands(CmdFd::new(0, DriverId::RXE));
}

fn commands(cmd: CmdFd) {
    let (h, none) = (Handle(1), Udata::none);
    let _ = device::get_context(cmd, none());
    let _ = device::query_context(cmd, &mut [0; 64]);
    let _ = device::query_device(cmd);
    if let Ok(resp) = device::query_device_ex(cmd, none()) {
        assert!(resp.response_length as usize <= size_of_val(&resp));
    }
    if let Ok(resp) = device::query_port(cmd, 1) {
        assert!(resp.legacy_resp.state <= 5 && resp.legacy_resp.link_layer <= 2);
    }
    let _ = device::query_gid_entry(cmd, 1, 0);
    let mut entries = [GidEntry::default(); 3];
    if let Ok(n) = device::query_gid_table(cmd, &mut entries) {
        assert!(n <= entries.len());
    }
    for fd in [event::alloc_async_fd(cmd), event::create_comp_channel(cmd)].into_iter().flatten() {
        assert!(fd.as_raw() >= 0);
    }
    let _ = pd::alloc(cmd, none());
    let _ = pd::dealloc(cmd, h);
    let _ = xrcd::open(cmd, None, 0, none());
    let _ = xrcd::close(cmd, h);
    let reg = mr::Reg { pd: h, start: 0, length: 0, hca_va: 0, access_flags: 0 };
    let _ = mr::reg(cmd, &reg, none());
    let _ = mr::rereg(cmd, h, 1, &reg, none());
    let _ = mr::dereg(cmd, h);
    let dmabuf = mr::RegDmabuf { pd: h, offset: 0, length: 0, iova: 0, fd: 0, access_flags: 0 };
    let _ = mr::reg_dmabuf(cmd, &dmabuf, none());
    let _ = mr::reg_dm(cmd, &mr::RegDm { pd: h, dm: h, offset: 0, length: 0, access_flags: 0 }, none());
    let _ = mr::advise(cmd, h, 0, 0, &[Sge::default()]);
    let _ = mr::query(cmd, h);
    let _ = mw::alloc(cmd, h, 1, none());
    let _ = mw::dealloc(cmd, h);
    let mut mi = rxe::CreateCqResp::default();
    if let Ok(cq) = cq::create(cmd, &cq::Create::default(), Udata::output(&mut mi)) {
        assert!(i32::try_from(cq.cqe).is_ok());
    }
    if let Ok(cqe) = cq::resize(cmd, h, 1, Udata::output(&mut mi)) {
        assert!(i32::try_from(cqe).is_ok());
    }
    let _ = cq::modify(cmd, h, 0, 0);
    let _ = cq::destroy(cmd, h);
    for srq_type in
        [srq::Type::Basic, srq::Type::Xrc { xrcd: h, cq: h }, srq::Type::Tm { cq: h, max_num_tags: 1 }]
    {
        let create = srq::Create {
            pd: h,
            srq_type,
            user_handle: 0,
            max_wr: 1,
            max_sge: 1,
            srq_limit: 0,
            event_fd: Some(3),
        };
        let _ = srq::create(cmd, &create, Udata::output(&mut rxe::CreateSrqResp::default()));
    }
    let _ = srq::modify(cmd, h, 1, 1, 1, Udata::input(&rxe::ModifySrqCmd::default()));
    let _ = srq::query(cmd, h);
    let _ = srq::destroy(cmd, h);
    let create = qp::Create { pd: Some(h), send_cq: Some(h), recv_cq: Some(h), ..qp::Create::default() };
    for qp in [
        qp::create(cmd, &create, Udata::output(&mut rxe::CreateQpResp::default())),
        qp::open(cmd, h, 0, 1, 10, none()),
    ]
    .into_iter()
    .flatten()
    {
        assert_eq!(qp.qp_num >> 24, 0);
    }
    let _ = qp::modify(cmd, &ModifyQp::default(), none());
    let _ = qp::modify_ex(cmd, &ExModifyQp::default(), none());
    if let Ok(resp) = qp::query(cmd, h, 1) {
        assert!(resp.qp_state <= 6 && resp.cur_qp_state <= 6);
    }
    let _ = qp::destroy(cmd, h);
    let _ = qp::attach_mcast(cmd, h, [0; 16], 0);
    let _ = qp::detach_mcast(cmd, h, [0; 16], 0);
    let mut ah_num = rxe::CreateAhResp::default();
    let _ = ah::create(cmd, h, 0, &AhAttr::default(), Udata::output(&mut ah_num));
    let _ = ah::destroy(cmd, h);
    let create = wq::Create {
        pd: h,
        cq: h,
        wq_type: 0,
        user_handle: 0,
        max_wr: 1,
        max_sge: 1,
        create_flags: 0,
        event_fd: None,
    };
    let _ = wq::create(cmd, &create, none());
    let _ = wq::modify(cmd, &ExModifyWq::default(), none());
    let _ = wq::destroy(cmd, h);
    let _ = rwq_ind_table::create(cmd, &[h, h], none());
    let _ = rwq_ind_table::destroy(cmd, h);
    let _ = flow::create(cmd, h, &FlowAttr::default(), &[], none());
    let _ = flow::destroy(cmd, h);
    let _ = dm::alloc(cmd, 1, 0, none());
    let _ = dm::free(cmd, h);
    let _ = counters::create(cmd, none());
    let _ = counters::read(cmd, h, &mut [0; 2], 0);
    let _ = counters::destroy(cmd, h);
}

#[cfg(test)]
mod tests {
    use super::fuzz_decode;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_of_the_kernel_makes_a_command_panic(
            data in prop::collection::vec(any::<u8>(), 0..8192),
        ) {
            fuzz_decode(&data);
        }
    }
}
