//! Kernel commands.
