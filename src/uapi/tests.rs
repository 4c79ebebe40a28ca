//! What each command sends, and what it makes of the answer.

use super::sys::twin::{Ioctl, Kernel};
use super::sys::{self, Command, In, MANDATORY, Method, OwnedFd, Prot};
use super::wire::*;
use super::*;
use std::sync::mpsc;
use zerocopy::FromZeros;

const CMD: CmdFd = CmdFd::new(7, DriverId::RXE);
const H: Handle = Handle(0x1234_5678);

/// An `In` of the same number as another kind of attribute.
fn raw(attr: &Ioctl<'_>, id: u16) -> Vec<u8> {
    attr.input(In(id))
}

/// The ids, sorted, that `io` must have and no others.
fn has_only(io: &Ioctl<'_>, ids: &[u16]) {
    let mut expected = ids.to_vec();
    expected.sort_unstable();
    assert_eq!(io.ids(), expected);
}

/// A destroy: one attribute, the handle, of number 0.
fn destroys(method: Method, f: impl FnOnce() -> Result<(), Errno>) {
    let kernel = Kernel::scripted();
    kernel.ioctl(method, |io| {
        has_only(io, &[0]);
        assert_eq!(io.handle(sys::Idr(0)), H);
        Ok(())
    });
    f().unwrap();
    drop(kernel);
}

/// A destroy that tells of events, 4 bytes of them.
fn destroys_with_events(method: Method, f: fn() -> Result<u32, Errno>) {
    let kernel = Kernel::scripted();
    kernel.ioctl(method, |io| {
        has_only(io, &[0, 1]);
        assert_eq!(io.handle(sys::Idr(0)), H);
        assert_eq!(io.len(1), 4);
        io.answer(sys::Out(1), &9_u32);
        Ok(())
    });
    assert_eq!(f(), Ok(9));
    kernel.ioctl(method, |_| Err(Errno::EIO));
    assert_eq!(f(), Err(Errno::EIO));
}

/// A write-form command that only tells.
fn tells<T: FromBytes + PartialEq + core::fmt::Debug + Send + 'static>(
    command: u32,
    expected: T,
    f: fn() -> Result<(), Errno>,
) {
    let kernel = Kernel::scripted();
    kernel.command(command, move |io| {
        has_only(io, &[ids::CORE_IN.0, ids::WRITE_CMD.0]);
        assert_eq!(io.read::<T>(ids::CORE_IN), expected);
        Ok(())
    });
    assert_eq!(f(), Ok(()));
    kernel.command(command, |_| Err(Errno::ENOMEM));
    assert_eq!(f(), Err(Errno::ENOMEM));
}

/// A write-form command that asks: sends `req`, gets `resp`, and an answer without the core's part is refused.
fn asks<Q, R, A>(command: u32, req: Q, resp: R, f: fn() -> Result<A, Errno>) -> A
where
    Q: FromBytes + PartialEq + core::fmt::Debug + Send + 'static,
    R: IntoBytes + Immutable + Send + 'static,
    A: core::fmt::Debug,
{
    let kernel = Kernel::scripted();
    kernel.command(command, move |io| {
        assert_eq!(io.read::<Q>(ids::CORE_IN), req);
        assert_eq!(usize::from(io.len(ids::CORE_OUT.0)), size_of::<R>());
        if io.has(ids::UHW_OUT.0) {
            io.output(ids::UHW_OUT, &[]);
        }
        io.respond(&resp)
    });
    let answer = f().unwrap();
    kernel.command(command, |_| Ok(()));
    assert_eq!(f().unwrap_err(), Errno::EPROTO, "success without an answer");
    kernel.command(command, |_| Err(Errno::EINVAL));
    assert_eq!(f().unwrap_err(), Errno::EINVAL);
    answer
}

// The form of an ioctl.

#[test]
fn the_ioctl_number_is_that_of_the_header() {
    // _IOWR(0x1b, 1, 24 bytes)
    assert_eq!(sys::RDMA_VERBS_IOCTL, 0xc018_1b01);
}

#[test]
fn a_packet_tells_its_length_driver_and_attributes() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::PD_DESTROY, |io| {
        assert_eq!(io.fd, 7);
        assert_eq!(io.driver_id(), DriverId::RXE);
        assert_eq!(io.hdr().length, 24 + 16);
        assert_eq!((io.hdr().reserved1, io.hdr().reserved2), (0, 0));
        assert_eq!(io.flags(0), MANDATORY);
        Ok(())
    });
    pd::dealloc(CMD, H).unwrap();
}

#[test]
fn up_to_eight_bytes_travel_in_the_attribute() {
    for len in [1, 4, 7, 8, 9, 100] {
        let kernel = Kernel::scripted();
        let data: Vec<u8> = (1..=len).collect();
        let expected = data.clone();
        kernel.ioctl(ids::PD_DESTROY, move |io| {
            assert_eq!(usize::from(io.len(5)), expected.len());
            assert_eq!(raw(io, 5), expected);
            if expected.len() <= 8 {
                let inline = io.data(5).to_ne_bytes();
                assert_eq!(inline[..expected.len()], expected[..]);
                assert!(inline[expected.len()..].iter().all(|byte| *byte == 0));
            }
            Ok(())
        });
        Command::new(ids::PD_DESTROY).input(In(5), &data).call(CMD).unwrap();
    }
}

#[test]
fn what_no_attribute_can_say_is_refused_before_the_call() {
    let _kernel = Kernel::scripted();
    let sges = vec![Sge::default(); 0x1000];
    assert_eq!(mr::advise(CMD, H, 0, 0, &sges), Err(Errno::EINVAL), "64 KiB do not fit into 16 bits");
    let mut cmd = Command::new(ids::PD_DESTROY);
    for id in 0..100 {
        cmd.input_u32(In(id), 0);
    }
    assert_eq!(cmd.call(CMD).err(), Some(Errno::EINVAL), "more attributes than a packet holds");
}

#[test]
fn driver_data_go_both_ways_and_a_missing_answer_is_seen() {
    let kernel = Kernel::scripted();
    kernel.command(ids::write::ALLOC_PD, |io| {
        assert_eq!(raw(io, ids::UHW_IN.0), [1, 2, 3, 4]);
        io.output(ids::UHW_OUT, &[8, 9]);
        io.respond(&AllocPdResp { pd_handle: 3 })
    });
    let mut out = [0xff_u8; 16];
    let pd = pd::alloc(CMD, Udata { input: &[1, 2, 3, 4], output: &mut out }).unwrap();
    assert_eq!(pd, Handle(3));
    // What the driver left out reads as 0, not as what the caller had there.
    assert_eq!(out[..3], [8, 9, 0]);
    assert_eq!(out[3..], [0; 13]);

    kernel.command(ids::write::ALLOC_PD, |io| io.respond(&AllocPdResp { pd_handle: 3 }));
    assert_eq!(pd::alloc(CMD, Udata::output(&mut [0_u8; 16])), Err(Errno::EPROTO));

    kernel.command(ids::write::ALLOC_PD, |io| {
        has_only(io, &[ids::CORE_IN.0, ids::CORE_OUT.0, ids::WRITE_CMD.0]);
        io.respond(&AllocPdResp { pd_handle: 3 })
    });
    pd::alloc(CMD, Udata::none()).unwrap();
}

