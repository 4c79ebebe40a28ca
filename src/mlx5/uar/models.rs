//! The register that several queues share, held against every order of their stores.
#![allow(unsafe_code, reason = "reads what the register was stored to")]

use std::rc::Rc;

use super::*;
use crate::abi::host::ForkRanges;
use crate::ha::models::check;
use crate::hw::dma::{Blocks, Memory};
use crate::uapi::DriverId;
use crate::uapi::sys::twin::Kernel;

const FD: CmdFd = CmdFd::new(7, DriverId::MLX5);
const HALF: u32 = 256;

/// One thread's send queue: its record, and one WQE that says whose it is.
fn queue(number: u64) -> (Record, Blocks) {
    let memory = Memory::new(PAGE, ForkRanges::default()).unwrap();
    let blocks = Blocks::new(&memory, 64, 1).unwrap();
    blocks.at(0).put(0, [number, number]);
    (Record::new(&memory, 0).unwrap(), blocks)
}

#[test]
fn two_queues_that_share_a_register_take_turns() {
    check("mlx5 shared register", || {
        let kernel = Kernel::scripted();
        let (tell, told) = std::sync::mpsc::channel();
        kernel.mmap(FD.fd, 0, move |memory| {
            tell.send(memory.as_mut_ptr().expose_provenance()).unwrap();
            Ok(())
        });
        let mapping = map(FD, 0, PAGE).unwrap();
        let register = Register::new(&mapping, BF_OFFSET, HALF, true, Place::Page(1)).unwrap();
        let register = Rc::new(register);
        let base = told.recv().unwrap() + BF_OFFSET;
        let threads = [1, 2].map(|number| {
            let register = register.clone();
            loom::thread::spawn(move || {
                let (record, blocks) = queue(number);
                register.ring(&record, 1, blocks.view(), 0, 0);
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        let halves = [0, HALF as usize].map(|offset| {
            let at = core::ptr::with_exposed_provenance::<u64>(base + offset);
            // SAFETY: within the mapping, which the register keeps.
            unsafe { at.read_volatile() }
        });
        assert!(halves == [1, 2] || halves == [2, 1], "a doorbell was overwritten: {halves:?}");
    });
}
