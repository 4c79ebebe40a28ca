//! The control socket: one command a line, one answer each.
//!
//! An answer is its lines of text, then a line `ok` or `error: WHY`.

use std::io::{self, BufRead, BufReader, Write};
#[cfg(feature = "serve")]
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
#[cfg(feature = "serve")]
use std::sync::Arc;

#[cfg(feature = "serve")]
use crate::front::Shared;

/// Serves the control socket for ever; each connection has a thread, so that none holds up another.
#[cfg(feature = "serve")]
pub(crate) fn serve(shared: &Arc<Shared>, listener: &UnixListener) {
    for connection in listener.incoming().flatten() {
        let shared = Arc::clone(shared);
        // A connection that breaks is the client's affair.
        std::thread::spawn(move || drop(converse(&shared, connection)));
    }
}

#[cfg(feature = "serve")]
fn converse(shared: &Shared, connection: UnixStream) -> io::Result<()> {
    let mut answers = connection.try_clone()?;
    for line in BufReader::new(connection).lines() {
        let line = line?;
        let answer = {
            let mut world = shared.lock();
            let answer = world.command(&line);
            world.env.journal.flush();
            answer
        };
        shared.wake();
        match answer {
            Ok(text) if text.is_empty() => writeln!(answers, "ok")?,
            Ok(text) => writeln!(answers, "{text}\nok")?,
            Err(why) => writeln!(answers, "error: {why}")?,
        }
    }
    Ok(())
}

/// Sends one command to a control socket; the answer's text, or why it was refused.
///
/// # Errors
/// The socket's; the inner one is the command's.
pub fn command(path: &Path, line: &str) -> io::Result<Result<String, String>> {
    let mut stream = UnixStream::connect(path)?;
    writeln!(stream, "{line}")?;
    let mut text = Vec::new();
    for answer in BufReader::new(stream).lines() {
        let answer = answer?;
        if answer == "ok" {
            return Ok(Ok(text.join("\n")));
        }
        if let Some(why) = answer.strip_prefix("error: ") {
            return Ok(Err(why.to_owned()));
        }
        text.push(answer);
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"))
}
