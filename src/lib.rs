//! holdfast: a libibverbs (rdma-core) provider that keeps the verbs contract when the device is gone.
//!
//! One shared library registers with every libibverbs private ABI from 33 to 65 ([`abi`]), issues its kernel commands by
//! itself ([`uapi`]) and serves each verb ([`verbs`]) for the device families it knows ([`mlx5`], [`rxe`]). The README's
//! architecture section has the picture and one walk through it.
//!
//! Direction, held by a test (`tests/layering.rs`), each uses only what stands to its right:
//! `register, capi -> verbs -> {mlx5, rxe} -> family -> {ha, hw} -> uapi -> abi -> error, log, config, sync`.

pub mod abi;
pub mod capi;
pub mod config;
pub mod error;
pub mod family;
pub mod ha;
pub mod hw;
pub mod log;
pub mod mlx5;
pub mod register;
pub mod rxe;
pub mod sync;
pub mod uapi;
pub mod verbs;
