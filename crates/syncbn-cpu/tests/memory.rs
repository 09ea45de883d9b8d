//! What the backend allocates and copies: typed errors, no aborts.

use syncbn_core::{Backend, Config, Dtype, ErrorKind, Pass, SyncBatchNorm};
use syncbn_cpu::{Cpu, CpuError};

#[test]
fn memory_that_cannot_be_had_is_a_typed_error() {
    let error = Cpu.workspace(&(), usize::MAX, Dtype::F32).unwrap_err();
    assert!(matches!(error, CpuError::OutOfMemory { .. }), "{error}");
    let error = Cpu.saved(&(), usize::MAX / 2).unwrap_err();
    assert!(matches!(error, CpuError::OutOfMemory { .. }), "{error}");
    let config = Config::new(1 << 58).with_affine(false).with_track_running_stats(false);
    let error = SyncBatchNorm::<Cpu, f32>::local("bn", config, Cpu, &()).unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Backend { .. }), "{error}");
}

#[test]
fn copies_between_lengths_that_differ_are_a_typed_error() {
    let mut memory = [1.0_f32, 2.0];
    let error = Cpu.write(&(), &mut memory, &[1.0]).unwrap_err();
    assert_eq!(error, CpuError::Length { what: "values", expected: 2, got: 1 });
    let error = Cpu.read(&(), &memory, &mut [0.0; 3]).unwrap_err();
    assert_eq!(error, CpuError::Length { what: "values", expected: 3, got: 2 });
    assert_eq!(memory, [1.0, 2.0]);

    let mut workspace = Cpu.workspace(&(), 3, Dtype::F32).unwrap();
    let error = Cpu.read_message(&(), Pass::Backward, &mut workspace, &mut [0.0; 7]).unwrap_err();
    assert_eq!(error, CpuError::Length { what: "message", expected: 6, got: 7 });
    let error = Cpu.write_message(&(), Pass::Forward, &mut workspace, &[0.0; 12]).unwrap_err();
    assert_eq!(error, CpuError::Length { what: "message", expected: 13, got: 12 });
}

#[test]
fn a_backward_message_written_is_the_message_read() {
    let mut workspace = Cpu.workspace(&(), 3, Dtype::F64).unwrap();
    let message = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    Cpu.write_message(&(), Pass::Backward, &mut workspace, &message).unwrap();
    let mut read = [f64::NAN; 6];
    Cpu.read_message(&(), Pass::Backward, &mut workspace, &mut read).unwrap();
    assert_eq!(read, message);
}
