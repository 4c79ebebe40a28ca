//! The devices holdfast takes: what is registered with libibverbs, and how a device found is matched.
#![allow(unsafe_code, reason = "C functions that libibverbs calls")]

use core::ffi::{CStr, c_void};
use core::ptr;
use std::borrow::Cow;

use super::context;
use crate::abi::host::Host;
use crate::abi::public::{
    VERBS_DEVICE_SIZE, VERBS_MATCH_DRIVER_ID, VERBS_MATCH_MODALIAS, VERBS_MATCH_PCI, VERBS_MATCH_SENTINEL,
    verbs_device, verbs_device_ops, verbs_match_ent, verbs_match_ent_u, verbs_sysfs_dev,
};
use crate::config::{self, Families};
use crate::family::Family as _;
use crate::mlx5::Mlx5;
use crate::rxe::Rxe;

/// `RDMA_DRIVER_UNKNOWN` of `<rdma/ib_user_ioctl_verbs.h>`: the kernel, or the way the device was found, did not say.
const DRIVER_UNKNOWN: u32 = 0;

static RXE_MATCHES: [verbs_match_ent; 3] = [
    verbs_match_ent {
        u: verbs_match_ent_u { driver_id: Rxe::DRIVER_ID as u64 },
        kind: VERBS_MATCH_DRIVER_ID,
        ..verbs_match_ent::zeroed()
    },
    // libibverbs compares this with "rdma_device:N" and the device's name, where no driver id is known.
    verbs_match_ent {
        u: verbs_match_ent_u { modalias: c"rdma_device:*Nrxe*".as_ptr() },
        kind: VERBS_MATCH_MODALIAS,
        ..verbs_match_ent::zeroed()
    },
    verbs_match_ent { kind: VERBS_MATCH_SENTINEL, ..verbs_match_ent::zeroed() },
];

static RXE: verbs_device_ops = verbs_device_ops {
    name: c"holdfast-rxe".as_ptr(),
    match_min_abi_version: 1,
    match_max_abi_version: 2,
    match_table: RXE_MATCHES.as_ptr(),
    static_providers: ptr::null_mut(),
    match_device: Some(match_rxe),
    alloc_context: Some(context::alloc::<Rxe>),
    import_context: None,
    alloc_device: Some(alloc_device),
    uninit_device: Some(uninit_device),
};

/// The PCI vendor of every device below.
const MELLANOX: u16 = 0x15b3;

/// The PCI devices that the kernel's driver serves, for a libibverbs that finds devices without asking the kernel which driver
/// they have: Connect-IB, ConnectX-4 to ConnectX-10 and BlueField, with their virtual functions.
const MLX5_DEVICES: [u16; 25] = [
    0x1011, 0x1012, 0x1013, 0x1014, 0x1015, 0x1016, 0x1017, 0x1018, 0x1019, 0x101a, 0x101b, 0x101c, 0x101d,
    0x101e, 0x101f, 0x1021, 0x1023, 0x1025, 0x1027, 0x2101, 0xa2d2, 0xa2d3, 0xa2d6, 0xa2dc, 0xa2df,
];

static MLX5_MATCHES: [verbs_match_ent; MLX5_DEVICES.len() + 2] = mlx5_matches();

const fn mlx5_matches() -> [verbs_match_ent; MLX5_DEVICES.len() + 2] {
    let mut matches = [const { verbs_match_ent::zeroed() }; MLX5_DEVICES.len() + 2];
    let (mut left, mut devices): (&mut [verbs_match_ent], &[u16]) = (&mut matches, &MLX5_DEVICES);
    if let [first, rest @ ..] = left {
        first.u = verbs_match_ent_u { driver_id: Mlx5::DRIVER_ID as u64 };
        first.kind = VERBS_MATCH_DRIVER_ID;
        left = rest;
    }
    while let ([entry, rest @ ..], [device, more @ ..]) = (left, devices) {
        entry.vendor = MELLANOX;
        entry.device = *device;
        entry.kind = VERBS_MATCH_PCI;
        (left, devices) = (rest, more);
    }
    // The last one stays zeroed.
    const { assert!(VERBS_MATCH_SENTINEL == 0) };
    matches
}

