//! The objects of a context by their handles, and how many others need each: counted, as a kernel does, so that to destroy one does not
//! take longer where there are many. And found by their place, as in a kernel's array of handles: in a tree whose nodes are merged and
//! filled up the cost of one depended on how many others there had been, so that two providers were charged differently for the same.

use std::collections::{BTreeMap, HashMap};

use super::Object;

/// Handles to a page.
const PLACES: u32 = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Objects {
    /// Pages of handles, of which each has an object.
    pages: BTreeMap<u32, Page>,
    /// Of those that anything needs.
    users: HashMap<u32, usize>,
}

/// The objects of handles that follow one another.
#[derive(Debug)]
struct Page {
    places: Box<[Option<Object>; PLACES as usize]>,
    taken: u32,
}

/// The page of a handle, and the place in it.
fn place_of(handle: u32) -> (u32, usize) {
    (handle / PLACES, (handle % PLACES) as usize)
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
        let (page, place) = place_of(handle);
        let empty = || Page { places: Box::new([const { None }; PLACES as usize]), taken: 0 };
        let page = self.pages.entry(page).or_insert_with(empty);
        if let Some(place) = page.places.get_mut(place) {
            *place = Some(object);
            page.taken += 1;
        }
    }

    pub(super) fn remove(&mut self, handle: u32) -> Option<Object> {
        let (number, place) = place_of(handle);
        let page = self.pages.get_mut(&number)?;
        let object = page.places.get_mut(place)?.take()?;
        page.taken -= 1;
        if page.taken == 0 {
            self.pages.remove(&number);
        }
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
        let closed = |object: &Object| matches!(object, Object::Events(_, file) if file.strong_count() == 0);
        let found: Vec<u32> =
            self.iter().filter(|(_, object)| closed(object)).map(|(handle, _)| handle).collect();
        for handle in found {
            self.remove(handle);
        }
    }

    /// Whether another object needs this one.
    pub(super) fn is_needed(&self, handle: u32) -> bool {
        self.users.contains_key(&handle)
    }

    pub(super) fn get(&self, handle: u32) -> Option<&Object> {
        let (page, place) = place_of(handle);
        self.pages.get(&page)?.places.get(place)?.as_ref()
    }

    /// To be changed, but for what it needs.
    pub(super) fn get_mut(&mut self, handle: u32) -> Option<&mut Object> {
        let (page, place) = place_of(handle);
        self.pages.get_mut(&page)?.places.get_mut(place)?.as_mut()
    }

    /// All, the oldest first, with their handles.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Object)> {
        let places =
            self.pages.iter().flat_map(|(page, Page { places, .. })| (page * PLACES..).zip(places.iter()));
        places.filter_map(|(handle, object)| Some((handle, object.as_ref()?)))
    }

    /// As [`Objects::get_mut`].
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Object)> {
        let places = self
            .pages
            .iter_mut()
            .flat_map(|(page, Page { places, .. })| (page * PLACES..).zip(places.iter_mut()));
        places.filter_map(|(handle, object)| Some((handle, object.as_mut()?)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Object> {
        self.iter().map(|(_, object)| object)
    }
}
