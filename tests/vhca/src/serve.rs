//! The server: sockets and threads.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::control;
use crate::device::BarMode;
use crate::front::{self, Shared};
use crate::journal::Journal;
use crate::pci::Identity;
use crate::world::World;

/// What to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// A socket for each device.
    pub sockets: Vec<PathBuf>,
    /// What the devices are.
    pub identity: Identity,
    /// How their doorbell pages work.
    pub mode: BarMode,
    /// The control socket.
    pub control: Option<PathBuf>,
    /// The journal.
    pub journal: Option<PathBuf>,
    /// Commands to run first, one a line.
    pub script: Option<PathBuf>,
}

/// Starts the devices; they live as long as the process. Returns when all sockets listen.
///
/// # Errors
/// Those of sockets and files; a script's command that is refused.
pub fn start(options: &Options) -> io::Result<()> {
    let journal = match &options.journal {
        Some(path) => Journal::create(path)?,
        None => Journal::default(),
    };
    let mut world = World::new(journal);
    let mut listeners = Vec::new();
    for socket in &options.sockets {
        listeners.push((world.add(options.identity, options.mode)?, front::listen(socket)?));
    }
    if let Some(script) = &options.script {
        run_script(&mut world, &std::fs::read_to_string(script)?)?;
    }
    let shared = Arc::new(Shared::new(world));
    for (device, listener) in listeners {
        let shared = Arc::clone(&shared);
        std::thread::Builder::new().name(format!("front-d{device}")).spawn(move || {
            // It ends only if the listening socket is gone, and then there is nobody to tell.
            drop(front::serve(&shared, device, &listener));
        })?;
    }
    if let Some(path) = &options.control {
        let (shared, listener) = (Arc::clone(&shared), front::listen(path)?);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || control::serve(&shared, &listener))?;
    }
    std::thread::Builder::new().name("drive".into()).spawn(move || shared.drive())?;
    Ok(())
}

/// Runs the commands of a script; empty lines and those that begin with `#` are skipped.
fn run_script(world: &mut World, script: &str) -> io::Result<()> {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        world.command(line).map_err(|why| io::Error::other(format!("script: '{line}': {why}")))?;
    }
    Ok(())
}
