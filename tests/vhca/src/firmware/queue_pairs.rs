//! Commands for queue pairs, bare send queues and multicast groups.

use super::general::object;
use super::{Call, Command, Outcome, PLAIN, SHORT};
use crate::objects::Buffer;
use crate::objects::qp::{Qp, Receive, SendQueue, Special, State};
use crate::objects::srq::Kind;
use crate::prm::layouts::*;
use crate::prm::{Status, flag, get, get32, pages, part, put, set};
use crate::wqe::Service;

pub(super) const TABLE: &[Command] = &[
    Command::new(op::CREATE_QP, create_qp_in::BYTES, PLAIN, create),
    Command::new(op::DESTROY_QP, PLAIN, SHORT, destroy),
    Command::new(op::QUERY_QP, PLAIN, query_qp_out::QPC.byte() + qpc::BYTES, query),
    Command::new(op::RST2INIT_QP, MODIFY, SHORT, |call| modify(call, &[State::Reset], State::Init)),
    Command::new(op::INIT2INIT_QP, MODIFY, SHORT, |call| modify(call, &[State::Init], State::Init)),
    Command::new(op::INIT2RTR_QP, MODIFY, SHORT, |call| modify(call, &[State::Init], State::ReadyToReceive)),
    Command::new(op::RTR2RTS_QP, MODIFY, SHORT, |call| {
        modify(call, &[State::ReadyToReceive], State::ReadyToSend)
    }),
    Command::new(op::RTS2RTS_QP, MODIFY, SHORT, |call| {
        modify(call, &[State::ReadyToSend], State::ReadyToSend)
    }),
    Command::new(op::SQERR2RTS_QP, MODIFY, SHORT, |call| {
        modify(call, &[State::SendError], State::ReadyToSend)
    }),
    Command::new(op::SQD_RTS_QP, MODIFY, SHORT, |call| modify(call, &[State::Drained], State::ReadyToSend)),
    Command::new(op::TO_ERR_QP, PLAIN, SHORT, to_error),
    Command::new(op::TO_RST_QP, PLAIN, SHORT, to_reset),
    Command::new(op::CREATE_SQ, create_sq_in::BYTES, PLAIN, create_sq),
    Command::new(op::MODIFY_SQ, modify_sq_in::BYTES, SHORT, modify_sq),
    Command::new(op::DESTROY_SQ, PLAIN, SHORT, destroy),
    Command::new(op::ATTACH_TO_MCG, attach_to_mcg_in::BYTES, SHORT, attach),
    Command::new(op::DETACH_FROM_MCG, detach_from_mcg_in::BYTES, SHORT, detach),
];

const MODIFY: usize = rst2init_qp_in::BYTES;

/// Codes of a service in the context.
fn service(code: u64) -> Option<(Service, Option<Special>)> {
    Some(match code {
        0x0 => (Service::Rc, None),
        0x1 => (Service::Uc, None),
        0x2 => (Service::Ud, None),
        0x3 => (Service::XrcInitiator, None),
        0x7 => (Service::Ud, Some(Special::SubnetManagement)),
        0x8 => (Service::Ud, Some(Special::GeneralServices)),
        0xc => (Service::Registration, None),
        _ => return None,
    })
}

/// Codes of where receives come from.
const RECEIVE_OWN: u64 = 0;
const RECEIVE_SHARED: u64 = 1;

/// The receive side that a context asks for, and its length in bytes at the start of the queue pair's buffer.
fn receive_side(call: &Call<'_>, context: &[u8], buffer: &Buffer) -> Result<(Receive, u64), Status> {
    match get(context, qpc::RQ_TYPE) {
        RECEIVE_OWN => {
            let (log_size, log_stride) =
                (get32(context, qpc::LOG_RQ_SIZE), get32(context, qpc::LOG_RQ_STRIDE) + 4);
            let receive = Receive::Own { buffer: buffer.clone(), log_size, log_stride, consumer: 0 };
            Ok((receive, 1 << (log_size + log_stride)))
        }
        RECEIVE_SHARED => {
            let srqn = get32(context, qpc::SRQN_RMPN_XRQN);
            let srq = call.device.objects.srqs.get(srqn).ok_or(Status::BadResource)?;
            // The drivers name one for queue pairs that receive nothing, too.
            let none = srq.kind == Kind::Xrc;
            Ok((if none { Receive::None } else { Receive::Shared(srqn) }, 0))
        }
        _ => Ok((Receive::None, 0)),
    }
}

