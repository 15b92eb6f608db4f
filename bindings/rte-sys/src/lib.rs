//! The DPDK functions, types and constants erhu uses, generated at build time from the installed
//! headers (22.11 or newer).
//!
//! Names are DPDK's. `shim_X` is the static inline `X`, compiled from `shim.c`. Everything here is
//! as unsafe as the C it names; `erhu-dpdk` is the safe way in.
//!
//! Drivers are not linked: DPDK's shared EAL loads them at start from its driver folder
//! ([`RTE_EAL_PMD_PATH`]). What a vdev needs is therefore an installed `librte-net-*` package, not
//! a link flag.

#![allow(non_upper_case_globals, non_camel_case_types, non_snake_case)]
#![allow(missing_docs, unreachable_pub, rustdoc::all, clippy::all, clippy::pedantic, clippy::restriction)]
#![allow(unsafe_op_in_unsafe_fn, unnecessary_transmutes)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
