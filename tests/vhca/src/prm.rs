//! The device's programming interface as data: bit fields of commands and contexts, opcodes and statuses.
//!
//! Everything is big-endian; bit 0 is the most significant bit of byte 0. Reads beyond the end give zero and writes
//! there do nothing, so a short command cannot make the reader fail: lengths are checked once, where a command comes in.

/// A field of a structure: where it starts and how wide it is, in bits (width 0: it goes on to the end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    bit: usize,
    bits: usize,
}

impl Field {
    /// A field that starts at `bit`.
    #[must_use]
    pub const fn new(bit: usize, bits: usize) -> Field {
        Field { bit, bits }
    }

    /// The field, seen from the structure that `base` is a part of.
    #[must_use]
    pub const fn at(self, base: Field) -> Field {
        Field { bit: base.bit + self.bit, bits: self.bits }
    }

    /// The byte at which the field starts.
    #[must_use]
    pub const fn byte(self) -> usize {
        self.bit / 8
    }
}

/// The value of `field` in `bytes`.
#[must_use]
pub fn get(bytes: &[u8], field: Field) -> u64 {
    let first = field.byte();
    let last = (field.bit + field.bits).div_ceil(8);
    let mut value = 0u128;
    for at in first..last {
        value = value << 8 | u128::from(bytes.get(at).copied().unwrap_or(0));
    }
    value >>= last * 8 - field.bit - field.bits;
    let mask = (1u128 << field.bits) - 1;
    u64::try_from(value & mask).unwrap_or(u64::MAX)
}

/// The value of a field of at most 32 bits.
#[must_use]
pub fn get32(bytes: &[u8], field: Field) -> u32 {
    u32::try_from(get(bytes, field)).unwrap_or(u32::MAX)
}

/// Is the one-bit `field` set?
#[must_use]
pub fn flag(bytes: &[u8], field: Field) -> bool {
    get(bytes, field) != 0
}

/// Puts `value` into `field`.
pub fn set(bytes: &mut [u8], field: Field, value: u64) {
    for k in 0..field.bits {
        let bit = field.bit + k;
        if let Some(byte) = bytes.get_mut(bit / 8) {
            let mask = 0x80 >> (bit % 8);
            if value >> (field.bits - 1 - k) & 1 == 1 { *byte |= mask } else { *byte &= !mask }
        }
    }
}

/// The bytes from the start of `field` to its end, or to the end of `bytes`.
#[must_use]
pub fn part(bytes: &[u8], field: Field) -> &[u8] {
    let rest = bytes.get(field.byte()..).unwrap_or(&[]);
    if field.bits == 0 { rest } else { rest.get(..field.bits / 8).unwrap_or(rest) }
}

/// As [`part`], to write to.
pub fn part_mut(bytes: &mut [u8], field: Field) -> &mut [u8] {
    let end = if field.bits == 0 { bytes.len() } else { bytes.len().min(field.byte() + field.bits / 8) };
    bytes.get_mut(field.byte()..end).unwrap_or(&mut [])
}

/// Copies one field from structure to structure of the same type.
pub fn copy(from: &[u8], to: &mut [u8], field: Field) {
    let mut at = 0;
    while at < field.bits {
        let piece = Field::new(field.bit + at, (field.bits - at).min(64));
        set(to, piece, get(from, piece));
        at += piece.bits;
    }
}

macro_rules! big_endian {
    ($($(#[$doc:meta])* $name:ident: $int:ty),*) => { $(
        $(#[$doc])*
        #[must_use]
        pub fn $name(bytes: &[u8], at: usize) -> $int {
            bytes.get(at..at + size_of::<$int>()).and_then(|b| b.try_into().ok()).map_or(0, <$int>::from_be_bytes)
        }
    )* };
}

big_endian! {
    /// 16 bits at byte `at`.
    be16: u16,
    /// 32 bits at byte `at`.
    be32: u32,
    /// 64 bits at byte `at`.
    be64: u64
}

/// Puts `what` at byte `at`, if it fits.
pub fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + what.len()) {
        to.copy_from_slice(what);
    }
}

/// Physical addresses of a list of pages (the low 12 bits are flags).
#[must_use]
pub fn pages(list: &[u8]) -> Vec<u64> {
    list.chunks_exact(8).map(|entry| be64(entry, 0) & !0xfff).collect()
}

/// The status of a command, as its output's first byte says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It failed inside.
    InternalError = 0x01,
    /// There is no such command.
    BadOpcode = 0x02,
    /// A parameter is wrong.
    BadParameter = 0x03,
    /// Not in this state of the device.
    BadSystemState = 0x04,
    /// There is no such object, or not of that kind.
    BadResource = 0x05,
    /// The object is in use.
    ResourceBusy = 0x06,
    /// More than the device has.
    ExceedsLimit = 0x08,
    /// Not in this state of the object.
    BadResourceState = 0x09,
    /// There is no such entry.
    BadIndex = 0x0a,
    /// None is left.
    NoResources = 0x0f,
    /// Not in this state of the queue pair.
    BadQpState = 0x10,
    /// More completions wait than the new queue holds.
    BadSizeOutstandingCqes = 0x40,
    /// The command is too short.
    BadInputLength = 0x50,
    /// There is no room for the answer.
    BadOutputLength = 0x51,
}

/// The name of a command.
#[must_use]
pub fn opcode_name(opcode: u16) -> &'static str {
    layouts::OPCODES.iter().find(|(value, _)| *value == opcode).map_or("UNKNOWN", |(_, name)| name)
}

#[allow(
    missing_docs,
    reason = "written out whole by build.rs, under the names that the layouts have everywhere else"
)]
pub mod layouts {
    use super::Field;
    include!(concat!(env!("OUT_DIR"), "/layouts.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_most_significant_bit() {
        let mut bytes = [0u8; 16];
        set(&mut bytes, Field::new(4, 12), 0xabc);
        assert_eq!(bytes[..3], [0x0a, 0xbc, 0]);
        assert_eq!(get(&bytes, Field::new(4, 12)), 0xabc);
        set(&mut bytes, Field::new(13, 64), u64::MAX);
        assert_eq!(get(&bytes, Field::new(13, 64)), u64::MAX);
        assert_eq!(get(&bytes, Field::new(77, 3)), 0);
        assert_eq!(get(&bytes, Field::new(4, 9)), 0xabc >> 3);
    }

    #[test]
    fn beyond_the_end_there_is_nothing() {
        let mut bytes = [0xff; 4];
        assert_eq!(get(&bytes, Field::new(24, 16)), 0xff00);
        set(&mut bytes, Field::new(40, 8), 1);
        assert!(part(&bytes, Field::new(40, 8)).is_empty());
        assert_eq!((be64(&bytes, 0), be32(&bytes, 1), be16(&bytes, 2)), (0, 0, 0xffff));
    }
}