fn create(call: &mut Call<'_>) -> Outcome {
    let context = part(call.input, create_qp_in::QPC);
    let (mut service, special) = service(get(context, qpc::ST)).ok_or(Status::BadParameter)?;
    let (uar, pd) = (get32(context, qpc::UAR_PAGE), get32(context, qpc::PD));
    let objects = &call.device.objects;
    let no_send = flag(context, qpc::NO_SQ);
    // The target half of an extended connection is told by its missing send queue.
    if service == Service::XrcInitiator && no_send {
        service = Service::XrcTarget;
    }
    // The driver's own queue for registrations belongs to no domain.
    if service != Service::Registration && !objects.pds.contains(pd) {
        return Err(Status::BadResource);
    }
    let list = part(call.input, create_qp_in::PAS);
    let log_page = get(context, qpc::LOG_PAGE_SIZE);
    let buffer = Buffer::new(pages(list), log_page, get(context, qpc::PAGE_OFFSET) * (64 << log_page));
    let (receive, receive_len) = receive_side(call, context, &buffer)?;
    let mut qp = Qp::new(service, context.to_vec());
    if !matches!(receive, Receive::None) && objects.cqs.get(qp.cached.receive_cqn).is_none() {
        return Err(Status::BadResource);
    }
    let log_blocks = get32(context, qpc::LOG_SQ_SIZE);
    if !no_send {
        let cqn = get32(context, qpc::CQN_SND);
        if objects.cqs.get(cqn).is_none() || !objects.uars.contains(uar) {
            return Err(Status::BadResource);
        }
        if !buffer.holds(receive_len + (64 << log_blocks)) {
            return Err(Status::BadParameter);
        }
        qp.send = Some(SendQueue::new(buffer.skip(receive_len), log_blocks, cqn));
    } else if receive_len > 0 && !buffer.holds(receive_len) {
        return Err(Status::BadParameter);
    }
    (qp.receive, qp.special, qp.pages) = (receive, special, list.to_vec());
    let number = call.device.objects.qps.insert(qp);
    call.note(format_args!("service={service:?} uar={uar} pd={pd:#x} "));
    if let Some(qp) = number.and_then(|number| call.device.objects.qps.get(number)) {
        let blocks = qp.send.as_ref().map_or(0, |queue| 1_u64 << queue.log_blocks);
        let (receives, stride) = match qp.receive {
            Receive::Own { log_size, log_stride, .. } => (1_u64 << log_size, 1_u64 << log_stride),
            _ => (0, 0),
        };
        let (response, receive) = (qp.cached.inline_response, qp.cached.inline_receive);
        call.note(format_args!("blocks={blocks} receives={receives} stride={stride} "));
        call.note(format_args!("inline_response={response} inline_receive={receive} "));
    }
    call.answer(create_qp_out::QPN, number)
}

fn note_records(call: &mut Call<'_>, number: u32) {
    if let Some(record) = call.device.objects.qps.get(number).map(|qp| qp.cached.record) {
        call.note_record(record, &["received", "sent"]);
    }
}

fn destroy(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    call.note(format_args!("{number:#x}"));
    note_records(call, number);
    let objects = &mut call.device.objects;
    objects.groups.values_mut().for_each(|members| {
        members.remove(&number);
    });
    call.device.ready.remove(&number);
    objects.qps.remove(number).map(drop).ok_or(Status::BadResource)
}

fn query(call: &mut Call<'_>) -> Outcome {
    let qp = call.device.objects.qps.get(object(call)).ok_or(Status::BadResource)?;
    let mut context = qp.context.clone();
    if let Some(queue) = &qp.send {
        set(&mut context, qpc::HW_SQ_WQEBB_COUNTER, u64::from(queue.consumer));
        set(&mut context, qpc::SW_SQ_WQEBB_COUNTER, u64::from(queue.producer));
    }
    if let Receive::Own { consumer, .. } = qp.receive {
        set(&mut context, qpc::HW_RQ_COUNTER, u64::from(consumer));
    }
    put(call.output, query_qp_out::QPC.byte(), &context);
    Ok(())
}

