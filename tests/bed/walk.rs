//! Every verb with every kind of argument (`tests/clients/verbs/walk.c`): both providers say the same, but for what is named.

use std::process::Command;

use crate::{BED, Provider, c, check, own_net};

const SOURCES: &[&str] = &[
    "walk.c",
    "ops.c",
    "builders.c",
    "states.c",
    "cq.c",
    "srq.c",
    "memory.c",
    "ah.c",
    "async.c",
    "device.c",
    "bad.c",
    "wqes.c",
    "shared.c",
    "common.c",
];

#[test]
fn both_providers_do_the_same_with_every_verb() {
    if !c::wanted("the walk") {
        return;
    }
    let client = BED.verbs_client("walk", SOURCES);
    let said = Provider::BOTH.map(|provider| {
        let mut command = BED.command(provider, &client, &own_net());
        command.env("HOLDFAST_SIM_DEVICES", "2").args(["-d", "mlx5_0", "-e", "mlx5_1", "-g", "0"]);
        let output = command.output().unwrap();
        BED.workshop.write(&format!("walk.{provider:?}"), &check(&output, &format!("the walk, {provider:?}")))
    });
    let guests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests");
    let mut compare = Command::new("python3");
    compare.arg(format!("{guests}/cases/walk.py")).args(said);
    // Of the entries those for every suite.
    compare.arg(format!("{guests}/walk-differs-hca.txt")).arg("any");
    check(&compare.output().expect("python3 compares the two"), "what differs");
}
