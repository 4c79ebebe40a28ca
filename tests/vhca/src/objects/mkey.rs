//! Memory keys: what memory a key reaches, for whom and how.

use super::Table;
use crate::memory::OWN;
use crate::pci::DEVICE_MEMORY_START;
use crate::prm::layouts::mkc;
use crate::prm::{self, be32, be64, flag, get, get32};

/// A piece of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) address: u64,
    pub(crate) len: u64,
}

/// What a key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    LocalRead,
    LocalWrite,
    RemoteRead,
    RemoteWrite,
    Atomic,
}

/// How a key's range is found in memory.
#[derive(Clone, Debug)]
enum Translation {
    /// Addresses are those of the bus.
    Physical,
    /// One page a list entry.
    Pages(Vec<u64>),
    /// Ranges of other keys, 16 bytes an entry.
    Ranges(Vec<u8>),
    /// The device's own memory: the start address is one in the BAR, and the range begins at 0.
    Own,
}

/// A memory key.
#[derive(Clone, Debug)]
pub(crate) struct Mkey {
    /// The context, as the driver gave it and work requests changed it.
    pub(crate) context: Vec<u8>,
    translation: Translation,
}

/// Indirect keys lead on to others at most so many times.
const MAX_DEPTH: u32 = 4;
/// The queue pair number of a key that belongs to none.
const ANY_QP: u32 = 0xff_ffff;

/// Bits of a registration work request: which fields of the context it changes.
const MASK: &[(u64, &[prm::Field])] = &[
    (1 << 0, &[mkc::LEN, mkc::LENGTH64]),
    (1 << 1, &[mkc::LOG_PAGE_SIZE]),
    (1 << 6, &[mkc::START_ADDR]),
    (1 << 7, &[mkc::PD]),
    (1 << 8, &[mkc::EN_RINVAL]),
    (1 << 13, &[mkc::MKEY_7_0]),
    (1 << 14, &[mkc::QPN]),
    (1 << 17, &[mkc::LR]),
    (1 << 18, &[mkc::LW]),
    (1 << 19, &[mkc::RR]),
    (1 << 20, &[mkc::RW]),
    (1 << 21, &[mkc::A]),
    (1 << 29, &[mkc::FREE]),
];
const CHECK_FREE: u8 = 1 << 5;
const CHECK_NOT_FREE: u8 = 1 << 6;
const CHECK_QPN: u8 = 1 << 3;

impl Mkey {
    /// A key from its context and its list of translation entries; `None` if the access mode is unknown.
    pub(crate) fn new(context: &[u8], entries: &[u8]) -> Option<Mkey> {
        let translation = match get(context, mkc::ACCESS_MODE_1_0) | get(context, mkc::ACCESS_MODE_4_2) << 2 {
            0 => Translation::Physical,
            1 => Translation::Pages(page_list(entries)),
            2 => Translation::Ranges(entries.to_vec()),
            5 => Translation::Own,
            _ => return None,
        };
        Some(Mkey { context: context.to_vec(), translation })
    }

    pub(crate) fn pd(&self) -> u32 {
        get32(&self.context, mkc::PD)
    }

    fn is_free(&self) -> bool {
        flag(&self.context, mkc::FREE)
    }

    fn variant(&self) -> u32 {
        get32(&self.context, mkc::MKEY_7_0)
    }

    fn allows(&self, access: Access) -> bool {
        let field = match access {
            Access::LocalRead => mkc::LR,
            Access::LocalWrite => mkc::LW,
            Access::RemoteRead => mkc::RR,
            Access::RemoteWrite => mkc::RW,
            Access::Atomic => mkc::A,
        };
        flag(&self.context, field)
    }

    /// Is all of `address..address + len` inside the key's range?
    fn covers(&self, address: u64, len: u64) -> bool {
        let (mut start, size) = (get(&self.context, mkc::START_ADDR), get(&self.context, mkc::LEN));
        if matches!(self.translation, Translation::Own) {
            start = 0;
        }
        let Some(offset) = address.checked_sub(start) else { return false };
        flag(&self.context, mkc::LENGTH64) || offset.checked_add(len).is_some_and(|end| end <= size)
    }