#[test]
fn a_handle_beyond_32_bits_is_no_handle() {
    let kernel = Kernel::scripted();
    for (handle, expected) in
        [(5, Ok(Handle(5))), (u64::MAX, Err(Errno::EPROTO)), (1 << 32, Err(Errno::EPROTO))]
    {
        kernel.ioctl(ids::DM_ALLOC, move |io| {
            has_only(io, &[0, 1, 2]);
            assert_eq!(io.read::<u64>(ids::ALLOC_DM_LENGTH), 64);
            assert_eq!(io.read::<u32>(ids::ALLOC_DM_ALIGNMENT), 6);
            io.set_handle(ids::ALLOC_DM_HANDLE, handle);
            Ok(())
        });
        assert_eq!(dm::alloc(CMD, 64, 6, Udata::none()), expected);
    }
}

#[test]
fn what_a_kernel_does_not_have_is_told_from_what_it_refuses() {
    for errno in [Errno::EPROTONOSUPPORT, Errno::EOPNOTSUPP, Errno::ENOTTY, Errno::ENOSYS] {
        assert!(is_unsupported(errno));
    }
    assert!(!is_unsupported(Errno::EINVAL) && !is_unsupported(Errno::EIO) && !is_unsupported(Errno::EPROTO));
}

// The device.

#[test]
fn get_context() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::GET_CONTEXT, |io| {
        has_only(io, &[0, 1]);
        assert_eq!((io.len(0), io.len(1)), (4, 8));
        io.answer(ids::GET_CONTEXT_NUM_COMP_VECTORS, &2_u32);
        io.answer(ids::GET_CONTEXT_CORE_SUPPORT, &1_u64);
        Ok(())
    });
    let context = device::get_context(CMD, Udata::none()).unwrap();
    assert_eq!(context, device::Context { num_comp_vectors: 2, core_support: 1 });
}

#[test]
fn query_context_asks_the_driver_only_when_told() {
    let kernel = Kernel::scripted();
    fn core(io: &mut Ioctl<'_>) {
        io.answer(ids::QUERY_CONTEXT_NUM_COMP_VECTORS, &2_u32);
        io.answer(ids::QUERY_CONTEXT_CORE_SUPPORT, &1_u64);
    }
    kernel.ioctl(ids::QUERY_CONTEXT, |io| {
        has_only(io, &[0, 1]);
        core(io);
        Ok(())
    });
    device::query_context(CMD, &mut []).unwrap();
    kernel.ioctl(ids::QUERY_CONTEXT, |io| {
        has_only(io, &[0, 1, 0x1000]);
        core(io);
        io.output(ids::QUERY_CONTEXT_RESP_UCTX, &[7]);
        Ok(())
    });
    let mut uctx = [0xff; 24];
    device::query_context(CMD, &mut uctx).unwrap();
    assert_eq!(uctx[..2], [7, 0]);
    kernel.ioctl(ids::QUERY_CONTEXT, |io| {
        core(io);
        Ok(())
    });
    assert_eq!(device::query_context(CMD, &mut uctx), Err(Errno::EPROTO));
    kernel.ioctl(ids::QUERY_CONTEXT, |_| Ok(()));
    assert_eq!(device::query_context(CMD, &mut []), Err(Errno::EPROTO));
}

#[test]
fn query_device() {
    let resp = QueryDeviceResp { max_qp: 5, phys_port_cnt: 1, ..QueryDeviceResp::default() };
    let got = asks(ids::write::QUERY_DEVICE, QueryDevice::default(), resp, || device::query_device(CMD));
    assert_eq!(got, resp);
}

#[test]
fn query_device_ex_believes_no_length_out_of_range() {
    let resp = ExQueryDeviceResp { response_length: 304, max_dm_size: 1, ..ExQueryDeviceResp::default() };
    let got = asks(ids::write::EX_CMD_QUERY_DEVICE, ExQueryDevice::default(), resp, || {
        device::query_device_ex(CMD, Udata::none())
    });
    assert_eq!(got, resp);
    let kernel = Kernel::scripted();
    // 184: base, comp_mask and response_length.
    for (length, good) in
        [(0, false), (183, false), (184, true), (304, true), (305, false), (u32::MAX, false)]
    {
        kernel.command(ids::write::EX_CMD_QUERY_DEVICE, move |io| {
            io.respond(&ExQueryDeviceResp { response_length: length, ..ExQueryDeviceResp::default() })
        });
        assert_eq!(device::query_device_ex(CMD, Udata::none()).is_ok(), good, "{length}");
    }
}

#[test]
fn query_port_knows_its_states() {
    let kernel = Kernel::scripted();
    for (state, link_layer, good) in [(4, 2, true), (0, 0, true), (6, 2, false), (4, 3, false)] {
        kernel.ioctl(ids::QUERY_PORT, move |io| {
            has_only(io, &[0, 1]);
            assert_eq!(io.constant(ids::QUERY_PORT_PORT_NUM), 3);
            let mut resp = QueryPortRespEx::default();
            resp.legacy_resp.state = state;
            resp.legacy_resp.link_layer = link_layer;
            io.answer(ids::QUERY_PORT_RESP, &resp);
            Ok(())
        });
        let port = device::query_port(CMD, 3);
        assert_eq!(port.is_ok(), good);
        assert!(port.is_ok_and(|port| port.legacy_resp.state == state) || !good);
    }
}

#[test]
fn query_gid_entry() {
    let kernel = Kernel::scripted();
    let entry = GidEntry { gid: [0xfe; 16], gid_index: 4, port_num: 1, gid_type: 2, netdev_ifindex: 9 };
    kernel.ioctl(ids::QUERY_GID_ENTRY, move |io| {
        has_only(io, &[0, 1, 2, 3]);
        assert_eq!(io.constant(ids::QUERY_GID_ENTRY_PORT), 1);
        assert_eq!(io.constant(ids::QUERY_GID_ENTRY_GID_INDEX), 4);
        assert_eq!(io.read::<u32>(ids::QUERY_GID_ENTRY_FLAGS), 0);
        io.answer(ids::QUERY_GID_ENTRY_RESP_ENTRY, &entry);
        Ok(())
    });
    assert_eq!(device::query_gid_entry(CMD, 1, 4), Ok(entry));
}

#[test]
fn query_gid_table_counts_no_further_than_the_room() {
    let kernel = Kernel::scripted();
    for (told, expected) in [(0, Ok(0)), (2, Ok(2)), (3, Err(Errno::EPROTO)), (u64::MAX, Err(Errno::EPROTO))]
    {
        kernel.ioctl(ids::QUERY_GID_TABLE, move |io| {
            has_only(io, &[0, 1, 2, 3]);
            assert_eq!(io.constant(ids::QUERY_GID_TABLE_ENTRY_SIZE), 32);
            assert_eq!(io.len(ids::QUERY_GID_TABLE_RESP_ENTRIES.0), 64);
            io.answer(ids::QUERY_GID_TABLE_RESP_NUM_ENTRIES, &told);
            Ok(())
        });
        assert_eq!(device::query_gid_table(CMD, &mut [GidEntry::default(); 2]), expected);
    }
}

// Events.

