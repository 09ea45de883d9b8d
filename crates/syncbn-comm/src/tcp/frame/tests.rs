//! Frames that are written and read, and bytes that are nearly frames.

use proptest::prelude::*;

use super::*;

fn ids() -> impl Strategy<Value = CollectiveId> {
    let kind = prop_oneof![
        Just(CollectiveKind::AllReduce),
        Just(CollectiveKind::Pass(Pass::Forward)),
        Just(CollectiveKind::Pass(Pass::Backward)),
    ];
    (".{0,40}", any::<(usize, u64, u64, u64, u64)>(), kind).prop_map(|(label, numbers, kind)| {
        let (length, ordinal, settings, use_number, step) = numbers;
        CollectiveId::new(label, length)
            .with_kind(kind)
            .with_layer(ordinal, settings)
            .with_use(use_number, step)
    })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![ids().prop_map(Step::AllReduce), Just(Step::Split)]
}

fn kinds() -> impl Strategy<Value = CommErrorKind> {
    prop_oneof![
        any::<(usize, bool)>().prop_map(|(rank, panicked)| CommErrorKind::Left { rank, panicked }),
        (prop::collection::vec(any::<usize>(), 0..5), any::<Duration>())
            .prop_map(|(missing, timeout)| CommErrorKind::Timeout { missing, timeout }),
        any::<Duration>().prop_map(|timeout| CommErrorKind::Unfinished { timeout }),
        Just(CommErrorKind::OutOfStep { others: Vec::new() }),
        ".{0,40}".prop_map(CommErrorKind::Disagree),
        any::<(usize, usize)>().prop_map(|(expected, got)| CommErrorKind::MessageLength { expected, got }),
        ".{0,40}".prop_map(|text| CommErrorKind::Unsent(Arc::new(Told(text)))),
        ".{0,40}".prop_map(|text| CommErrorKind::Transport(Arc::new(Told(text)))),
    ]
}

fn frames() -> impl Strategy<Value = Frame> {
    let error = (any::<(usize, usize)>(), prop::option::of(ids()), kinds())
        .prop_map(|((rank, world_size), call, kind)| CommError { rank, world_size, call, late: false, kind });
    let apart = prop::option::of(prop::collection::vec((any::<usize>(), steps()), 1..4));
    prop_oneof![
        steps().prop_map(Frame::Step),
        any::<bool>().prop_map(|panicked| Frame::Leave { panicked }),
        (any::<u64>(), error, apart).prop_map(|(completed, origin, apart)| Frame::Poison(Poison {
            completed,
            origin,
            apart
        })),
    ]
}

/// Nearly a frame: its length is right, and the rest is drawn, or a frame with a few bytes changed.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let drawn = (1..=4_u8, prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(kind, mut rest)| {
        rest.insert(0, kind);
        let mut bytes = (rest.len() as u32).to_le_bytes().to_vec();
        bytes.extend(rest);
        bytes
    });
    let changes = prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6);
    let changed = (frames(), changes).prop_map(|(frame, changes)| {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        bytes
    });
    prop_oneof![drawn, changed, prop::collection::vec(any::<u8>(), 0..100)]
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_anything_else_has_come() {
    for length in [0, LONGEST as u32 + 1, 1 << 30, u32::MAX] {
        let error = Frame::parse(&length.to_le_bytes()).unwrap_err();
        assert_eq!(error, FrameError::Length(length as usize));
    }
    assert!(Frame::parse(&(LONGEST as u32).to_le_bytes()).unwrap().is_none());
}

#[test]
fn a_label_that_no_frame_can_hold_is_an_error_and_the_longest_is_not() {
    let frame = |length| Frame::Step(Step::AllReduce(CollectiveId::new("x".repeat(length), 1)));
    assert!(frame(LONGEST_TEXT).write(&mut Vec::new()).is_ok());
    let error = frame(LONGEST_TEXT + 1).write(&mut Vec::new()).unwrap_err();
    assert_eq!(error, FrameError::Text(LONGEST_TEXT + 1));
}

#[test]
fn of_too_many_places_as_many_are_told_as_fit() {
    let id = CollectiveId::new("x".repeat(LONGEST_TEXT), 1);
    let place = |rank| (rank, Step::AllReduce(id.clone()));
    let kind = CommErrorKind::OutOfStep { others: Vec::new() };
    let origin = CommError { rank: 0, world_size: 9, call: Some(id.clone()), late: false, kind };
    let mut bytes = Vec::new();
    let poison = Poison { completed: 7, origin, apart: Some((0..9).map(place).collect()) };
    Frame::Poison(poison).write(&mut bytes).unwrap();
    let Some((Frame::Poison(Poison { apart: Some(apart), .. }), _)) = Frame::parse(&bytes).unwrap() else {
        panic!()
    };
    assert_eq!(apart, (0..2).map(place).collect::<Places>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_once_all_of_it_is_there(frame in frames(), behind in any::<[u8; 3]>()) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        for some in 0..bytes.len() {
            prop_assert!(Frame::parse(&bytes[..some]).unwrap().is_none());
        }
        let length = bytes.len();
        bytes.extend(behind);
        let (read, used) = Frame::parse(&bytes).unwrap().unwrap();
        prop_assert_eq!((format!("{read:?}"), used), (format!("{frame:?}"), length));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in nearly()) {
        if let Ok(Some((frame, used))) = Frame::parse(&bytes) {
            prop_assert!(used <= bytes.len());
            let mut again = Vec::new();
            frame.write(&mut again).unwrap();
            prop_assert_eq!(&again[..], &bytes[..used]);
        }
    }
}
