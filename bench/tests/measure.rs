//! Every type goes through the harness, and what is timed is checked.

use syncbn_bench::cpu::CpuDevice;
use syncbn_bench::shapes::parse;
use syncbn_bench::timing::Times;

#[test]
fn the_median_is_the_middle_and_the_least_the_least() {
    assert_eq!(Times::of(vec![3.0, 9.0, 1.0]), Some(Times { median_us: 3.0, min_us: 1.0 }));
    assert_eq!(Times::of(vec![]), None);
}

#[test]
fn the_processor_is_measured_in_every_type_and_layout() {
    let device = CpuDevice::with_flush(1 << 20).unwrap();
    for line in ["f16 nchw 4x8x16x16", "bf16 nhwc 4x8x16x16", "f32 nhwc 4x8x16x16", "f64 nchw 512x8"] {
        let case = &parse(line).unwrap()[0];
        let rows = device.measure(case).unwrap();
        let ops: Vec<_> = rows.iter().map(|row| row.op.as_str()).collect();
        assert_eq!(ops, ["forward", "backward"]);
        for row in rows {
            assert_eq!(format!("{} {} {}", row.dtype, row.layout, row.shape), line);
            assert!(0.0 < row.min_us && row.min_us <= row.median_us && row.copy_us.unwrap() > 0.0, "{row:?}");
        }
    }
}