#[test]
fn an_async_fd_is_close_on_drop_and_never_negative() {
    let kernel = Kernel::scripted();
    for fd in [-1, i64::from(i32::MAX) + 1, i64::MIN] {
        kernel.ioctl(ids::ASYNC_EVENT_ALLOC, move |io| {
            has_only(io, &[0]);
            io.set_fd(ids::ASYNC_EVENT_ALLOC_FD_HANDLE, fd);
            Ok(())
        });
        assert_eq!(event::alloc_async_fd(CMD), Err(Errno::EPROTO));
    }
    for _ in 0..2 {
        kernel.ioctl(ids::ASYNC_EVENT_ALLOC, |io| {
            io.set_fd(ids::ASYNC_EVENT_ALLOC_FD_HANDLE, 12);
            Ok(())
        });
    }
    assert_eq!(event::alloc_async_fd(CMD).unwrap().as_raw(), 12);
    assert_eq!(kernel.closed(), [12]);
    assert_eq!(event::alloc_async_fd(CMD).unwrap().into_raw(), 12);
    assert_eq!(kernel.closed(), [12], "a number given away stays open");
}

#[test]
fn create_comp_channel() {
    let fd = asks(
        ids::write::CREATE_COMP_CHANNEL,
        CreateCompChannel::default(),
        CreateCompChannelResp { fd: 12 },
        || event::create_comp_channel(CMD).map(OwnedFd::into_raw),
    );
    assert_eq!(fd, 12);
    let kernel = Kernel::scripted();
    kernel.command(ids::write::CREATE_COMP_CHANNEL, |io| io.respond(&CreateCompChannelResp { fd: u32::MAX }));
    assert_eq!(event::create_comp_channel(CMD), Err(Errno::EPROTO));
}

#[test]
fn events_are_whole_or_nothing() {
    let kernel = Kernel::scripted();
    let desc = AsyncEventDesc { element: 0x55, event_type: 3, reserved: 0 };
    kernel.read(9, move |buf| {
        buf.copy_from_slice(desc.as_bytes());
        Ok(16)
    });
    assert_eq!(event::read_async_event(9), Ok(desc));
    for n in [0, 8, 15, 17, usize::MAX] {
        kernel.read(9, move |_| Ok(n));
        assert_eq!(event::read_async_event(9), Err(Errno::EPROTO), "{n} bytes");
    }
    kernel.read(9, |_| Err(Errno::EAGAIN));
    assert_eq!(event::read_async_event(9), Err(Errno::EAGAIN));
    kernel.read(9, |buf| {
        buf.copy_from_slice(&0x77_u64.to_ne_bytes());
        Ok(8)
    });
    assert_eq!(event::read_comp_event(9), Ok(0x77));
    kernel.read(9, |_| Err(Errno::EIO));
    assert_eq!(event::read_comp_event(9), Err(Errno::EIO));
}

#[test]
fn an_event_type_says_what_the_element_is() {
    use event::{AsyncEvent, Element, EventType};
    let of = |event_type| AsyncEvent::try_from(AsyncEventDesc { element: 1, event_type, reserved: 0 });
    for object in [0, 1, 2, 3, 4, 5, 6, 7, 14, 15, 16, 19] {
        assert_eq!(of(object).unwrap().element, Element::Object(1), "{object}");
    }
    for port in [8, 9, 10, 11, 12, 13, 17, 18] {
        assert_eq!(of(port).unwrap().element, Element::Port(1), "{port}");
    }
    for unknown in [20, 21, u32::MAX] {
        assert_eq!(of(unknown), Err(Errno::EPROTO));
    }
    assert_eq!(of(8).unwrap().event_type, EventType::DEVICE_FATAL);
}

// Memory.

#[test]
fn domains() {
    let pd = asks(ids::write::ALLOC_PD, AllocPd::default(), AllocPdResp { pd_handle: 8 }, || {
        pd::alloc(CMD, Udata::none())
    });
    assert_eq!(pd, Handle(8));
    destroys(ids::PD_DESTROY, || pd::dealloc(CMD, H));
    let xrcd = asks(
        ids::write::OPEN_XRCD,
        OpenXrcd { response: 0, fd: u32::MAX, oflags: 0o100 },
        OpenXrcdResp { xrcd_handle: 8 },
        || xrcd::open(CMD, None, 0o100, Udata::none()),
    );
    assert_eq!(xrcd, Handle(8));
    destroys(ids::XRCD_DESTROY, || xrcd::close(CMD, H));
}

const REG: mr::Reg = mr::Reg { pd: H, start: 0x1000, length: 0x2000, hca_va: 0x3000, access_flags: 7 };

#[test]
fn memory_regions() {
    let (start, length, hca_va, pd_handle, access_flags) = (0x1000, 0x2000, 0x3000, H.0, 7);
    let mr = asks(
        ids::write::REG_MR,
        RegMr { response: 0, start, length, hca_va, pd_handle, access_flags },
        RegMrResp { mr_handle: 1, lkey: 2, rkey: 3 },
        || mr::reg(CMD, &REG, Udata::none()),
    );
    assert_eq!(mr, mr::Mr { handle: Handle(1), lkey: 2, rkey: 3 });
    let keys = asks(
        ids::write::REREG_MR,
        ReregMr { response: 0, mr_handle: 1, flags: 5, start, length, hca_va, pd_handle, access_flags },
        ReregMrResp { lkey: 4, rkey: 5 },
        || mr::rereg(CMD, Handle(1), 5, &REG, Udata::none()),
    );
    assert_eq!(keys, (4, 5));
    destroys(ids::MR_DESTROY, || mr::dereg(CMD, H));
}

#[test]
fn reg_dmabuf() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::REG_DMABUF_MR, |io| {
        has_only(io, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(io.handle(ids::REG_DMABUF_MR_PD_HANDLE), H);
        assert_eq!(io.read::<u64>(ids::REG_DMABUF_MR_OFFSET), 1);
        assert_eq!(io.read::<u64>(ids::REG_DMABUF_MR_LENGTH), 2);
        assert_eq!(io.read::<u64>(ids::REG_DMABUF_MR_IOVA), 3);
        assert_eq!(io.read::<i32>(ids::REG_DMABUF_MR_FD), 4);
        assert_eq!(io.read::<u32>(ids::REG_DMABUF_MR_ACCESS_FLAGS), 5);
        io.set_handle(ids::REG_DMABUF_MR_HANDLE, 6);
        io.answer(ids::REG_DMABUF_MR_RESP_LKEY, &7_u32);
        io.answer(ids::REG_DMABUF_MR_RESP_RKEY, &8_u32);
        Ok(())
    });
    let mr = mr::RegDmabuf { pd: H, offset: 1, length: 2, iova: 3, fd: 4, access_flags: 5 };
    let expected = mr::Mr { handle: Handle(6), lkey: 7, rkey: 8 };
    assert_eq!(mr::reg_dmabuf(CMD, &mr, Udata::none()), Ok(expected));
    kernel.ioctl(ids::REG_DMABUF_MR, |_| Err(Errno::EPROTONOSUPPORT));
    assert!(is_unsupported(mr::reg_dmabuf(CMD, &mr, Udata::none()).unwrap_err()));
}

