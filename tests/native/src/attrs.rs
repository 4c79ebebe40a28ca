//! A command as the program hands it over: the attributes of an ioctl, or the two buffers of the write form.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::uapi::attr;
use crate::{Errno, user};

/// `struct ib_uverbs_ioctl_hdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    length: u16,
    pub(crate) object_id: u16,
    pub(crate) method_id: u16,
    num_attrs: u16,
    reserved1: u64,
    driver_id: u32,
    reserved2: u32,
}

/// `struct ib_uverbs_attr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Attr {
    attr_id: u16,
    len: u16,
    flags: u16,
    attr_data: u16,
    data: u64,
}

impl Header {
    pub(crate) fn driver_id(self) -> u32 {
        self.driver_id
    }
}

const VALID_OUTPUT: u16 = 2;
/// Bytes that travel in the attribute itself.
const INLINE: usize = 8;

/// The attributes of an ioctl.
#[derive(Debug)]
pub(crate) struct Attrs {
    pub(crate) header: Header,
    /// Where the header is in the program.
    address: u64,
    list: Vec<Attr>,
    udata_in: Vec<u8>,
}

impl Attrs {
    /// Reads an ioctl's argument.
    pub(crate) fn read(address: u64) -> Result<Attrs, Errno> {
        let mut bytes = [0; size_of::<Header>()];
        user::read(address, &mut bytes)?;
        let header: Header = zerocopy::transmute!(bytes);
        let count = usize::from(header.num_attrs);
        if usize::from(header.length) != size_of::<Header>() + count * size_of::<Attr>()
            || header.reserved1 != 0
            || header.reserved2 != 0
        {
            return Err(Errno(libc::EINVAL));
        }
        let bytes = user::read_vec(address + size_of::<Header>() as u64, count * size_of::<Attr>())?;
        let list = bytes
            .chunks_exact(size_of::<Attr>())
            .map(|chunk| Attr::read_from_bytes(chunk).map_err(|_| Errno(libc::EINVAL)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut attrs = Attrs { header, address, list, udata_in: Vec::new() };
        attrs.udata_in = attrs.bytes_or_none(attr::UHW_IN)?.unwrap_or_default();
        Ok(attrs)
    }

    fn find(&self, id: u16) -> Option<(usize, &Attr)> {
        self.list.iter().enumerate().find(|(_, attr)| attr.attr_id == id)
    }

    /// An attribute's bytes, if it was given.
    pub(crate) fn bytes_or_none(&self, id: u16) -> Result<Option<Vec<u8>>, Errno> {
        let Some((_, attr)) = self.find(id) else { return Ok(None) };
        let len = usize::from(attr.len);
        if len <= INLINE {
            Ok(attr.data.as_bytes().get(..len).map(<[u8]>::to_vec))
        } else {
            user::read_vec(attr.data, len).map(Some)
        }
    }

    /// An attribute's bytes.
    pub(crate) fn bytes(&self, id: u16) -> Result<Vec<u8>, Errno> {
        self.bytes_or_none(id)?.ok_or(Errno(libc::EINVAL))
    }

    /// A number, if it was given.
    pub(crate) fn number_or_none(&self, id: u16) -> Result<Option<u64>, Errno> {
        let Some(bytes) = self.bytes_or_none(id)? else { return Ok(None) };
        let mut value = [0; 8];
        value.get_mut(..bytes.len()).ok_or(Errno(libc::EINVAL))?.copy_from_slice(&bytes);
        Ok(Some(u64::from_le_bytes(value)))
    }

    /// A number.
    pub(crate) fn number(&self, id: u16) -> Result<u64, Errno> {
        self.number_or_none(id)?.ok_or(Errno(libc::EINVAL))
    }

    /// A number of 32 bits.
    pub(crate) fn number32(&self, id: u16) -> Result<u32, Errno> {
        u32::try_from(self.number(id)?).map_err(|_| Errno(libc::EINVAL))
    }

    /// An object's handle, if it was given.
    pub(crate) fn handle_or_none(&self, id: u16) -> Result<Option<u32>, Errno> {
        let handle = |attr: &Attr| u32::try_from(attr.data).map_err(|_| Errno(libc::EINVAL));
        self.find(id).map(|(_, attr)| handle(attr)).transpose()
    }

    /// An object's handle.
    pub(crate) fn handle(&self, id: u16) -> Result<u32, Errno> {
        self.handle_or_none(id)?.ok_or(Errno(libc::EINVAL))
    }

    /// A descriptor, if it was given.
    pub(crate) fn fd_or_none(&self, id: u16) -> Result<Option<i32>, Errno> {
        let fd = |attr: &Attr| i32::try_from(attr.data.cast_signed()).map_err(|_| Errno(libc::EINVAL));
        self.find(id).map(|(_, attr)| fd(attr)).transpose()
    }

    /// Fills an output attribute, if it was given: as much as there is room for, the rest of the room with zeroes.
    pub(crate) fn output(&mut self, id: u16, from: &[u8]) -> Result<(), Errno> {
        let Some((index, attr)) = self.find(id) else { return Ok(()) };
        let room = usize::from(attr.len);
        let mut bytes = from.to_vec();
        bytes.resize(room, 0);
        user::write(attr.data, &bytes)?;
        self.flag(index)
    }

    /// How much room an output attribute has.
    pub(crate) fn room(&self, id: u16) -> usize {
        self.find(id).map_or(0, |(_, attr)| usize::from(attr.len))
    }

    /// Answers with a new object's handle, or a descriptor, in the attribute itself.
    pub(crate) fn answer(&mut self, id: u16, value: u64) -> Result<(), Errno> {
        let (index, _) = self.find(id).ok_or(Errno(libc::EINVAL))?;
        let place = self.place(index) + std::mem::offset_of!(Attr, data) as u64;
        user::write(place, &value.to_ne_bytes())
    }

    fn place(&self, index: usize) -> u64 {
        self.address + (size_of::<Header>() + index * size_of::<Attr>()) as u64
    }

    fn flag(&mut self, index: usize) -> Result<(), Errno> {
        let place = self.place(index) + std::mem::offset_of!(Attr, flags) as u64;
        let attr = self.list.get_mut(index).ok_or(Errno(libc::EINVAL))?;
        attr.flags |= VALID_OUTPUT;
        user::write(place, &attr.flags.to_ne_bytes())
    }

    /// The driver data given.
    pub(crate) fn udata_in(&self) -> &[u8] {
        &self.udata_in
    }

    /// Answers with driver data.
    pub(crate) fn udata_out(&mut self, from: &[u8]) -> Result<(), Errno> {
        self.output(attr::UHW_OUT, from)
    }
}

/// What a write command got and what it answers; the ioctl that carries it, or the write itself, has the rest.
#[derive(Debug, Default)]
pub(crate) struct Write {
    pub(crate) input: Vec<u8>,
    pub(crate) udata_in: Vec<u8>,
    /// Room for driver data in the answer.
    pub(crate) udata_room: usize,
    pub(crate) output: Vec<u8>,
    pub(crate) udata_out: Vec<u8>,
}

impl Write {
    /// The command's struct; a shorter one of an older header reads zeroes where it ends.
    pub(crate) fn input<T: FromBytes>(&self) -> T {
        read(&self.input)
    }

    /// Answers with a struct.
    pub(crate) fn answer<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.output = value.as_bytes().to_vec();
    }

    /// Answers with driver data.
    pub(crate) fn answer_udata<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.udata_out = value.as_bytes().to_vec();
    }
}

