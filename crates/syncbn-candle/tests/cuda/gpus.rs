//! Ranks with a GPU each, and candle's default stream.

use std::num::NonZeroUsize;
use std::time::Duration;

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use syncbn_candle::{
    Error, Group, Reduction, all_reduce_gradients, broadcast_state, check_state, sorted_vars, sync_batch_norm,
};
use syncbn_comm::threads;
use syncbn_testkit::report::skipped;

use crate::common::{difference, drawn, formula, values};
use crate::place::available;

const TIMEOUT: Duration = Duration::from_secs(60);

/// y, dx and the weight's gradient over all ranks, of this rank's part of a batch, on the CPU.
fn step(device: &Device, group: &Group, (from, len): (usize, usize)) -> Result<[Tensor; 3]> {
    let part = |seed| {
        drawn(&[8, 3, 4, 5], DType::F32, seed)
            .to_device(&Device::Cpu)?
            .narrow(0, from, len)?
            .to_device(device)
    };
    let vars = VarMap::new();
    let norm = sync_batch_norm(3, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, device), group)?;
    if group.rank() == 1 {
        vars.clone().set_one("weight", Tensor::zeros(3, DType::F32, device)?)?;
    }
    broadcast_state(&vars, group)?;
    check_state(&vars, group)?;
    let x = Var::from_tensor(&part(1)?)?;
    let y = norm.forward_t(&x, true)?;
    let mut grads = (&y * &part(2)?)?.sum_all()?.backward()?;
    all_reduce_gradients(&mut grads, &sorted_vars(&vars), group, Reduction::Sum)?;
    let weight = norm.weight().and_then(|weight| grads.get(weight)).unwrap();
    let all = [&y, grads.get(&x).unwrap(), weight].map(|tensor| tensor.to_device(&Device::Cpu));
    let [y, dx, d_weight] = all;
    Ok([y?, dx?, d_weight?])
}

/// The same of the whole batch, by candle's autograd of the formula.
fn expected() -> Result<[Tensor; 3]> {
    let of = |seed| drawn(&[8, 3, 4, 5], DType::F32, seed).to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let x = Var::from_tensor(&of(1)?)?;
    let weight = Var::ones(3, DType::F64, &Device::Cpu)?;
    let bias = Tensor::zeros(3, DType::F64, &Device::Cpu)?;
    let y = formula(&x, Some((&weight, &bias)), 1e-5)?;
    let grads = (&y * &of(2)?)?.sum_all()?.backward()?;
    Ok([y.detach(), grads.get(&x).unwrap().clone(), grads.get(&weight).unwrap().clone()])
}

fn check(parts: &[[Tensor; 3]]) {
    let expected = expected().unwrap();
    for (at, expected) in expected.iter().enumerate().take(2) {
        let joined = Tensor::cat(&parts.iter().map(|part| &part[at]).collect::<Vec<_>>(), 0).unwrap();
        assert!(difference(&joined, expected) < 1e-6, "{at}");
    }
    for part in parts {
        assert!(difference(&part[2], &expected[2]) < 1e-6);
        assert_eq!(values(&part[2]), values(&parts[0][2]));
    }
}

#[test]
fn candles_default_stream_will_do() {
    if available() {
        let device = Device::new_cuda(0).unwrap();
        check(&[step(&device, &Group::single_rank(), (0, 8)).unwrap()]);
    }
}

#[test]
fn ranks_with_candles_default_stream_may_share_a_gpu() {
    if available() {
        let parts = threads::run(NonZeroUsize::new(2).unwrap(), TIMEOUT, |comm| {
            let group = Group::via_host(comm);
            step(&Device::new_cuda(0).unwrap(), &group, [(0, 5), (5, 3)][group.rank()]).unwrap()
        });
        check(&parts.unwrap());
    }
}

#[test]
fn two_gpus_meet_inside_their_kernels() {
    if !available() {
        return;
    }
    if let Err(why) = Device::new_cuda(1) {
        return skipped("cuda::gpus::two_gpus_meet_inside_their_kernels", &format!("one GPU: {why}"));
    }
    let parts = threads::run(NonZeroUsize::new(2).unwrap(), TIMEOUT, |comm| {
        use syncbn_core::HostCommunicator as _;
        let device = Device::new_cuda(comm.rank()).unwrap();
        let group = Group::peers(&device, comm, TIMEOUT).unwrap();
        step(&device, &group, [(0, 5), (5, 3)][group.rank()]).unwrap()
    });
    check(&parts.unwrap());
}

#[test]
fn a_group_of_cuda_alone_refuses_the_cpu() {
    if !available() {
        return;
    }
    let alone = syncbn_core::Group::<syncbn_cuda::Cuda>::new(syncbn_core::SingleRank);
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    let error = sync_batch_norm(3, 1e-5, vb.pp("bn1"), &alone.into()).unwrap_err();
    assert!(matches!(Error::find(&error), Some(Error::Device { layer, .. }) if layer == "bn1"), "{error}");
}
