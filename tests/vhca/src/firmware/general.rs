//! Commands for the whole device: start and stop, pages, capabilities, and things that are only numbers.

use super::{Call, Command, Outcome, PLAIN, SHORT, capabilities};
use crate::memory::PAGE;
use crate::objects::mkey;
use crate::prm::layouts::*;
use crate::prm::{self, Status, be32, be64, part_mut, put};

pub(super) const TABLE: &[Command] = &[
    Command::new(op::ENABLE_HCA, 12, SHORT, accept),
    Command::new(op::DISABLE_HCA, 12, SHORT, accept),
    Command::new(op::QUERY_ISSI, 12, query_issi_out::BYTES, query_issi),
    Command::new(op::SET_ISSI, PLAIN, SHORT, set_issi),
    Command::new(op::INIT_HCA, 12, SHORT, init),
    Command::new(op::TEARDOWN_HCA, 12, SHORT, teardown),
    Command::new(op::QUERY_PAGES, PLAIN, PLAIN, query_pages),
    Command::new(op::MANAGE_PAGES, PLAIN, PLAIN, manage_pages),
    Command::new(op::QUERY_HCA_CAP, 12, PLAIN, query_capabilities),
    Command::new(op::SET_HCA_CAP, PLAIN, SHORT, set_capabilities),
    Command::new(op::QUERY_ADAPTER, 12, query_adapter_out::BYTES, query_adapter),
    Command::new(op::QUERY_SPECIAL_CONTEXTS, 12, PLAIN, query_special_contexts),
    Command::new(op::SET_DRIVER_VERSION, PLAIN, SHORT, accept),
    Command::new(op::NOP, 8, SHORT, accept),
    Command::new(op::ALLOC_UAR, 12, PLAIN, alloc_uar),
    Command::new(op::DEALLOC_UAR, PLAIN, SHORT, dealloc_uar),
    Command::new(op::ALLOC_PD, 12, PLAIN, alloc_pd),
    Command::new(op::DEALLOC_PD, PLAIN, SHORT, dealloc_pd),
    Command::new(op::ALLOC_TRANSPORT_DOMAIN, 12, PLAIN, alloc_transport_domain),
    Command::new(op::DEALLOC_TRANSPORT_DOMAIN, PLAIN, SHORT, dealloc_transport_domain),
    Command::new(op::ALLOC_XRCD, 12, PLAIN, alloc_xrcd),
    Command::new(op::DEALLOC_XRCD, PLAIN, SHORT, dealloc_xrcd),
    Command::new(op::ALLOC_Q_COUNTER, 12, PLAIN, alloc_counter),
    Command::new(op::DEALLOC_Q_COUNTER, PLAIN, SHORT, dealloc_counter),
    Command::new(op::QUERY_Q_COUNTER, PLAIN, PLAIN, query_counter),
];

/// A command whose only effect is its success.
pub(super) fn accept(_: &mut Call<'_>) -> Outcome {
    Ok(())
}

fn query_issi(call: &mut Call<'_>) -> Outcome {
    let issi = call.device.firmware.issi;
    call.set(query_issi_out::CURRENT_ISSI, issi);
    call.set(query_issi_out::SUPPORTED_ISSI_DW0, 0b11u32);
    Ok(())
}

fn set_issi(call: &mut Call<'_>) -> Outcome {
    let issi = call.get(set_issi_in::CURRENT_ISSI);
    if issi > 1 {
        return Err(Status::BadParameter);
    }
    call.device.firmware.issi = u64::from(issi);
    Ok(())
}

fn init(call: &mut Call<'_>) -> Outcome {
    call.device.firmware.initialized = true;
    Ok(())
}

/// Whatever the driver left behind, queues that the device would write to above all, is gone after this.
fn teardown(call: &mut Call<'_>) -> Outcome {
    call.device.firmware.initialized = false;
    call.device.forget_objects();
    Ok(())
}

/// Pages that the device asks for at boot and at initialization. It has no use for them.
const BOOT_PAGES: u64 = 4;
const INIT_PAGES: u64 = 8;

fn query_pages(call: &mut Call<'_>) -> Outcome {
    let pages = match call.modifier() {
        1 => BOOT_PAGES,
        2 => INIT_PAGES,
        3 => 0,
        _ => return Err(Status::BadParameter),
    };
    call.set(query_pages_out::NUM_PAGES, pages);
    Ok(())
}

fn manage_pages(call: &mut Call<'_>) -> Outcome {
    const GIVE: u16 = 1;
    const TAKE: u16 = 2;
    let count = usize::try_from(call.get(manage_pages_in::INPUT_NUM_ENTRIES)).unwrap_or(usize::MAX);
    let list = call.input.get(manage_pages_in::PAS.byte()..).unwrap_or(&[]);
    match call.modifier() {
        0 => {}
        GIVE => {
            if list.len() / 8 < count {
                return Err(Status::BadInputLength);
            }
            call.device.firmware.pages.extend(list.chunks_exact(8).take(count).map(|entry| be64(entry, 0)));
        }
        TAKE => {
            let room = call.output.len().saturating_sub(PLAIN) / 8;
            let pages = &mut call.device.firmware.pages;
            let taken = pages.split_off(pages.len() - count.min(room).min(pages.len()));
            for (k, page) in taken.iter().enumerate() {
                put(call.output, manage_pages_out::PAS.byte() + 8 * k, &page.to_be_bytes());
            }
            call.set(manage_pages_out::OUTPUT_NUM_ENTRIES, u32::try_from(taken.len()).unwrap_or(0));
        }
        _ => return Err(Status::BadParameter),
    }
    call.note(format_args!("pages={count}"));
    Ok(())
}

