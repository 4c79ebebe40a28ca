//! Commands for shared receive queues: pools and those of extended reliable connections.

use super::general::object;
use super::{Call, Command, Outcome, PLAIN, SHORT};
use crate::objects::Buffer;
use crate::objects::qp::Receive;
use crate::objects::srq::{Kind, Srq};
use crate::prm::layouts::*;
use crate::prm::{Status, get, get32, pages, part, put, set};

pub(super) const TABLE: &[Command] = &[
    Command::new(op::CREATE_RMP, create_rmp_in::BYTES, PLAIN, create_pool),
    Command::new(op::MODIFY_RMP, modify_rmp_in::BYTES, SHORT, modify_pool),
    Command::new(op::DESTROY_RMP, PLAIN, SHORT, |call| destroy(call, Kind::Pool)),
    Command::new(op::QUERY_RMP, PLAIN, query_rmp_out::BYTES, query_pool),
    Command::new(op::CREATE_XRC_SRQ, create_xrc_srq_in::BYTES, PLAIN, create_xrc),
    Command::new(op::DESTROY_XRC_SRQ, PLAIN, SHORT, |call| destroy(call, Kind::Xrc)),
    Command::new(op::QUERY_XRC_SRQ, PLAIN, PLAIN + xrc_srqc::BYTES, query_xrc),
    Command::new(op::ARM_XRC_SRQ, PLAIN, SHORT, arm_xrc),
    Command::new(op::ARM_RQ, PLAIN, SHORT, arm_any),
];

/// The largest work requests and the most of them.
const LOG_MAX_STRIDE: u64 = 12;
const LOG_MAX_SIZE: u64 = 15;

fn new(
    kind: Kind,
    (list, log_page, offset): (&[u8], u64, u64),
    (log_size, log_stride): (u64, u64),
    record: u64,
    context: &[u8],
) -> Result<Srq, Status> {
    let buffer = Buffer::new(pages(list), log_page, offset * (64 << log_page));
    let fits = (4..=LOG_MAX_STRIDE).contains(&log_stride)
        && log_size <= LOG_MAX_SIZE
        && buffer.holds(1 << (log_size + log_stride));
    if !fits {
        return Err(Status::BadParameter);
    }
    Ok(Srq {
        kind,
        buffer,
        log_size: u32::try_from(log_size).unwrap_or(0),
        log_stride: u32::try_from(log_stride).unwrap_or(4),
        pd: 0,
        record,
        cqn: 0,
        xrcd: 0,
        uidx: 0,
        head: 0,
        consumed: 0,
        limit: 0,
        failed: false,
        context: context.to_vec(),
    })
}

fn create_pool(call: &mut Call<'_>) -> Outcome {
    let context = part(call.input, create_rmp_in::CTX);
    let field = |field: crate::prm::Field| get(context, field.at(rmpc::WQ));
    let list = call.input.get(create_rmp_in::CTX.byte() + wq::PAS.at(rmpc::WQ).byte()..).unwrap_or(&[]);
    let memory = (list, field(wq::LOG_WQ_PG_SZ), field(wq::PAGE_OFFSET));
    let sizes = (field(wq::LOG_WQ_SZ), field(wq::LOG_WQ_STRIDE));
    let mut srq = new(Kind::Pool, memory, sizes, field(wq::DBR_ADDR), context)?;
    srq.pd = get32(context, wq::PD.at(rmpc::WQ));
    srq.limit = u16::try_from(field(wq::LWM)).unwrap_or(0);
    call.note(format_args!("log={} stride={} ", srq.log_size, srq.stride()));
    let number = call.device.objects.srqs.insert(srq);
    call.answer(create_rmp_out::RMPN, number)
}

