//! Reads a journal.
