//! Kernels written for one instruction set: the crate's home of `unsafe`.
#![allow(unsafe_code)]

pub(crate) mod lanes;
pub(crate) mod matmul;
pub(crate) mod memory;
