//! Commands that open a context and ask about the device. What they answer is what the kernel answers on a virtual ConnectX
//! in a guest.

use std::os::fd::IntoRawFd;

use vhca::prm::Field;
use vhca::prm::layouts::{create_eq_in, create_eq_out, eqc, op};
use zerocopy::IntoBytes;

use super::cq::COMP_VECTORS;
use super::firmware::Command;
use super::{ContextId, Device, Driver, engine, pages};
use crate::Errno;
use crate::attrs::{self, Attrs, Write};
use crate::clock::Clock;
use crate::uapi::{
    AllocUcontextReq, AllocUcontextResp, ExQueryDeviceResp, GetContextResp, GidEntry, QueryDeviceResp,
    QueryPort, QueryPortResp, attr,
};

/// The firmware version that all devices say they have.
pub(crate) const FIRMWARE: &str = "16.35.2012";
/// Queue pair numbers of one process; those of a wire's processes do not overlap.
pub(crate) const QPS: u32 = 1 << 14;

const LIB_CAP_DYN_UAR: u64 = 1 << 1;
/// `hca_core_clock`, in kHz.
const CLOCK: u64 = 156_250;
const GIDS: u64 = 8;

fn device(guid: u64) -> QueryDeviceResp {
    QueryDeviceResp {
        fw_ver: 16 << 32 | 35 << 16 | 2012,
        node_guid: guid.to_be(),
        sys_image_guid: guid.to_be(),
        max_mr_size: u64::MAX,
        page_size_cap: !0xfff,
        vendor_id: 0x2c9,
        vendor_part_id: 4121,
        max_qp: 1 << 18,
        max_qp_wr: 32768,
        device_cap_flags: 0x0112_1c26,
        max_sge: 30,
        max_sge_rd: 30,
        max_cq: 1 << 16,
        max_cqe: (1 << 22) - 1,
        max_mr: 1 << 20,
        max_pd: 1 << 16,
        max_qp_rd_atom: 16,
        max_res_rd_atom: 1 << 22,
        max_qp_init_rd_atom: 16,
        atomic_cap: 1,
        max_mw: 1 << 20,
        max_mcast_grp: 1 << 10,
        max_mcast_qp_attach: 64,
        max_total_mcast_qp_attach: 1 << 16,
        max_ah: u32::MAX >> 1,
        max_srq: 1 << 16,
        max_srq_wr: 32767,
        max_srq_sge: 31,
        max_pkeys: 128,
        local_ca_ack_delay: 16,
        phys_port_cnt: 1,
        ..QueryDeviceResp::default()
    }
}

fn port(lid: u16, up: bool) -> QueryPortResp {
    const DOWN: u8 = 1;
    const ACTIVE: u8 = 4;
    const MTU_4096: u8 = 5;
    const DISABLED: u8 = 3;
    const LINK_UP: u8 = 5;
    const INFINIBAND: u8 = 1;
    QueryPortResp {
        port_cap_flags: 0x0251_0868,
        max_msg_sz: 1 << 30,
        gid_tbl_len: GIDS as u32,
        pkey_tbl_len: 128,
        lid,
        sm_lid: 1,
        state: if up { ACTIVE } else { DOWN },
        max_mtu: MTU_4096,
        active_mtu: MTU_4096,
        max_vl_num: 3,
        subnet_timeout: 18,
        active_width: 16,
        active_speed: 32,
        phys_state: if up { LINK_UP } else { DISABLED },
        link_layer: INFINIBAND,
        active_speed_ex: 32,
        ..QueryPortResp::default()
    }
}

/// The port's first GID.
pub(crate) fn gid(guid: u64) -> [u8; 16] {
    (0xfe80_0000_0000_0000u128 << 64 | u128::from(guid)).to_be_bytes()
}

fn check_port(port_num: u64) -> Result<(), Errno> {
    if port_num == 1 { Ok(()) } else { Err(Errno(libc::EINVAL)) }
}

/// A query of the device's capabilities by DEVX: there are none.
pub(super) fn no_capabilities(attrs: &mut Attrs) -> Result<(), Errno> {
    attrs.output(attr::DEVX_OTHER_CMD_OUT, &[])
}