static MLX5: verbs_device_ops = verbs_device_ops {
    name: c"holdfast-mlx5".as_ptr(),
    match_min_abi_version: 1,
    match_max_abi_version: 1,
    match_table: MLX5_MATCHES.as_ptr(),
    static_providers: ptr::null_mut(),
    match_device: Some(match_mlx5),
    alloc_context: Some(context::alloc::<Mlx5>),
    import_context: Some(context::import::<Mlx5>),
    alloc_device: Some(alloc_device),
    uninit_device: Some(uninit_device),
};

static ALL: [(Families, &verbs_device_ops); 2] = [(Families::RXE, &RXE), (Families::MLX5, &MLX5)];

/// What is registered with libibverbs for `families`.
pub fn of(families: Families) -> impl Iterator<Item = &'static verbs_device_ops> {
    ALL.iter().filter(move |(family, _)| families.contains(*family)).map(|(_, ops)| *ops)
}

/// The name libibverbs knows a table by.
#[must_use]
pub fn name(ops: &'static verbs_device_ops) -> Cow<'static, str> {
    // SAFETY: every table above names a C string constant.
    unsafe { CStr::from_ptr(ops.name) }.to_string_lossy()
}

/// The family whose devices have these operations; `None` for another provider's.
pub(super) fn family_of(ops: *const verbs_device_ops) -> Option<&'static CStr> {
    if ptr::eq(ops, &raw const RXE) {
        Some(c"rxe")
    } else if ptr::eq(ops, &raw const MLX5) {
        Some(c"mlx5")
    } else {
        None
    }
}

/// Whether a device is soft-RoCE, is wanted, and can be served. `false` is silent: the next provider is asked.
unsafe extern "C" fn match_rxe(sysfs_dev: *mut verbs_sysfs_dev) -> bool {
    // SAFETY: libibverbs passes a device it has described; this field is at the same place in every layout.
    let driver_id = unsafe { (*sysfs_dev).driver_id };
    // SAFETY: as above.
    let matched = unsafe { (*sysfs_dev).match_ };
    // A device of another driver may be called rxe0: its name counts only where its driver is not known.
    let is_rxe = driver_id == Rxe::DRIVER_ID || (driver_id == DRIVER_UNKNOWN && !matched.is_null());
    is_rxe && config::get().families.contains(Families::RXE) && Host::get().is_ok()
}

/// Whether a device is a ConnectX, is wanted, and can be served. `false` is silent: the next provider is asked.
unsafe extern "C" fn match_mlx5(sysfs_dev: *mut verbs_sysfs_dev) -> bool {
    // SAFETY: libibverbs passes a device it has described; this field is at the same place in every layout.
    let driver_id = unsafe { (*sysfs_dev).driver_id };
    // SAFETY: as above.
    let matched = unsafe { (*sysfs_dev).match_ };
    let is_mlx5 = driver_id == Mlx5::DRIVER_ID || (driver_id == DRIVER_UNKNOWN && !matched.is_null());
    is_mlx5 && config::get().families.contains(Families::MLX5) && Host::get().is_ok()
}

unsafe extern "C" fn alloc_device(_sysfs_dev: *mut verbs_sysfs_dev) -> *mut verbs_device {
    // SAFETY: no memory is involved; libibverbs wants it zeroed.
    unsafe { libc::calloc(1, VERBS_DEVICE_SIZE) }.cast()
}

unsafe extern "C" fn uninit_device(device: *mut verbs_device) {
    // SAFETY: from `alloc_device`, and libibverbs gives it up.
    unsafe { libc::free(device.cast::<c_void>()) };
}
