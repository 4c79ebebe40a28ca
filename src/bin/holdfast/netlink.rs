//! What the kernel calls the driver of each RDMA device, asked over netlink as libibverbs does.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, sendto, socket_with,
    sockopt,
};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// `RDMA_NL_NLDEV` and its commands, of `<rdma/rdma_netlink.h>`.
const NLDEV: u16 = 5;
const CMD_GET: u16 = 1;
const CMD_GET_CHARDEV: u16 = 15;

const ATTR_DEV_INDEX: u16 = 1;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_CHARDEV_TYPE: u16 = 69;
const ATTR_CHARDEV_NAME: u16 = 70;
const ATTR_UVERBS_DRIVER_ID: u16 = 73;

/// `<linux/netlink.h>`.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// A device as netlink tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// `uverbs0`.
    pub(crate) uverbs: Option<String>,
    /// `enum rdma_driver_id`.
    pub(crate) driver: Option<u32>,
}

/// Every device of this network namespace.
pub(crate) fn devices() -> io::Result<BTreeMap<String, Told>> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))?;
    // The kernel answers at once or not at all.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    let ask = |command: u16, flags: u16, attributes: &[u8]| -> io::Result<Vec<Message>> {
        let message = request(command, flags, attributes);
        sendto(&socket, &message, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
        let mut messages = Vec::new();
        loop {
            let mut buffer = vec![0; 1 << 16];
            let (_, len) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            if parse(buffer.get(..len).unwrap_or_default(), &mut messages)? {
                return Ok(messages);
            }
        }
    };
    let mut found = BTreeMap::new();
    for device in ask(CMD_GET, NLM_F_DUMP, &[])? {
        let (Some(name), Some(index)) = (device.text(ATTR_DEV_NAME), device.number(ATTR_DEV_INDEX)) else {
            continue;
        };
        let mut attributes = attribute(ATTR_DEV_INDEX, &index.to_ne_bytes());
        attributes.extend(attribute(ATTR_CHARDEV_TYPE, b"uverbs\0"));
        // A device may have no uverbs node, and may be gone by now.
        let node = ask(CMD_GET_CHARDEV, NLM_F_ACK, &attributes).unwrap_or_default();
        let told = Told {
            uverbs: node.iter().find_map(|node| node.text(ATTR_CHARDEV_NAME)),
            driver: node.iter().find_map(|node| node.number(ATTR_UVERBS_DRIVER_ID)),
        };
        found.insert(name, told);
    }
    Ok(found)
}

/// The attributes of one answer.
#[derive(Debug, Default)]
struct Message(BTreeMap<u16, Vec<u8>>);

impl Message {
    fn number(&self, attribute: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(&attribute)?.get(..4)?.try_into().ok()?))
    }

    fn text(&self, attribute: u16) -> Option<String> {
        let bytes = self.0.get(&attribute)?;
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut out = Vec::new();
    out.extend(len.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn request(command: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut out = Vec::new();
    out.extend(len.to_ne_bytes());
    out.extend((NLDEV << 10 | command).to_ne_bytes());
    out.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend(1_u32.to_ne_bytes());
    out.extend(0_u32.to_ne_bytes());
    out.extend(attributes);
    out
}

/// Adds the messages of one datagram; true when it held the last.
fn parse(mut bytes: &[u8], messages: &mut Vec<Message>) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink answer was cut short");
    while !bytes.is_empty() {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let len =
            word(0).and_then(|len| usize::try_from(len).ok()).filter(|len| *len >= HEADER).ok_or_else(cut)?;
        let kind = u16::from_ne_bytes(bytes.get(4..6).and_then(|kind| kind.try_into().ok()).ok_or_else(cut)?);
        let body = bytes.get(HEADER..len).ok_or_else(cut)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = word(HEADER).ok_or_else(cut)?.cast_signed();
                return if code == 0 {
                    Ok(true)
                } else {
                    Err(io::Error::from_raw_os_error(code.wrapping_neg()))
                };
            }
            _ => messages.push(attributes(body)),
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn attributes(mut body: &[u8]) -> Message {
    let mut message = Message::default();
    while let (Some(&[len0, len1]), Some(&[kind0, kind1])) =
        (body.first_chunk::<2>(), body.get(2..).and_then(|rest| rest.first_chunk::<2>()))
    {
        let len = usize::from(u16::from_ne_bytes([len0, len1]));
        // The two highest bits are flags.
        let kind = u16::from_ne_bytes([kind0, kind1]) & 0x3fff;
        let Some(value) = body.get(4..len) else { break };
        message.0.insert(kind, value.to_vec());
        body = body.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.resize(HEADER, 0);
        out.extend(body);
        out
    }

    #[test]
    fn answers_are_read() {
        let mut body = attribute(ATTR_DEV_NAME, b"rxe0\0");
        body.extend(attribute(ATTR_UVERBS_DRIVER_ID, &14_u32.to_ne_bytes()));
        let mut datagram = answer(NLDEV << 10 | CMD_GET, &body);
        let mut messages = Vec::new();
        assert!(!parse(&datagram, &mut messages).unwrap());
        datagram.extend(answer(NLMSG_DONE, &[0; 4]));
        assert!(parse(&datagram, &mut messages).unwrap());
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].text(ATTR_DEV_NAME).as_deref(), Some("rxe0"));
        assert_eq!(messages[0].number(ATTR_UVERBS_DRIVER_ID), Some(14));
        assert_eq!(messages[0].number(ATTR_DEV_INDEX), None);
        let refusal =
            parse(&answer(NLMSG_ERROR, &(-libc_enodev()).to_ne_bytes()), &mut messages).unwrap_err();
        assert_eq!(refusal.raw_os_error(), Some(libc_enodev()));
    }

    fn libc_enodev() -> i32 {
        rustix::io::Errno::NODEV.raw_os_error()
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, &mut Vec::new());
        }

        #[test]
        fn any_attributes_are_survived(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut messages = Vec::new();
            prop_assert!(!parse(&answer(100, &body), &mut messages).unwrap());
        }
    }
}
