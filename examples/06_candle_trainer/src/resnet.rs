//! The residual network for small images of He et al. 2015, section 4.2: 6n + 2 layers of 3 x 3 convolutions in three stages.

use candle_core::{DType, Device, ModuleT, Result, Tensor};
use candle_nn::{
    BatchNorm, Conv2d, Conv2dConfig, Linear, Module, VarBuilder, VarMap, batch_norm, conv2d_no_bias, linear,
};
use syncbn_candle::{Group, SyncBatchNorm, sync_batch_norm};

/// The size of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Channels of the first stage; the others have twice and four times as many.
    pub width: usize,
    /// Blocks of each stage, n; 3 make a ResNet-20.
    pub blocks: usize,
}

/// Whose batch norm a network has.
#[derive(Clone, Debug)]
pub enum Norms {
    /// Candle's own: each rank's samples.
    Candle,
    /// The samples of a group.
    Of(Group),
}

enum Norm {
    Candle(BatchNorm),
    Sync(SyncBatchNorm),
}

impl Norm {
    fn new(channels: usize, vb: VarBuilder<'_>, norms: &Norms) -> Result<Self> {
        // The one line that differs between a network of one process and one of many.
        match norms {
            Norms::Candle => batch_norm(channels, 1e-5, vb).map(Self::Candle),
            Norms::Of(group) => sync_batch_norm(channels, 1e-5, vb, group).map(Self::Sync),
        }
    }
}

impl ModuleT for Norm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Candle(norm) => norm.forward_t(x, train),
            Self::Sync(norm) => norm.forward_t(x, train),
        }
    }
}

/// A convolution and its batch norm.
struct Convolved {
    conv: Conv2d,
    norm: Norm,
}

impl Convolved {
    fn new(
        (inputs, outputs, kernel): (usize, usize, usize),
        stride: usize,
        vb: &VarBuilder<'_>,
        norms: &Norms,
    ) -> Result<Self> {
        let config = Conv2dConfig { stride, padding: kernel / 2, ..Conv2dConfig::default() };
        let conv = conv2d_no_bias(inputs, outputs, kernel, config, vb.pp("conv"))?;
        Ok(Self { conv, norm: Norm::new(outputs, vb.pp("bn"), norms)? })
    }
}

impl ModuleT for Convolved {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward_t(&self.conv.forward(x)?, train)
    }
}

struct Block {
    first: Convolved,
    second: Convolved,
    shortcut: Option<Convolved>,
}

impl Block {
    fn new(inputs: usize, outputs: usize, vb: &VarBuilder<'_>, norms: &Norms) -> Result<Self> {
        let grows = inputs != outputs;
        let stride = if grows { 2 } else { 1 };
        let shortcut = grows.then(|| Convolved::new((inputs, outputs, 1), stride, &vb.pp("shortcut"), norms));
        Ok(Self {
            first: Convolved::new((inputs, outputs, 3), stride, &vb.pp("first"), norms)?,
            second: Convolved::new((outputs, outputs, 3), 1, &vb.pp("second"), norms)?,
            shortcut: shortcut.transpose()?,
        })
    }
}

impl ModuleT for Block {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = self.second.forward_t(&self.first.forward_t(x, train)?.relu()?, train)?;
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward_t(x, train)?,
            None => x.clone(),
        };
        (y + shortcut)?.relu()
    }
}

/// The network; its output are the scores of the classes.
pub struct ResNet {
    first: Convolved,
    blocks: Vec<Block>,
    last: Linear,
}

impl ResNet {
    /// A network for images of `colours`, and its variables, drawn from `seed`.
    pub fn new(
        size: Size,
        (colours, classes): (usize, usize),
        (dtype, device): (DType, &Device),
        norms: &Norms,
        seed: u64,
    ) -> Result<(VarMap, Self)> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, dtype, device);
        let Size { width, blocks } = size;
        let first = Convolved::new((colours, width, 3), 1, &vb.pp("first"), norms)?;
        let (mut inputs, mut all) = (width, Vec::new());
        for (stage, outputs) in [width, 2 * width, 4 * width].into_iter().enumerate() {
            for block in 0..blocks {
                let vb = vb.pp(format!("stage{stage}.{block}"));
                all.push(Block::new(inputs, outputs, &vb, norms)?);
                inputs = outputs;
            }
        }
        let last = linear(inputs, classes, vb.pp("last"))?;
        draw(&vars, seed)?;
        Ok((vars, Self { first, blocks: all, last }))
    }
}

impl ModuleT for ResNet {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let x = self.first.forward_t(x, train)?.relu()?;
        let x = self.blocks.iter().try_fold(x, |x, block| block.forward_t(&x, train))?;
        self.last.forward(&x.mean((2, 3))?)
    }
}

/// Draws convolutions and the last layer as He et al. 2015 do; candle's own start cannot be repeated on a CPU.
fn draw(vars: &VarMap, seed: u64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut named: Vec<_> = {
        let vars = vars.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    };
    named.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (_, var) in
        named.iter().filter(|(name, _)| name.ends_with("conv.weight") || name.starts_with("last."))
    {
        let inputs: usize = var.dims().iter().skip(1).product();
        let bound = if var.rank() == 1 { 0.0 } else { (6.0 / inputs as f64).sqrt() };
        let values = (0..var.elem_count()).map(|_| bound * (2.0 * random.f64() - 1.0)).collect::<Vec<_>>();
        var.set(&Tensor::from_vec(values, var.shape(), var.device())?.to_dtype(var.dtype())?)?;
    }
    Ok(())
}