    /// Applies a work request that changes the key, posted by queue pair `qpn`. `None`: it is not allowed.
    pub(crate) fn change(
        &mut self,
        request: &crate::wqe::Registration,
        entries: &[u8],
        qpn: u32,
    ) -> Option<()> {
        let refused = request.key & 0xff != self.variant()
            || request.flags & CHECK_FREE != 0 && !self.is_free()
            || request.flags & CHECK_NOT_FREE != 0 && self.is_free()
            || request.flags & CHECK_QPN != 0 && get32(&self.context, mkc::QPN) != qpn;
        if refused || !flag(&self.context, mkc::UMR_EN) {
            return None;
        }
        for (bit, fields) in MASK {
            if request.mask & bit != 0 {
                fields.iter().for_each(|field| prm::copy(&request.context, &mut self.context, *field));
            }
        }
        if !entries.is_empty() {
            match &mut self.translation {
                Translation::Physical | Translation::Own => return None,
                Translation::Pages(pages) => {
                    replace(pages, request.translation_offset / 8, page_list(entries));
                }
                Translation::Ranges(ranges) => replace(ranges, request.translation_offset, entries.to_vec()),
            }
        }
        Some(())
    }

    /// Makes the key useless until it is bound again, if the queue pair may do that.
    fn invalidate(&mut self, qpn: u32) -> Option<()> {
        let owner = get32(&self.context, mkc::QPN);
        if !flag(&self.context, mkc::EN_RINVAL) || self.is_free() || owner != ANY_QP && owner != qpn {
            return None;
        }
        prm::set(&mut self.context, mkc::FREE, 1);
        Some(())
    }
}

fn page_list(entries: &[u8]) -> Vec<u64> {
    entries.chunks_exact(8).map(|entry| be64(entry, 0) & !7).collect()
}

fn replace<T: Clone + Default>(list: &mut Vec<T>, at: usize, with: Vec<T>) {
    let end = at + with.len();
    if list.len() < end {
        list.resize(end, T::default());
    }
    list.splice(at..end, with);
}

/// Who asks, for checks that depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) pd: u32,
    pub(crate) qpn: u32,
}

/// The keys that a device has beside those of the table.
pub(crate) const RESERVED_LKEY: u32 = 0x700;
pub(crate) const NULL_MKEY: u32 = 0x800;
pub(crate) const DUMP_FILL_MKEY: u32 = 0x900;
pub(crate) const TERMINATE_LIST: u32 = 0x100;

impl Table<Mkey> {
    /// Finds the memory of `len` bytes at `address` under `key`. `None`: a protection error.
    pub(crate) fn resolve(
        &self,
        key: u32,
        address: u64,
        len: u64,
        access: Access,
        asker: Asker,
    ) -> Option<Vec<Span>> {
        let mut spans = Vec::new();
        if len == 0 {
            return Some(spans);
        }
        if key == RESERVED_LKEY {
            spans.push(Span { address, len });
            return Some(spans);
        }
        self.walk(key, address, len, access, asker, 0, &mut spans)?;
        Some(spans)
    }

    #[allow(clippy::too_many_arguments, reason = "one recursive walk: the first five are the question")]
    fn walk(
        &self,
        key: u32,
        address: u64,
        len: u64,
        access: Access,
        asker: Asker,
        depth: u32,
        spans: &mut Vec<Span>,
    ) -> Option<()> {
        let mkey = self.get(key >> 8)?;
        let owner = get32(&mkey.context, mkc::QPN);
        let usable = !mkey.is_free()
            && mkey.variant() == key & 0xff
            && mkey.pd() == asker.pd
            && (owner == ANY_QP || owner == asker.qpn || depth > 0)
            && mkey.allows(access)
            && mkey.covers(address, len)
            && depth <= MAX_DEPTH;
        if !usable {
            return None;
        }
        let start = get(&mkey.context, mkc::START_ADDR);
        match &mkey.translation {
            Translation::Physical => spans.push(Span { address, len }),
            Translation::Own => {
                let within = start.checked_sub(DEVICE_MEMORY_START)?.checked_add(address)?;
                spans.push(Span { address: OWN.checked_add(within)?, len });
            }
            Translation::Pages(pages) => {
                let shift = u32::try_from(get(&mkey.context, mkc::LOG_PAGE_SIZE)).ok()?;
                let size = 1u64.checked_shl(shift)?;
                let base = start & !(size - 1);
                let (mut at, end) = (address - base, (address - base).checked_add(len)?);
                while at < end {
                    let page = pages.get(usize::try_from(at >> shift).ok()?)?;
                    let within = at & (size - 1);
                    let piece = (size - within).min(end - at);
                    spans.push(Span { address: page.checked_add(within)?, len: piece });
                    at += piece;
                }
            }
            Translation::Ranges(ranges) => {
                let (mut skip, mut left) = (address - start, len);
                // What the key allows to the peer, its owner may do locally with what it leads to.
                let below = match access {
                    Access::LocalRead | Access::RemoteRead => Access::LocalRead,
                    _ => Access::LocalWrite,
                };
                for range in ranges.chunks_exact(16) {
                    let (size, inner, at) = (u64::from(be32(range, 0)), be32(range, 4), be64(range, 8));
                    if skip >= size {
                        skip -= size;
                        continue;
                    }
                    let piece = (size - skip).min(left);
                    self.walk(inner, at.checked_add(skip)?, piece, below, asker, depth + 1, spans)?;
                    (skip, left) = (0, left - piece);
                    if left == 0 {
                        break;
                    }
                }
                if left != 0 {
                    return None;
                }
            }
        }
        Some(())
    }

