//! The native bed: a library that, preloaded into a program, answers what the kernel would have answered on its uverbs
//! devices, so that RDMA programs run where there is no RDMA at all.
//!
//! From the program inwards:
//!
//! * `preload`: the C library's functions that are taken over; `next`: those functions themselves.
//! * `files`: which descriptors of the process are ours.
//! * `sysfs`: what the program finds under `/sys/class/infiniband`.
//! * `attrs`, `uapi`, `user`: commands as the program hands them over: attributes, structs, memory.
//! * `driver`: the commands, and the objects that they make.
//! * `null`: the engine that walks queues when told to.
//! * `c`: the functions of `include/holdfast_sim.h`.
//!
//! One lock holds all objects; a command, a step of an engine and a fault each take it once.

mod attrs;
pub mod c;
mod driver;
mod files;
mod next;
mod null;
pub mod preload;
mod sysfs;
mod uapi;
mod user;

/// An `errno` value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Errno(i32);
