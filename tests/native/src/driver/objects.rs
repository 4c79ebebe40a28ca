//! The objects of a context by their handles, and how many others need each: counted, as a kernel does, so that to destroy one does not
//! take longer where there are many.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;

use super::Object;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Objects {
    by_handle: BTreeMap<u32, Object>,
    /// Of those that anything needs.
    users: HashMap<u32, usize>,
}

/// The handles of what an object needs; that of a CQ twice, where a queue pair has it for both of its queues.
fn needs(object: &Object) -> impl Iterator<Item = u32> {
    let needs = match object {
        Object::Mr(mr) => [Some(mr.pd), None, None, None, None],
        Object::Mw(mw) => [Some(mw.pd), None, None, None, None],
        Object::Qp(qp) => [qp.pd, qp.send_cq, qp.receive_cq, qp.srq, qp.xrcd],
        Object::Srq(srq) => [Some(srq.pd), srq.cq, srq.xrcd, None, None],
        Object::Shared(shared) => [Some(shared.xrcd), None, None, None, None],
        _ => [None; 5],
    };
    needs.into_iter().flatten()
}

impl Objects {
    /// Puts an object under a handle, in place of what was there.
    pub(super) fn insert(&mut self, handle: u32, object: Object) {
        self.remove(handle);
        for needed in needs(&object) {
            *self.users.entry(needed).or_default() += 1;
        }
        self.by_handle.insert(handle, object);
    }

    pub(super) fn remove(&mut self, handle: u32) -> Option<Object> {
        let object = self.by_handle.remove(&handle)?;
        for needed in needs(&object) {
            if let Some(users) = self.users.get_mut(&needed) {
                *users -= 1;
                if *users == 0 {
                    self.users.remove(&needed);
                }
            }
        }
        Some(object)
    }

    /// Drops the event files that the program closed: nothing needs one.
    pub(super) fn forget_closed_files(&mut self) {
        self.by_handle
            .retain(|_, object| !matches!(object, Object::Events(_, file) if file.strong_count() == 0));
    }

    /// Whether another object needs this one.
    pub(super) fn is_needed(&self, handle: u32) -> bool {
        self.users.contains_key(&handle)
    }

    /// To be changed, but for what it needs.
    pub(super) fn get_mut(&mut self, handle: u32) -> Option<&mut Object> {
        self.by_handle.get_mut(&handle)
    }

    /// As [`Objects::get_mut`].
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&u32, &mut Object)> {
        self.by_handle.iter_mut()
    }
}

impl Deref for Objects {
    type Target = BTreeMap<u32, Object>;

    fn deref(&self) -> &BTreeMap<u32, Object> {
        &self.by_handle
    }
}
