//! Protection domains, memory regions and windows, address handles.

use vhca::prm::layouts::{alloc_pd_out, create_mkey_in, create_mkey_out, mkc, op};
use zerocopy::IntoBytes;

use super::firmware::Command;
use super::{ContextId, Driver, Object};
use crate::attrs::{self, Attrs, Write};
use crate::uapi::{
    AllocMw, AllocMwResp, AllocPdResp, CreateAh, CreateAhResp, Mlx5AllocMw, Mlx5AllocPdResp, RegMr,
    RegMrResp, ReregMr, ReregMrResp, access, attr,
};
use crate::{Errno, user};

const PAGE: u64 = 4096;
/// Of a key that any queue pair may use.
const ANY_QP: u64 = 0xff_ffff;

/// A protection domain.
#[derive(Debug)]
pub(crate) struct Pd {
    pub(super) number: u32,
}

/// A memory region.
#[derive(Debug)]
pub(crate) struct Mr {
    pub(super) pd: u32,
    key: u32,
    start: u64,
    length: u64,
    iova: u64,
    access: u32,
}

/// A memory window.
#[derive(Debug)]
pub(crate) struct Mw {
    pub(super) pd: u32,
    key: u32,
}

fn check_access(flags: u32) -> Result<(), Errno> {
    let remote = access::REMOTE_WRITE | access::REMOTE_ATOMIC;
    let wrong = flags & !access::KNOWN != 0
        || flags & remote != 0 && flags & access::LOCAL_WRITE == 0
        // There is no on-demand paging.
        || flags & access::ON_DEMAND != 0;
    if wrong { Err(Errno(libc::EINVAL)) } else { Ok(()) }
}

impl Driver {
    pub(super) fn alloc_pd(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        self.context(id)?;
        let device = self.device_of(id)?;
        let number = self.number(device, &Command::new(op::ALLOC_PD, 16), alloc_pd_out::PD)?;
        let pd_handle = self.context(id)?.insert(Object::Pd(Pd { number }));
        call.answer(&AllocPdResp { pd_handle });
        call.answer_udata(&Mlx5AllocPdResp { pdn: number });
        Ok(())
    }

    pub(super) fn query_pd(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let handle = attrs.handle(attr::QUERY_PD_HANDLE)?;
        let number = self.context(id)?.pd(handle)?.number;
        attrs.output(attr::QUERY_PD_RESP_PDN, number.as_bytes())
    }

    pub(super) fn free_pd(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let Some(Object::Pd(pd)) = self.contexts.get(&id).and_then(|context| context.objects.get(handle))
        else {
            return Ok(());
        };
        let command = Command::of(op::DEALLOC_PD, pd.number);
        self.execute(device, &command, 16).map(drop)
    }

    /// The next key's low byte.
    fn variant(&mut self) -> u8 {
        self.last_variant = self.last_variant.wrapping_add(1);
        self.last_variant
    }

    fn make_key(
        &mut self,
        device: usize,
        pd: u32,
        region: (u64, u64, u64),
        flags: u32,
    ) -> Result<u32, Errno> {
        let (start, length, iova) = region;
        let variant = self.variant();
        let allows = |flag: u32| u64::from(flags & flag != 0);
        // Where addresses are those of the process, they need no translation.
        let plain = start == iova;
        let mut command = Command::new(op::CREATE_MKEY, create_mkey_in::BYTES);
        command.set_all(
            create_mkey_in::MEMORY_KEY_MKEY_ENTRY,
            &[
                (mkc::ACCESS_MODE_1_0, u64::from(!plain)),
                (mkc::LR, 1),
                (mkc::LW, allows(access::LOCAL_WRITE)),
                (mkc::RR, allows(access::REMOTE_READ)),
                (mkc::RW, allows(access::REMOTE_WRITE)),
                (mkc::A, allows(access::REMOTE_ATOMIC)),
                (mkc::QPN, ANY_QP),
                (mkc::MKEY_7_0, variant.into()),
                (mkc::PD, pd.into()),
                (mkc::START_ADDR, iova),
                (mkc::LEN, length),
                (mkc::LOG_PAGE_SIZE, 12),
            ],
        );
        if !plain {
            let pages = (start % PAGE + length).div_ceil(PAGE);
            command.set(create_mkey_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE, pages.div_ceil(2));
            command.pages(create_mkey_in::KLM_PAS_MTT.byte(), start, length);
            if pages % 2 == 1 {
                command.pad(8);
            }
        }
        let index = self.number(device, &command, create_mkey_out::MKEY_INDEX)?;
        Ok(index << 8 | u32::from(variant))
    }

    pub(super) fn reg_mr(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: RegMr = call.input();
        if request.start % PAGE != request.hca_va % PAGE || request.length == 0 {
            return Err(Errno(libc::EINVAL));
        }
        check_access(request.access_flags)?;
        let pd = self.context(id)?.pd(request.pd_handle).map_err(|_| Errno(libc::EINVAL))?.number;
        let device = self.device_of(id)?;
        let writes = access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_ATOMIC;
        user::pin(request.start, request.length, request.access_flags & writes != 0)?;
        let region = (request.start, request.length, request.hca_va);
        let key = self.make_key(device, pd, region, request.access_flags)?;
        let mr_handle = self.context(id)?.insert(Object::Mr(Mr {
            pd: request.pd_handle,
            key,
            start: request.start,
            length: request.length,
            iova: request.hca_va,
            access: request.access_flags,
        }));
        call.answer(&RegMrResp { mr_handle, lkey: key, rkey: key });
        Ok(())
    }

