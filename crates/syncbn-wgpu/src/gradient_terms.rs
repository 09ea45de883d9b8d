//! Binds `shaders/gradient_terms.wgsl`, which turns sums into the terms that `grad_input` needs.

use crate::error::WgpuError;
use crate::gpu::{Dispatch, Gpu};
use crate::memory::Slice;
use crate::module::{Kernel, Key};
use crate::params::Params;
use crate::workspace::Workspace;

/// The kernel. With `MERGE` it adds up the splits' sums first, otherwise it starts from the group's sums.
pub(crate) fn bind(
    gpu: &Gpu,
    params: Params,
    workspace: &Workspace,
    saved: Option<Slice<'_>>,
    [d_weight, d_bias]: [Option<Slice<'_>>; 2],
) -> Result<Dispatch, WgpuError> {
    let bindings = [
        ("the sums", Some(workspace.partials())),
        ("the saved statistics", saved),
        ("the sums", Some(workspace.merged())),
        ("d_weight", d_weight),
        ("d_bias", d_bias),
    ];
    gpu.bind(Key::per_channel(Kernel::GradientTerms), params, &bindings)
}
