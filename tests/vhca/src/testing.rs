//! What unit tests begin with.

use crate::device::{BarMode, Device, Env};
use crate::journal::Journal;
use crate::pci::Identity;
use crate::world::World;

/// A world of trapped devices without guest memory.
pub(crate) fn world(devices: usize) -> World {
    let mut world = World::new(Journal::default());
    for _ in 0..devices {
        world.add(Identity::Physical, BarMode::Trapped).unwrap();
    }
    world
}

/// A device and what it shares with others.
pub(crate) fn device() -> (Device, Env) {
    let World { mut devices, env, .. } = world(1);
    (devices.remove(0), env)
}
