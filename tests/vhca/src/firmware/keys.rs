//! Commands for memory keys.

use super::general::object;
use super::{Call, Command, Outcome, PLAIN, SHORT};
use crate::objects::mkey::Mkey;
use crate::prm::layouts::*;
use crate::prm::{Status, get, get32, part, put};

pub(super) const TABLE: &[Command] = &[
    Command::new(op::CREATE_MKEY, create_mkey_in::BYTES, PLAIN, create),
    Command::new(op::DESTROY_MKEY, PLAIN, SHORT, destroy),
    Command::new(op::QUERY_MKEY, PLAIN, PLAIN + mkc::BYTES, query),
    Command::new(op::CREATE_PSV, PLAIN, PLAIN, |_| Err(Status::NoResources)),
];

fn create(call: &mut Call<'_>) -> Outcome {
    let context = part(call.input, create_mkey_in::MEMORY_KEY_MKEY_ENTRY);
    let octowords = call.get(create_mkey_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE);
    let list = part(call.input, create_mkey_in::KLM_PAS_MTT);
    let len = usize::try_from(octowords).unwrap_or(usize::MAX).saturating_mul(16).min(list.len());
    let key = Mkey::new(context, list.get(..len).unwrap_or(&[])).ok_or(Status::BadParameter)?;
    let (start, size, pd) = (get(context, mkc::START_ADDR), get(context, mkc::LEN), get32(context, mkc::PD));
    let mode = get(context, mkc::ACCESS_MODE_1_0);
    call.note(format_args!("mode={mode} addr={start:#x} len={size:#x} pd={pd:#x} "));
    let number = call.device.objects.mkeys.insert(key);
    call.answer(create_mkey_out::MKEY_INDEX, number)
}

fn destroy(call: &mut Call<'_>) -> Outcome {
    let number = object(call);
    call.note(format_args!("{number:#x}"));
    call.device.objects.mkeys.remove(number).map(drop).ok_or(Status::BadResource)
}

fn query(call: &mut Call<'_>) -> Outcome {
    let key = call.device.objects.mkeys.get(object(call)).ok_or(Status::BadResource)?;
    put(call.output, query_mkey_out::MEMORY_KEY_MKEY_ENTRY.byte(), &key.context);
    Ok(())
}
