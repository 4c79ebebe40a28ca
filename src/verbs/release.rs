//! Letting go of a device whose driver waits for its users (soft-RoCE): its removal, and that of the network interface below
//! it, wait until nobody has a file of it or maps memory of it any more.
//!
//! In this order: what was posted is copied to memory of ours and the kernel's queue pairs are stopped
//! ([`Context::freeze`], [`Context::stop`]), the other queues are copied and unmapped ([`Context::let_go_of_memory`]), and
//! every file is let go of under its number ([`Context::let_go_of_files`]): the application has the numbers, and closes them
//! some day. From then on the command file answers `ENOTTY` to everything, which destroys take for done.
//!
//! What is not ours to let go of: copies of the files that the application made or that a forked child has, and
//! completion channels that no CQ of this context uses.

use core::time::Duration;
use std::collections::BTreeSet;
use std::os::fd::RawFd;

use zerocopy::IntoBytes as _;

use super::channel;
use super::context::Context;
use super::death::Object;
use super::watch;
use crate::error::Errno;
use crate::family::{Family, QueuePair as _, SharedReceiveQueue as _};
use crate::ha::life::Sign;
use crate::ha::watch::DEVICE_FATAL;
use crate::log;
use crate::uapi;
use crate::uapi::sys::{self, process};
use crate::uapi::wire::AsyncEventDesc;

/// How long an operation of the kernel that is under way on a queue may take; it takes microseconds.
const UNDER_WAY: Duration = Duration::from_millis(1);

/// Between two looks for threads that sleep on a file that was replaced: one may have been about to.
const SECOND_LOOK: Duration = Duration::from_millis(10);

impl<F: Family> Context<F> {
    /// Says that `what` stays with the kernel.
    fn stays(&self, what: &str, result: Result<(), Errno>) {
        if let Err(errno) = result {
            log::error!(
                "{}: {what} stays mapped ({errno}): removal of the device waits until the program destroys it",
                self.device.ibdev
            );
        }
    }

    /// Takes what was posted to memory of ours, before the kernel's queue pairs go.
    pub(super) fn freeze(&self) {
        self.each(|object| {
            if let Object::Cq(cq) = object {
                self.stays("a completion queue", cq.freeze());
            }
        });
        self.each(|object| {
            if let Object::Qp(qp) = object {
                self.stays("a queue pair", qp.queues.freeze());
            }
        });
        // Before the last look at how far the kernel came.
        std::thread::sleep(UNDER_WAY);
    }

    /// The queue pairs are stopped: unmaps every queue, and has the kernel destroy its CQs and SRQs, as long as it can be asked how
    /// many events it gave.
    pub(super) fn let_go_of_memory(&self) {
        self.each(|object| match object {
            Object::Cq(cq) => self.stays("a completion queue", cq.let_go()),
            Object::Srq(srq) => self.stays("a shared receive queue", srq.queue.let_go()),
            Object::Qp(qp) => qp.queues.let_go(),
        });
        self.each(|object| {
            if let Object::Srq(srq) = object {
                srq.stop();
            }
        });
        self.each(|object| {
            if let Object::Cq(cq) = object {
                cq.stop();
            }
        });
    }

    /// Lets go of every file of the device. The application's numbers stay taken: its async event file becomes a pipe that tells of
    /// the end, the command file one that answers nothing; its channels are pipes already.
    pub(super) fn let_go_of_files(&self) {
        for file in [self.events().take(), self.removal().take()].into_iter().flatten() {
            watch::forget(file.as_raw());
        }
        let (command, events) = (self.device.fd.fd, self.device.events.fd());
        // A number that the application closed, and has for something else, is its own.
        let is = |fd, what| channel::name_of(fd).is_none_or(|name| name.to_string_lossy().contains(what));
        let events = events.filter(|events| is(*events, "infinibandevent"));
        let result = events.map_or(Ok(()), |events| self.replace_events(events)).and_then(|()| {
            if !is(command, "uverbs") {
                return Ok(());
            }
            let (from, _) = sys::pipe(0)?;
            sys::dup_over(from.as_raw(), command, process::is_close_on_exec(command)?)
        });
        if let Err(errno) = result {
            log::error!(
                "{}: cannot let go of the device's files ({errno}); its removal waits until the program closes them",
                self.device.ibdev
            );
        }
        let mut fds: BTreeSet<RawFd> = self.channels.all().iter().map(|channel| channel.fd()).collect();
        fds.extend(events);
        channel::disturb(&fds);
        std::thread::sleep(SECOND_LOOK);
        channel::disturb(&fds);
        log::info!("{}: let go", self.device.ibdev);
    }

    /// Puts a pipe under the number of the application's async event file, with the events in it that were not read yet, and
    /// the one that this kernel's driver does not send.
    fn replace_events(&self, number: RawFd) -> Result<(), Errno> {
        let kernel = sys::dup(number)?;
        let (from, to) = sys::pipe(0)?;
        let flags = sys::status_flags(number)?;
        sys::set_status_flags(from.as_raw(), flags & libc::O_NONBLOCK)?;
        sys::set_status_flags(to.as_raw(), libc::O_NONBLOCK)?;
        channel::put_under(number, &from, &channel::registrations())?;
        // Nobody else reads it from now on, but for threads that do already.
        sys::set_status_flags(kernel.as_raw(), flags | libc::O_NONBLOCK)?;
        let mut told = self.device.life.first_sign() == Some(Sign::Early);
        while let Ok(event) = uapi::event::read_async_event(kernel.as_raw()) {
            told |= event.event_type == DEVICE_FATAL;
            sys::write(to.as_raw(), event.as_bytes())?;
        }
        if !told {
            let fatal = AsyncEventDesc { event_type: DEVICE_FATAL, ..Default::default() };
            sys::write(to.as_raw(), fatal.as_bytes())?;
        }
        // Held open: a reader waits for more, as it would for the kernel.
        self.keep_open(to);
        Ok(())
    }
}
