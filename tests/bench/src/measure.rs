//! Turns: each provider's worker does a row, then the next one's does the same row, again and again.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::Options;
use crate::counts::{self, Counts};
use crate::programs::{self, Program};
use crate::rows::{self, Row, SIZES};
use crate::worker::{self, Case, Kind, Mode, Provider, Took, Worker};

/// One row in one mode: what each turn of each provider took.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) row: &'static Row,
    pub(crate) mode: Mode,
    pub(crate) stock: Vec<Took>,
    pub(crate) holdfast: Vec<Took>,
    /// With the death machinery compiled out; empty if it was not measured.
    pub(crate) bare: Vec<Took>,
}

impl Series {
    fn of(&mut self, provider: Provider) -> &mut Vec<Took> {
        match provider {
            Provider::Stock => &mut self.stock,
            Provider::Holdfast => &mut self.holdfast,
            Provider::Bare => &mut self.bare,
        }
    }
}

/// Bytes of a kind of object.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) row: &'static Row,
    pub(crate) stock: f64,
    pub(crate) holdfast: f64,
}

/// All that a run measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) series: Vec<Series>,
    pub(crate) counts: Counts,
    pub(crate) sizes: Vec<Size>,
    pub(crate) programs: Vec<Program>,
}

/// Those that there are to measure.
pub(crate) fn providers(options: &Options) -> Vec<Provider> {
    let bare = options.bare.as_ref().map(|_| Provider::Bare);
    [Provider::Stock, Provider::Holdfast].into_iter().chain(bare).collect()
}

/// Whether the user asked for a row.
pub(crate) fn wanted(options: &Options, name: &str) -> bool {
    options.rows.iter().any(|pattern| rows::matches(pattern, name))
}

/// Whether a case says anything in a mode: two threads may not use one thread domain, and making objects is the same in all.
fn belongs(case: &Case, mode: Mode) -> bool {
    match case.kind {
        Kind::Queues | Kind::Crowd => true,
        Kind::Threads | Kind::Objects => mode == Mode::Default,
    }
}

type Key = (usize, &'static str);

/// Has all workers take their turns at each of `cases`, so often.
fn turns(
    options: &Options,
    mode: Mode,
    workers: &mut [Worker],
    (cases, rounds): (&[Case], u32),
    found: &mut BTreeMap<Key, Series>,
) -> Result<()> {
    for round in 0..rounds as usize {
        for case in cases {
            let rows = case
                .rows
                .each_ref()
                .map(|name| name.as_deref().filter(|name| wanted(options, name)).and_then(rows::find));
            let death = rows.iter().flatten().any(|row| row.death);
            // Nobody is always first.
            for turn in 0..workers.len() {
                let at = (round + turn) % workers.len();
                let Some(worker) = workers.get_mut(at) else { continue };
                if worker.provider == Provider::Bare && !death {
                    continue;
                }
                let parts = worker.run(case, options.bursts)?;
                for (row, took) in rows.iter().zip(parts) {
                    let Some(row) = row else { continue };
                    ensure!(took.cycles > 0.0 && took.ns > 0.0, "{}: it took no time", row.name);
                    let key = (case.index, row.name);
                    let series = found.entry(key).or_insert_with(|| Series {
                        row,
                        mode,
                        stock: Vec::new(),
                        holdfast: Vec::new(),
                        bare: Vec::new(),
                    });
                    series.of(worker.provider).push(took);
                }
            }
        }
    }
    Ok(())
}

fn mode(options: &Options, program: &Path, mode: Mode) -> Result<Vec<Series>> {
    let providers = providers(options);
    let mut found = BTreeMap::new();
    for start in 0..options.starts {
        let start_one = |provider: &Provider| Worker::start(options, program, (*provider, mode), &[]);
        let mut workers = providers.iter().map(start_one).collect::<Result<Vec<Worker>>>()?;
        let mut cases = None;
        for worker in &mut workers {
            cases = Some(worker.cases()?);
        }
        let cases = cases.unwrap_or_default();
        for name in cases.iter().flat_map(|case| case.rows.iter().flatten()) {
            ensure!(rows::find(name).is_some(), "nothing says what the row {name} is");
        }
        let chosen = |kind: Kind| -> Vec<Case> {
            let of = cases.iter().filter(|case| case.kind == kind && belongs(case, mode));
            of.filter(|case| case.rows.iter().flatten().any(|name| wanted(options, name))).cloned().collect()
        };
        // Those that slow the engine come last.
        let rounds = options.rounds / options.starts + u32::from(start < options.rounds % options.starts);
        for kind in [Kind::Queues, Kind::Threads, Kind::Objects, Kind::Crowd] {
            turns(options, mode, &mut workers, (&chosen(kind), rounds), &mut found)?;
        }
        for worker in workers {
            worker.end()?;
        }
    }
    Ok(found.into_values().collect())
}

fn sizes(options: &Options) -> Result<Vec<Size>> {
    if !SIZES.iter().any(|row| wanted(options, row.name)) {
        return Ok(Vec::new());
    }
    let program = std::path::absolute(worker::compile(options, "worker-size", &["-DSIZE", "-rdynamic"])?)?;
    let of = |provider| -> Result<Vec<(String, f64)>> {
        let mut worker = Worker::start(options, &program, (provider, Mode::Default), &[])?;
        let sizes = worker.sizes()?;
        worker.end()?;
        Ok(sizes)
    };
    let mut found = Vec::new();
    for ((name, stock), (_, holdfast)) in of(Provider::Stock)?.into_iter().zip(of(Provider::Holdfast)?) {
        let row = rows::find(&name).with_context(|| format!("nothing says what the row {name} is"))?;
        ensure!(stock > 0.0 && holdfast > 0.0, "{name}: it took nothing");
        if wanted(options, &name) {
            found.push(Size { row, stock, holdfast });
        }
    }
    Ok(found)
}

/// Everything that was asked for.
pub(crate) fn all(options: &Options) -> Result<Measured> {
    ensure!(
        options.rounds > 0 && options.starts > 0 && options.bursts > 0,
        "rounds, starts, bursts: at least one"
    );
    let program = worker::compile(options, "worker", &[])?;
    let program = std::path::absolute(program)?;
    let mut series = Vec::new();
    for each in Mode::ALL {
        eprintln!("bench: {} ...", each.title());
        series.extend(mode(options, &program, each)?);
    }
    eprintln!("bench: instructions, memory, programs ...");
    let (counts, sizes, programs) = (counts::all(options)?, sizes(options)?, programs::all(options)?);
    if series.is_empty() && sizes.is_empty() && programs.is_empty() {
        let names: Vec<&str> = rows::all().map(|row| row.name).collect();
        bail!("no row is called {}; there are: {}", options.rows.join(" "), names.join(" "));
    }
    let place = |series: &Series| rows::all().position(|row| row.name == series.row.name);
    series.sort_by_key(|series| (series.mode as usize, place(series)));
    Ok(Measured { series, counts, sizes, programs })
}
