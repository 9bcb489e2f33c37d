//! The promises of the helpers, kept by driving the real binaries. No AI CLI is needed.
