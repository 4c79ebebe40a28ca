//! Tools of rdma-core and perftest as they come, on the live engine: both ends with one provider, then both with the other.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Options;
use crate::measure::wanted;
use crate::rows::{PROGRAMS, Row};
use crate::worker::{self, Provider};

/// What a program took of a message, in microseconds, each time it was run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) row: &'static Row,
    pub(crate) stock: Vec<f64>,
    pub(crate) holdfast: Vec<f64>,
}

fn arguments(name: &str) -> &'static [&'static str] {
    match name {
        "ib_write_bw" => &["-F", "-n", "2000", "-s", "4096"],
        "ib_send_lat" => &["-F", "-n", "200", "-s", "64"],
        _ => &["-n", "200"],
    }
}

/// Microseconds a message, in what the client said.
fn figure(name: &str, said: &str) -> Option<f64> {
    if name == "ibv_rc_pingpong" {
        let line = said.lines().find(|line| line.contains(" usec/iter"))?;
        return line.split_whitespace().rev().nth(1)?.parse().ok();
    }
    // The line of figures begins with the size and the number of messages.
    let line = said.lines().map(|line| line.split_whitespace().collect::<Vec<&str>>());
    let figures = line
        .into_iter()
        .find(|words| words.len() >= 5 && words.iter().all(|word| word.parse::<f64>().is_ok()))?;
    match name {
        // Millions of messages a second.
        "ib_write_bw" => Some(1.0 / figures.last()?.parse::<f64>().ok()?),
        // t_typical.
        _ => figures.get(4)?.parse().ok(),
    }
}

/// Ends it, if it did not end by itself.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn once(options: &Options, provider: Provider, name: &str, turn: u32) -> Result<f64> {
    let net = format!("bench-{}-{turn}", std::process::id());
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let command = || -> Result<Command> {
        let mut command = worker::sim(options, provider, &net)?;
        command.arg(name).args(["-p", &port]).args(arguments(name)).stdin(Stdio::null());
        Ok(command)
    };
    let mut server = Served(command()?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    // The tools give up at once when nobody listens yet.
    for _ in 0..500 {
        let output = command()?.arg("localhost").output().with_context(|| format!("running {name}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).to_lowercase();
        if output.status.success() {
            server.0.wait()?;
            return figure(name, &said).with_context(|| format!("{name} said no figure:\n{said}"));
        }
        if !(errors.contains("couldn't connect") || errors.contains("refused")) {
            bail!("{name} with {provider:?}: {}\n{said}\n{errors}", output.status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{name} with {provider:?}: the server never listened")
}

/// Those that were asked for, in turns.
pub(crate) fn all(options: &Options) -> Result<Vec<Program>> {
    let mut found = Vec::new();
    for row in PROGRAMS.iter().filter(|row| options.programs != 0 && wanted(options, row.name)) {
        let mut program = Program { row, stock: Vec::new(), holdfast: Vec::new() };
        for turn in 0..options.programs {
            let mut order = [Provider::Stock, Provider::Holdfast];
            order.rotate_left(turn as usize % 2);
            for provider in order {
                let took = once(options, provider, row.name, turn)?;
                if provider == Provider::Stock { &mut program.stock } else { &mut program.holdfast }
                    .push(took);
            }
        }
        found.push(program);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_the_tools_say() {
        let said = " #bytes  #iterations  BW peak[MB/sec]  BW average[MB/sec]  MsgRate[Mpps]\n 4096  5000  92.96  42.41  0.010857\n";
        assert!((figure("ib_write_bw", said).unwrap() - 92.1).abs() < 0.1);
        let said = " #bytes #iterations t_min[usec] ...\n 64  2000  78.41  12267.75  2478.82  2740.07 1703.66 8413.78 11873.47\n";
        assert_eq!(figure("ib_send_lat", said), Some(2478.82));
        let said = "8192000 bytes in 0.05 seconds = 1278.25 Mbit/sec\n1000 iters in 0.05 seconds = 51.27 usec/iter\n";
        assert_eq!(figure("ibv_rc_pingpong", said), Some(51.27));
        assert!(
            PROGRAMS
                .iter()
                .all(|row| crate::rows::find(row.name).is_some() && figure(row.name, "").is_none())
        );
    }
}
