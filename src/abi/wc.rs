//! Work completions, written to the application's array.
#![allow(unsafe_code, reason = "writes a C struct by pairs of fields")]

use core::mem::MaybeUninit;

use super::public::ibv_wc;

/// The two fields of 32 bits that a word of a struct is made of.
#[inline(always)]
const fn pair(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

/// What a completion without an error says; all else of it is 0.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "named as in verbs.h")]
pub struct Success {
    pub wr_id: u64,
    pub opcode: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: u32,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

impl Success {
    /// Writes it to `to`: in 6 words, each put together in a register. Field by field it would be twice as many stores, and put
    /// together on the stack first, it would be read back before the stores are done (15 cycles).
    #[inline(always)]
    pub fn put(self, to: &mut MaybeUninit<ibv_wc>) {
        let last = u64::from_ne_bytes({
            let ([p0, p1], [s0, s1]) = (self.pkey_index.to_ne_bytes(), self.slid.to_ne_bytes());
            [p0, p1, s0, s1, self.sl, self.dlid_path_bits, 0, 0]
        });
        let words = [
            self.wr_id,
            pair(0, self.opcode),
            pair(0, self.byte_len),
            pair(self.imm_data, self.qp_num),
            pair(self.src_qp, self.wc_flags),
            last,
        ];
        const { assert!(size_of::<[u64; 6]>() == size_of::<ibv_wc>() && align_of::<ibv_wc>() == 8) };
        // SAFETY: as large and aligned as the words; the bytes behind the last field are padding.
        unsafe { to.as_mut_ptr().cast::<[u64; 6]>().write(words) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::public::{IBV_WC_RECV, IBV_WC_SUCCESS};

    #[test]
    fn each_field_is_where_the_header_has_it() {
        let mut to = MaybeUninit::uninit();
        let wc = Success {
            wr_id: 0x0102_0304_0506_0708,
            opcode: IBV_WC_RECV,
            byte_len: 0x1122_3344,
            imm_data: 0x2233_4455,
            qp_num: 0x33_4455,
            src_qp: 0x44_5566,
            wc_flags: 3,
            pkey_index: 0x1234,
            slid: 0x5678,
            sl: 9,
            dlid_path_bits: 0x7a,
        };
        wc.put(&mut to);
        // SAFETY: all of it is written.
        let got = unsafe { to.assume_init() };
        assert_eq!((got.wr_id, got.status, got.opcode), (wc.wr_id, IBV_WC_SUCCESS, wc.opcode));
        assert_eq!((got.vendor_err, got.byte_len, got.imm_data), (0, wc.byte_len, wc.imm_data));
        assert_eq!((got.qp_num, got.src_qp, got.wc_flags), (wc.qp_num, wc.src_qp, wc.wc_flags));
        assert_eq!((got.pkey_index, got.slid), (wc.pkey_index, wc.slid));
        assert_eq!((got.sl, got.dlid_path_bits), (wc.sl, wc.dlid_path_bits));
    }
}
