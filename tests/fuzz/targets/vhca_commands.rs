//! The virtual ConnectX's firmware, given commands that hold anything at all.
#![no_main]

use vhca::hostile::Bed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(mut bed) = Bed::new() else { return };
    // The first byte of each piece picks a sound command, whose bytes the rest of the piece changes.
    for piece in data.chunks(64) {
        let sound = bed.commands();
        let Some((pick, changes)) = piece.split_first() else { return };
        let Some(mut input) = sound.get(usize::from(*pick) % sound.len()).cloned() else { return };
        for change in changes.chunks_exact(3) {
            let at = usize::from(change[0]) << 8 | usize::from(change[1]);
            let len = input.len();
            input[at % len] = change[2];
        }
        bed.command(&input, 4096);
        bed.work();
    }
});
