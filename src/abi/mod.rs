//! libibverbs: its public types and its private ABI, as data.