#[test]
fn reg_dm() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::DM_MR_REG, |io| {
        has_only(io, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(io.handle(ids::REG_DM_MR_PD_HANDLE), H);
        assert_eq!(io.handle(ids::REG_DM_MR_DM_HANDLE), Handle(9));
        assert_eq!(io.read::<u64>(ids::REG_DM_MR_OFFSET), 1);
        assert_eq!(io.read::<u64>(ids::REG_DM_MR_LENGTH), 2);
        assert_eq!(io.read::<u32>(ids::REG_DM_MR_ACCESS_FLAGS), 5);
        io.set_handle(ids::REG_DM_MR_HANDLE, 6);
        io.answer(ids::REG_DM_MR_RESP_LKEY, &7_u32);
        io.answer(ids::REG_DM_MR_RESP_RKEY, &8_u32);
        Ok(())
    });
    let mr = mr::RegDm { pd: H, dm: Handle(9), offset: 1, length: 2, access_flags: 5 };
    assert_eq!(mr::reg_dm(CMD, &mr, Udata::none()), Ok(mr::Mr { handle: Handle(6), lkey: 7, rkey: 8 }));
    drop(kernel);
    destroys(ids::DM_FREE, || dm::free(CMD, H));
}

#[test]
fn advise_and_query_mr() {
    let kernel = Kernel::scripted();
    let sges = [Sge { addr: 1, length: 2, lkey: 3 }, Sge { addr: 4, length: 5, lkey: 6 }];
    kernel.ioctl(ids::ADVISE_MR, move |io| {
        has_only(io, &[0, 1, 2, 3]);
        assert_eq!(io.handle(ids::ADVISE_MR_PD_HANDLE), H);
        assert_eq!(io.constant(ids::ADVISE_MR_ADVICE), 2);
        assert_eq!(io.read::<u32>(ids::ADVISE_MR_FLAGS), 1);
        assert_eq!(io.input(ids::ADVISE_MR_SGE_LIST), sges.as_bytes());
        Ok(())
    });
    mr::advise(CMD, H, 2, 1, &sges).unwrap();
    kernel.ioctl(ids::QUERY_MR, |io| {
        has_only(io, &[0, 1, 2, 3, 4]);
        assert_eq!(io.handle(ids::QUERY_MR_HANDLE), H);
        assert_eq!([1, 2, 3, 4].map(|id| io.len(id)), [4, 4, 8, 8]);
        io.answer(ids::QUERY_MR_RESP_LKEY, &1_u32);
        io.answer(ids::QUERY_MR_RESP_RKEY, &2_u32);
        io.answer(ids::QUERY_MR_RESP_LENGTH, &3_u64);
        io.answer(ids::QUERY_MR_RESP_IOVA, &4_u64);
        Ok(())
    });
    assert_eq!(mr::query(CMD, H), Ok(mr::Info { lkey: 1, rkey: 2, length: 3, iova: 4 }));
}

#[test]
fn memory_windows() {
    let got = asks(
        ids::write::ALLOC_MW,
        AllocMw { response: 0, pd_handle: H.0, mw_type: 2, reserved: [0; 3] },
        AllocMwResp { mw_handle: 4, rkey: 5 },
        || mw::alloc(CMD, H, 2, Udata::none()),
    );
    assert_eq!(got, (Handle(4), 5));
    destroys(ids::MW_DESTROY, || mw::dealloc(CMD, H));
}

// Queues.

#[test]
fn create_cq_sends_what_was_chosen() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::CQ_CREATE, |io| {
        has_only(io, &[0, 1, 2, 4, 6, 0x1001]);
        assert_eq!(io.read::<u32>(ids::CREATE_CQ_CQE), 10);
        assert_eq!(io.read::<u64>(ids::CREATE_CQ_USER_HANDLE), 0xabc);
        assert_eq!(io.read::<u32>(ids::CREATE_CQ_COMP_VECTOR), 0);
        assert_eq!(io.len(ids::CREATE_CQ_RESP_CQE.0), 4);
        io.set_handle(ids::CREATE_CQ_HANDLE, 3);
        io.answer(ids::CREATE_CQ_RESP_CQE, &15_u32);
        io.answer(ids::UHW_OUT, &rxe::MmInfo { offset: 0x1000, size: 4096, pad: 0 });
        Ok(())
    });
    let create = cq::Create { cqe: 10, user_handle: 0xabc, ..cq::Create::default() };
    let mut mi = rxe::CreateCqResp::default();
    let made = cq::create(CMD, &create, Udata::output(&mut mi)).unwrap();
    assert_eq!((made, mi.mi.offset, mi.mi.size), (cq::Cq { handle: Handle(3), cqe: 15 }, 0x1000, 4096));

    kernel.ioctl(ids::CQ_CREATE, |io| {
        has_only(io, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(io.descriptor(ids::CREATE_CQ_COMP_CHANNEL), 11);
        assert_eq!(io.descriptor(ids::CREATE_CQ_EVENT_FD), 12);
        assert_eq!(io.read::<u32>(ids::CREATE_CQ_COMP_VECTOR), 1);
        assert_eq!(io.read::<u32>(ids::CREATE_CQ_FLAGS), cq::IGNORE_OVERRUN);
        io.answer(ids::CREATE_CQ_RESP_CQE, &u32::MAX);
        Ok(())
    });
    let create = cq::Create {
        comp_channel: Some(11),
        event_fd: Some(12),
        comp_vector: 1,
        flags: cq::IGNORE_OVERRUN,
        ..create
    };
    assert_eq!(
        cq::create(CMD, &create, Udata::none()),
        Err(Errno::EPROTO),
        "no int counts that many entries"
    );
}

#[test]
fn the_rest_of_a_cq() {
    let cqe = asks(
        ids::write::RESIZE_CQ,
        ResizeCq { response: 0, cq_handle: H.0, cqe: 20 },
        ResizeCqResp { cqe: 31, reserved: 0 },
        || cq::resize(CMD, H, 20, Udata::output(&mut rxe::ResizeCqResp::default())),
    );
    assert_eq!(cqe, 31);
    tells(
        ids::write::EX_CMD_MODIFY_CQ,
        ExModifyCq {
            cq_handle: H.0,
            attr_mask: 1,
            attr: CqModeration { cq_count: 2, cq_period: 3 },
            reserved: 0,
        },
        || cq::modify(CMD, H, 2, 3),
    );
    let kernel = Kernel::scripted();
    let events = DestroyCqResp { comp_events_reported: 1, async_events_reported: 2 };
    kernel.ioctl(ids::CQ_DESTROY, move |io| {
        has_only(io, &[0, 1]);
        assert_eq!(io.handle(ids::DESTROY_CQ_HANDLE), H);
        io.answer(ids::DESTROY_CQ_RESP, &events);
        Ok(())
    });
    assert_eq!(cq::destroy(CMD, H), Ok(events));
}

