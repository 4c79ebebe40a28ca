//! The native bed: a library that, preloaded into a program, answers what the kernel would have answered on its uverbs
//! devices, so that RDMA programs run where there is no RDMA at all.
//!
//! From the program inwards:
//!
//! * `preload`: the C library's functions that are taken over; `next`: those functions themselves, and other system calls.
//! * `files`: which descriptors of the process are ours; `event`: those that give events.
//! * `sysfs`: what the program finds under `/sys/class/infiniband`; `netlink`: what it is told when it asks the kernel.
//! * `attrs`, `uapi`, `user`: commands as the program hands them over: attributes, structs, memory.
//! * `driver`: the commands, the objects that they make, and faults. It drives devices of the crate `vhca`, which are in this
//!   process, too, as the kernel's drivers drive those of a guest.
//! * `engine`: the thread that has the devices work; `net`: the wire to other processes; `clock`: what programs read of it.
//! * `null`: the engine that walks queues when told to, and does nothing else.
//! * `heap`: memory of its own; `c`: the functions of `include/holdfast_sim.h`.
//!
//! One lock holds all objects; a command, a look of the engine and a fault each take it once.

mod attrs;
pub mod c;
mod clock;
mod config;
mod driver;
mod engine;
mod event;
mod files;
mod heap;
mod net;
mod netlink;
mod next;
mod null;
pub mod preload;
mod sysfs;
mod uapi;
mod user;

/// An `errno` value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Errno(i32);
