//! Protection domains, memory regions, doorbell pages and event files.

use zerocopy::IntoBytes;

use super::{ContextId, Driver, Object, Uar, next};
use crate::attrs::{Attrs, Write};
use crate::uapi::{AllocPdResp, Mlx5AllocPdResp, RegMr, RegMrResp, attr};
use crate::{Errno, next as system};

pub(super) const PAGE: u64 = 4096;

/// The file offset by which a doorbell page is mapped; those below are the driver's fixed commands.
pub(super) fn page_offset(page: u32) -> u64 {
    const FIRST: u64 = 9 << 8;
    (FIRST + u64::from(page)) * PAGE
}

impl Driver {
    pub(super) fn alloc_pd(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let pdn = next(&mut self.numbers.pd);
        let pd_handle = self.context(id)?.insert(Object::Pd);
        call.answer(&AllocPdResp { pd_handle });
        call.answer_udata(&Mlx5AllocPdResp { pdn });
        Ok(())
    }

    pub(super) fn reg_mr(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: RegMr = call.input();
        let key = next(&mut self.numbers.mkey) << 8;
        let context = self.context(id)?;
        context.has_pd(request.pd_handle)?;
        let mr_handle = context.insert(Object::Mr);
        call.answer(&RegMrResp { mr_handle, lkey: key, rkey: key });
        Ok(())
    }

    /// A destroy method without an answer.
    pub(super) fn destroy(
        &mut self,
        id: ContextId,
        attrs: &Attrs,
        is_kind: impl Fn(&Object) -> bool,
    ) -> Result<(), Errno> {
        let handle = attrs.handle(attr::DESTROY_HANDLE)?;
        self.context(id)?.remove(handle, is_kind).map(drop)
    }

    pub(super) fn alloc_uar(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        const NC: u64 = 1;
        if attrs.number(attr::UAR_OBJ_ALLOC_TYPE)? > NC {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let page = next(&mut self.numbers.uar);
        let handle = self.context(id)?.insert(Object::Uar(Uar { page, address: 0 }));
        attrs.output(attr::UAR_OBJ_ALLOC_MMAP_OFFSET, page_offset(page).as_bytes())?;
        attrs.output(attr::UAR_OBJ_ALLOC_MMAP_LENGTH, PAGE.as_bytes())?;
        attrs.output(attr::UAR_OBJ_ALLOC_PAGE_ID, page.as_bytes())?;
        attrs.answer(attr::UAR_OBJ_ALLOC_HANDLE, handle.into())
    }

    pub(super) fn free_uar(&mut self, id: ContextId, attrs: &Attrs) -> Result<(), Errno> {
        let handle = attrs.handle(attr::UAR_OBJ_DESTROY_HANDLE)?;
        self.context(id)?.remove(handle, |object| matches!(object, Object::Uar(_))).map(drop)
    }

    pub(super) fn alloc_async(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        self.context(id)?;
        let fd = system::event()?;
        attrs.answer(attr::ASYNC_EVENT_ALLOC_FD_HANDLE, u64::from(fd.cast_unsigned()))
    }
}