#[test]
fn create_srq_by_type() {
    let create = srq::Create {
        pd: H,
        srq_type: srq::Type::Basic,
        user_handle: 0xabc,
        max_wr: 1,
        max_sge: 2,
        srq_limit: 3,
        event_fd: None,
    };
    fn answer(io: &mut Ioctl<'_>) {
        assert_eq!(io.handle(ids::CREATE_SRQ_PD_HANDLE), H);
        assert_eq!(io.read::<u64>(ids::CREATE_SRQ_USER_HANDLE), 0xabc);
        assert_eq!(io.read::<u32>(ids::CREATE_SRQ_MAX_WR), 1);
        assert_eq!(io.read::<u32>(ids::CREATE_SRQ_MAX_SGE), 2);
        assert_eq!(io.read::<u32>(ids::CREATE_SRQ_LIMIT), 3);
        io.set_handle(ids::CREATE_SRQ_HANDLE, 4);
        io.answer(ids::CREATE_SRQ_RESP_MAX_WR, &5_u32);
        io.answer(ids::CREATE_SRQ_RESP_MAX_SGE, &6_u32);
    }
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::SRQ_CREATE, |io| {
        has_only(io, &[0, 1, 4, 5, 6, 7, 9, 11, 12]);
        assert_eq!(io.constant(ids::CREATE_SRQ_TYPE), 0);
        answer(io);
        Ok(())
    });
    let made = srq::Srq { handle: Handle(4), max_wr: 5, max_sge: 6, srq_num: 0 };
    assert_eq!(srq::create(CMD, &create, Udata::none()), Ok(made));

    kernel.ioctl(ids::SRQ_CREATE, |io| {
        has_only(io, &[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13]);
        assert_eq!(io.constant(ids::CREATE_SRQ_TYPE), 1);
        assert_eq!(io.handle(ids::CREATE_SRQ_XRCD_HANDLE), Handle(7));
        assert_eq!(io.handle(ids::CREATE_SRQ_CQ_HANDLE), Handle(8));
        assert_eq!(io.descriptor(ids::CREATE_SRQ_EVENT_FD), 9);
        answer(io);
        io.answer(ids::CREATE_SRQ_RESP_SRQ_NUM, &10_u32);
        Ok(())
    });
    let xrc = srq::Create {
        srq_type: srq::Type::Xrc { xrcd: Handle(7), cq: Handle(8) },
        event_fd: Some(9),
        ..create
    };
    assert_eq!(srq::create(CMD, &xrc, Udata::none()), Ok(srq::Srq { srq_num: 10, ..made }));

    kernel.ioctl(ids::SRQ_CREATE, |io| {
        has_only(io, &[0, 1, 3, 4, 5, 6, 7, 8, 9, 11, 12]);
        assert_eq!(io.constant(ids::CREATE_SRQ_TYPE), 2);
        assert_eq!(io.read::<u32>(ids::CREATE_SRQ_MAX_NUM_TAGS), 64);
        answer(io);
        Ok(())
    });
    let tm = srq::Create { srq_type: srq::Type::Tm { cq: Handle(8), max_num_tags: 64 }, ..create };
    assert_eq!(srq::create(CMD, &tm, Udata::none()), Ok(made));
}

#[test]
fn the_rest_of_a_srq() {
    let kernel = Kernel::scripted();
    kernel.command(ids::write::MODIFY_SRQ, |io| {
        let req = ModifySrq { srq_handle: H.0, attr_mask: 1, max_wr: 2, srq_limit: 3 };
        assert_eq!(io.read::<ModifySrq>(ids::CORE_IN), req);
        assert_eq!(io.read::<u64>(ids::UHW_IN), 0xdead_beef);
        Ok(())
    });
    let drv = rxe::ModifySrqCmd { mmap_info_addr: 0xdead_beef };
    srq::modify(CMD, H, 1, 2, 3, Udata::input(&drv)).unwrap();
    drop(kernel);
    let resp = QuerySrqResp { max_wr: 1, max_sge: 2, srq_limit: 3, reserved: 0 };
    let req = QuerySrq { response: 0, srq_handle: H.0, reserved: 0 };
    assert_eq!(asks(ids::write::QUERY_SRQ, req, resp, || srq::query(CMD, H)), resp);
    destroys_with_events(ids::SRQ_DESTROY, || srq::destroy(CMD, H));
}

const CAP: QpCap =
    QpCap { max_send_wr: 1, max_recv_wr: 2, max_send_sge: 3, max_recv_sge: 4, max_inline_data: 5 };

#[test]
fn create_qp_sends_what_was_chosen() {
    fn answer(io: &mut Ioctl<'_>, qp_num: u32) {
        io.set_handle(ids::CREATE_QP_HANDLE, 9);
        assert_eq!((io.len(ids::CREATE_QP_RESP_CAP.0), io.len(ids::CREATE_QP_RESP_QP_NUM.0)), (20, 4));
        io.answer(ids::CREATE_QP_RESP_CAP, &QpCap { max_send_wr: 127, ..CAP });
        io.answer(ids::CREATE_QP_RESP_QP_NUM, &qp_num);
    }
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::QP_CREATE, |io| {
        has_only(io, &[0, 2, 4, 5, 7, 8, 9, 13, 14, 0x1001]);
        assert_eq!(io.constant(ids::CREATE_QP_TYPE), 2);
        assert_eq!(io.read::<u64>(ids::CREATE_QP_USER_HANDLE), 0xabc);
        assert_eq!(io.read::<QpCap>(ids::CREATE_QP_CAP), CAP);
        assert_eq!(io.handle(ids::CREATE_QP_PD_HANDLE), Handle(1));
        assert_eq!(io.handle(ids::CREATE_QP_SEND_CQ_HANDLE), Handle(2));
        assert_eq!(io.handle(ids::CREATE_QP_RECV_CQ_HANDLE), Handle(3));
        answer(io, 17);
        io.answer(ids::UHW_OUT, &rxe::CreateQpResp::default());
        Ok(())
    });
    let create = qp::Create {
        qp_type: 2,
        user_handle: 0xabc,
        cap: CAP,
        pd: Some(Handle(1)),
        send_cq: Some(Handle(2)),
        recv_cq: Some(Handle(3)),
        ..qp::Create::default()
    };
    let made = qp::create(CMD, &create, Udata::output(&mut rxe::CreateQpResp::default())).unwrap();
    assert_eq!((made.handle, made.qp_num, made.cap.max_send_wr), (Handle(9), 17, 127));

    kernel.ioctl(ids::QP_CREATE, |io| {
        has_only(io, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(io.handle(ids::CREATE_QP_XRCD_HANDLE), Handle(4));
        assert_eq!(io.handle(ids::CREATE_QP_SRQ_HANDLE), Handle(5));
        assert_eq!(io.handle(ids::CREATE_QP_IND_TABLE_HANDLE), Handle(6));
        assert_eq!(io.read::<u32>(ids::CREATE_QP_FLAGS), qp::CREATE_SQ_SIG_ALL);
        assert_eq!(io.read::<u32>(ids::CREATE_QP_SOURCE_QPN), 0x99);
        assert_eq!(io.descriptor(ids::CREATE_QP_EVENT_FD), 8);
        answer(io, 1 << 24);
        Ok(())
    });
    let create = qp::Create {
        create_flags: qp::CREATE_SQ_SIG_ALL,
        source_qpn: Some(0x99),
        xrcd: Some(Handle(4)),
        srq: Some(Handle(5)),
        ind_table: Some(Handle(6)),
        event_fd: Some(8),
        ..create
    };
    assert_eq!(qp::create(CMD, &create, Udata::none()), Err(Errno::EPROTO), "a QP number has 24 bits");
}

