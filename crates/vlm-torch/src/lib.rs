//! What libtorch has and tch lacks: safe wrappers over a C++ shim.
