//! The live engine: a thread that looks at doorbell pages, executes work requests and carries messages, for as long as the
//! process has a device open. And what a fork needs.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::driver::{self, Driver};
use crate::net::{Arrival, Net};
use crate::{files, next, sysfs};

/// The wire, from when the process joined it until its engine takes it.
static NET: Mutex<Option<Net>> = Mutex::new(None);
/// There is a thread in this process.
static RUNNING: AtomicBool = AtomicBool::new(false);
/// Whether there is something to look at, and the thread's sleep while there is not.
static WANTED: Mutex<bool> = Mutex::new(false);
static WAKE: Condvar = Condvar::new();

/// Without a device that is open.
const IDLE: Duration = Duration::from_secs(3600);

/// Ends the process: what it was asked to do it cannot do.
pub(crate) fn give_up(why: &str) -> ! {
    next::complain(why);
    std::process::exit(125)
}

/// Joins a wire; the process's place on it.
pub(crate) fn join(name: Option<&str>) -> Option<u32> {
    match Net::join(name?) {
        Ok(net) => {
            let slot = net.slot;
            *NET.lock() = Some(net);
            Some(slot)
        }
        Err(error) => {
            next::complain(&format!("alone on its wire: {error}"));
            None
        }
    }
}

/// Sees to it that the thread runs.
pub(crate) fn start() {
    {
        *WANTED.lock() = true;
        WAKE.notify_one();
    }
    // ORDER: one caller starts it; nobody else needs to see that it runs.
    if RUNNING.swap(true, Ordering::Relaxed) {
        return;
    }
    let net = NET.lock().take();
    let spawned = next::without_signals(|| {
        std::thread::Builder::new().name("holdfast-sim".into()).spawn(move || run(net)).map(drop)
    });
    if let Err(error) = spawned {
        give_up(&format!("no thread for the devices: {error}"));
    }
}

fn run(mut net: Option<Net>) {
    next::precise_sleep();
    let mut ready = true;
    loop {
        let mut arrivals = net.as_mut().filter(|_| ready).map(Net::receive).unwrap_or_default();
        let mut pause = driver::with(|driver| pump(driver, net.as_mut(), &mut arrivals));
        if pause == IDLE {
            let mut wanted = WANTED.lock();
            if !std::mem::take(&mut *wanted) {
                // Commands still come while no device is open, but nothing has to be looked at.
                WAKE.wait_for(&mut wanted, Duration::from_millis(20));
            }
            pause = Duration::ZERO;
        }
        ready = match net.as_mut() {
            Some(net) => net.wait(pause),
            None => next::wait(&mut [], pause),
        };
    }
}

/// One look at everything; how long nothing will be due.
fn pump(driver: &mut Driver, mut net: Option<&mut Net>, arrivals: &mut Vec<Arrival>) -> Duration {
    let mut pause = if driver.is_idle() { IDLE } else { driver.run() };
    for arrival in arrivals.drain(..) {
        pause = Duration::ZERO;
        let Some(net) = net.as_mut() else { continue };
        match arrival {
            Arrival::Request { from, waiting, bytes } => {
                let reply = driver.host.deliver(&bytes).unwrap_or_default();
                if let Some(waiting) = waiting {
                    net.reply(from, waiting, &reply);
                }
            }
            Arrival::Reply { waiting: (device, qpn, name), bytes } => {
                driver.host.answered(device, qpn, name, bytes.as_deref());
            }
            Arrival::Control { from, line } => {
                let answer = driver.control(&line);
                net.answer(from, &answer);
            }
        }
    }
    for message in driver.host.outgoing() {
        pause = Duration::ZERO;
        let sent = net.as_mut().is_some_and(|net| net.send(&message));
        if let Some((qpn, name)) = message.awaited.filter(|_| !sent) {
            driver.host.answered(message.device, qpn, name, None);
        }
    }
    pause
}

/// Keeps the locks whole over a fork. The child has no thread and no place on the wire until it opens a device itself.
pub(crate) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| next::at_fork(before_fork, after_fork_in_parent, after_fork_in_child));
}

extern "C" fn before_fork() {
    driver::before_fork();
    files::before_fork();
}

extern "C" fn after_fork_in_parent() {
    files::after_fork();
    driver::after_fork_in_parent();
}

extern "C" fn after_fork_in_child() {
    next::forget_process();
    files::after_fork();
    driver::after_fork_in_child();
    sysfs::after_fork_in_child();
    // ORDER: the child has one thread.
    RUNNING.store(false, Ordering::Relaxed);
}
