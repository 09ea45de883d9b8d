//! The measurement of one case on any device: a copy of x, and every group's forward and backward pass.

use anyhow::Result;
use syncbn_core::{Element, Kernels};

use crate::results::Row;
use crate::shapes::Case;
use crate::step::Step;
use crate::timing::Device;

/// The rows of one case: `forward`, `backward`, and where the device has its own time, `forward_host` and `backward_host`; for one of
/// several ranks `forward_wall` and `backward_wall`.
pub fn measure<D: Device, T: Element>(device: &D, case: &Case) -> Result<Vec<Row>>
where
    D::Backend: Kernels<T>,
{
    let mut rows = Vec::new();
    for (name, group) in device.groups() {
        let mut step = Step::<D::Backend, T>::new(device.backend(), device.queue(), group, case.geometry)?;
        let copy = device.device_time(&mut || device.copy(&step.x, &mut step.y))?;
        let forward = device.device_time(&mut || step.forward())?;
        let backward = device.device_time(&mut || step.backward())?;
        step.check()?;
        rows.push(Row::new(name, "forward", case, forward, Some(copy)));
        rows.push(Row::new(name, "backward", case, backward, Some(copy)));
        let others = [
            ("forward_host", device.host_time(&mut || step.forward())?),
            ("backward_host", device.host_time(&mut || step.backward())?),
            ("forward_wall", device.wall_time(&mut || step.forward())?),
            ("backward_wall", device.wall_time(&mut || step.backward())?),
        ];
        let measured = others.into_iter().filter_map(|(op, times)| Some((op, times?)));
        rows.extend(measured.map(|(op, times)| Row::new(name, op, case, times, None)));
    }
    Ok(rows)
}
