//! What a data-parallel trainer needs besides the layer: gradients and variables over ranks.

use crate::common::{drawn, ranks, there, values};
use crate::place::{available, device};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Init, VarMap};
use syncbn_candle::{
    Difference, Error, Group, Reduction, all_reduce_gradients, broadcast_state, check_state, sorted_vars,
};
use syncbn_core::CommErrorKind;

/// Variables of several types, with values that depend on the rank.
fn vars(rank: usize) -> VarMap {
    let vars = VarMap::new();
    for (at, (name, dtype)) in
        [("b", DType::F64), ("a", DType::F32), ("d", DType::BF16), ("c", DType::F16)].into_iter().enumerate()
    {
        vars.get((3, 2 + at), name, Init::Const(1.0), dtype, &device()).unwrap();
        vars.clone().set_one(name, drawn(&[3, 2 + at], dtype, (7 * rank + at) as u64)).unwrap();
    }
    for (name, dtype) in [("e", DType::U8), ("f", DType::I16), ("g", DType::I32)] {
        let value = rank as f64 - if dtype == DType::U8 { 0.0 } else { 300.0 };
        let var = Var::from_tensor(&there(&Tensor::new(value, &Device::Cpu).unwrap(), dtype)).unwrap();
        vars.data().lock().unwrap().insert(name.into(), var);
    }
    vars.get((), "count", Init::Const(0.0), DType::I64, &device()).unwrap();
    vars.clone().set_one("count", Tensor::new(-5 - rank as i64, &device()).unwrap()).unwrap();
    vars
}

fn bits(vars: &VarMap) -> Vec<Vec<u64>> {
    sorted_vars(vars)
        .iter()
        .map(|var| match var.dtype() {
            DType::I64 => vec![var.to_scalar::<i64>().unwrap().cast_unsigned()],
            _ => values(var).into_iter().map(f64::to_bits).collect(),
        })
        .collect()
}

#[test]
fn broadcast_state_gives_every_rank_rank_0s_bits() {
    if !available() {
        return;
    }
    let states = ranks(3, |group| {
        let vars = vars(group.rank());
        if group.rank() == 0 {
            let odd = [[f64::NAN, -0.0], [f64::INFINITY, 1e-310], [1.0 / 3.0, -1.0]];
            vars.clone().set_one("b", Tensor::new(&odd, &device())?)?;
        }
        let before = bits(&vars);
        broadcast_state(&vars, group)?;
        check_state_of_equals(&vars, group);
        Ok((before, bits(&vars)))
    });
    for (_, after) in &states {
        assert_eq!(after, &states[0].0);
    }
}

fn check_state_of_equals(vars: &VarMap, group: &syncbn_candle::Group) {
    check_state(vars, group).unwrap();
}

#[test]
fn check_state_names_each_variable_that_differs_and_its_rank() {
    if !available() {
        return;
    }
    let found = ranks(3, |group| {
        let vars = vars(0);
        if group.rank() == 1 {
            vars.clone().set_one("count", Tensor::new(0_i64, &device())?)?;
        }
        if group.rank() == 2 {
            let zeros = Tensor::new(&[[-0.0_f32, 0.0, 0.0]; 3], &device())?;
            vars.clone().set_one("a", zeros)?;
        }
        let error = check_state(&vars, group).unwrap_err();
        match Error::find(&error) {
            Some(Error::StateDiffers(found)) => Ok(found.clone()),
            _ => Err(error),
        }
    });
    let difference = |rank, variable: &str| Difference { rank, variable: variable.into() };
    for found in found {
        assert_eq!(found, [difference(1, "count"), difference(2, "a")]);
    }
}

#[test]
fn models_that_differ_are_told_on_every_rank() {
    if !available() {
        return;
    }
    let changes: [fn(&VarMap); 2] = [
        |vars| drop(vars.get(1, "another", Init::Const(0.0), DType::F32, &device()).unwrap()),
        |vars| vars.data().lock().unwrap().clear(),
    ];
    for (change, check) in changes.into_iter().flat_map(|change| [(change, false), (change, true)]) {
        let told = ranks(2, |group| {
            let vars = vars(0);
            if group.rank() == 1 {
                change(&vars);
            }
            let before = bits(&vars);
            let compared = if check { check_state(&vars, group) } else { broadcast_state(&vars, group) };
            assert_eq!(bits(&vars), before);
            Ok(is_out_of_step(&compared.unwrap_err()))
        });
        assert_eq!(told, [true, true]);
    }
}

#[test]
fn a_variable_of_a_type_that_cannot_travel_is_named_with_the_operation() {
    if !available() {
        return;
    }
    let vars = VarMap::new();
    let var = Var::from_tensor(&there(&Tensor::new(1.0, &Device::Cpu).unwrap(), DType::F8E4M3));
    vars.data().lock().unwrap().insert("scales".into(), var.unwrap());
    for operation in ["check_state", "broadcast_state"] {
        let group = Group::single_rank();
        let compared = if operation == "check_state" {
            check_state(&vars, &group)
        } else {
            broadcast_state(&vars, &group)
        };
        let error = compared.unwrap_err().to_string();
        assert!([operation, "`scales`", "F8E4M3"].iter().all(|part| error.contains(part)), "{error}");
    }
}