/// A command that came by `write(2)`.
#[derive(Debug)]
pub(crate) struct WriteCommand {
    pub(crate) number: u32,
    input: Vec<u8>,
    udata_in: Vec<u8>,
    /// Where the answer goes, and the room there for each part.
    response: u64,
    room: usize,
    udata_room: usize,
}

/// Bytes of a command's own struct and of its answer's, where the form does not say.
fn lengths(command: u32) -> Option<(usize, usize)> {
    use crate::uapi::write::*;
    Some(match command {
        GET_CONTEXT => (8, 8),
        QUERY_DEVICE => (8, 176),
        QUERY_PORT => (16, 40),
        ALLOC_PD => (8, 4),
        DEALLOC_PD | DESTROY_AH | DEREG_MR | DEALLOC_MW | CLOSE_XRCD => (4, 0),
        CREATE_AH => (56, 4),
        REG_MR => (40, 12),
        REREG_MR => (48, 8),
        ALLOC_MW => (16, 8),
        CREATE_COMP_CHANNEL => (8, 4),
        RESIZE_CQ => (16, 8),
        DESTROY_CQ => (16, 8),
        QUERY_QP => (16, 128),
        MODIFY_QP => (112, 0),
        DESTROY_QP | DESTROY_SRQ => (16, 4),
        ATTACH_MCAST | DETACH_MCAST => (24, 0),
        MODIFY_SRQ => (16, 0),
        QUERY_SRQ => (16, 16),
        OPEN_XRCD => (16, 4),
        OPEN_QP => (32, 32),
        _ => return None,
    })
}

