//! `holdfast sim -- CMD ...`: a program, and all that it starts, with RDMA devices where there are none: the native bed
//! (`tests/native`), preloaded. `holdfast sim --tell COMMAND`: a fault for programs that run so.

use crate::run::{self, Front};
use crate::system::{Trouble, say};
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `holdfast sim`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Have the system's own providers serve the devices, not holdfast
    #[arg(long)]
    stock: bool,
    /// How many devices there are: mlx5_0, mlx5_1, ... [default: 1]
    #[arg(long, value_name = "N")]
    devices: Option<u32>,
    /// The wire: programs of one user that name the same one reach each other; "none": this program is alone
    #[arg(long, value_name = "NAME", default_value = "default")]
    net: String,
    /// Write down what the devices see; %p stands for the process's number
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Commands to run first, one a line
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Log what holdfast does: error, warn, info or debug, then ":stderr" or ":/path"
    #[arg(long, value_name = "LEVEL[:TARGET]")]
    log: Option<String>,
    /// The provider to use [default: as for `holdfast run`]
    #[arg(long, value_name = "FILE", conflicts_with = "stock")]
    lib: Option<PathBuf>,
    /// The bed to use [default: libholdfast_sim.so beside this command, else in libibverbs's provider directory]
    #[arg(long, value_name = "FILE")]
    bed: Option<PathBuf>,
    /// Run one command (a fault, or a question) in every program on the wire, instead of starting one
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["stock", "devices", "journal", "script", "log", "lib", "bed"])]
    tell: Option<String>,
    /// The program and its arguments
    #[arg(
        required_unless_present = "tell",
        conflicts_with = "tell",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

/// `holdfast sim`; starting a program comes back only if that could not be done.
pub(crate) fn sim(args: &Args) -> Result<ExitCode, Trouble> {
    if let Some(line) = &args.tell {
        return tell(&args.net, line);
    }
    let mut environment: Vec<(&'static str, OsString)> = vec![("HOLDFAST_SIM_NET", args.net.clone().into())];
    let mut set = |name, value: Option<OsString>| environment.extend(value.map(|value| (name, value)));
    set("HOLDFAST_SIM_DEVICES", args.devices.map(|count| count.to_string().into()));
    set("HOLDFAST_SIM_JOURNAL", args.journal.as_ref().map(|path| path.into()));
    set("HOLDFAST_SIM_SCRIPT", args.script.as_ref().map(|path| path.into()));
    set("HOLDFAST_LOG", args.log.as_ref().map(|log| log.into()));
    let front = Front {
        provider: !args.stock,
        lib: args.lib.as_deref(),
        bed: Some(args.bed.as_deref()),
        environment,
    };
    run::start(&args.command, &front)
}

/// Places on a wire, and how a command and its answer look there: length, kind, and room that only messages use.
const PLACES: u32 = 512;
const HEADER: usize = 20;
const CONTROL: u8 = 2;

fn tell(net: &str, line: &str) -> Result<ExitCode, Trouble> {
    let (mut told, mut refused) = (0, 0);
    for place in 0..PLACES {
        match ask(net, place, line) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                told += 1;
                match answer {
                    Ok(text) => {
                        say(if text.is_empty() { format!("{place}: ok") } else { format!("{place}: {text}") })
                    }
                    Err(why) => {
                        refused += 1;
                        eprintln!("holdfast: {place}: {why}");
                    }
                }
            }
            // It ended meanwhile.
            Err(error) => eprintln!("holdfast: {place}: {error}"),
        }
    }
    if told == 0 {
        return Err(Trouble::new(
            format!("no program is on the wire '{net}'"),
            "Start one: 'holdfast sim -- CMD'; it is there once it has looked for devices",
        ));
    }
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tells a command to who has a place; `None`: nobody.
fn ask(net: &str, place: u32, line: &str) -> io::Result<Option<Result<String, String>>> {
    let user = rustix::process::getuid().as_raw();
    let address = SocketAddr::from_abstract_name(format!("holdfast-sim/{user}/{net}/{place}"))?;
    let Ok(mut stream) = UnixStream::connect_addr(&address) else { return Ok(None) };
    let mut frame = u32::try_from(line.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
    frame.push(CONTROL);
    frame.resize(HEADER, 0);
    frame.extend(line.as_bytes());
    stream.write_all(&frame)?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let [a, b, c, d, ..] = header;
    let mut bytes = Vec::new();
    stream.take(u32::from_le_bytes([a, b, c, d]).into()).read_to_end(&mut bytes)?;
    let (good, text) = bytes.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
    let text = String::from_utf8_lossy(text).into_owned();
    Ok(Some(if *good == 1 { Ok(text) } else { Err(text) }))
}
