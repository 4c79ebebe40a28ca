//! The device's clocks: the core clock, a register; and the page by which the kernel tells how its cycles are nanoseconds.
//!
//! Both are mappings that outlive the device: the register reads as zeros then, and the page stays as it was. Neither is
//! waited for.

use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};
use std::sync::Arc;

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
    /// The page with the core clock, and where in it.
    core: Option<(Mapping, usize)>,
    info: Option<Mapping>,
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
    /// Maps what there is; a clock that cannot be mapped is one that there is not.
    pub(super) fn open(fd: CmdFd, resp: &AllocUcontextResp) -> Arc<Clock> {
        let map = |command, index| {
            let offset = wire::mmap_offset(command, index, PAGE as u64);
            sys::map_device(fd.fd, PAGE, Prot::Read, offset).ok().map(Mapping::new)
        };
        let offset = resp.hca_core_clock_offset as usize & (PAGE - 1);
        let core = (resp.comp_mask & wire::RESP_MASK_CORE_CLOCK_OFFSET != 0)
            .then(|| map(wire::MMAP_CORE_CLOCK, 0))
            .flatten()
            .map(|page| (page, offset));
        let info = (resp.clock_info_versions & 1 << wire::CLOCK_INFO_V1 != 0)
            .then(|| map(wire::MMAP_CLOCK_INFO, u64::from(wire::CLOCK_INFO_V1)))
            .flatten();
        Arc::new(Clock { core, info })
    }

    /// Whether time stamps can be made nanoseconds.
    pub(super) fn converts(&self) -> bool {
        self.info.is_some()
    }

    /// The core clock now.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there is none.
    pub(super) fn cycles(&self) -> Result<u64, Errno> {
        let (page, offset) = self.core.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        let mut high = page.read32_be(*offset)?;
        let mut low = page.read32_be(offset + 4)?;
        let again = page.read32_be(*offset)?;
        if again != high {
            // The low half went over; it cannot do so twice in this time.
            high = again;
            low = page.read32_be(offset + 4)?;
        }
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// A consistent view of the kernel's page, or none when it is being changed for too long.
    fn conversion(&self) -> Option<Conversion> {
        let page = self.info.as_ref()?;
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
        Clock::open(FD, &resp)
    }

    #[test]
    fn the_core_clock_is_two_words() {
        assert_eq!(clock(0).cycles(), Ok(0x1_0000_0002));
        assert_eq!(Clock::default().cycles(), Err(Errno::EOPNOTSUPP));
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
