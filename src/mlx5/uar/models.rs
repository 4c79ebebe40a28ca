//! The register that several queues share, held against every order of their stores.
#![allow(unsafe_code, reason = "reads what the register was stored to")]

use std::rc::Rc;

use loom::thread;

use super::*;
use crate::abi::host::ForkRanges;
use crate::ha::models::{check, check_within};
use crate::hw::dma::{Blocks, Memory};
use crate::sync::allow_owners;
use crate::sync::atomic::fence;
use crate::sync::models::barrier;
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

/// A shared register, and where it is.
fn shared(kernel: &Kernel) -> (Register, usize) {
    let (tell, told) = std::sync::mpsc::channel();
    kernel.mmap(FD.fd, 0, move |memory| {
        tell.send(memory.as_mut_ptr().expose_provenance()).unwrap();
        Ok(())
    });
    let mapping = map(FD, 0, PAGE).unwrap();
    let register = Register::new(&mapping, BF_OFFSET, HALF, true, Place::Page(1)).unwrap();
    (register, told.recv().unwrap() + BF_OFFSET)
}

/// What was stored to both halves of the register at `base`.
fn halves(base: usize) -> [u64; 2] {
    [0, HALF as usize].map(|offset| {
        let at = core::ptr::with_exposed_provenance::<u64>(base + offset);
        // SAFETY: within the mapping, which the register keeps.
        unsafe { at.read_volatile() }
    })
}

#[test]
fn two_queues_that_share_a_register_take_turns() {
    check("mlx5 shared register", || {
        let kernel = Kernel::scripted();
        let (register, base) = shared(&kernel);
        let register = Rc::new(register);
        let threads = [1, 2].map(|number| {
            let register = register.clone();
            thread::spawn(move || {
                let (record, blocks) = queue(number);
                assert!(register.ring(&record, 1, blocks.view(), 0, 0), "nobody closed it");
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        let halves = halves(base);
        assert!(halves == [1, 2] || halves == [2, 1], "a doorbell was overwritten: {halves:?}");
    });
}

/// One thread rings twice as `ring` does, another one closes.
fn closed_under_way(
    register: impl Fn(&Kernel) -> (Register, usize),
    ring: fn(&Register, &Record, &Blocks, u32) -> bool,
) {
    let kernel = Kernel::scripted();
    let (register, base) = register(&kernel);
    let register = Rc::new(register);
    let ringer = {
        let register = register.clone();
        thread::spawn(move || {
            let (record, blocks) = queue(1);
            let told = [1, 2].map(|post| ring(&register, &record, &blocks, post));
            (told, record.load::<SND_DBR>())
        })
    };
    register.close();
    fence(Ordering::SeqCst);
    while !register.lock.is_idle() {
        thread::yield_now();
    }
    let before = halves(base);
    let (told, record) = ringer.join().unwrap();
    assert_eq!(halves(base), before, "a doorbell was rung after the register was closed");
    assert!(told != [false, true], "open again");
    let told = told.map(u64::from);
    assert_eq!((told, u64::from(record)), (before, told.iter().sum()), "told what was rung, and that alone");
}

#[test]
fn nothing_rings_a_closed_register() {
    check("mlx5 closed register", || {
        closed_under_way(shared, |register, record, blocks, post| {
            register.ring(record, post, blocks.view(), 0, 0)
        });
    });
}

/// A shared register that the first thread to ring owns.
fn owned(kernel: &Kernel) -> (Register, usize) {
    allow_owners(barrier);
    let (register, base) = shared(kernel);
    (Register { lock: register.lock.with_owners(), ..register }, base)
}

#[test]
fn nothing_rings_a_closed_register_with_an_owner() {
    check_within("mlx5 closed register with an owner", Some(3), || {
        closed_under_way(owned, |register, record, blocks, post| match register.enter() {
            Some(entered) => {
                entered.ring(record, post, blocks.view(), 0, 0);
                true
            }
            None => register.ring(record, post, blocks.view(), 0, 0),
        });
    });
}

#[test]
fn nothing_rings_a_closed_register_for_short() {
    check_within("mlx5 closed register, a single post", Some(3), || {
        closed_under_way(owned, |register, record, blocks, post| {
            let short = Short { record, post, block: blocks.at(0), burst: false };
            register.ring_short(short) || register.ring(record, post, blocks.view(), 0, 0)
        });
    });
}
