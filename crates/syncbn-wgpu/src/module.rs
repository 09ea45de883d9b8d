//! The text of the kernels, and compiling it: each variant once for a device.
//!
//! A shader is put together from the files in `shaders/`. The types `Word`, `Part` and `Lane` in it follow from the type of the
//! activations, the width of loads and the layout. Variants differ in types and constants only.
//!
//! Deliberately not here: a cache on disk. Compiling takes milliseconds, and drivers have caches of their own.

use std::borrow::Cow;
use std::num::NonZeroU64;

use syncbn_core::Dtype;

use crate::error::WgpuError;
use crate::params::{self, Params};
use crate::plan::Form;
use crate::scope::caught;

/// The kernels: core's four, and those on a few numbers per channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Moments,
    Statistics,
    Normalize,
    GradSums,
    GradientTerms,
    GradInput { in_place: bool },
    Probe,
}

/// Whether a kernel writes a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Kernel {
    fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::Moments => ("moments", include_str!("../shaders/moments.wgsl")),
            Self::Statistics => ("statistics", include_str!("../shaders/statistics.wgsl")),
            Self::Normalize => ("normalize", include_str!("../shaders/normalize.wgsl")),
            Self::GradSums => ("grad_sums", include_str!("../shaders/grad_sums.wgsl")),
            Self::GradientTerms => ("gradient_terms", include_str!("../shaders/gradient_terms.wgsl")),
            Self::GradInput { .. } => ("grad_input", include_str!("../shaders/grad_input.wgsl")),
            Self::Probe => ("probe", include_str!("../shaders/probe.wgsl")),
        }
    }

    /// Its bindings in order.
    fn bindings(self) -> &'static [Access] {
        use Access::{Read, Write};
        match self {
            Self::Moments | Self::Probe => &[Read, Write],
            Self::Statistics => &[Read, Write, Write, Write, Write, Write],
            Self::Normalize => &[Read, Write, Read, Read, Read, Write],
            Self::GradSums => &[Read, Read, Read, Write],
            Self::GradientTerms => &[Read, Read, Write, Write, Write],
            Self::GradInput { in_place: false } => &[Read, Write, Read, Read, Read, Read],
            Self::GradInput { in_place: true } => &[Read, Write, Read, Read, Read],
        }
    }

    fn walks_backwards(self) -> bool {
        matches!(self, Self::Normalize | Self::GradInput { .. })
    }

    /// The functions that read x and dy, which depend on `Form::width`, and the binding of dy.
    fn loads(self, half_words: bool) -> String {
        let load = |tensor: &str, from: &str| {
            let value = if half_words {
                format!("({from}[i >> 1u] >> (16u * (i & 1u))) & 0xffffu")
            } else {
                format!("{from}[i]")
            };
            format!("fn load_{tensor}(i: u32) -> Word {{\n    return {value};\n}}\n")
        };
        match self {
            Self::Moments => load("x", "x"),
            Self::GradSums => load("x", "x") + &load("dy", "dy"),
            Self::GradInput { in_place: true } => load("dy", "dx"),
            Self::GradInput { in_place: false } => {
                "@group(0) @binding(5) var<storage, read> dy: array<Stored>;\n".to_owned() + &load("dy", "dy")
            }
            Self::Statistics | Self::Normalize | Self::GradientTerms | Self::Probe => String::new(),
        }
    }
}

/// A variant of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) kernel: Kernel,
    pub(crate) number: Number,
    pub(crate) form: Form,
}

/// How activations are stored and converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Number {
    F32,
    Bf16,
    F16,
    F16ByBits,
}

impl Number {
    pub(crate) fn of(dtype: Dtype, f16_by_bits: bool) -> Self {
        match dtype {
            Dtype::F16 if f16_by_bits => Self::F16ByBits,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
            _ => Self::F32,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::F32 => include_str!("../shaders/numbers/f32.wgsl"),
            Self::Bf16 => include_str!("../shaders/numbers/bf16.wgsl"),
            Self::F16 => include_str!("../shaders/numbers/f16.wgsl"),
            Self::F16ByBits => include_str!("../shaders/numbers/f16_by_bits.wgsl"),
        }
    }
}