impl WriteCommand {
    /// Reads `struct ib_uverbs_cmd_hdr` and what follows it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<WriteCommand, Errno> {
        use crate::uapi::write::EXTENDED;
        const HEADER: usize = 8;
        const EXTENDED_HEADER: usize = 24;
        let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let half = |at: usize| bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        let long = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        let short = Errno(libc::EINVAL);
        let number = word(0).ok_or(short)?;
        let (in_words, out_words) = (usize::from(half(4).ok_or(short)?), usize::from(half(6).ok_or(short)?));
        let part = |from: usize, len: usize| bytes.get(from..from + len).map(<[u8]>::to_vec).ok_or(short);
        if number & EXTENDED != 0 {
            let (provider_in, provider_out) =
                (usize::from(half(16).ok_or(short)?), usize::from(half(18).ok_or(short)?));
            if bytes.len() != EXTENDED_HEADER + (in_words + provider_in) * 8 {
                return Err(short);
            }
            return Ok(WriteCommand {
                number,
                input: part(EXTENDED_HEADER, in_words * 8)?,
                udata_in: part(EXTENDED_HEADER + in_words * 8, provider_in * 8)?,
                response: long(8).ok_or(short)?,
                room: out_words * 8,
                udata_room: provider_out * 8,
            });
        }
        let (len, answer) = lengths(number).ok_or(Errno(libc::EOPNOTSUPP))?;
        if bytes.len() != in_words * 4 || bytes.len() < HEADER + len || out_words * 4 < answer {
            return Err(short);
        }
        Ok(WriteCommand {
            number,
            input: part(HEADER, len)?,
            udata_in: part(HEADER + len, bytes.len() - HEADER - len)?,
            response: if answer > 0 { long(HEADER).ok_or(short)? } else { 0 },
            room: answer,
            udata_room: out_words * 4 - answer,
        })
    }

    /// The command, to be executed.
    pub(crate) fn call(&self) -> Write {
        Write {
            input: self.input.clone(),
            udata_in: self.udata_in.clone(),
            udata_room: self.udata_room,
            ..Write::default()
        }
    }

    /// Room for the answer.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Puts the answer where it goes.
    pub(crate) fn answer(&self, call: &Write) -> Result<(), Errno> {
        let core = call.output.get(..call.output.len().min(self.room)).unwrap_or(&[]);
        let udata = call.udata_out.get(..call.udata_out.len().min(self.udata_room)).unwrap_or(&[]);
        if !core.is_empty() {
            user::write(self.response, core)?;
        }
        if !udata.is_empty() {
            user::write(self.response + self.room as u64, udata)?;
        }
        Ok(())
    }
}

/// A struct from bytes that may be shorter or longer.
pub(crate) fn read<T: FromBytes>(bytes: &[u8]) -> T {
    let mut whole = vec![0; size_of::<T>()];
    for (to, from) in whole.iter_mut().zip(bytes) {
        *to = *from;
    }
    T::read_from_bytes(&whole).unwrap_or_else(|_| T::new_zeroed())
}
