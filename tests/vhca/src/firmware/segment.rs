//! The initialization segment: the first page of the BAR.

use super::interface::{LOG_COMMANDS, LOG_STRIDE};
use crate::device::{Device, Env, ticks};

const FIRMWARE_REVISION: u32 = 35 << 16 | 16;
const INTERFACE_REVISION: u32 = 5 << 16 | 2012;

const QUEUE_HIGH: u64 = 0x10;
const QUEUE_LOW: u64 = 0x14;
const COMMAND_DOORBELL: u64 = 0x18;
const HEALTH_VERSION: u64 = 0x230;
const HEALTH_SEVERITY: u64 = 0x238;
const HEALTH_SYNDROME: u64 = 0x23c;
const TIMER_HIGH: u64 = 0x1000;
const TIMER_LOW: u64 = 0x1004;
const HEALTH_COUNTER: u64 = 0x1010;

/// States of the driver's interface.
/// The interface of a function that no driver has brought up: health polls take it for a sign of death.
pub(crate) const DISABLED: u32 = 1;
const SOFTWARE_RESET: u32 = 7;

impl Device {
    /// A big-endian word of the segment.
    pub(crate) fn segment_read(&mut self, env: &Env, offset: u64) -> u32 {
        let high = |value: u64| u32::try_from(value >> 32).unwrap_or(0);
        let low = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
        let firmware = &mut self.firmware;
        match offset {
            0x0 => FIRMWARE_REVISION,
            0x4 => INTERFACE_REVISION,
            QUEUE_HIGH => high(firmware.queue),
            QUEUE_LOW => {
                low(firmware.queue) & 0xffff_f000 | firmware.interface << 8 | LOG_COMMANDS << 4 | LOG_STRIDE
            }
            HEALTH_VERSION => FIRMWARE_REVISION,
            // The top bit of the severity asks for a reset.
            HEALTH_SEVERITY => u32::from(self.faults.syndrome.is_some()) << 31,
            HEALTH_SYNDROME => u32::from(self.faults.syndrome.map_or(0, |syndrome| syndrome.code)) << 16,
            TIMER_HIGH => high(ticks(env.now)),
            TIMER_LOW => low(ticks(env.now)),
            HEALTH_COUNTER => {
                if !self.faults.health_stopped {
                    firmware.health = firmware.health.wrapping_add(1) & 0xff_ffff;
                }
                firmware.health
            }
            _ => 0,
        }
    }

    pub(crate) fn segment_write(&mut self, env: &mut Env, offset: u64, value: u32) {
        match offset {
            QUEUE_HIGH => self.firmware.queue = self.firmware.queue & 0xffff_ffff | u64::from(value) << 32,
            QUEUE_LOW => {
                let interface = value >> 8 & 7;
                if interface == SOFTWARE_RESET {
                    self.reset();
                    return;
                }
                self.firmware.queue = self.firmware.queue & !0xffff_ffff | u64::from(value & 0xffff_f000);
                self.firmware.interface = interface;
            }
            COMMAND_DOORBELL => self.command_doorbell(env, value),
            _ => {}
        }
    }
}