/// What a kernel that takes numbers per channel is compiled for.
pub(crate) const PER_CHANNEL: Form = Form { width: 1, rows: true, flat: false };

impl Key {
    /// A kernel that takes a few numbers per channel, whatever the activations' type.
    pub(crate) fn per_channel(kernel: Kernel) -> Self {
        Self { kernel, number: Number::F32, form: PER_CHANNEL }
    }

    /// The shader's text.
    pub(crate) fn source(self) -> String {
        let Form { width, rows, flat } = self.form;
        let half = self.number != Number::F32 && self.kernel != Kernel::Probe;
        // Elements of a part: at most four.
        let part = width.min(4);
        let constants = format!("const BACKWARDS: bool = {};\n", self.kernel.walks_backwards());
        let mut text = vec![
            params::STRUCT,
            params::CONSTANTS,
            include_str!("../shaders/params.wgsl"),
            &constants,
            self.number.text(),
        ];
        text.push(match (half, width) {
            (false, 4) => include_str!("../shaders/loads/f32_4.wgsl"),
            (false, _) => include_str!("../shaders/loads/f32_1.wgsl"),
            (true, 8) => include_str!("../shaders/loads/half_8.wgsl"),
            (true, 4) => include_str!("../shaders/loads/half_4.wgsl"),
            (true, 2) => include_str!("../shaders/loads/half_2.wgsl"),
            (true, _) => include_str!("../shaders/loads/half_1.wgsl"),
        });
        let part_text = part_of(part);
        text.push(&part_text);
        text.push(if rows {
            include_str!("../shaders/lanes/rows.wgsl")
        } else {
            include_str!("../shaders/lanes/columns.wgsl")
        });
        text.extend([
            include_str!("../shaders/plan.wgsl"),
            include_str!("../shaders/pairs.wgsl"),
            include_str!("../shaders/merge.wgsl"),
            include_str!("../shaders/numbers/scaled.wgsl"),
        ]);
        if matches!(self.kernel, Kernel::Moments | Kernel::Statistics) {
            text.push(include_str!("../shaders/members.wgsl"));
        }
        if matches!(self.kernel, Kernel::Normalize | Kernel::GradSums | Kernel::GradInput { .. }) {
            text.push(include_str!("../shaders/gather.wgsl"));
            text.push(match (flat, rows, part) {
                (true, ..) => include_str!("../shaders/lanes/flat.wgsl"),
                (_, false, 2) => include_str!("../shaders/lanes/gather_2.wgsl"),
                (_, false, 4) => include_str!("../shaders/lanes/gather_4.wgsl"),
                _ => include_str!("../shaders/lanes/gather_one.wgsl"),
            });
            if !flat {
                text.push(include_str!("../shaders/lanes/whole.wgsl"));
            }
        }
        if !matches!(self.kernel, Kernel::Moments | Kernel::Probe) {
            text.push(include_str!("../shaders/saved.wgsl"));
        }
        let loads = self.kernel.loads(half && width == 1);
        text.extend([self.kernel.text().1, &loads]);
        text.join("\n")
    }
}

/// The types of a part of so many elements, and functions for each of its elements: what rows.wgsl and columns.wgsl need.
fn part_of(elements: usize) -> String {
    let many = |scalar: &str| if elements == 1 { scalar.into() } else { format!("vec{elements}<{scalar}>") };
    let (sum, greatest, first, element) = match elements {
        4 => ("(x.x + x.y) + (x.z + x.w)", "max(max(x.x, x.y), max(x.z, x.w))", "x.x", "x[w]"),
        2 => ("x.x + x.y", "max(x.x, x.y)", "x.x", "x[w]"),
        _ => ("x", "x", "x", "x"),
    };
    format!(
        "const N: u32 = {elements}u;
alias Part = {};
alias PartBits = {};
alias PartWhole = {};
fn sum_of(x: Part) -> f32 {{ return {sum}; }}
fn greatest_of(x: PartBits) -> u32 {{ return {greatest}; }}
fn first_of(x: Part) -> f32 {{ return {first}; }}
fn element_of(x: Part, w: u32) -> f32 {{ return {element}; }}
fn whole_element_of(x: PartWhole, w: u32) -> i32 {{ return {element}; }}
",
        many("f32"),
        many("u32"),
        many("i32"),
    )
}

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) kernel: Kernel,
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

