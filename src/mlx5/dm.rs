//! Device memory: a piece of the device's own (MEMIC), mapped through uverbs.

use crate::error::{Errno, Error, Step as _};
use crate::family::{Created, Device};
use crate::hw::mmio::{DeviceMemory, Mapping};
use crate::uapi::mlx5::{self as wire, Memic};
use crate::uapi::sys::{self, Prot};
use crate::uapi::{self, Handle, Udata};

/// The page that the kernel maps at once.
const PAGE: usize = 4096;

/// Allocates `length` bytes, aligned to `1 << log_align_req`.
pub(super) fn alloc(
    device: &Device,
    length: usize,
    log_align_req: u32,
) -> Result<Created<DeviceMemory>, Error> {
    // As stock, which looks at what the device has before the kernel is asked.
    let attr = uapi::device::query_device_ex(device.fd, Udata::none()).step("ask how much the device has")?;
    if length as u64 > attr.max_dm_size {
        return Err(Error::new("check the length against the device's", Errno::EINVAL));
    }
    let memic = wire::alloc_memic(device.fd, length as u64, log_align_req).step("allocate device memory")?;
    let object = map(device, &memic)
        .inspect_err(|_| super::undo(uapi::dm::free(device.fd, memic.handle)))
        .step("map device memory")?;
    Ok(Created { handle: memic.handle, object })
}

/// What somebody else allocated in the same context.
pub(super) fn import(device: &Device, handle: Handle) -> Result<DeviceMemory, Error> {
    let memic = wire::query_memic(device.fd, handle).step("ask for the device memory")?;
    map(device, &memic).step("map device memory")
}

fn map(device: &Device, memic: &Memic) -> Result<DeviceMemory, Errno> {
    let length = usize::try_from(memic.length).map_err(|_| Errno::EPROTO)?;
    let start = memic.start_offset as usize & (PAGE - 1);
    let len = length.checked_next_multiple_of(PAGE).filter(|len| *len > 0).ok_or(Errno::EINVAL)?;
    let offset = wire::mmap_offset(wire::MMAP_DEVICE_MEM, u64::from(memic.page_index), PAGE as u64);
    let map = sys::map_device(device.fd.fd, len, Prot::ReadWrite, offset)?;
    DeviceMemory::new(Mapping::new(map), start, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::EventFile;
    use crate::uapi::sys::twin::Kernel;
    use crate::uapi::wire::ExQueryDeviceResp;
    use crate::uapi::{CmdFd, DriverId, ids};
    use std::sync::Arc;

    const PAGES: u16 = 0x103;

    fn device() -> Device {
        let fd = CmdFd::new(7, DriverId::MLX5);
        Device { fd, ibdev: "mlx5_0".into(), events: EventFile::new(9), life: Arc::default() }
    }

    /// A device with 64 KiB of memory, of which two pages are given out, 0x40 bytes into the first.
    fn kernel(mmap: Result<(), Errno>) -> Kernel {
        let kernel = Kernel::scripted();
        kernel.command(ids::write::EX_CMD_QUERY_DEVICE, |io| {
            io.respond(&ExQueryDeviceResp {
                response_length: size_of::<ExQueryDeviceResp>() as u32,
                max_dm_size: 65536,
                ..Default::default()
            })
        });
        kernel.ioctl(ids::DM_ALLOC, |io| {
            assert_eq!(
                (io.read::<u64>(ids::ALLOC_DM_LENGTH), io.read::<u32>(ids::ALLOC_DM_ALIGNMENT)),
                (5000, 6)
            );
            io.set_handle(ids::ALLOC_DM_HANDLE, 11);
            io.answer(ids::ALLOC_DM_RESP_START_OFFSET, &0x1_2040_u64);
            io.answer(ids::ALLOC_DM_RESP_PAGE_INDEX, &PAGES);
            Ok(())
        });
        // Command 8, and the index in two parts.
        kernel.mmap(7, (8 << 8 | 1 << 16 | 3) * 4096, move |memory| {
            assert_eq!(memory.len(), 8192);
            mmap
        });
        kernel
    }

    #[test]
    fn what_is_allocated_is_words_within_its_bounds() {
        let kernel = kernel(Ok(()));
        let dm = alloc(&device(), 5000, 6).unwrap();
        assert_eq!(dm.handle, Handle(11));
        let dm = dm.object;
        dm.store(4996, 0x0102_0304).unwrap();
        assert_eq!((dm.load(4996), dm.load(4992)), (Ok(0x0102_0304), Ok(0)));
        assert_eq!((dm.load(5000), dm.store(usize::MAX - 2, 1)), (Err(Errno::EFAULT), Err(Errno::EFAULT)));
        assert_eq!(
            (dm.check(2, 4), dm.check(0, 6), dm.check(4996, 4)),
            (Err(Errno::EINVAL), Err(Errno::EINVAL), Ok(()))
        );
        assert_eq!(dm.check(4, usize::MAX), Err(Errno::EFAULT));
        drop(dm);
        assert_eq!(kernel.unmapped(), [8192]);
    }

    #[test]
    fn what_cannot_be_mapped_is_given_back() {
        let kernel = kernel(Err(Errno::ENOMEM));
        kernel.ioctl(ids::DM_FREE, |io| {
            assert_eq!(io.handle(ids::FREE_DM_HANDLE), Handle(11));
            Ok(())
        });
        assert_eq!(alloc(&device(), 5000, 6).unwrap_err().errno, Errno::ENOMEM);
    }

    #[test]
    fn more_than_the_device_has_is_not_asked_for() {
        let kernel = Kernel::scripted();
        kernel.command(ids::write::EX_CMD_QUERY_DEVICE, |io| {
            let response_length = size_of::<ExQueryDeviceResp>() as u32;
            io.respond(&ExQueryDeviceResp { response_length, max_dm_size: 4096, ..Default::default() })
        });
        assert_eq!(alloc(&device(), 4097, 0).unwrap_err().errno, Errno::EINVAL);
    }

    #[test]
    fn what_another_allocated_is_mapped_as_the_kernel_says() {
        let kernel = Kernel::scripted();
        let query = |length: u64| {
            kernel.ioctl(ids::DM_QUERY, move |io| {
                assert_eq!(io.handle(ids::QUERY_DM_REQ_HANDLE), Handle(5));
                io.answer(ids::QUERY_DM_RESP_START_OFFSET, &0x40_u64);
                io.answer(ids::QUERY_DM_RESP_PAGE_INDEX, &1_u16);
                io.answer(ids::QUERY_DM_RESP_LENGTH, &length);
                Ok(())
            });
        };
        query(64);
        kernel.mmap(7, (8 << 8 | 1) * 4096, |memory| {
            memory[0x40..0x44].copy_from_slice(&[1, 2, 3, 4]);
            Ok(())
        });
        let dm = import(&device(), Handle(5)).unwrap();
        assert_eq!(dm.load(0).map(u32::to_ne_bytes), Ok([1, 2, 3, 4]));
        assert_eq!(dm.load(64), Err(Errno::EFAULT));
        // Lengths that cannot be, or that with their offset leave the pages.
        query(0);
        assert_eq!(import(&device(), Handle(5)).unwrap_err().errno, Errno::EINVAL);
        query(u64::MAX);
        assert_eq!(import(&device(), Handle(5)).unwrap_err().errno, Errno::EINVAL);
    }
}