    pub(super) fn rereg_mr(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        const TRANSLATION: u32 = 1;
        const PD: u32 = 2;
        const ACCESS: u32 = 4;
        let request: ReregMr = call.input();
        let flags = request.flags;
        if flags == 0 || flags & !(TRANSLATION | PD | ACCESS) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        if flags & TRANSLATION != 0 && (request.start % PAGE != request.hca_va % PAGE || request.length == 0)
        {
            return Err(Errno(libc::EINVAL));
        }
        let device = self.device_of(id)?;
        let context = self.context(id)?;
        let Some(Object::Mr(mr)) = context.objects.get(request.mr_handle) else {
            return Err(Errno(libc::EINVAL));
        };
        let (old_key, mut new) = (
            mr.key,
            Mr { pd: mr.pd, key: 0, start: mr.start, length: mr.length, iova: mr.iova, access: mr.access },
        );
        if flags & ACCESS != 0 {
            check_access(request.access_flags)?;
            new.access = request.access_flags;
        }
        if flags & PD != 0 {
            new.pd = request.pd_handle;
        }
        if flags & TRANSLATION != 0 {
            (new.start, new.length, new.iova) = (request.start, request.length, request.hca_va);
        }
        let pd = context.pd(new.pd).map_err(|_| Errno(libc::EINVAL))?.number;
        user::pin(new.start, new.length, new.access & access::LOCAL_WRITE != 0)?;
        new.key = self.make_key(device, pd, (new.start, new.length, new.iova), new.access)?;
        self.execute(device, &Command::of(op::DESTROY_MKEY, old_key >> 8), 16)?;
        call.answer(&ReregMrResp { lkey: new.key, rkey: new.key });
        self.context(id)?.objects.insert(request.mr_handle, Object::Mr(new));
        Ok(())
    }

    pub(super) fn query_mr(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let handle = attrs.handle(attr::QUERY_MR_HANDLE)?;
        let Some(Object::Mr(mr)) = self.context(id)?.objects.get(handle) else {
            return Err(Errno(libc::ENOENT));
        };
        let (key, length, iova) = (mr.key, mr.length, mr.iova);
        attrs.output(attr::QUERY_MR_RESP_LKEY, key.as_bytes())?;
        attrs.output(attr::QUERY_MR_RESP_RKEY, key.as_bytes())?;
        attrs.output(attr::QUERY_MR_RESP_LENGTH, length.as_bytes())?;
        attrs.output(attr::QUERY_MR_RESP_IOVA, iova.as_bytes())
    }

    pub(super) fn alloc_mw(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        const TYPE_2: u8 = 2;
        let request: AllocMw = call.input();
        let driver: Mlx5AllocMw = attrs::read(&call.udata_in);
        if !(1..=TYPE_2).contains(&request.mw_type) || driver.comp_mask != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let pd = self.context(id)?.pd(request.pd_handle).map_err(|_| Errno(libc::EINVAL))?.number;
        let (device, variant) = (self.device_of(id)?, self.variant());
        let ranges = u64::from(driver.num_klms.max(1)).next_multiple_of(4);
        let mut command = Command::new(op::CREATE_MKEY, create_mkey_in::BYTES);
        command.set_all(
            create_mkey_in::MEMORY_KEY_MKEY_ENTRY,
            &[
                (mkc::FREE, 1),
                (mkc::ACCESS_MODE_1_0, 2),
                (mkc::UMR_EN, 1),
                (mkc::LR, 1),
                (mkc::EN_RINVAL, u64::from(request.mw_type == TYPE_2)),
                (mkc::QPN, ANY_QP),
                (mkc::MKEY_7_0, variant.into()),
                (mkc::PD, pd.into()),
                (mkc::TRANSLATIONS_OCTWORD_SIZE, ranges),
            ],
        );
        let index = self.number(device, &command, create_mkey_out::MKEY_INDEX)?;
        let key = index << 8 | u32::from(variant);
        let mw_handle = self.context(id)?.insert(Object::Mw(Mw { pd: request.pd_handle, key }));
        call.answer(&AllocMwResp { mw_handle, rkey: key });
        Ok(())
    }

    pub(super) fn free_key(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let key = match self.contexts.get(&id).and_then(|context| context.objects.get(handle)) {
            Some(Object::Mr(mr)) => mr.key,
            Some(Object::Mw(mw)) => mw.key,
            _ => return Ok(()),
        };
        self.execute(device, &Command::of(op::DESTROY_MKEY, key >> 8), 16).map(drop)
    }

    /// Address handles of an InfiniBand port are the provider's own; the kernel only keeps the handle.
    pub(super) fn create_ah(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: CreateAh = call.input();
        let context = self.context(id)?;
        if request.port_num != 1 || context.pd(request.pd_handle).is_err() {
            return Err(Errno(libc::EINVAL));
        }
        let ah_handle = context.insert(Object::Ah);
        call.answer(&CreateAhResp { ah_handle });
        Ok(())
    }
}