fn is_out_of_step(error: &candle_core::Error) -> bool {
    matches!(Error::find(error), Some(Error::Group { source, .. }) if matches!(source.kind, CommErrorKind::OutOfStep { .. }))
}

#[test]
fn gradients_are_summed_or_averaged_and_keep_their_types() {
    if !available() {
        return;
    }
    for (reduction, divisor) in [(Reduction::Sum, 1.0), (Reduction::Mean, 2.0)] {
        let outcomes = ranks(2, |group| {
            let vars = sorted_vars(&vars(0));
            let scale = (group.rank() + 1) as f64;
            // d(sum(s v^2 / 2)) = s v, for all but the counter, which is used by nothing.
            let mut loss = Tensor::zeros((), DType::F64, &device())?;
            for var in vars.iter().filter(|var| var.dtype().is_float()) {
                loss = (loss + (var.sqr()?.to_dtype(DType::F64)?.sum_all()? * (scale / 2.0))?)?;
            }
            let mut grads = loss.backward()?;
            all_reduce_gradients(&mut grads, &vars, group, reduction)?;
            for var in &vars {
                let Some(grad) = grads.get(var) else {
                    assert!(!var.dtype().is_float());
                    continue;
                };
                assert_eq!((grad.dims(), grad.dtype()), (var.dims(), var.dtype()));
                let half = if matches!(var.dtype(), DType::F16 | DType::BF16) { 2e-2 } else { 1e-6 };
                for (grad, value) in values(grad).into_iter().zip(values(var)) {
                    let expected = 3.0 * value / divisor;
                    assert!((grad - expected).abs() <= half * expected.abs(), "{grad} {expected}");
                }
            }
            Ok(vars.iter().filter_map(|var| grads.get(var).map(values)).collect::<Vec<_>>())
        });
        assert_eq!(outcomes[0].len(), 4);
        assert_eq!(outcomes[0], outcomes[1]);
    }
}

#[test]
fn more_gradients_than_a_bucket_holds_are_all_summed() {
    if !available() {
        return;
    }
    let sums = ranks(2, |group| {
        let vars =
            [1 << 21, 1 << 21, 5, (1 << 22) + 3, 7].map(|len| Var::full_of(len, group.rank() as f32 + 1.0));
        let mut loss = Tensor::zeros((), DType::F32, &device())?;
        for var in &vars {
            loss = (loss + (var.sum_all()? * (group.rank() + 1) as f64)?)?;
        }
        let mut grads = loss.backward()?;
        all_reduce_gradients(&mut grads, &vars, group, Reduction::Sum)?;
        Ok(vars.iter().all(|var| values(grads.get(var).unwrap()).iter().all(|&grad| grad == 3.0)))
    });
    assert_eq!(sums, [true, true]);
}

trait FullOf {
    fn full_of(len: usize, value: f32) -> Var;
}

impl FullOf for Var {
    fn full_of(len: usize, value: f32) -> Var {
        Var::from_vec(vec![value; len], len, &device()).unwrap()
    }
}

#[test]
fn a_variable_with_two_names_is_summed_once() {
    if !available() {
        return;
    }
    let sums = ranks(2, |group| {
        let tied = Var::full_of((1 << 22) - 1, 1.0);
        let mut grads = tied.sum_all()?.backward()?;
        // More than one bucket.
        let vars = [tied.clone(), tied.clone(), tied.clone()];
        all_reduce_gradients(&mut grads, &vars, group, Reduction::Sum)?;
        Ok(values(grads.get(&tied).unwrap()).iter().all(|&grad| grad == 2.0))
    });
    assert_eq!(sums, [true, true]);
}

type Change = fn(&mut Vec<Var>);

#[test]
fn variables_in_another_order_or_without_gradient_are_told_on_every_rank() {
    if !available() {
        return;
    }
    let changes: [Change; 4] = [
        |vars| vars.swap(0, 1),
        |vars| vars[0] = Var::full_of(6, 1.0),
        |vars| *vars = vec![Var::full_of(6, 1.0), Var::full_of(3, 1.0)],
        Vec::clear,
    ];
    for change in changes {
        let told = ranks(2, |group| {
            let mut vars = vec![Var::full_of(6, 1.0), Var::full_of(3, 1.0)];
            let loss = (vars[0].sum_all()? + vars[1].sum_all()?)?;
            if group.rank() == 1 {
                change(&mut vars);
            }
            let mut grads = loss.backward()?;
            let error = all_reduce_gradients(&mut grads, &vars, group, Reduction::Sum).unwrap_err();
            Ok(is_out_of_step(&error))
        });
        assert_eq!(told, [true, true]);
    }
}