#[test]
fn open_qp() {
    let req = OpenQp { user_handle: 5, pd_handle: H.0, qpn: 6, qp_type: 10, ..OpenQp::default() };
    let resp = CreateQpResp { qp_handle: 7, qpn: 6, max_recv_wr: 8, ..CreateQpResp::default() };
    let qp = asks(ids::write::OPEN_QP, req, resp, || qp::open(CMD, H, 5, 6, 10, Udata::none()));
    assert_eq!((qp.handle, qp.qp_num, qp.cap.max_recv_wr), (Handle(7), 6, 8));
}

#[test]
fn modify_qp() {
    tells(ids::write::MODIFY_QP, ModifyQp { qp_handle: 1, qp_state: 6, ..ModifyQp::default() }, || {
        qp::modify(CMD, &ModifyQp { qp_handle: 1, qp_state: 6, ..ModifyQp::default() }, Udata::none())
    });
    let resp = ExModifyQpResp { comp_mask: 0, response_length: 8 };
    asks(ids::write::EX_CMD_MODIFY_QP, ExModifyQp { rate_limit: 5, ..ExModifyQp::default() }, resp, || {
        qp::modify_ex(CMD, &ExModifyQp { rate_limit: 5, ..ExModifyQp::default() }, Udata::none())
    });
    let kernel = Kernel::scripted();
    for response_length in [0, 7, 9] {
        kernel.command(ids::write::EX_CMD_MODIFY_QP, move |io| {
            io.respond(&ExModifyQpResp { comp_mask: 0, response_length })
        });
        assert_eq!(qp::modify_ex(CMD, &ExModifyQp::default(), Udata::none()), Err(Errno::EPROTO));
    }
}

#[test]
fn query_qp_knows_its_states() {
    let req = QueryQp { response: 0, qp_handle: H.0, attr_mask: 0xff };
    let resp = QueryQpResp { qp_state: 3, cur_qp_state: 3, rq_psn: 5, ..QueryQpResp::default() };
    assert_eq!(asks(ids::write::QUERY_QP, req, resp, || qp::query(CMD, H, 0xff)), resp);
    let kernel = Kernel::scripted();
    for (qp_state, cur_qp_state) in [(7, 0), (0, 7), (255, 255)] {
        kernel.command(ids::write::QUERY_QP, move |io| {
            io.respond(&QueryQpResp { qp_state, cur_qp_state, ..QueryQpResp::default() })
        });
        assert_eq!(qp::query(CMD, H, 1), Err(Errno::EPROTO));
    }
}

#[test]
fn destroy_qp_and_groups() {
    destroys_with_events(ids::QP_DESTROY, || qp::destroy(CMD, H));
    let req = AttachMcast { gid: [0xff; 16], qp_handle: H.0, mlid: 0xc001, reserved: 0 };
    tells(ids::write::ATTACH_MCAST, req, || qp::attach_mcast(CMD, H, [0xff; 16], 0xc001));
    tells(ids::write::DETACH_MCAST, req, || qp::detach_mcast(CMD, H, [0xff; 16], 0xc001));
}

#[test]
fn arming_is_a_write_without_an_answer() {
    let kernel = Kernel::scripted();
    kernel.write(7, |buf| {
        let (hdr, rest) = CmdHdr::read_from_prefix(buf).unwrap();
        assert_eq!((hdr.command, usize::from(hdr.in_words) * 4, hdr.out_words), (23, buf.len(), 0));
        let expected = ReqNotifyCq { cq_handle: H.0, solicited_only: 1 };
        assert_eq!(ReqNotifyCq::read_from_bytes(rest).unwrap(), expected);
        Ok(buf.len())
    });
    cq::req_notify(CMD, H, true).unwrap();
    kernel.write(7, |buf| Ok(buf.len() - 4));
    assert_eq!(cq::req_notify(CMD, H, false), Err(Errno::EPROTO));
    kernel.write(7, |_| Err(Errno::EINVAL));
    assert_eq!(cq::req_notify(CMD, H, false), Err(Errno::EINVAL));
}

#[test]
fn a_kick_is_a_write_of_no_work_requests() {
    let kernel = Kernel::scripted();
    kernel.write(7, |buf| {
        let (hdr, rest) = CmdHdr::read_from_prefix(buf).unwrap();
        assert_eq!((hdr.command, usize::from(hdr.in_words) * 4, hdr.out_words), (28, buf.len(), 1));
        let req = PostSend::read_from_bytes(rest).unwrap();
        assert_ne!(req.response, 0, "the kernel writes its answer there, and fails if it cannot");
        let expected =
            PostSend { response: req.response, qp_handle: H.0, wqe_size: 56, ..PostSend::default() };
        assert_eq!(req, expected);
        Ok(buf.len())
    });
    qp::post_send_kick(CMD, H).unwrap();
    kernel.write(7, |buf| Ok(buf.len() - 4));
    assert_eq!(qp::post_send_kick(CMD, H), Err(Errno::EPROTO));
    kernel.write(7, |_| Err(Errno::EINVAL));
    assert_eq!(qp::post_send_kick(CMD, H), Err(Errno::EINVAL));
}

#[test]
fn address_handles() {
    let attr = AhAttr { dlid: 1, port_num: 2, is_global: 1, ..AhAttr::default() };
    let ah = asks(
        ids::write::CREATE_AH,
        CreateAh { response: 0, user_handle: 3, pd_handle: H.0, reserved: 0, attr },
        CreateAhResp { ah_handle: 4 },
        || {
            let attr = AhAttr { dlid: 1, port_num: 2, is_global: 1, ..AhAttr::default() };
            ah::create(CMD, H, 3, &attr, Udata::output(&mut rxe::CreateAhResp::default()))
        },
    );
    assert_eq!(ah, Handle(4));
    destroys(ids::AH_DESTROY, || ah::destroy(CMD, H));
}

#[test]
fn work_queues() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::WQ_CREATE, |io| {
        has_only(io, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(
            (io.handle(ids::CREATE_WQ_PD_HANDLE), io.handle(ids::CREATE_WQ_CQ_HANDLE)),
            (H, Handle(1))
        );
        assert_eq!(io.read::<u64>(ids::CREATE_WQ_USER_HANDLE), 0xabc);
        assert_eq!(io.constant(ids::CREATE_WQ_TYPE), 0);
        assert_eq!(io.descriptor(ids::CREATE_WQ_EVENT_FD), 5);
        assert_eq!(io.read::<u32>(ids::CREATE_WQ_MAX_WR), 2);
        assert_eq!(io.read::<u32>(ids::CREATE_WQ_MAX_SGE), 3);
        assert_eq!(io.read::<u32>(ids::CREATE_WQ_FLAGS), 4);
        io.set_handle(ids::CREATE_WQ_HANDLE, 6);
        io.answer(ids::CREATE_WQ_RESP_MAX_WR, &7_u32);
        io.answer(ids::CREATE_WQ_RESP_MAX_SGE, &8_u32);
        io.answer(ids::CREATE_WQ_RESP_WQ_NUM, &9_u32);
        Ok(())
    });
    let create = wq::Create {
        pd: H,
        cq: Handle(1),
        wq_type: 0,
        user_handle: 0xabc,
        max_wr: 2,
        max_sge: 3,
        create_flags: 4,
        event_fd: Some(5),
    };
    let made = wq::Wq { handle: Handle(6), max_wr: 7, max_sge: 8, wq_num: 9 };
    assert_eq!(wq::create(CMD, &create, Udata::none()), Ok(made));
    drop(kernel);
    tells(ids::write::EX_CMD_MODIFY_WQ, ExModifyWq { wq_state: 1, ..ExModifyWq::default() }, || {
        wq::modify(CMD, &ExModifyWq { wq_state: 1, ..ExModifyWq::default() }, Udata::none())
    });
    destroys_with_events(ids::WQ_DESTROY, || wq::destroy(CMD, H));
}