impl Module {
    pub(crate) fn new(
        device: &wgpu::Device,
        constants: &wgpu::BindGroupLayout,
        key: Key,
    ) -> Result<Self, WgpuError> {
        caught(device, "compiling a kernel", || {
            let (name, _) = key.kernel.text();
            let shader = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(name),
                source: wgpu::ShaderSource::Wgsl(Cow::Owned(key.source())),
            });
            let accesses = key.kernel.bindings();
            let entries: Vec<_> =
                accesses.iter().enumerate().map(|(i, access)| storage_entry(i as u32, *access)).collect();
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(name),
                entries: &entries,
            });
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(name),
                bind_group_layouts: &[Some(&layout), Some(constants)],
                immediate_size: 0,
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipeline_layout),
                module: &shader,
                entry_point: Some(name),
                // Each workgroup writes its shared memory before it reads it.
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            Self { kernel: key.kernel, pipeline, layout }
        })
    }

    /// For each binding, whether it is written.
    pub(crate) fn accesses(&self) -> &'static [Access] {
        self.kernel.bindings()
    }
}

fn storage_entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: access == Access::Read },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

/// The layout of the group that holds [`Params`].
pub(crate) fn constants_layout(device: &wgpu::Device) -> wgpu::BindGroupLayout {
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("params"),
        entries: &[wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: false,
                min_binding_size: NonZeroU64::new(size_of::<Params>() as u64),
            },
            count: None,
        }],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail where these do")]

    use super::*;
    use wgpu::naga::front::wgsl;
    use wgpu::naga::{AddressSpace, Module as Parsed, StorageAccess, TypeInner};

    const KERNELS: [Kernel; 8] = [
        Kernel::Moments,
        Kernel::Statistics,
        Kernel::Normalize,
        Kernel::GradSums,
        Kernel::GradientTerms,
        Kernel::GradInput { in_place: false },
        Kernel::GradInput { in_place: true },
        Kernel::Probe,
    ];

    fn parsed(kernel: Kernel) -> Parsed {
        // The probe converts halves; the others take any number.
        let number = if kernel == Kernel::Probe { Number::F16 } else { Number::F32 };
        wgsl::parse_str(&Key { number, ..Key::per_channel(kernel) }.source()).unwrap()
    }

    #[test]
    fn the_struct_of_numbers_lies_alike_on_both_sides() {
        let module = parsed(Kernel::Moments);
        let (_, params) = module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Params")).unwrap();
        let TypeInner::Struct { members, span } = &params.inner else { unreachable!() };
        let in_shader: Vec<_> =
            members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
        assert_eq!(in_shader, params::FIELDS);
        assert_eq!(*span as usize, size_of::<Params>());
    }

    #[test]
    fn shaders_declare_the_bindings_that_kernels_are_bound_with() {
        for kernel in KERNELS {
            let module = parsed(kernel);
            let mut declared: Vec<_> = module
                .global_variables
                .iter()
                .filter_map(|(_, variable)| match variable.space {
                    AddressSpace::Storage { access } => {
                        Some((variable.binding?.binding, access.contains(StorageAccess::STORE)))
                    }
                    _ => None,
                })
                .collect();
            declared.sort_unstable();
            let bound: Vec<_> =
                (0..).zip(kernel.bindings()).map(|(i, access)| (i, *access == Access::Write)).collect();
            assert_eq!(declared, bound, "{kernel:?}");
        }
    }
}
