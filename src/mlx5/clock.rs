//! The device's clocks: the core clock, a register; and the page by which the kernel tells how its cycles are nanoseconds.
//!
//! Both are mappings that outlive the device: the register reads as zeros then, and the page stays as it was. Neither is
//! waited for. Each is made when somebody first asks for it: few programs do, and the two were a third of what it took to close a device.

use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};

use crate::error::Errno;
use crate::hw::mmio::Mapping;
use crate::uapi::CmdFd;
use crate::uapi::mlx5::{self as wire, AllocUcontextResp, ClockInfo};
use crate::uapi::sys::{self, Prot};

const PAGE: usize = 4096;
/// How often a page that the kernel is changing is looked at again.
const TRIES: u32 = 10;

/// What of the clocks a context has.
#[derive(Debug, Default)]
pub(super) struct Clock {
    core: Page,
    /// Where in its page the core clock is.
    offset: usize,
    info: Page,
}

/// A page that is mapped when it is first asked for.
#[derive(Debug, Default)]
struct Page {
    /// Of which file and where; `None`: the device has none.
    place: Option<(CmdFd, u64)>,
    mapping: OnceLock<Mapping>,
}

impl Page {
    fn new(fd: CmdFd, command: u64, index: u64) -> Page {
        let place = Some((fd, wire::mmap_offset(command, index, PAGE as u64)));
        Page { place, mapping: OnceLock::new() }
    }

    /// A page that cannot be mapped is one that there is not.
    fn get(&self) -> Option<&Mapping> {
        if let Some(mapping) = self.mapping.get() {
            return Some(mapping);
        }
        let (fd, offset) = self.place?;
        let mapping = sys::map_device(fd.fd, PAGE, Prot::Read, offset).map(Mapping::new).ok()?;
        Some(self.mapping.get_or_init(|| mapping))
    }
}

/// How cycles become nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conversion {
    nsec: u64,
    cycles: u64,
    frac: u64,
    mult: u32,
    shift: u32,
    mask: u64,
}

impl Conversion {
    /// PRM: mlx5dv_ts_to_ns of rdma-core: cycles before the page's own count back.
    fn apply(&self, timestamp: u64) -> u64 {
        let delta = timestamp.wrapping_sub(self.cycles) & self.mask;
        let scale = |delta: u64, frac: i128| {
            let product = i128::from(delta) * i128::from(self.mult) + frac;
            // A shift that no clock has comes from a page that is none.
            (product >> self.shift.min(63)) as u64
        };
        if delta > self.mask / 2 {
            let back = self.cycles.wrapping_sub(timestamp) & self.mask;
            self.nsec.wrapping_sub(scale(back, -i128::from(self.frac)))
        } else {
            self.nsec.wrapping_add(scale(delta, i128::from(self.frac)))
        }
    }
}

impl Clock {
    /// What the kernel says that there is.
    pub(super) fn of(fd: CmdFd, resp: &AllocUcontextResp) -> Arc<Clock> {
        let page = |there: bool, command, index| {
            if there { Page::new(fd, command, index) } else { Page::default() }
        };
        let core = resp.comp_mask & wire::RESP_MASK_CORE_CLOCK_OFFSET != 0;
        let info = resp.clock_info_versions & 1 << wire::CLOCK_INFO_V1 != 0;
        Arc::new(Clock {
            core: page(core, wire::MMAP_CORE_CLOCK, 0),
            offset: resp.hca_core_clock_offset as usize & (PAGE - 1),
            info: page(info, wire::MMAP_CLOCK_INFO, u64::from(wire::CLOCK_INFO_V1)),
        })
    }

    /// Whether time stamps can be made nanoseconds.
    pub(super) fn converts(&self) -> bool {
        self.info.get().is_some()
    }

