//! What the backend allocates and copies: typed errors, no aborts.

use syncbn_core::{Backend, Config, ErrorKind, Pass, Storage, SyncBatchNorm};
use syncbn_cpu::{Cpu, CpuError};

#[test]
fn memory_that_cannot_be_had_is_a_typed_error() {
    let error = Cpu.sums(&(), usize::MAX).unwrap_err();
    assert!(matches!(error, CpuError::OutOfMemory { .. }), "{error}");
    let error = Cpu.saved(&(), usize::MAX / 2).unwrap_err();
    assert!(matches!(error, CpuError::OutOfMemory { .. }), "{error}");
    let config = Config { affine: false, track_running_stats: false, ..Config::new(usize::MAX) };
    let error = SyncBatchNorm::<Cpu, f32>::local("bn", config, Cpu, &()).unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Backend { .. }), "{error}");
}

#[test]
fn copies_between_lengths_that_differ_are_a_typed_error() {
    let mut buffer = Cpu.upload(&(), &[1.0_f32, 2.0]).unwrap();
    let error = Cpu.write(&(), &mut buffer, &[1.0]).unwrap_err();
    assert_eq!(error, CpuError::Length { what: "values", expected: 2, got: 1 });
    assert_eq!(Cpu.download(&(), &buffer).unwrap(), [1.0, 2.0]);

    let mut sums = Cpu.sums(&(), 3).unwrap();
    let error = Cpu.read_sums(&(), Pass::Backward, &sums, &mut [0.0; 7]).unwrap_err();
    assert_eq!(error, CpuError::Length { what: "message", expected: 6, got: 7 });
    assert!(Cpu.write_sums(&(), Pass::Forward, &mut sums, &[0.0; 6]).is_err());
}

#[test]
fn a_message_written_is_the_message_read() {
    for pass in [Pass::Forward, Pass::Backward] {
        let mut sums = Cpu.sums(&(), 3).unwrap();
        let message: Vec<f64> = (0..pass.message_len(3)).map(|i| i as f64).collect();
        Cpu.write_sums(&(), pass, &mut sums, &message).unwrap();
        let mut read = vec![f64::NAN; message.len()];
        Cpu.read_sums(&(), pass, &sums, &mut read).unwrap();
        assert_eq!(read, message);
    }
}
