//! The queues on mappings that hold anything at all.

use core::mem::MaybeUninit;

use super::*;
use crate::family::{CompletionQueue as _, Head};
use crate::uapi::sys::twin::Kernel;

const FD: CmdFd = CmdFd::new(7, DriverId::RXE);

/// Maps a CQ whose memory is `data` and polls it through both interfaces. Nothing may panic or touch what is not mapped, and
/// every completion given on has a status that verbs.h knows.
///
/// # Panics
/// Where that does not hold.
pub fn fuzz_cq(data: &[u8]) {
    let Some((shape, content)) = data.split_first_chunk::<3>() else { return };
    let kernel = Kernel::scripted();
    let content = content.to_vec();
    let plausible = shape[0] & 1 == 0;
    let (log2, slots) = (u32::from(shape[1] % 4) + 6, 1_u32 << (shape[2] % 5 + 1));
    let len = wire::QUEUE_DATA + ((slots as usize) << log2);
    kernel.mmap(FD.fd, 0, move |memory| {
        for (to, from) in memory.iter_mut().zip(&content) {
            *to = *from;
        }
        if plausible {
            // A header that is believed, so that what follows it is read.
            for (offset, value) in [(wire::LOG2_ELEM_SIZE, log2), (wire::INDEX_MASK, slots - 1)] {
                if let Some(word) = memory.get_mut(offset..offset + 4) {
                    word.copy_from_slice(&value.to_ne_bytes());
                }
            }
        }
        Ok(())
    });
    let info = wire::MmInfo { offset: 0, size: len as u32, pad: 0 };
    let Ok(mut cq) = Cq::map(FD, info, Arc::default()) else { return };
    let mut out = [MaybeUninit::uninit(); 4];
    let known = |head: Head| assert!(head.status <= IBV_WC_GENERAL_ERR, "status {}", head.status);
    for round in 0..8 {
        if round % 2 == 0 {
            let polled = cq.poll(&mut out).unwrap_or(0);
            assert!(polled as usize <= out.len());
        } else if let Ok(head) = cq.start() {
            known(head);
            while let Ok(head) = cq.next() {
                known(head);
                if head.wr_id % 3 == 0 {
                    break;
                }
            }
            cq.end();
        }
    }
}
