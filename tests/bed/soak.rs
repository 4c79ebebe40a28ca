//! Eight threads with sixteen pairs of queue pairs each, everything under way at once, every byte looked at
//! (`tests/clients/verbs/soak.c`): a second each. `make soak` gives it twenty minutes.

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::{BED, Provider, c, check, own_net};

static CLIENT: LazyLock<PathBuf> = LazyLock::new(|| BED.verbs_client("soak", &["soak.c", "common.c"]));

fn soak(mode: &str) {
    if !c::wanted("the soak") {
        return;
    }
    for provider in Provider::BOTH {
        for device in ["mlx5_0", "mlx5_1"] {
            let mut command = BED.command(provider, &*CLIENT, &own_net());
            command.env("HOLDFAST_SIM_DEVICES", "2").args(["-d", "mlx5_0", "-e", device, "-g", "0"]);
            command.args(["-p", if provider == Provider::Stock { "stock" } else { "holdfast" }]);
            if mode == "own" {
                command.envs([("MLX5_TOTAL_UUARS", "300"), ("MLX5_NUM_LOW_LAT_UUARS", "280")]);
            }
            let output = command.args([mode, "1"]).output().unwrap();
            let said = check(&output, &format!("soak {mode} between mlx5_0 and {device}, {provider:?}"));
            assert!(said.contains("soak: "), "{said}");
        }
    }
}

#[test]
fn queue_pairs_of_two_threads() {
    soak("shared");
}

#[test]
fn queue_pairs_with_registers_of_their_own() {
    soak("own");
}

#[test]
fn thread_domains() {
    soak("domains");
}