    /// The core clock now.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there is none.
    pub(super) fn cycles(&self) -> Result<u64, Errno> {
        let (page, offset) = (self.core.get().ok_or(Errno::EOPNOTSUPP)?, self.offset);
        let mut high = page.read32_be(offset)?;
        let mut low = page.read32_be(offset + 4)?;
        let again = page.read32_be(offset)?;
        if again != high {
            // The low half went over; it cannot do so twice in this time.
            high = again;
            low = page.read32_be(offset + 4)?;
        }
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// A consistent view of the kernel's page, or none when it is being changed for too long.
    fn conversion(&self) -> Option<Conversion> {
        let page = self.info.get()?;
        let word = |offset| page.read64(offset).ok();
        let sign = || word(offset_of!(ClockInfo, sign)).map(|word| ClockInfoWord(word).first());
        for _ in 0..TRIES {
            let before = sign()?;
            if before & wire::CLOCK_INFO_KERNEL_UPDATING != 0 {
                core::hint::spin_loop();
                continue;
            }
            // ORDER: Acquire, partner is the kernel's release of `sign` after it wrote the rest.
            fence(Ordering::Acquire);
            let scale = ClockInfoWord(word(offset_of!(ClockInfo, mult))?);
            let conversion = Conversion {
                nsec: word(offset_of!(ClockInfo, nsec))?,
                cycles: word(offset_of!(ClockInfo, cycles))?,
                frac: word(offset_of!(ClockInfo, frac))?,
                mult: scale.first(),
                shift: scale.second(),
                mask: word(offset_of!(ClockInfo, mask))?,
            };
            // ORDER: Acquire: the second look at `sign` comes after the rest was read.
            fence(Ordering::Acquire);
            if sign()? == before {
                return Some(conversion);
            }
        }
        None
    }

    /// A completion's time stamp in nanoseconds of the wall clock; 0 where it cannot be told.
    pub(super) fn nanoseconds(&self, timestamp: u64) -> u64 {
        self.conversion().map_or(0, |conversion| conversion.apply(timestamp))
    }
}

/// Two 32-bit fields that were read at once.
#[derive(Clone, Copy)]
struct ClockInfoWord(u64);

impl ClockInfoWord {
    fn first(self) -> u32 {
        if cfg!(target_endian = "little") { self.0 as u32 } else { (self.0 >> 32) as u32 }
    }

    fn second(self) -> u32 {
        if cfg!(target_endian = "little") { (self.0 >> 32) as u32 } else { self.0 as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::DriverId;
    use crate::uapi::sys::twin::Kernel;
    use zerocopy::IntoBytes;

    const FD: CmdFd = CmdFd::new(7, DriverId::MLX5);

    fn clock(sign: u32) -> Arc<Clock> {
        let kernel = Kernel::scripted();
        kernel.mmap(7, wire::mmap_offset(wire::MMAP_CORE_CLOCK, 0, 4096), |page| {
            page[0x10..0x18].copy_from_slice(&0x0000_0001_0000_0002_u64.to_be_bytes());
            Ok(())
        });
        kernel.mmap(7, wire::mmap_offset(wire::MMAP_CLOCK_INFO, 0, 4096), move |page| {
            let info = ClockInfo {
                sign,
                nsec: 1000,
                cycles: 500,
                frac: 0,
                mult: 4,
                shift: 1,
                mask: 0xffff,
                ..ClockInfo::default()
            };
            page[..size_of::<ClockInfo>()].copy_from_slice(info.as_bytes());
            Ok(())
        });
        let resp = AllocUcontextResp {
            comp_mask: wire::RESP_MASK_CORE_CLOCK_OFFSET,
            hca_core_clock_offset: 0xabc0_0010,
            clock_info_versions: 1,
            ..AllocUcontextResp::default()
        };
        let clock = Clock::of(FD, &resp);
        assert!(clock.core.get().is_some() && clock.converts());
        clock
    }

    #[test]
    fn the_core_clock_is_two_words() {
        assert_eq!(clock(0).cycles(), Ok(0x1_0000_0002));
        assert_eq!(Clock::default().cycles(), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn a_page_is_mapped_when_it_is_asked_for() {
        let kernel = Kernel::scripted();
        let offset = wire::mmap_offset(wire::MMAP_CORE_CLOCK, 0, 4096);
        let resp = AllocUcontextResp {
            comp_mask: wire::RESP_MASK_CORE_CLOCK_OFFSET,
            ..AllocUcontextResp::default()
        };
        // Nothing is asked of the kernel yet.
        let clock = Clock::of(FD, &resp);
        kernel.mmap(7, offset, |_| Err(Errno::ENOMEM));
        assert_eq!(clock.cycles(), Err(Errno::EOPNOTSUPP));
        kernel.mmap(7, offset, |page| {
            page[7] = 9;
            Ok(())
        });
        assert_eq!((clock.cycles(), clock.cycles()), (Ok(9), Ok(9)));
        assert!(!clock.converts());
    }

    #[test]
    fn stamps_before_and_after_the_page_are_told() {
        let clock = clock(2);
        assert_eq!((clock.nanoseconds(600), clock.nanoseconds(400)), (1200, 800));
    }

    #[test]
    fn a_page_that_is_being_changed_for_ever_is_not_waited_for() {
        assert_eq!(clock(wire::CLOCK_INFO_KERNEL_UPDATING).nanoseconds(600), 0);
        assert_eq!(Clock::default().nanoseconds(600), 0);
    }
}
