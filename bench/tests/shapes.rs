//! What a list of tensors may say, and what it is told when it says something else.

use syncbn_bench::shapes::{CaseError, DEFAULT, parse};
use syncbn_core::{Dtype, Geometry, Layout};

#[test]
fn a_line_names_the_logical_shape_whatever_the_layout() {
    let cases = parse("bf16 nhwc 2x64x256x512").unwrap();
    assert_eq!(cases.len(), 1);
    assert_eq!((cases[0].dtype, cases[0].layout), (Dtype::Bf16, Layout::ChannelsLast));
    assert_eq!(cases[0].geometry, Geometry::channels_last(&[2, 256, 512, 64]).unwrap());
    assert_eq!(cases[0].to_string(), "bf16 nhwc 2x64x256x512");
}

#[test]
fn comments_and_empty_lines_are_skipped_but_counted() {
    let text = "# types\n\nf32 nchw 128x1024 # no spatial axes\nf32 nchw 0x3\n";
    let error = parse(text).unwrap_err();
    assert_eq!(error.line, 4);
    assert_eq!(error.source, CaseError::Shape("0x3".into()));
    assert_eq!(parse(&text.replace("0x3", "1x3")).unwrap().len(), 2);
}

#[test]
fn every_wrong_word_is_named() {
    let error = |line: &str| parse(line).unwrap_err().source;
    assert_eq!(error("f32 2x3"), CaseError::Words(2));
    assert_eq!(error("f8 nchw 2x3"), CaseError::Dtype("f8".into()));
    assert_eq!(error("f32 chwn 2x3"), CaseError::Layout("chwn".into()));
    assert_eq!(error("f32 nchw 2xx3"), CaseError::Shape("2xx3".into()));
    assert!(matches!(error("f32 nchw 7"), CaseError::Geometry(_)));
    assert!(matches!(error("f32 nhwc 7"), CaseError::Geometry(_)));
}

#[test]
fn the_default_list_has_the_same_tensors_in_every_type() {
    let cases = parse(DEFAULT).unwrap();
    let of = |dtype| {
        let cases = cases.iter().filter(|case| case.dtype == dtype);
        cases.map(|case| (case.layout_name(), case.shape_name())).collect::<Vec<_>>()
    };
    assert_eq!(of(Dtype::F32).len(), 21);
    assert_eq!(of(Dtype::F32), of(Dtype::F16));
    assert_eq!(of(Dtype::F32), of(Dtype::Bf16));
    assert_eq!(cases.len(), 63);
}
