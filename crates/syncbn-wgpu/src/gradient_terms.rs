//! Binds `shaders/gradient_terms.wgsl`: from the splits' sums, or the group's, to what `grad_input` needs.

use crate::error::WgpuError;
use crate::gpu::{Dispatch, Gpu};
use crate::memory::Slice;
use crate::module::{Kernel, Key};
use crate::params::Params;
use crate::workspace::Workspace;

/// The kernel that adds up splits, or that only computes what `grad_input` needs.
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