impl Driver {
    /// Adds a device whose queue pairs are numbered for process `slot` of the wire.
    pub(super) fn add_device(&mut self, slot: u32) {
        let first = slot * QPS;
        // The lowest numbers mean something else.
        let added = self.host.add(first.max(0x40)..first + QPS);
        let number = added.unwrap_or_else(|error| engine::give_up(&format!("no doorbell pages: {error}")));
        self.devices.push(Device {
            present: false,
            in_error: false,
            leaving: None,
            hanging: 0,
            index: 0,
            guid: self.host.port(number).map_or(0, |(guid, ..)| guid),
            eqn: 0,
            clock: Clock::new(self.host.clock()).ok(),
        });
        self.register(number);
    }

    /// The driver has found a device and makes it known.
    pub(super) fn register(&mut self, number: usize) {
        let size = eqc::LOG_EQ_SIZE.at(create_eq_in::EQ_CONTEXT_ENTRY);
        let all = (Field::new(create_eq_in::EVENT_BITMASK.byte() * 8, 64), u64::MAX);
        let mut create = Command::new(op::CREATE_EQ, create_eq_in::BYTES);
        create.set(size, 6u32).set(all.0, all.1);
        // Events are handed over, not written, so that no memory stands behind this.
        create.pages(create_eq_in::PAS.byte(), 0, 4096);
        self.domains.forget(number);
        self.last_index += 1;
        let index = self.last_index - 1;
        if let Some(device) = self.devices.get_mut(number) {
            (device.in_error, device.index) = (false, index);
        }
        let eqn = self.number(number, &create, create_eq_out::EQ_NUMBER).unwrap_or(0);
        if let Some(device) = self.devices.get_mut(number) {
            (device.eqn, device.present) = (eqn, true);
        }
        super::show(self);
    }

    fn guid(&mut self, id: ContextId) -> Result<u64, Errno> {
        self.context(id)?;
        self.alive(id)?;
        let device = self.device_of(id)?;
        self.devices.get(device).map(|device| device.guid).ok_or(Errno(libc::EIO))
    }

    /// LID and state.
    fn port(&mut self, id: ContextId) -> Result<(u16, bool), Errno> {
        self.context(id)?;
        self.alive(id)?;
        let device = self.device_of(id)?;
        self.host.port(device).map(|(_, lid, up)| (lid, up)).ok_or(Errno(libc::EIO))
    }

    /// Questions that the driver puts to the device fail as commands do.
    fn alive(&mut self, id: ContextId) -> Result<(), Errno> {
        let device = self.device_of(id)?;
        self.execute(device, &Command::new(op::NOP, 16), 16).map(drop)
    }

    pub(super) fn query_device(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let guid = self.guid(id)?;
        call.answer(&device(guid));
        Ok(())
    }

    pub(super) fn query_device_ex(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        /// Bytes of `struct mlx5_ib_query_device_resp`; its second word says how many.
        const DRIVER: usize = 112;
        let guid = self.guid(id)?;
        let base = device(guid);
        call.answer(&ExQueryDeviceResp {
            base,
            response_length: size_of::<ExQueryDeviceResp>() as u32,
            timestamp_mask: u64::MAX >> 1,
            hca_core_clock: CLOCK,
            device_cap_flags_ex: base.device_cap_flags.into(),
            cq_moderation_caps: [0xffff | 0xfff << 16, 0],
            ..ExQueryDeviceResp::default()
        });
        let mut driver = [0u32; DRIVER / 4];
        if let Some(length) = driver.get_mut(1) {
            *length = call.udata_room.min(DRIVER) as u32;
        }
        call.answer_udata(&driver);
        Ok(())
    }

    pub(super) fn query_port_write(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        check_port(call.input::<QueryPort>().port_num.into())?;
        let (lid, up) = self.port(id)?;
        call.answer(&port(lid, up));
        Ok(())
    }

    pub(super) fn query_port(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        check_port(attrs.number(attr::QUERY_PORT_PORT_NUM)?)?;
        let (lid, up) = self.port(id)?;
        attrs.output(attr::QUERY_PORT_RESP, port(lid, up).as_bytes())
    }

    fn gid_entry(&mut self, id: ContextId) -> Result<GidEntry, Errno> {
        self.context(id)?;
        let device = self.device_of(id)?;
        let (guid, ..) = self.host.port(device).ok_or(Errno(libc::EIO))?;
        Ok(GidEntry { gid: gid(guid), port_num: 1, ..GidEntry::default() })
    }

