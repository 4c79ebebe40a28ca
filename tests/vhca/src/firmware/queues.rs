//! Commands for event queues and completion queues.

use super::general::object;
use super::{Call, Command, Outcome, PLAIN, SHORT};
use crate::device::BarMode;
use crate::objects::Buffer;
use crate::objects::cq::{Completion, Cq, Kind, UNARMED};
use crate::objects::eq::Eq;
use crate::objects::qp::Receive;
use crate::pci::VECTORS;
use crate::prm::layouts::*;
use crate::prm::{Status, be64, flag, get, get32, pages, part, put, set};

pub(super) const TABLE: &[Command] = &[
    Command::new(op::CREATE_EQ, create_eq_in::BYTES, PLAIN, create_eq),
    Command::new(op::DESTROY_EQ, PLAIN, SHORT, destroy_eq),
    Command::new(op::QUERY_EQ, PLAIN, create_eq_in::EVENT_BITMASK.byte(), query_eq),
    Command::new(op::CREATE_CQ, create_cq_in::BYTES, PLAIN, create_cq),
    Command::new(op::DESTROY_CQ, PLAIN, SHORT, destroy_cq),
    Command::new(op::QUERY_CQ, PLAIN, PLAIN + cqc::BYTES, query_cq),
    Command::new(op::MODIFY_CQ, modify_cq_in::BYTES, SHORT, modify_cq),
];

/// The largest queues.
const LOG_MAX: u64 = 22;

fn create_eq(call: &mut Call<'_>) -> Outcome {
    let context = part(call.input, create_eq_in::EQ_CONTEXT_ENTRY);
    let log_size = get(context, eqc::LOG_EQ_SIZE);
    let list = pages(part(call.input, create_eq_in::PAS));
    let buffer = Buffer::new(list, get(context, eqc::LOG_PAGE_SIZE), 0);
    let vector = get(context, eqc::INTR);
    if log_size > LOG_MAX || vector >= u64::from(VECTORS) || !buffer.holds(64 << log_size) {
        return Err(Status::BadParameter);
    }
    let mask = part(call.input, create_eq_in::EVENT_BITMASK);
    let mask = [0, 8, 16, 24].map(|at| be64(mask, at));
    let queue = Eq {
        buffer,
        log_size: u32::try_from(log_size).unwrap_or(0),
        vector: usize::try_from(vector).unwrap_or(0),
        mask,
        producer: 0,
        context: context.to_vec(),
    };
    call.note(format_args!("log={log_size} vector={vector} mask={:#x} ", mask.first().copied().unwrap_or(0)));
    let number = call.device.objects.eqs.insert(queue);
    call.answer(create_eq_out::EQ_NUMBER, number)
}

fn destroy_eq(call: &mut Call<'_>) -> Outcome {
    let number = object(call) & 0xff;
    call.note(format_args!("{number:#x}"));
    if call.device.objects.cqs.iter().any(|(_, cq)| cq.eqn == number) {
        return Err(Status::ResourceBusy);
    }
    call.device.objects.eqs.remove(number).map(drop).ok_or(Status::BadResource)
}

fn query_eq(call: &mut Call<'_>) -> Outcome {
    let number = object(call) & 0xff;
    let queue = call.device.objects.eqs.get(number).ok_or(Status::BadResource)?;
    let mut context = queue.context.clone();
    set(&mut context, eqc::PRODUCER_COUNTER, u64::from(queue.producer));
    put(call.output, query_eq_out::EQ_CONTEXT_ENTRY.byte(), &context);
    Ok(())
}

/// Bytes of a completion, from the context's code.
fn entry_size(context: &[u8]) -> Option<usize> {
    match get(context, cqc::CQE_SZ) {
        0 => Some(64),
        1 | 2 => Some(128),
        _ => None,
    }
}

/// A completion queue's memory, from its context and list of pages.
fn cq_buffer(context: &[u8], list: &[u8]) -> Result<(Buffer, u32, usize), Status> {
    let log_size = get(context, cqc::LOG_CQ_SIZE);
    let entry = entry_size(context).ok_or(Status::BadParameter)?;
    let log_page = get(context, cqc::LOG_PAGE_SIZE);
    let offset = get(context, cqc::PAGE_OFFSET) * (64 << log_page);
    let buffer = Buffer::new(pages(list), log_page, offset);
    let len = u64::try_from(entry).unwrap_or(64) << log_size.min(LOG_MAX);
    if log_size > LOG_MAX || !buffer.holds(len) {
        return Err(Status::BadParameter);
    }
    Ok((buffer, u32::try_from(log_size).unwrap_or(0), entry))
}

