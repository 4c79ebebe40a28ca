//! Commands for the device's own memory, which the end of the BAR shows.
//!
//! The driver chooses the page; a piece of memory begins where its page does, however small it is.

use super::{Call, Command, Outcome, SHORT};
use crate::memory::PAGE;
use crate::pci::{DEVICE_MEMORY_LEN, DEVICE_MEMORY_START};
use crate::prm::layouts::*;
use crate::prm::{Status, get};

pub(super) const TABLE: &[Command] = &[
    Command::new(op::ALLOC_MEMIC, alloc_memic_in::BYTES, alloc_memic_out::BYTES, allocate),
    Command::new(op::DEALLOC_MEMIC, dealloc_memic_in::BYTES, SHORT, free),
];

/// The most that one may have of it, and the unit.
pub(super) const MOST: u64 = 16384;
const UNIT: u64 = 64;

fn allocate(call: &mut Call<'_>) -> Outcome {
    let field = |field| get(call.input, field);
    let (start, range) = (field(alloc_memic_in::RANGE_START_ADDR), field(alloc_memic_in::RANGE_SIZE));
    let size = field(alloc_memic_in::MEMIC_SIZE);
    let page = u64::try_from(PAGE).unwrap_or(0);
    let end = start.checked_add(range).ok_or(Status::BadParameter)?;
    let within = start >= DEVICE_MEMORY_START && end <= DEVICE_MEMORY_START + DEVICE_MEMORY_LEN;
    if !within || !start.is_multiple_of(page) || size == 0 || size % UNIT != 0 || size > range || size > MOST
    {
        return Err(Status::BadParameter);
    }
    let taken = &mut call.device.objects.device_memory;
    if taken.iter().any(|(at, len)| *at < end && start < at + len.next_multiple_of(page)) {
        return Err(Status::NoResources);
    }
    taken.insert(start, size);
    // Its last owner's bytes are nobody's business.
    (start / page..end / page)
        .for_each(|page| call.device.doorbells.clear(usize::try_from(page).unwrap_or(0)));
    call.set(alloc_memic_out::MEMIC_START_ADDR, start);
    call.note(format_args!("size={size} -> {start:#x}"));
    Ok(())
}

fn free(call: &mut Call<'_>) -> Outcome {
    let start = get(call.input, dealloc_memic_in::MEMIC_START_ADDR);
    call.note(format_args!("{start:#x}"));
    call.device.objects.device_memory.remove(&start).map(drop).ok_or(Status::BadResource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prm::set;
    use crate::testing;

    #[test]
    fn what_is_taken_is_not_given_twice() {
        let (mut device, mut env) = testing::device();
        device.firmware.initialized = true;
        let mut run = |op: u16, fields: &[(crate::prm::Field, u64)]| {
            let mut input = vec![0; alloc_memic_in::BYTES];
            crate::prm::put(&mut input, 0, &op.to_be_bytes());
            fields.iter().for_each(|(field, value)| set(&mut input, *field, *value));
            let output = device.execute(&mut env, &input, alloc_memic_out::BYTES);
            (output[0], get(&output, alloc_memic_out::MEMIC_START_ADDR))
        };
        let ask = |start: u64, range: u64, size: u64| {
            [
                (alloc_memic_in::RANGE_START_ADDR, DEVICE_MEMORY_START + start),
                (alloc_memic_in::RANGE_SIZE, range),
                (alloc_memic_in::MEMIC_SIZE, size),
            ]
        };
        assert_eq!(run(op::ALLOC_MEMIC, &ask(4096, 8192, 4160)), (0, DEVICE_MEMORY_START + 4096));
        assert_eq!(run(op::ALLOC_MEMIC, &ask(8192, 4096, 64)).0, Status::NoResources as u8);
        assert_eq!(run(op::ALLOC_MEMIC, &ask(0, 4096, 64)).0, 0);
        for (start, range, size) in [
            (1, 4096, 64),
            (0, 4096, 0),
            (0, 4096, 65),
            (0, 4096, 8192),
            (DEVICE_MEMORY_LEN, 4096, 64),
            (u64::MAX - DEVICE_MEMORY_START, 1, 64),
        ] {
            assert_eq!(
                run(op::ALLOC_MEMIC, &ask(start, range, size)).0,
                Status::BadParameter as u8,
                "{start:#x} {size}"
            );
        }
        let gone = [(dealloc_memic_in::MEMIC_START_ADDR, DEVICE_MEMORY_START + 4096)];
        assert_eq!(run(op::DEALLOC_MEMIC, &gone).0, 0);
        assert_eq!(run(op::DEALLOC_MEMIC, &gone).0, Status::BadResource as u8);
        assert_eq!(run(op::ALLOC_MEMIC, &ask(8192, 4096, 64)).0, 0);
    }
}
