//! XRC domains, and queue pairs in them that are opened more than once.

use std::collections::BTreeMap;

use vhca::prm::layouts::{alloc_pd_out, alloc_xrcd_out, op};

use super::firmware::Command;
use super::{Affiliated, ContextId, Driver, Object};
use crate::attrs::Write;
use crate::uapi::{CreateQpResp, OpenQp, OpenXrcd, OpenXrcdResp, qp_type};
use crate::{Errno, next};

/// A domain, as one context has it.
#[derive(Debug)]
pub(crate) struct Xrcd {
    pub(super) number: u32,
    /// The file that it is shared by.
    file: Option<(u64, u64)>,
}

/// A queue pair that another handle is the home of.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) number: u32,
    pub(super) xrcd: u32,
    pub(super) affiliated: Affiliated,
}

/// The domains of this process that a file shares, by device and file: number and users.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    shared: BTreeMap<(usize, (u64, u64)), (u32, u32)>,
    /// The protection domains of queue pairs that have none, by device.
    own: BTreeMap<usize, u32>,
}

impl Domains {
    /// A device that begins anew has none of them.
    pub(super) fn forget(&mut self, device: usize) {
        self.shared.retain(|(of, _), _| *of != device);
        self.own.remove(&device);
    }
}

impl Driver {
    /// The driver's own protection domain.
    pub(super) fn own_domain(&mut self, device: usize) -> Result<u32, Errno> {
        if let Some(number) = self.domains.own.get(&device) {
            return Ok(*number);
        }
        let number = self.number(device, &Command::new(op::ALLOC_PD, 16), alloc_pd_out::PD)?;
        self.domains.own.insert(device, number);
        Ok(number)
    }

    pub(super) fn open_xrcd(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: OpenXrcd = call.input();
        self.context(id)?;
        let device = self.device_of(id)?;
        let create = request.oflags.cast_signed() & libc::O_CREAT != 0;
        let exclusive = request.oflags.cast_signed() & libc::O_EXCL != 0;
        let file = if request.fd < 0 { None } else { Some(next::identity(request.fd)?) };
        if file.is_none() && !create {
            return Err(Errno(libc::EINVAL));
        }
        let known = file.and_then(|file| self.domains.shared.get_mut(&(device, file)));
        let number = match known {
            Some(_) if exclusive => return Err(Errno(libc::EINVAL)),
            Some((number, users)) => {
                *users += 1;
                *number
            }
            None if file.is_some() && !create => return Err(Errno(libc::EAGAIN)),
            None => {
                let number = self.number(device, &Command::new(op::ALLOC_XRCD, 16), alloc_xrcd_out::XRCD)?;
                if let Some(file) = file {
                    self.domains.shared.insert((device, file), (number, 1));
                }
                number
            }
        };
        let xrcd_handle = self.context(id)?.insert(Object::Xrcd(Xrcd { number, file }));
        call.answer(&OpenXrcdResp { xrcd_handle });
        Ok(())
    }

    pub(super) fn free_xrcd(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let object = self.contexts.get(&id).and_then(|context| context.objects.get(handle));
        let Some(Object::Xrcd(xrcd)) = object else { return Ok(()) };
        let (number, file) = (xrcd.number, xrcd.file);
        if let Some(file) = file
            && let Some((_, users)) = self.domains.shared.get_mut(&(device, file))
        {
            *users -= 1;
            if *users > 0 {
                return Ok(());
            }
            self.domains.shared.remove(&(device, file));
        }
        self.execute(device, &Command::of(op::DEALLOC_XRCD, number), 16).map(drop)
    }

    pub(super) fn open_qp(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: OpenQp = call.input();
        let device = self.device_of(id)?;
        let context = self.context(id)?;
        let xrcd = context.xrcd(request.pd_handle).map_err(|_| Errno(libc::EINVAL))?.number;
        let file = context.default_async.clone().unwrap_or_default();
        let home = self.by_qpn.get(&(device, request.qpn)).copied();
        let same_domain = home.is_some_and(|(home, handle)| {
            self.contexts.get(&home).is_some_and(|context| match context.objects.get(handle) {
                Some(Object::Qp(qp)) if qp.kind == qp_type::XRC_TGT => qp
                    .xrcd
                    .and_then(|handle| context.xrcd(handle).ok())
                    .is_some_and(|domain| domain.number == xrcd),
                _ => false,
            })
        });
        if u64::from(request.qp_type) != qp_type::XRC_TGT || !same_domain {
            return Err(Errno(libc::EINVAL));
        }
        let shared = Shared {
            number: request.qpn,
            xrcd: request.pd_handle,
            affiliated: Affiliated::new(request.user_handle, file),
        };
        let qp_handle = self.context(id)?.insert(Object::Shared(shared));
        call.answer(&CreateQpResp { qp_handle, qpn: request.qpn, ..CreateQpResp::default() });
        Ok(())
    }
}
