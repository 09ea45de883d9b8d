//! Which CUDA devices this machine has for syncbn. Without one it says what is missing, and exits with 2.

use std::process::ExitCode;

use syncbn_cuda::{Cuda, CudaError};

fn main() -> ExitCode {
    match list() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("no usable GPU: {error}");
            ExitCode::from(2)
        }
    }
}

fn list() -> Result<(), CudaError> {
    for ordinal in 0.. {
        match Cuda::open(ordinal) {
            Ok(cuda) => println!("device {ordinal}: {}", cuda.context().name().unwrap_or_default()),
            // The first one's absence is an error, a later one's the end of the list.
            Err(CudaError::NoDevice { .. }) if ordinal > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