fn create_cq(call: &mut Call<'_>) -> Outcome {
    let context = part(call.input, create_cq_in::CQ_CONTEXT);
    let (buffer, log_size, entry) = cq_buffer(context, part(call.input, create_cq_in::PAS))?;
    let (eqn, uar) = (get32(context, cqc::C_EQN_OR_APU_ELEMENT), get32(context, cqc::UAR_PAGE));
    let objects = &mut call.device.objects;
    if objects.eqs.get(eqn).is_none() || !objects.uars.contains(uar) {
        return Err(Status::BadResource);
    }
    let mut cq = Cq::new(buffer, log_size, entry, context.to_vec());
    (cq.eqn, cq.uar) = (eqn, uar);
    cq.record = get(context, cqc::DBR_ADDR);
    cq.ignore_overrun = flag(context, cqc::OI);
    cq.moderation = moderation(context);
    cq.seen = call.device.memory.word(cq.record + 4).map_err(|_| Status::BadParameter)?;
    if call.device.mode == BarMode::Mapped {
        // The first arm word of a queue is the zero that its record begins with: it would not show there.
        call.device.memory.write(cq.record + 4, &UNARMED.to_be_bytes()).map_err(|_| Status::BadParameter)?;
        cq.seen = UNARMED;
    }
    let number = objects.cqs.insert(cq);
    call.note(format_args!("log={log_size} entry={entry} eq={eqn} uar={uar} "));
    call.answer(create_cq_out::CQN, number)
}

fn moderation(context: &[u8]) -> (u32, u64) {
    (get32(context, cqc::CQ_MAX_COUNT), get(context, cqc::CQ_PERIOD))
}

fn destroy_cq(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    call.note(format_args!("{number:#x}"));
    if let Some(record) = call.device.objects.cqs.get(number).map(|cq| cq.record) {
        call.note_record(record, &["consumed", "armed"]);
    }
    let objects = &mut call.device.objects;
    let used = objects.qps.iter().any(|(_, qp)| {
        let sends = qp.send.as_ref().is_some_and(|queue| queue.cqn == number);
        sends || !matches!(qp.receive, Receive::None) && qp.cached.receive_cqn == number
    });
    if used {
        return Err(Status::ResourceBusy);
    }
    objects.cqs.remove(number).map(drop).ok_or(Status::BadResource)
}

fn query_cq(call: &mut Call<'_>) -> Outcome {
    let cq = call.device.objects.cqs.get(object(call)).ok_or(Status::BadResource)?;
    let mut context = cq.context.clone();
    let consumer = call.device.memory.word(cq.record).unwrap_or(0);
    let fields = [
        (cqc::PRODUCER_COUNTER, u64::from(cq.producer)),
        (cqc::CONSUMER_COUNTER, u64::from(consumer)),
        (cqc::STATUS, if cq.error { 0xa } else { 0 }),
    ];
    fields.iter().for_each(|(field, value)| set(&mut context, *field, *value));
    put(call.output, query_cq_out::CQ_CONTEXT.byte(), &context);
    Ok(())
}

/// MODIFY_CQ with this modifier takes a new buffer; else the field mask says what changes.
const RESIZE: u16 = 1;
const FIELD_PERIOD: u32 = 1;
const FIELD_COUNT: u32 = 2;
const FIELD_OVERRUN: u32 = 4;

fn modify_cq(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    let context = part(call.input, modify_cq_in::CQ_CONTEXT);
    call.note(format_args!("{number:#x}"));
    if call.modifier() == RESIZE {
        let (buffer, log_size, entry) = cq_buffer(context, part(call.input, modify_cq_in::PAS))?;
        let cq = call.device.objects.cqs.get(number).ok_or(Status::BadResource)?;
        let consumer = call.device.memory.word(cq.record).map_err(|_| Status::BadResourceState)?;
        // The new queue has to hold what waits in the old one, and the mark that ends that.
        if cq.waiting(consumer) >= 1 << log_size {
            return Err(Status::BadSizeOutstandingCqes);
        }
        // The last completion in the old buffer says where it ends.
        call.device.complete(call.env, number, &Completion::new(Kind::Resized, 0, 0, 0));
        let cq = call.device.objects.cqs.get_mut(number).ok_or(Status::BadResource)?;
        (cq.buffer, cq.log_size, cq.entry) = (buffer, log_size, entry);
        set(&mut cq.context, cqc::LOG_CQ_SIZE, u64::from(log_size));
        return Ok(());
    }
    let mask = call.get(modify_cq_in::MODIFY_FIELD_SELECT_RESIZE_FIELD_SELECT);
    let cq = call.device.objects.cqs.get_mut(number).ok_or(Status::BadResource)?;
    let (count, period) = moderation(context);
    if mask & FIELD_PERIOD != 0 {
        cq.moderation.1 = period;
    }
    if mask & FIELD_COUNT != 0 {
        cq.moderation.0 = count;
    }
    if mask & FIELD_OVERRUN != 0 {
        cq.ignore_overrun = flag(context, cqc::OI);
    }
    Ok(())
}