#[test]
fn indirection_tables_are_powers_of_two() {
    let kernel = Kernel::scripted();
    for (n, log, len) in [(1_u32, 0_u32, 16_usize), (2, 1, 16), (4, 2, 24)] {
        kernel.command(ids::write::EX_CMD_CREATE_RWQ_IND_TBL, move |io| {
            let req = io.input(ids::CORE_IN);
            assert_eq!(req.len(), len);
            let words: Vec<u32> = req.chunks(4).map(|word| u32::read_from_bytes(word).unwrap()).collect();
            assert_eq!(words[..2], [0, log]);
            assert!(words[2..].iter().zip(0..).all(|(word, i)| *word == if i < n { i + 100 } else { 0 }));
            io.respond(&ExCreateRwqIndTableResp {
                comp_mask: 0,
                response_length: 16,
                ind_tbl_handle: 5,
                ind_tbl_num: 6,
            })
        });
        let wqs: Vec<Handle> = (100..100 + n).map(Handle).collect();
        assert_eq!(rwq_ind_table::create(CMD, &wqs, Udata::none()), Ok((Handle(5), 6)));
    }
    for n in [0, 3, 0x4000] {
        assert_eq!(rwq_ind_table::create(CMD, &vec![H; n], Udata::none()), Err(Errno::EINVAL));
    }
    kernel.command(ids::write::EX_CMD_CREATE_RWQ_IND_TBL, |io| {
        io.respond(&ExCreateRwqIndTableResp { response_length: 12, ..ExCreateRwqIndTableResp::new_zeroed() })
    });
    assert_eq!(rwq_ind_table::create(CMD, &[H], Udata::none()), Err(Errno::EPROTO));
    drop(kernel);
    destroys(ids::RWQ_IND_TBL_DESTROY, || rwq_ind_table::destroy(CMD, H));
}

#[test]
fn flows() {
    let kernel = Kernel::scripted();
    kernel.command(ids::write::EX_CMD_CREATE_FLOW, |io| {
        let req = io.input(ids::CORE_IN);
        let (head, specs) = CreateFlow::read_from_prefix(&req).unwrap();
        assert_eq!((head.qp_handle, head.flow_attr.size, head.flow_attr.port), (H.0, 8, 1));
        assert_eq!(specs, [5; 8]);
        io.respond(&CreateFlowResp { comp_mask: 0, flow_handle: 6 })
    });
    let attr = FlowAttr { port: 1, num_of_specs: 1, ..FlowAttr::default() };
    assert_eq!(flow::create(CMD, H, &attr, &[5; 8], Udata::none()), Ok(Handle(6)));
    assert_eq!(flow::create(CMD, H, &attr, &[5; 0x1_0000], Udata::none()), Err(Errno::EINVAL));
    drop(kernel);
    destroys(ids::FLOW_DESTROY, || flow::destroy(CMD, H));
}

#[test]
fn counters() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::COUNTERS_CREATE, |io| {
        has_only(io, &[0]);
        io.set_handle(ids::CREATE_COUNTERS_HANDLE, 3);
        Ok(())
    });
    assert_eq!(counters::create(CMD, Udata::none()), Ok(Handle(3)));
    kernel.ioctl(ids::COUNTERS_READ, |io| {
        has_only(io, &[0, 1, 2]);
        assert_eq!(io.handle(ids::READ_COUNTERS_HANDLE), Handle(3));
        assert_eq!(io.read::<u32>(ids::READ_COUNTERS_FLAGS), 1);
        io.answer(ids::READ_COUNTERS_BUFF, &[4_u64, 5]);
        Ok(())
    });
    let mut values = [0; 2];
    counters::read(CMD, Handle(3), &mut values, 1).unwrap();
    assert_eq!(values, [4, 5]);
    drop(kernel);
    destroys(ids::COUNTERS_DESTROY, || counters::destroy(CMD, H));
}

// rxe's structs.

#[test]
fn a_union_member_survives_the_union() {
    let ud =
        rxe::Ud { remote_qpn: 5, av: rxe::Av { port_num: 1, ..rxe::Av::default() }, ..rxe::Ud::default() };
    let wr = rxe::SendWr { wr: rxe::SendWr::union_of(&ud), ..rxe::SendWr::default() };
    assert_eq!(wr.member::<rxe::Ud>(), ud);
    let rdma = rxe::Rdma { remote_addr: 0x1122, rkey: 3, reserved: 0 };
    let wr = rxe::SendWr { wr: rxe::SendWr::union_of(&rdma), ..wr };
    assert_eq!(wr.member::<rxe::Rdma>(), rdma);
    assert!(wr.wr[16..].iter().all(|byte| *byte == 0));
}

// The system calls, on the system and on its twin.

#[test]
fn descriptors_of_the_system() {
    let _kernel = Kernel::real();
    let (from, to) = sys::pipe(libc::O_NONBLOCK).unwrap();
    assert_eq!(sys::read(from.as_raw(), &mut [0; 4]), Err(Errno::EAGAIN));
    assert_eq!(sys::write(to.as_raw(), b"abc"), Ok(3));
    let mut fds = [libc::pollfd { fd: from.as_raw(), events: libc::POLLIN, revents: 0 }];
    assert_eq!((sys::poll(&mut fds, 0), fds[0].revents), (Ok(1), libc::POLLIN));
    let mut buf = [0; 8];
    assert_eq!((sys::read(from.as_raw(), &mut buf), &buf[..3]), (Ok(3), &b"abc"[..]));
    let flags = sys::status_flags(from.as_raw()).unwrap();
    assert_ne!(flags & libc::O_NONBLOCK, 0);
    sys::set_status_flags(from.as_raw(), flags & !libc::O_NONBLOCK).unwrap();
    assert_eq!(sys::status_flags(from.as_raw()).unwrap() & libc::O_NONBLOCK, 0);

    let event = sys::eventfd(2, libc::EFD_NONBLOCK).unwrap();
    let copy = sys::dup(event.as_raw()).unwrap();
    assert_eq!((sys::read(copy.as_raw(), &mut buf), buf), (Ok(8), 2_u64.to_ne_bytes()));
    sys::dup_over(event.as_raw(), from.as_raw(), true).unwrap();
    assert_eq!(sys::write(from.as_raw(), &3_u64.to_ne_bytes()), Ok(8), "the pipe's end is the eventfd now");

    let null = sys::open(c"/dev/null", libc::O_RDWR).unwrap();
    assert_eq!(sys::write(null.as_raw(), b"x"), Ok(1));
    assert_eq!(sys::open(c"/nonexistent", libc::O_RDONLY), Err(Errno::ENOENT));
    let number = null.as_raw();
    drop(null);
    assert_eq!(sys::status_flags(number), Err(Errno::EBADF), "closed with its owner");
    assert_eq!(sys::inherit_on_fork(1, 1, false), Err(Errno::EINVAL), "not a page");
}