fn modify(call: &mut Call<'_>, from: &[State], to: State) -> Outcome {
    let number = object(call);
    let mask = get(call.input, rst2init_qp_in::OPT_PARAM_MASK);
    let context = part(call.input, rst2init_qp_in::QPC);
    call.note(format_args!("{number:#x} mask={mask:#x}"));
    let qp = call.device.objects.qps.get_mut(number).ok_or(Status::BadResource)?;
    if !from.contains(&qp.state) {
        return Err(Status::BadQpState);
    }
    qp.transition(to, mask, context);
    call.device.ready.insert(number);
    Ok(())
}

fn to_error(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    call.note(format_args!("{number:#x}"));
    let qp = call.device.objects.qps.get(number).ok_or(Status::BadResource)?;
    if qp.state == State::Reset {
        return Err(Status::BadQpState);
    }
    call.device.fail_qp(call.env, number, None);
    Ok(())
}

fn to_reset(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    call.note(format_args!("{number:#x}"));
    note_records(call, number);
    let qp = call.device.objects.qps.get_mut(number).ok_or(Status::BadResource)?;
    qp.set_state(State::Reset);
    call.device.ready.remove(&number);
    Ok(())
}

fn create_sq(call: &mut Call<'_>) -> Outcome {
    let context = part(call.input, create_sq_in::CTX);
    let field = |field: crate::prm::Field| get(context, field.at(sqc::WQ));
    let list = call.input.get(create_sq_in::CTX.byte() + wq::PAS.at(sqc::WQ).byte()..).unwrap_or(&[]);
    let log_page = field(wq::LOG_WQ_PG_SZ);
    let buffer = Buffer::new(pages(list), log_page, field(wq::PAGE_OFFSET) * (64 << log_page));
    let (log_blocks, cqn, uar) = (field(wq::LOG_WQ_SZ), get32(context, sqc::CQN), field(wq::UAR_PAGE));
    let objects = &mut call.device.objects;
    if objects.cqs.get(cqn).is_none() {
        return Err(Status::BadResource);
    }
    if log_blocks > 15 || !buffer.holds(64 << log_blocks) {
        return Err(Status::BadParameter);
    }
    let mut as_qp = vec![0; qpc::BYTES];
    let fields = [
        (qpc::PD, field(wq::PD)),
        (qpc::UAR_PAGE, uar),
        (qpc::USER_INDEX, get(context, sqc::USER_INDEX)),
        (qpc::DBR_ADDR, field(wq::DBR_ADDR)),
    ];
    fields.iter().for_each(|(field, value)| set(&mut as_qp, *field, *value));
    let mut qp = Qp::new(Service::SendQueue, as_qp);
    qp.send = Some(SendQueue::new(buffer, u32::try_from(log_blocks).unwrap_or(0), cqn));
    let number = objects.qps.insert(qp);
    call.answer(create_sq_out::SQN, number)
}

fn modify_sq(call: &mut Call<'_>) -> Outcome {
    const RESET: u64 = 0;
    const READY: u64 = 1;
    let number = object(call);
    let state = get(part(call.input, modify_sq_in::CTX), sqc::STATE);
    let qp = call.device.objects.qps.get_mut(number).ok_or(Status::BadResource)?;
    qp.set_state(match state {
        RESET => State::Reset,
        READY => State::ReadyToSend,
        _ => State::Error,
    });
    call.device.ready.insert(number);
    call.note(format_args!("{number:#x} state={state}"));
    Ok(())
}

fn group(call: &Call<'_>) -> ([u8; 16], u32) {
    let gid = part(call.input, attach_to_mcg_in::MULTICAST_GID);
    (gid.try_into().unwrap_or_default(), object(call))
}

fn attach(call: &mut Call<'_>) -> Outcome {
    let (gid, number) = group(call);
    let objects = &mut call.device.objects;
    if objects.qps.get(number).is_none_or(|qp| qp.service != Service::Ud) {
        return Err(Status::BadResource);
    }
    objects.groups.entry(gid).or_default().insert(number);
    Ok(())
}

fn detach(call: &mut Call<'_>) -> Outcome {
    let (gid, number) = group(call);
    let members = call.device.objects.groups.get_mut(&gid).ok_or(Status::BadIndex)?;
    if members.remove(&number) { Ok(()) } else { Err(Status::BadResource) }
}
