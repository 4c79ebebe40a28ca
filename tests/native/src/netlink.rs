//! The RDMA netlink socket, by which libibverbs asks for devices: the program holds one end of a pair of datagram sockets,
//! and what it asks is answered to the other at once.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::driver::{self, Listed};
use crate::{Errno, next, sysfs};

/// `RDMA_NL_NLDEV` and its commands.
const NLDEV: u16 = 5;
const GET: u16 = 1;
const SYS_GET: u16 = 6;
const GET_CHARDEV: u16 = 15;

/// Attributes (`RDMA_NLDEV_ATTR_*`).
const DEV_INDEX: u16 = 1;
const DEV_NAME: u16 = 2;
const PORT_INDEX: u16 = 3;
const FW_VERSION: u16 = 5;
const NODE_GUID: u16 = 6;
const SYS_IMAGE_GUID: u16 = 7;
const DEV_NODE_TYPE: u16 = 14;
const NETNS_MODE: u16 = 66;
const DEV_PROTOCOL: u16 = 67;
const CHARDEV_TYPE: u16 = 69;
const CHARDEV_NAME: u16 = 70;
const CHARDEV_ABI: u16 = 71;
const CHARDEV: u16 = 72;
const UVERBS_DRIVER_ID: u16 = 73;
const COPY_ON_FORK: u16 = 93;

/// `RDMA_DRIVER_MLX5`, and the ABI of its commands.
const MLX5: u32 = 1;
const ABI: u64 = 1;

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Flags of a request and of an answer.
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const MULTI: u16 = 2;

/// A socket.
#[derive(Debug)]
pub(crate) struct Netlink {
    ours: OwnedFd,
}

/// A request's header.
#[derive(Clone, Copy, Debug)]
struct Request<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    attributes: &'a [u8],
    header: &'a [u8],
}

impl Netlink {
    /// A new socket, and the program's descriptor of it.
    pub(crate) fn new(flags: i32) -> Result<(Arc<Netlink>, OwnedFd), Errno> {
        let (theirs, ours) = next::socket_pair_with(flags)?;
        Ok((Arc::new(Netlink { ours }), theirs))
    }

    /// Answers what the program sent.
    pub(crate) fn send(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while let Some((request, len)) = parse(bytes) {
            let answer = answer(&request);
            // A program that does not read its answers loses them.
            let _ = next::send_bytes(self.ours.as_raw_fd(), &answer);
            bytes = bytes.get(len..).unwrap_or(&[]);
        }
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Option<(Request<'_>, usize)> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let len = usize::try_from(word(0)?).ok()?;
    let request = Request {
        kind: half(4)?,
        flags: half(6)?,
        sequence: word(8)?,
        attributes: bytes.get(HEADER..len)?,
        header: bytes.get(..HEADER)?,
    };
    Some((request, len.next_multiple_of(4)))
}

impl Request<'_> {
    /// An attribute's bytes.
    fn find(&self, wanted: u16) -> Option<&[u8]> {
        let mut rest = self.attributes;
        loop {
            let (head, _) = rest.split_first_chunk::<4>()?;
            let [a, b, c, d] = *head;
            let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
            let value = rest.get(4..len)?;
            if kind & 0x3fff == wanted {
                return Some(value);
            }
            rest = rest.get(len.next_multiple_of(4)..)?;
        }
    }

    fn message(&self, kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let len = HEADER + payload.len();
        let mut message = (len as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(next::process().cast_unsigned().to_ne_bytes());
        message.extend(payload);
        message.resize(len.next_multiple_of(4), 0);
        message
    }

    fn error(&self, errno: i32) -> Vec<u8> {
        self.message(ERROR, 0, &[&(-errno).to_ne_bytes(), self.header].concat())
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = (len as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn answer(request: &Request<'_>) -> Vec<u8> {
    let devices = driver::list();
    let index = request.find(DEV_INDEX).and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes);
    let device = devices.iter().find(|device| Some(device.index) == index);
    let mut answer = match request.kind {
        kind if kind == NLDEV << 10 | GET && request.flags & DUMP != 0 => {
            let all = devices.iter().map(|device| request.message(kind, MULTI, &describe(device)));
            let end = request.message(DONE, MULTI, &[0; 4]);
            return all.flatten().chain(end).collect();
        }
        kind if kind == NLDEV << 10 | GET => match device {
            Some(device) => request.message(kind, 0, &describe(device)),
            None => return request.error(libc::EINVAL),
        },
        kind if kind == NLDEV << 10 | GET_CHARDEV => {
            let uverbs = request.find(CHARDEV_TYPE).is_some_and(|name| name.starts_with(b"uverbs\0"));
            match device {
                Some(device) if uverbs => request.message(kind, 0, &node(device)),
                _ => return request.error(libc::EINVAL),
            }
        }
        kind if kind == NLDEV << 10 | SYS_GET => {
            let modes = [attribute(NETNS_MODE, &[1]), attribute(COPY_ON_FORK, &[1])].concat();
            request.message(kind, 0, &modes)
        }
        _ => return request.error(libc::EOPNOTSUPP),
    };
    if request.flags & ACK != 0 {
        answer.extend(request.error(0));
    }
    answer
}

fn describe(device: &Listed) -> Vec<u8> {
    const CHANNEL_ADAPTER: u8 = 1;
    [
        attribute(DEV_INDEX, &device.index.to_ne_bytes()),
        text(DEV_NAME, &device.name),
        attribute(PORT_INDEX, &1u32.to_ne_bytes()),
        text(FW_VERSION, driver::FIRMWARE),
        attribute(NODE_GUID, &device.guid.to_ne_bytes()),
        attribute(SYS_IMAGE_GUID, &device.guid.to_ne_bytes()),
        attribute(DEV_NODE_TYPE, &[CHANNEL_ADAPTER]),
        text(DEV_PROTOCOL, "ib"),
    ]
    .concat()
}

fn node(device: &Listed) -> Vec<u8> {
    let minor = u64::from(sysfs::FIRST_MINOR) + device.number as u64;
    // As the kernel encodes a device's number.
    let number = minor & 0xff | u64::from(sysfs::MAJOR) << 8 | (minor & !0xff) << 12;
    [
        text(CHARDEV_TYPE, "uverbs"),
        attribute(CHARDEV, &number.to_ne_bytes()),
        attribute(CHARDEV_ABI, &ABI.to_ne_bytes()),
        text(CHARDEV_NAME, &device.node),
        attribute(UVERBS_DRIVER_ID, &MLX5.to_ne_bytes()),
    ]
    .concat()
}
