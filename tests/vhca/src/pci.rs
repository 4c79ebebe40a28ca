//! The PCI function: configuration space with its capabilities.

/// Vendor of all these devices.
const VENDOR: u16 = 0x15b3;
/// Interrupt vectors.
pub(crate) const VECTORS: u16 = 16;
/// The first part of the BAR, which is always trapped: initialization segment, MSI-X table and pending bits.
pub(crate) const CONTROL_LEN: u64 = 0x1_0000;
/// The length of BAR 0.
pub(crate) const BAR_LEN: u64 = 32 << 20;
/// The end of the BAR is memory of the device itself, which verbs give out as device memory.
pub(crate) const DEVICE_MEMORY_LEN: u64 = 128 << 10;
pub(crate) const DEVICE_MEMORY_START: u64 = BAR_LEN - DEVICE_MEMORY_LEN;

const COMMAND: usize = 0x04;
const POWER: usize = 0x40;
const EXPRESS: usize = 0x60;
const MSIX: usize = 0x9c;
const LEN: usize = 4096;

/// Which function to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A physical function.
    Physical,
    /// A virtual function.
    Virtual,
}

/// Configuration space.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
}

/// What a write asked the function to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    FunctionLevelReset,
}

impl ConfigSpace {
    pub(crate) fn new(identity: Identity) -> ConfigSpace {
        let mut config = ConfigSpace { bytes: vec![0; LEN] };
        let device = match identity {
            Identity::Physical => 0x1019,
            Identity::Virtual => 0x101a,
        };
        for (at, value) in [(0x00, VENDOR), (0x02, device), (0x06, 0x0010), (0x2c, VENDOR), (0x2e, 0x0008)] {
            config.put(at, &value.to_le_bytes());
        }
        config.put(0x0a, &[0x07, 0x02]); // class: network, InfiniBand
        config.put(0x10, &[0x0c]); // BAR 0: 64 bits, prefetchable
        config.put(0x34, &[u8::try_from(EXPRESS).unwrap_or(0)]);
        // Express: endpoint, with reset of the function; 8 GT/s, 16 lanes.
        config.put(EXPRESS, &[0x10, u8::try_from(MSIX).unwrap_or(0), 0x02, 0x00]);
        config.put(EXPRESS + 0x04, &0x1000_8002u32.to_le_bytes());
        config.put(EXPRESS + 0x0c, &0x0000_4103u32.to_le_bytes());
        config.put(EXPRESS + 0x12, &0x0103u16.to_le_bytes());
        // MSI-X: table at 0x4000 and pending bits at 0x5000 of BAR 0.
        config.put(MSIX, &[0x11, u8::try_from(POWER).unwrap_or(0)]);
        config.put(MSIX + 2, &(VECTORS - 1).to_le_bytes());
        config.put(MSIX + 4, &0x4000u32.to_le_bytes());
        config.put(MSIX + 8, &0x5000u32.to_le_bytes());
        config.put(POWER, &[0x01, 0x00, 0x03, 0x00]);
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        crate::prm::put(&mut self.bytes, at, bytes);
    }

    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        for (k, byte) in to.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + k).copied().unwrap_or(0);
        }
    }

    /// Writes what is writable: the rest is the function's own.
    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) -> Effect {
        let mut effect = Effect::None;
        for (k, byte) in from.iter().enumerate() {
            let at = offset + k;
            let writable = [COMMAND..COMMAND + 2, 0x3c..0x3d, POWER + 4..POWER + 6, MSIX + 2..MSIX + 4];
            let control = EXPRESS + 8..EXPRESS + 10;
            let mut value = *byte;
            if control.contains(&at) {
                if at == control.end - 1 && value & 0x80 != 0 {
                    effect = Effect::FunctionLevelReset;
                    value &= 0x7f;
                }
            } else if !writable.iter().any(|range| range.contains(&at)) {
                continue;
            }
            self.put(at, &[value]);
        }
        effect
    }

    /// May the function reach memory and raise interrupts?
    pub(crate) fn is_bus_master(&self) -> bool {
        self.bytes.get(COMMAND).is_some_and(|command| command & 0x04 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_read_only_and_commands_are_not() {
        let mut config = ConfigSpace::new(Identity::Virtual);
        config.write(0, &[0; 8]);
        let mut word = [0; 4];
        config.read(0, &mut word);
        assert_eq!(word, [0xb3, 0x15, 0x1a, 0x10]);
        assert!(!config.is_bus_master());
        assert_eq!(config.write(COMMAND, &[0x06, 0]), Effect::None);
        assert!(config.is_bus_master());
        assert_eq!(config.write(EXPRESS + 8, &[0, 0x80]), Effect::FunctionLevelReset);
        config.read(LEN - 2, &mut word);
        assert_eq!(word[2..], [0, 0]);
    }
}