fn create_xrc(call: &mut Call<'_>) -> Outcome {
    let context = part(call.input, create_xrc_srq_in::XRC_SRQ_CONTEXT_ENTRY);
    let field = |field| get(context, field);
    let list = part(call.input, create_xrc_srq_in::PAS);
    let memory = (list, field(xrc_srqc::LOG_PAGE_SIZE), field(xrc_srqc::PAGE_OFFSET));
    let sizes = (field(xrc_srqc::LOG_XRC_SRQ_SIZE), field(xrc_srqc::LOG_RQ_STRIDE) + 4);
    let record = field(xrc_srqc::DB_RECORD_ADDR_H) << 32 | field(xrc_srqc::DB_RECORD_ADDR_L) << 2;
    let mut srq = new(Kind::Xrc, memory, sizes, record, context)?;
    srq.pd = get32(context, xrc_srqc::PD);
    srq.cqn = get32(context, xrc_srqc::CQN);
    srq.xrcd = get32(context, xrc_srqc::XRCD);
    srq.uidx = get32(context, xrc_srqc::USER_INDEX);
    if call.device.objects.cqs.get(srq.cqn).is_none() {
        return Err(Status::BadResource);
    }
    call.note(format_args!("log={} stride={} cq={} ", srq.log_size, srq.stride(), srq.cqn));
    let number = call.device.objects.srqs.insert(srq);
    call.answer(create_xrc_srq_out::XRC_SRQN, number)
}

fn find<'a>(call: &'a mut Call<'_>, kind: Option<Kind>) -> Result<&'a mut Srq, Status> {
    let number = object(call);
    call.note(format_args!("{number:#x}"));
    let srq = call.device.objects.srqs.get_mut(number).ok_or(Status::BadResource)?;
    if kind.is_some_and(|kind| kind != srq.kind) { Err(Status::BadResource) } else { Ok(srq) }
}

fn destroy(call: &mut Call<'_>, kind: Kind) -> Outcome {
    let number = object(call);
    let record = find(call, Some(kind))?.record;
    call.note_record(record, &["posted"]);
    let objects = &mut call.device.objects;
    if objects.qps.iter().any(|(_, qp)| matches!(qp.receive, Receive::Shared(srqn) if srqn == number)) {
        return Err(Status::ResourceBusy);
    }
    objects.srqs.remove(number);
    Ok(())
}

fn modify_pool(call: &mut Call<'_>) -> Outcome {
    let limit = get(part(call.input, modify_rmp_in::CTX), wq::LWM.at(rmpc::WQ));
    if call.get(rmp_bitmask::LWM.at(modify_rmp_in::BITMASK)) != 0 {
        find(call, Some(Kind::Pool))?.limit = u16::try_from(limit).unwrap_or(0);
        call.device.srq_limits(call.env);
    }
    Ok(())
}

fn arm_xrc(call: &mut Call<'_>) -> Outcome {
    let limit = call.get(arm_xrc_srq_in::LWM);
    find(call, Some(Kind::Xrc))?.limit = u16::try_from(limit).unwrap_or(0);
    call.device.srq_limits(call.env);
    Ok(())
}

fn arm_any(call: &mut Call<'_>) -> Outcome {
    let limit = call.get(arm_rq_in::LWM);
    find(call, None)?.limit = u16::try_from(limit).unwrap_or(0);
    call.device.srq_limits(call.env);
    Ok(())
}

fn query_pool(call: &mut Call<'_>) -> Outcome {
    let srq = find(call, Some(Kind::Pool))?;
    let (mut context, limit) = (srq.context.clone(), u64::from(srq.limit));
    set(&mut context, wq::LWM.at(rmpc::WQ), limit);
    set(&mut context, rmpc::STATE, 1);
    put(call.output, query_rmp_out::RMP_CONTEXT.byte(), context.get(..rmpc::BYTES).unwrap_or(&[]));
    Ok(())
}

fn query_xrc(call: &mut Call<'_>) -> Outcome {
    let srq = find(call, Some(Kind::Xrc))?;
    let (mut context, limit) = (srq.context.clone(), u64::from(srq.limit));
    set(&mut context, xrc_srqc::LWM, limit);
    put(call.output, query_xrc_srq_out::XRC_SRQ_CONTEXT_ENTRY.byte(), &context);
    Ok(())
}
