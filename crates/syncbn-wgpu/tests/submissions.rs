//! How often work is given to the queue: once a pass, twice where ranks are asked, once for all that is held.

#![allow(clippy::unwrap_used, reason = "tests fail where these do")]

mod common;

use std::num::NonZeroUsize;
use std::time::Duration;

use common::{Rig, gpu, numbers};
use syncbn_comm::threads;
use syncbn_core::{
    Communicator, Config, Geometry, Gradients, ParamGradients, SingleRank, Storage, SyncBatchNorm, ViaHost,
    View, ViewMut,
};
use syncbn_wgpu::Wgpu;

fn rig(wgpu: &Wgpu) -> Rig<f32> {
    let geometry = Geometry::channels_first(&[2, 3, 4]).unwrap();
    Rig::new(wgpu, geometry, &numbers(24, 0.7))
}

fn layer(rig: &Rig<f32>, group: impl Communicator<Wgpu> + 'static) -> SyncBatchNorm<Wgpu, f32> {
    SyncBatchNorm::new("bn", Config::new(3), rig.wgpu.clone(), &rig.queue, group).unwrap()
}

#[test]
fn alone_a_pass_is_one_submission() {
    let Some(wgpu) = gpu() else { return };
    let mut rig = rig(&wgpu);
    let mut layer = layer(&rig, SingleRank);
    assert_eq!(rig.queue.submissions(), 0, "making a layer submits nothing");
    let saved = rig.forward(&mut layer).unwrap();
    assert_eq!(rig.queue.submissions(), 1, "forward");
    rig.backward(&mut layer, &saved).unwrap();
    assert_eq!(rig.queue.submissions(), 2, "backward");
    let (x, dy) = (View::new(Wgpu::mem(&rig.x), rig.geometry), View::new(Wgpu::mem(&rig.dy), rig.geometry));
    let mut d_bias = wgpu.upload(&rig.queue, &[0.0_f32; 3]).unwrap();
    let parameters = ParamGradients { weight: None, bias: Some(Wgpu::mem_mut(&mut d_bias)) };
    let gradients = Gradients::<Wgpu, f32>::parameters_only(dy);
    layer.backward(&rig.queue, &saved, x, gradients, parameters).unwrap();
    assert_eq!(rig.queue.submissions(), 3, "backward without dx");
    layer.set_training(false);
    rig.forward(&mut layer).unwrap();
    assert_eq!(rig.queue.submissions(), 4, "evaluation");
}

#[test]
fn in_a_group_a_pass_is_one_submission_before_the_sum_and_one_after() {
    let Some(wgpu) = gpu() else { return };
    let two = NonZeroUsize::new(2).unwrap();
    let ranks = threads::run(two, Duration::from_secs(20), |comm| {
        let mut rig = rig(&wgpu);
        let mut layer = layer(&rig, ViaHost(comm));
        let saved = rig.forward(&mut layer).unwrap();
        let after_forward = rig.queue.submissions();
        rig.backward(&mut layer, &saved).unwrap();
        (after_forward, rig.queue.submissions())
    });
    assert_eq!(ranks.unwrap(), [(2, 4); 2]);
}

#[test]
fn what_is_held_is_one_submission_and_computes_the_same() {
    let Some(wgpu) = gpu() else { return };
    let mut rig = rig(&wgpu);
    let mut layer_apart = layer(&rig, SingleRank);
    let saved = rig.forward(&mut layer_apart).unwrap();
    rig.backward(&mut layer_apart, &saved).unwrap();
    let apart = (rig.read(&rig.y), rig.read(&rig.dx));

    let mut rig = self::rig(&wgpu);
    let mut layer = layer(&rig, SingleRank);
    let queue = wgpu.queue();
    let result = queue.hold(|| {
        let x = View::new(Wgpu::mem(&rig.x), rig.geometry);
        let y = ViewMut::new(Wgpu::mem_mut(&mut rig.y), rig.geometry);
        let saved = layer.forward(&queue, x, y)?;
        let (x, dy) =
            (View::new(Wgpu::mem(&rig.x), rig.geometry), View::new(Wgpu::mem(&rig.dy), rig.geometry));
        let dx = ViewMut::new(Wgpu::mem_mut(&mut rig.dx), rig.geometry);
        layer.backward(&queue, &saved, x, Gradients::out_of_place(dy, dx), ParamGradients::default())
    });
    result.unwrap().unwrap();
    assert_eq!(queue.submissions(), 1);
    assert_eq!((rig.read(&rig.y), rig.read(&rig.dx)), apart);
}
