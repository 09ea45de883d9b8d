//! A residual network of PyTorch's: loaded, evaluated and written back. `tests/pytorch/resnet.py` made its files, and takes the one
//! that is written here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Module, ModuleT, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Linear, VarBuilder, VarMap, conv2d_no_bias, linear};
use syncbn_candle::{Group, SyncBatchNorm, sync_batch_norm};

use crate::common::difference;
use crate::place::{available, device};

struct Convolved {
    conv: Conv2d,
    norm: SyncBatchNorm,
}

impl Convolved {
    fn new(
        sizes: (usize, usize, usize),
        stride: usize,
        conv: VarBuilder<'_>,
        norm: VarBuilder<'_>,
    ) -> Result<Self> {
        let (inputs, outputs, kernel) = sizes;
        let config = Conv2dConfig { stride, padding: kernel / 2, ..Conv2dConfig::default() };
        let conv = conv2d_no_bias(inputs, outputs, kernel, config, conv)?;
        Ok(Self { conv, norm: sync_batch_norm(outputs, 1e-5, norm, &Group::single_rank())? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward_t(&self.conv.forward(x)?, false)
    }
}

struct Block {
    first: Convolved,
    second: Convolved,
    downsample: Option<Convolved>,
}

impl Block {
    fn new(inputs: usize, outputs: usize, stride: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let downsample = (inputs != outputs).then(|| {
            let vb = vb.pp("downsample");
            Convolved::new((inputs, outputs, 1), stride, vb.pp("0"), vb.pp("1"))
        });
        Ok(Self {
            first: Convolved::new((inputs, outputs, 3), stride, vb.pp("conv1"), vb.pp("bn1"))?,
            second: Convolved::new((outputs, outputs, 3), 1, vb.pp("conv2"), vb.pp("bn2"))?,
            downsample: downsample.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.second.forward(&self.first.forward(x)?.relu()?)?;
        let x = self.downsample.as_ref().map_or_else(|| Ok(x.clone()), |downsample| downsample.forward(x))?;
        (y + x)?.relu()
    }
}

struct ResNet {
    first: Convolved,
    blocks: [Block; 2],
    last: Linear,
}

impl ResNet {
    fn new(vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            first: Convolved::new((3, 8, 3), 1, vb.pp("conv1"), vb.pp("bn1"))?,
            blocks: [Block::new(8, 8, 1, &vb.pp("layer1.0"))?, Block::new(8, 16, 2, &vb.pp("layer2.0"))?],
            last: linear(16, 10, vb.pp("fc"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.first.forward(x)?.relu()?;
        let x = self.blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
        self.last.forward(&x.mean((2, 3))?)
    }
}

const STATE: &[u8] = include_bytes!("../pytorch/resnet.safetensors");
const EVALUATED: &[u8] = include_bytes!("../pytorch/evaluated.safetensors");

fn evaluates_as_pytorch(network: &ResNet) {
    let file = candle_core::safetensors::load_buffer(EVALUATED, &device()).unwrap();
    let error = difference(&network.forward(&file["x"]).unwrap(), &file["y"]);
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn pytorchs_checkpoint_is_read_as_it_lies_and_evaluates_to_its_output() {
    if !available() {
        return;
    }
    let vb = VarBuilder::from_buffered_safetensors(STATE.to_vec(), DType::F32, &device()).unwrap();
    let network = ResNet::new(&vb).unwrap();
    assert_eq!(network.first.norm.num_batches_tracked().unwrap().to_scalar::<i64>().unwrap(), 20);
    evaluates_as_pytorch(&network);
}

/// Names, types, shapes and values.
fn contents(bytes: &[u8]) -> BTreeMap<String, (DType, Vec<usize>, Vec<u64>)> {
    let contents = |(name, tensor): (String, Tensor)| {
        let bits = match tensor.dtype() {
            DType::I64 => vec![tensor.to_scalar::<i64>().unwrap().cast_unsigned()],
            _ => crate::common::values(&tensor).into_iter().map(f64::to_bits).collect(),
        };
        (name, (tensor.dtype(), tensor.dims().to_vec(), bits))
    };
    candle_core::safetensors::load_buffer(bytes, &device()).unwrap().into_iter().map(contents).collect()
}

#[test]
fn what_is_written_back_has_the_names_types_shapes_and_bits_that_pytorchs_strict_load_wants() {
    if !available() {
        return;
    }
    let mut vars = VarMap::new();
    let network = ResNet::new(&VarBuilder::from_varmap(&vars, DType::F32, &device())).unwrap();
    vars.set(candle_core::safetensors::load_buffer(STATE, &device()).unwrap().into_iter()).unwrap();
    evaluates_as_pytorch(&network);
    let folder = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("SYNCBN_RESNET").map(PathBuf::from);
    let written = kept.unwrap_or_else(|| folder.path().join("written.safetensors"));
    vars.save(&written).unwrap();
    assert_eq!(contents(&std::fs::read(&written).unwrap()), contents(STATE));
}
