//! The front: a vfio-user socket for each device, by which a virtual machine has it as a PCI function.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info, vfio_region_sparse_mmap_area,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea};

use crate::device::{BarMode, Device};
use crate::pci::{BAR_LEN, CONTROL_LEN, DEVICE_MEMORY_START, Effect, VECTORS};
use crate::prm::be32;
use crate::world::World;

/// The world, shared by the threads of the process.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    /// Something may be due earlier than the driving thread thinks.
    changed: Condvar,
}

impl Shared {
    pub(crate) fn new(world: World) -> Shared {
        Shared { world: Mutex::new(world), changed: Condvar::new() }
    }

    /// Locks the world and sets its clock. A thread that panicked left it as consistent as each step does.
    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.tick();
        world
    }

    /// Wakes the driving thread.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Drives the devices for ever.
    pub(crate) fn drive(&self) {
        /// Below this a pause is a sleep, which is shorter than a wait with a lock.
        const SHORT: Duration = Duration::from_micros(400);
        loop {
            let mut world = self.lock();
            let pause = world.run();
            if pause.is_zero() {
                drop(world);
                std::thread::yield_now();
            } else if pause < SHORT {
                let now = world.env.now;
                world.env.journal.flush_if_old(now);
                drop(world);
                std::thread::sleep(pause);
            } else {
                world.env.journal.flush();
                drop(self.changed.wait_timeout(world, pause).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

/// One device, as its socket's connections see it.
struct Backend {
    shared: Arc<Shared>,
    device: usize,
}

impl Backend {
    fn with<T>(&self, act: impl FnOnce(&mut Device, &mut crate::device::Env) -> T) -> io::Result<T> {
        let mut world = self.shared.lock();
        let world = &mut *world;
        let device = world.devices.get_mut(self.device).ok_or_else(|| io::Error::other("no such device"))?;
        Ok(act(device, &mut world.env))
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.with(|device, env| {
            if device.faults.dead {
                return data.fill(0xff);
            }
            data.fill(0);
            match region {
                VFIO_PCI_CONFIG_REGION_INDEX => {
                    device.config.read(usize::try_from(offset).unwrap_or(usize::MAX / 2), data)
                }
                0 if offset < CONTROL_LEN => {
                    let (mut at, end) =
                        (offset & !3, offset.saturating_add(u64::try_from(data.len()).unwrap_or(0)));
                    let mut words = Vec::new();
                    while at < end {
                        words.extend_from_slice(&device.segment_read(env, at).to_be_bytes());
                        at += 4;
                    }
                    let skip = usize::try_from(offset & 3).unwrap_or(0);
                    data.iter_mut().zip(words.iter().skip(skip)).for_each(|(to, from)| *to = *from);
                }
                0 if offset >= DEVICE_MEMORY_START => {
                    device.doorbells.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
                }
                _ => {}
            }
        })
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if region == 0 && offset >= DEVICE_MEMORY_START {
            return self.with(|device, _| {
                if !device.faults.dead {
                    device.doorbells.write(usize::try_from(offset).unwrap_or(usize::MAX), data);
                }
            });
        }
        if region == 0 && offset >= CONTROL_LEN {
            {
                let mut world = self.shared.lock();
                world.store(self.device, usize::try_from(offset).unwrap_or(usize::MAX), data);
                world.run_queues(self.device);
            }
            self.shared.wake();
            return Ok(());
        }
        self.with(|device, env| {
            if device.faults.dead {
                return;
            }
            match region {
                VFIO_PCI_CONFIG_REGION_INDEX => {
                    let offset = usize::try_from(offset).unwrap_or(usize::MAX / 2);
                    if device.config.write(offset, data) == Effect::FunctionLevelReset {
                        device.reset();
                    }
                }
                0 => {
                    let mut words = data.to_vec();
                    words.resize(data.len().next_multiple_of(4), 0);
                    for (k, word) in (0u64..).zip(words.chunks_exact(4)) {
                        device.segment_write(env, offset + 4 * k, be32(word, 0));
                    }
                }
                _ => {}
            }
        })?;
        let mut world = self.shared.lock();
        world.run_triggered();
        drop(world);
        self.shared.wake();
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        // What has no file is no memory of the guest.
        let Some(file) = fd else { return Ok(()) };
        self.with(|device, _| device.memory.map(address, size, &file, offset))?
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.with(|device, _| device.memory.unmap(address, size))
    }

    fn reset(&mut self) -> io::Result<()> {
        self.with(|device, _| device.reset())
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX {
            return Ok(());
        }
        self.with(|device, _| {
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            if flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 {
                let vectors = device.interrupts.iter_mut().skip(start);
                vectors.zip(fds).for_each(|(vector, file)| *vector = Some(file));
            } else if flags & VFIO_IRQ_SET_DATA_NONE != 0 && count == 0 {
                device.interrupts.iter_mut().for_each(|vector| *vector = None);
            }
        })
    }
}

fn regions(device: &Device) -> Vec<ServerRegion> {
    let region = |index: u32| {
        let mut info = vfio_region_info {
            argsz: u32::try_from(size_of::<vfio_region_info>()).unwrap_or(0),
            index,
            ..vfio_region_info::default()
        };
        let mut region = ServerRegion { region_info: info, sparse_areas: Vec::new(), mmap_fd: None };
        let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        match index {
            0 => {
                (info.size, info.flags) = (BAR_LEN, access);
                if device.mode == BarMode::Mapped {
                    info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
                    let area =
                        vfio_region_sparse_mmap_area { offset: CONTROL_LEN, size: BAR_LEN - CONTROL_LEN };
                    region.sparse_areas.push(SparseArea { area });
                    region.mmap_fd = Some(device.doorbells.fd());
                }
            }
            VFIO_PCI_CONFIG_REGION_INDEX => (info.size, info.flags) = (4096, access),
            _ => {}
        }
        region.region_info = info;
        region
    };
    (0..VFIO_PCI_NUM_REGIONS).map(region).collect()
}

fn interrupts() -> Vec<IrqInfo> {
    let interrupt = |index| {
        let count = if index == VFIO_PCI_MSIX_IRQ_INDEX { u32::from(VECTORS) } else { 0 };
        IrqInfo { index, count, flags: VFIO_IRQ_INFO_EVENTFD }
    };
    (0..VFIO_PCI_NUM_IRQS).map(interrupt).collect()
}

/// Listens on a socket, in place of one that an earlier process left.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// Serves a device's socket, one connection after the other, for ever.
pub(crate) fn serve(shared: &Arc<Shared>, device: usize, listener: &UnixListener) -> io::Result<()> {
    loop {
        let mut backend = Backend { shared: Arc::clone(shared), device };
        let regions = backend.with(|device, _| regions(device))?;
        let server = Server::from_owned_fd(listener.try_clone()?.into(), true, interrupts(), regions);
        // However a connection ended, the next one finds a device fresh from reset.
        let ended = server.run(&mut backend);
        backend.with(|device, env| {
            device.reset();
            device.memory.clear();
            device.interrupts.iter_mut().for_each(|vector| *vector = None);
            device.config = crate::pci::ConfigSpace::new(device.identity);
            env.record(
                device.index,
                &crate::journal::Record::Fault(match ended {
                    Ok(()) => "disconnected",
                    Err(_) => "disconnected in error",
                }),
            );
        })?;
    }
}
