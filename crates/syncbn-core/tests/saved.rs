//! What a forward pass saves, taken apart: a token is numbers, and only numbers that a token gave are one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

use example_backend::Plain;
use proptest::collection::vec;
use proptest::prelude::*;
use syncbn_core::{
    Config, Geometry, Gradients, Layout, MAX_AXES, ParamGradients, SavedStatistics, SavedToken, Scope,
    SyncBatchNorm, View, ViewMut,
};

type Words = [u64; SavedToken::WORDS];
type Layer = SyncBatchNorm<Plain, f32>;

/// Words as a token has them, with these sizes (N, C, *spatial).
fn words(scope: u64, layout: u64, sizes: &[usize]) -> Words {
    let mut words = [0; SavedToken::WORDS];
    words[..8].copy_from_slice(&[3, 4, 9, 5, 6, scope, layout, sizes.len() as u64]);
    words[8..].iter_mut().zip(sizes).for_each(|(word, &size)| *word = size as u64);
    words
}

proptest! {
    #[test]
    fn a_token_comes_back_from_its_words(
        scope in 0_u64..3,
        last in any::<bool>(),
        sizes in vec(0_usize..5, 2..=MAX_AXES),
    ) {
        prop_assume!(sizes[1] > 0);
        let token = SavedToken::from_words(words(scope, u64::from(last), &sizes)).unwrap();
        prop_assert_eq!(SavedToken::from_words(token.to_words()), Some(token));
        let expected = if last {
            let mut memory = sizes.clone();
            memory[1..].rotate_left(1);
            Geometry::channels_last(&memory).unwrap()
        } else {
            Geometry::channels_first(&sizes).unwrap()
        };
        prop_assert_eq!(*token.geometry(), expected);
        prop_assert_eq!(token.scope(), [Scope::Group, Scope::Local, Scope::Frozen][scope as usize]);
    }

    #[test]
    fn any_numbers_are_a_token_or_none_and_never_a_panic(
        words in prop::array::uniform16(prop_oneof![any::<u64>(), 0_u64..9]),
    ) {
        if let Some(token) = SavedToken::from_words(words) {
            prop_assert_eq!(token.to_words(), words);
        }
    }
}

#[test]
fn a_token_of_another_shape_differs_in_nothing_else() {
    let token = SavedToken::from_words(words(0, 0, &[2, 3, 4])).unwrap();
    let other = token.with_geometry(Geometry::channels_first(&[5, 3]).unwrap());
    assert_eq!(other, SavedToken::from_words(words(0, 0, &[5, 3])).unwrap());
    assert_eq!(other.with_geometry(*token.geometry()), token);
}

#[test]
fn nonsense_is_no_token() {
    assert_eq!(SavedToken::from_words(words(0, 1, &[0])), None, "one axis, channels-last");
    assert_eq!(SavedToken::from_words(words(0, 1, &[])), None, "no axes, channels-last");
    let good = words(0, 0, &[2, 3, 4]);
    assert!(SavedToken::from_words(good).is_some());
    let with = |at: usize, value: u64| {
        let mut bad = good;
        bad[at] = value;
        bad
    };
    for (what, bad) in [
        ("no such scope", with(5, 3)),
        ("no such layout", with(6, 2)),
        ("no axes", with(7, 0)),
        ("one axis", with(7, 1)),
        ("more axes than there are words", with(7, 9)),
        ("axes beyond all bounds", with(7, u64::MAX)),
        ("no channels", with(9, 0)),
        ("more elements than memory", with(8, u64::MAX)),
        ("words behind the axes", with(11, 1)),
    ] {
        assert_eq!(SavedToken::from_words(bad), None, "{what}");
    }
    assert_eq!(SavedToken::from_words([u64::MAX; SavedToken::WORDS]), None);
}

#[test]
fn tokens_of_both_layouts_and_all_scopes_come_from_passes() {
    let x: Vec<f32> = (0..24_u8).map(f32::from).collect();
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for scope in [Scope::Group, Scope::Frozen, Scope::Local] {
            let config = Config::new(3).with_track_running_stats(scope != Scope::Local);
            let mut layer = Layer::local("bn", config, Plain, &()).unwrap();
            layer.set_training(scope == Scope::Group);
            let mut y = [0.0; 24];
            let saved = match layout {
                Layout::ChannelsFirst => layer.forward::<f32>(
                    &(),
                    View::channels_first(&x[..], &[2, 3, 4]),
                    ViewMut::channels_first(&mut y[..], &[2, 3, 4]),
                ),
                Layout::ChannelsLast => layer.forward::<f32>(
                    &(),
                    View::channels_last(&x[..], &[2, 4, 3]),
                    ViewMut::channels_last(&mut y[..], &[2, 4, 3]),
                ),
            };
            let token = *saved.unwrap().token();
            assert_eq!((token.scope(), token.geometry().layout()), (scope, layout));
            assert_eq!(SavedToken::from_words(token.to_words()), Some(token));
        }
    }
}

#[test]
fn saved_statistics_are_cheap_to_clone_and_can_be_taken_apart_and_made_again() {
    let x = [0.5_f32, -1.0, 3.0, 2.0];
    let mut layer = Layer::local("bn", Config::new(2), Plain, &()).unwrap();
    let mut y = [0.0; 4];
    let view = || View::channels_first(&x[..], &[2, 2]);
    let saved = layer.forward::<f32>(&(), view(), ViewMut::channels_first(&mut y[..], &[2, 2])).unwrap();
    let mut backward = |saved: &SavedStatistics<Plain>| {
        let mut dx = [0.0; 4];
        let dy = View::channels_first(&[1.0, 2.0, -1.0, 4.0][..], &[2, 2]);
        let wanted = Gradients::out_of_place(dy, ViewMut::channels_first(&mut dx[..], &[2, 2]));
        layer.backward::<f32>(&(), saved, view(), wanted, ParamGradients::default()).unwrap();
        dx
    };
    let expected = backward(&saved);
    assert!(std::ptr::eq(saved.mem(), saved.clone().mem()), "a clone has memory of its own");
    let (token, memory) = saved.into_parts();
    let (words, values) = (token.to_words(), memory.to_vec());
    drop(memory);
    let again = SavedStatistics::<Plain>::from_parts(SavedToken::from_words(words).unwrap(), values);
    assert_eq!(backward(&again), expected);
}