    /// Invalidates a key for a peer or for a local work request. `None`: that is not allowed.
    pub(crate) fn invalidate(&mut self, key: u32, asker: Asker) -> Option<()> {
        let mkey = self.get_mut(key >> 8)?;
        if mkey.variant() != key & 0xff || mkey.pd() != asker.pd {
            return None;
        }
        mkey.invalidate(asker.qpn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prm::set;

    const ME: Asker = Asker { pd: 5, qpn: 0x40 };

    fn context(mode: u64, start: u64, len: u64) -> Vec<u8> {
        let mut context = vec![0; mkc::BYTES];
        let fields = [
            (mkc::ACCESS_MODE_1_0, mode),
            (mkc::START_ADDR, start),
            (mkc::LEN, len),
            (mkc::PD, 5),
            (mkc::QPN, u64::from(ANY_QP)),
            (mkc::MKEY_7_0, 7),
            (mkc::LR, 1),
            (mkc::LW, 1),
            (mkc::LOG_PAGE_SIZE, 12),
        ];
        fields.iter().for_each(|(field, value)| set(&mut context, *field, *value));
        context
    }

    fn table() -> Table<Mkey> {
        let mut keys = Table::new(1, 100);
        let entries = [0x1_0003u64, 0x5_0003].map(u64::to_be_bytes).concat();
        keys.insert(Mkey::new(&context(1, 0x7000_0800, 0x1000), &entries).unwrap());
        keys
    }

    #[test]
    fn pages_are_found_and_bounds_are_held() {
        let keys = table();
        let spans = keys.resolve(0x107, 0x7000_0f00, 0x200, Access::LocalRead, ME).unwrap();
        assert_eq!(spans, [Span { address: 0x1_0f00, len: 0x100 }, Span { address: 0x5_0000, len: 0x100 }]);
        let refused = [
            (0x108, 0x7000_0f00, 1, Access::LocalRead, ME),
            (0x107, 0x7000_07ff, 1, Access::LocalRead, ME),
            (0x107, 0x7000_1700, 0x101, Access::LocalRead, ME),
            (0x107, 0x7000_0f00, u64::MAX, Access::LocalRead, ME),
            (0x107, 0x7000_0f00, 1, Access::RemoteRead, ME),
            (0x107, 0x7000_0f00, 1, Access::LocalRead, Asker { pd: 6, qpn: 0x40 }),
            (0x207, 0x7000_0f00, 1, Access::LocalRead, ME),
        ];
        for (key, address, len, access, asker) in refused {
            assert_eq!(keys.resolve(key, address, len, access, asker), None, "{key:#x} {address:#x} {len}");
        }
    }

    #[test]
    fn a_window_leads_on_and_is_invalidated_once() {
        let mut keys = table();
        let entry =
            [&0x800u32.to_be_bytes()[..], &0x107u32.to_be_bytes(), &0x7000_0900u64.to_be_bytes()].concat();
        let mut window = context(2, 0, 0x800);
        set(&mut window, mkc::RW, 1);
        set(&mut window, mkc::EN_RINVAL, 1);
        keys.insert(Mkey::new(&window, &entry).unwrap());
        let spans = keys.resolve(0x207, 0x10, 4, Access::RemoteWrite, ME).unwrap();
        assert_eq!(spans, [Span { address: 0x1_0910, len: 4 }]);
        assert_eq!(keys.invalidate(0x208, ME), None);
        assert_eq!(keys.invalidate(0x207, ME), Some(()));
        assert_eq!(keys.invalidate(0x207, ME), None);
        assert_eq!(keys.resolve(0x207, 0x10, 4, Access::RemoteWrite, ME), None);
    }

    #[test]
    fn a_ring_of_keys_ends() {
        let mut keys = Table::new(1, 100);
        let entry = [&0x1000u32.to_be_bytes()[..], &0x107u32.to_be_bytes(), &0u64.to_be_bytes()].concat();
        keys.insert(Mkey::new(&context(2, 0, 0x1000), &entry).unwrap());
        assert_eq!(keys.resolve(0x107, 0, 8, Access::LocalRead, ME), None);
    }
}