    pub(super) fn query_gid_table(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let size = usize::try_from(attrs.number(attr::QUERY_GID_TABLE_ENTRY_SIZE)?).unwrap_or(0);
        let entry = self.gid_entry(id)?;
        if size == 0 || attrs.room(attr::QUERY_GID_TABLE_RESP_ENTRIES) < size {
            return Err(Errno(libc::EINVAL));
        }
        let mut bytes = entry.as_bytes().to_vec();
        bytes.resize(size, 0);
        attrs.output(attr::QUERY_GID_TABLE_RESP_ENTRIES, &bytes)?;
        attrs.output(attr::QUERY_GID_TABLE_RESP_NUM_ENTRIES, 1u64.as_bytes())
    }

    pub(super) fn query_gid_entry(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let entry = self.gid_entry(id)?;
        let index = attrs.number(attr::QUERY_GID_ENTRY_GID_INDEX)?;
        if check_port(attrs.number(attr::QUERY_GID_ENTRY_PORT)?).is_err() || index >= GIDS {
            return Err(Errno(libc::EINVAL));
        }
        if index != 0 {
            return Err(Errno(libc::ENODATA));
        }
        attrs.output(attr::QUERY_GID_ENTRY_RESP_ENTRY, entry.as_bytes())
    }

    fn make_context(&mut self, id: ContextId, udata: &[u8]) -> Result<AllocUcontextResp, Errno> {
        const DEVX: u32 = 1;
        const CORE_CLOCK_OFFSET: u32 = 1 << 0;
        const DUMP_FILL_MKEY: u32 = 1 << 1;
        let request: AllocUcontextReq = attrs::read(udata);
        if udata.len() < 16 || request.comp_mask != 0 || request.reserved != [0; 7] {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let number = self.device_of(id)?;
        let device = self.devices.get(number).ok_or(Errno(libc::EIO))?;
        let context = self.contexts.get(&id).ok_or(Errno(libc::EIO))?;
        if context.gone {
            return Err(Errno(libc::EIO));
        }
        if context.ucontext.is_some() {
            return Err(Errno(libc::EINVAL));
        }
        if device.in_error {
            return Err(Errno(libc::EAGAIN));
        }
        // No DEVX, and only the dynamic doorbell pages of today's providers.
        if request.flags & DEVX != 0 {
            return Err(Errno(libc::EINVAL));
        }
        if request.flags != 0 || request.lib_caps & LIB_CAP_DYN_UAR == 0 {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        self.alive(id)?;
        let response = AllocUcontextResp {
            qp_tab_size: 1 << 18,
            bf_reg_size: 512,
            cache_line_size: 64,
            max_sq_desc_sz: 1024,
            max_rq_desc_sz: 512,
            max_send_wqebb: 32768,
            max_recv_wr: 32768,
            max_srq_recv_wr: 32768,
            num_ports: 1,
            comp_mask: CORE_CLOCK_OFFSET | DUMP_FILL_MKEY,
            response_length: size_of::<AllocUcontextResp>() as u32,
            cqe_version: request.max_cqe_version.min(1),
            // query_device and create_ah have driver data.
            cmds_supp_uhw: 3,
            clock_info_versions: 1,
            log_uar_size: 12,
            num_uars_per_page: 1,
            dump_fill_mkey: pages::DUMP_FILL_MKEY,
            ..AllocUcontextResp::default()
        };
        if let Some(context) = self.contexts.get_mut(&id) {
            context.ucontext = Some(response);
        }
        Ok(response)
    }

    pub(super) fn get_context(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let response = self.make_context(id, attrs.udata_in())?;
        context_answers(attrs)?;
        attrs.udata_out(response.as_bytes())
    }

    /// The write form, which makes the async event file, too.
    pub(super) fn get_context_write(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let response = self.make_context(id, &call.udata_in.clone())?;
        let async_fd = self.alloc_async(id)?.into_raw_fd().cast_unsigned();
        call.answer(&GetContextResp { async_fd, num_comp_vectors: COMP_VECTORS });
        call.answer_udata(&response);
        Ok(())
    }

    pub(super) fn query_context(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let response = self.context(id)?.ucontext.ok_or(Errno(libc::EINVAL))?;
        context_answers(attrs)?;
        attrs.output(attr::QUERY_CONTEXT_RESP_UCTX, response.as_bytes())
    }
}

fn context_answers(attrs: &mut Attrs) -> Result<(), Errno> {
    const OPTIONAL_MR_ACCESS: u64 = 1;
    attrs.output(attr::CONTEXT_NUM_COMP_VECTORS, COMP_VECTORS.as_bytes())?;
    attrs.output(attr::CONTEXT_CORE_SUPPORT, OPTIONAL_MR_ACCESS.as_bytes())
}