#[test]
fn mappings_of_the_system() {
    let _kernel = Kernel::real();
    let map = sys::map_memory(8192).unwrap();
    assert_eq!((map.len(), map.is_empty(), map.as_ptr().as_ptr().addr() % 4096), (8192, false, 0));
    for inherit in [false, true] {
        sys::inherit_on_fork(map.as_ptr().as_ptr().expose_provenance(), map.len(), inherit).unwrap();
    }
    assert_eq!(sys::map_memory(0).unwrap_err(), Errno::EINVAL);
    assert_eq!(sys::map_device(-1, 4096, Prot::ReadWrite, 0).unwrap_err(), Errno::EBADF);
    assert_eq!(sys::map_device(-1, 4096, Prot::Read, u64::MAX).unwrap_err(), Errno::EOVERFLOW);
}

#[test]
fn an_ioctl_of_the_system() {
    let _kernel = Kernel::real();
    let null = sys::open(c"/dev/null", libc::O_RDWR).unwrap();
    let cmd = CmdFd::new(null.as_raw(), DriverId::RXE);
    assert_eq!(pd::alloc(cmd, Udata::none()), Err(Errno::ENOTTY));
    assert_eq!(qp::post_send_kick(cmd, H), Ok(()), "/dev/null takes it whole");
    assert_eq!(qp::post_send_kick(CmdFd::new(-1, DriverId::RXE), H), Err(Errno::EBADF));
}

#[test]
fn the_twin_maps_and_counts() {
    let kernel = Kernel::scripted();
    kernel.mmap(7, 0x5000, |memory| {
        assert_eq!(memory.len(), 4096);
        memory[0] = 42;
        Ok(())
    });
    let map = sys::map_device(7, 4096, Prot::ReadWrite, 0x5000).unwrap();
    drop(map);
    assert_eq!(kernel.unmapped(), [4096]);
    kernel.mmap(7, 0, |_| Err(Errno::EINVAL));
    assert_eq!(sys::map_device(7, 4096, Prot::Write, 0).unwrap_err(), Errno::EINVAL);
    kernel.poll(|fds| {
        fds[0].revents = libc::POLLERR;
        Ok(1)
    });
    let mut fds = [libc::pollfd { fd: 7, events: libc::POLLIN, revents: 0 }];
    assert_eq!((sys::poll(&mut fds, -1), fds[0].revents), (Ok(1), libc::POLLERR));
    kernel.call("eventfd", |args| {
        assert_eq!(args, [3, i64::from(libc::EFD_CLOEXEC)]);
        Ok(20)
    });
    assert_eq!(sys::eventfd(3, 0).unwrap().as_raw(), 20);
    kernel.call("pipe2", |_| Ok(30));
    let (from, to) = sys::pipe(0).unwrap();
    assert_eq!((from.as_raw(), to.as_raw()), (30, 31));
}

#[test]
fn the_twin_serves_another_thread() {
    let kernel = Kernel::scripted();
    let share = kernel.share();
    kernel.write(3, |buf| Ok(buf.len()));
    let (tell, told) = mpsc::channel();
    let other = std::thread::spawn(move || {
        let _kernel = share();
        tell.send(sys::write(3, b"abc")).unwrap();
    });
    assert_eq!(told.recv().unwrap(), Ok(3));
    other.join().unwrap();
}

#[test]
#[should_panic(expected = "no kernel on this thread")]
fn a_call_without_a_kernel_fails_loudly() {
    let _ = pd::dealloc(CMD, H);
}

#[test]
#[should_panic(expected = "no further call is expected")]
fn an_unexpected_call_fails_loudly() {
    let _kernel = Kernel::scripted();
    let _ = pd::dealloc(CMD, H);
}

#[test]
#[should_panic(expected = "the next expected call is")]
fn another_call_than_expected_fails_loudly() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::CQ_DESTROY, |_| Ok(()));
    let _ = pd::dealloc(CMD, H);
}

#[test]
#[should_panic(expected = "never came")]
fn a_call_that_never_came_fails_loudly() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::CQ_DESTROY, |_| Ok(()));
}

#[test]
fn a_uar_is_a_page_of_its_type() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::UAR_OBJ_ALLOC, |io| {
        has_only(io, &[0x1000, 0x1001, 0x1002, 0x1003, 0x1004]);
        assert_eq!(io.constant(ids::UAR_OBJ_ALLOC_TYPE), mlx5::UAR_ALLOC_TYPE_NC);
        io.set_handle(ids::UAR_OBJ_ALLOC_HANDLE, 5);
        io.answer(ids::UAR_OBJ_ALLOC_MMAP_OFFSET, &0x7000_u64);
        io.answer(ids::UAR_OBJ_ALLOC_MMAP_LENGTH, &4096_u32);
        io.answer(ids::UAR_OBJ_ALLOC_PAGE_ID, &9_u32);
        Ok(())
    });
    let uar = mlx5::Uar { handle: Handle(5), mmap_offset: 0x7000, length: 4096, page_id: 9 };
    assert_eq!(mlx5::alloc_uar(CMD, mlx5::UAR_ALLOC_TYPE_NC), Ok(uar));
    // A page without a number cannot be used.
    kernel.ioctl(ids::UAR_OBJ_ALLOC, |io| {
        io.set_handle(ids::UAR_OBJ_ALLOC_HANDLE, 5);
        Ok(())
    });
    assert_eq!(mlx5::alloc_uar(CMD, mlx5::UAR_ALLOC_TYPE_BF), Err(Errno::EPROTO));
    kernel.ioctl(ids::UAR_OBJ_DESTROY, |io| {
        has_only(io, &[0x1000]);
        assert_eq!(io.handle(ids::UAR_OBJ_DESTROY_HANDLE), H);
        Ok(())
    });
    assert_eq!(mlx5::free_uar(CMD, H), Ok(()));
}

#[test]
fn an_mmap_offset_is_a_command_and_an_index_in_pages() {
    assert_eq!(mlx5::mmap_offset(mlx5::MMAP_NC_PAGE, 2, 4096), 0x302 << 12);
    assert_eq!(mlx5::mmap_offset(mlx5::MMAP_CORE_CLOCK, 0, 4096), 0x500 << 12);
    assert_eq!(mlx5::mmap_offset(mlx5::MMAP_REGULAR_PAGE, 0x1ff, 4096), 0x1_00ff << 12);
}

#[test]
fn query_port_speed() {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::QUERY_PORT_SPEED, |io| {
        has_only(io, &[0, 1]);
        assert_eq!(io.constant(ids::QUERY_PORT_SPEED_PORT_NUM), 2);
        io.answer(ids::QUERY_PORT_SPEED_RESP, &500_u64);
        Ok(())
    });
    assert_eq!(device::query_port_speed(CMD, 2), Ok(500));
    kernel.ioctl(ids::QUERY_PORT_SPEED, |_| Err(Errno::EPROTONOSUPPORT));
    assert_eq!(device::query_port_speed(CMD, 2), Err(Errno::EPROTONOSUPPORT));
}