const GENERAL: u16 = 0;
const ATOMIC: u16 = 3;
const DEVICE_MEMORY: u16 = 0xf;

fn query_capabilities(call: &mut Call<'_>) -> Outcome {
    let (kind, current) = (call.modifier() >> 1, call.modifier() & 1 == 1);
    call.note(format_args!("type={kind:#x}"));
    let firmware = &call.device.firmware;
    let block = match (kind, current) {
        (GENERAL, true) => firmware.capabilities.clone(),
        (GENERAL, false) => capabilities::general(),
        (ATOMIC, true) => firmware.atomic_capabilities.clone(),
        (ATOMIC, false) => capabilities::atomic(),
        (DEVICE_MEMORY, _) => capabilities::device_memory(),
        _ => return Err(Status::BadParameter),
    };
    let room = call.output.len() - PLAIN;
    put(call.output, PLAIN, block.get(..room.min(block.len())).unwrap_or(&[]));
    Ok(())
}

fn set_capabilities(call: &mut Call<'_>) -> Outcome {
    let kind = call.modifier() >> 1;
    call.note(format_args!("type={kind:#x}"));
    let block = call.input.get(PLAIN..).unwrap_or(&[]);
    let block = block.get(..block.len().min(capabilities::BYTES)).unwrap_or(&[]);
    match kind {
        GENERAL => put(&mut call.device.firmware.capabilities, 0, block),
        // All else in this block is what the device can do.
        ATOMIC => prm::copy(
            block,
            &mut call.device.firmware.atomic_capabilities,
            atomic_caps::ATOMIC_REQ_8B_ENDIANNESS_MODE,
        ),
        _ => return Err(Status::BadParameter),
    }
    Ok(())
}

fn query_adapter(call: &mut Call<'_>) -> Outcome {
    let vendor = query_adapter_param_block::IEEE_VENDOR_ID.at(query_adapter_out::QUERY_ADAPTER_STRUCT);
    call.set(vendor, 0x2c9u32);
    let board = query_adapter_param_block::VSD_CONTD_PSID.at(query_adapter_out::QUERY_ADAPTER_STRUCT);
    put(part_mut(call.output, board), 0, b"HFT0000000001");
    Ok(())
}

fn query_special_contexts(call: &mut Call<'_>) -> Outcome {
    call.set(query_special_contexts_out::RESD_LKEY, mkey::RESERVED_LKEY);
    call.set(query_special_contexts_out::NULL_MKEY, mkey::NULL_MKEY);
    call.set(query_special_contexts_out::DUMP_FILL_MKEY, mkey::DUMP_FILL_MKEY);
    call.set(query_special_contexts_out::TERMINATE_SCATTER_LIST_MKEY, mkey::TERMINATE_LIST);
    Ok(())
}

/// The number of an object, where commands that free one have it.
pub(super) fn object(call: &Call<'_>) -> u32 {
    be32(call.input, 8) & 0xff_ffff
}

fn release(found: bool) -> Outcome {
    if found { Ok(()) } else { Err(Status::BadResource) }
}

fn alloc_uar(call: &mut Call<'_>) -> Outcome {
    let uar = call.device.objects.uars.allocate();
    if let Some(page) = uar.and_then(|uar| usize::try_from(uar).ok()) {
        debug_assert!(page >= crate::pci::CONTROL_LEN as usize / PAGE, "the first pages are trapped");
        call.device.doorbells.clear(page);
    }
    call.answer(alloc_uar_out::UAR, uar)
}

fn dealloc_uar(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    call.note(format_args!("{number:#x}"));
    release(call.device.objects.uars.release(number))
}

fn alloc_pd(call: &mut Call<'_>) -> Outcome {
    let pd = call.device.objects.pds.allocate();
    call.answer(alloc_pd_out::PD, pd)
}

fn dealloc_pd(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    let objects = &mut call.device.objects;
    if objects.qps.iter().any(|(_, qp)| qp.cached.pd == number)
        || objects.mkeys.iter().any(|(_, key)| key.pd() == number)
    {
        return Err(Status::ResourceBusy);
    }
    release(objects.pds.release(number))
}

fn alloc_transport_domain(call: &mut Call<'_>) -> Outcome {
    let number = call.device.objects.transport_domains.allocate();
    call.answer(alloc_transport_domain_out::TRANSPORT_DOMAIN, number)
}

fn dealloc_transport_domain(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    release(call.device.objects.transport_domains.release(number))
}

fn alloc_xrcd(call: &mut Call<'_>) -> Outcome {
    let number = call.device.objects.xrcds.allocate();
    call.answer(alloc_xrcd_out::XRCD, number)
}

fn dealloc_xrcd(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    release(call.device.objects.xrcds.release(number))
}

fn alloc_counter(call: &mut Call<'_>) -> Outcome {
    let number = call.device.objects.counters.allocate();
    call.answer(alloc_q_counter_out::COUNTER_SET_ID, number)
}

fn dealloc_counter(call: &mut Call<'_>) -> Outcome {
    let number = object(call) & 0xff;
    release(call.device.objects.counters.release(number))
}

/// Nothing is counted.
fn query_counter(call: &mut Call<'_>) -> Outcome {
    let number = call.get(query_q_counter_in::COUNTER_SET_ID);
    if call.device.objects.counters.contains(number) { Ok(()) } else { Err(Status::BadResource) }
}
