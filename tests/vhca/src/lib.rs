//! A virtual ConnectX: an emulated PCI device that the kernel's own mlx5 drivers bind to, served over vfio-user.
//!
//! In layers, each of which can be read alone, from the guest inwards:
//!
//! * `front`: the vfio-user socket, by which QEMU has the device; `pci`: its configuration space.
//! * `memory`: guest memory and doorbell pages, the only unsafe code.
//! * `firmware`: the initialization segment, the command interface and the commands; `prm`: layouts, as data.
//! * `objects`: the tables of what the driver created.
//! * `doorbell`, [`wqe`], `transport`: from a store in a doorbell page to the peer's memory and a completion.
//! * `device`, `world`: one device, and all of them with their wire.
//! * `fault`, `script`, [`control`]: what goes wrong, when, on whose word.
//! * `journal`, [`reader`], [`queues`]: what happened, written, read and compared.
//! * [`host`]: devices without a guest, for a driver in the same process; [`hostile`]: one for tests and fuzzing.
//!
//! One lock holds everything: two threads a device would be faster, and nobody could say in which order things were.
//! Nothing that the guest wrote is trusted: it ends in a command's error status, in an error of a queue pair, or in a
//! finding of the journal.
#![cfg_attr(
    not(feature = "serve"),
    allow(
        dead_code,
        reason = "what is between devices and a guest: configuration space, command queue, interrupts"
    )
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        reason = "a test that fails panics"
    )
)]

pub mod control;
mod device;
mod doorbell;
mod fault;
mod firmware;
#[cfg(feature = "serve")]
mod front;
pub mod host;
pub mod hostile;
mod journal;
mod memory;
mod objects;
mod pci;
pub mod prm;
pub mod queues;
pub mod reader;
mod script;
#[cfg(feature = "serve")]
mod serve;
#[cfg(test)]
mod testing;
mod transport;
mod world;
pub mod wqe;

pub use device::{BarMode, Raised};
pub use objects::eq::{EventType, PortChange};
pub use pci::Identity;
#[cfg(feature = "serve")]
pub use serve::{Options, start};
pub use transport::Outgoing;
