//! How a pass meets its group: a backend cannot leave the sum out, and a failure means for the group what its moment says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up fails")]

mod clerk;

use clerk::{Clerk, ClerksGroup, Conduct, Layer, backward, forward, layer, layer_in};
use syncbn_core::{CommErrorKind, Error, ErrorKind, SavedStatistics, ViaHost};

fn uses(clerk: &Clerk) -> Vec<u64> {
    clerk.calls().iter().map(|call| call.use_number).collect()
}

/// A layer that has gone forward once, in a group that has been asked once.
fn used(clerk: &Clerk) -> (Layer, SavedStatistics<Clerk>) {
    let mut layer = layer(clerk).unwrap();
    let saved = forward(&mut layer).unwrap();
    assert_eq!(uses(clerk), [0]);
    (layer, saved)
}

fn kind<R>(result: Result<R, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("nothing was refused"),
        Err(error) => *error.kind,
    }
}

#[test]
fn a_pass_without_its_sum_is_an_error() {
    let clerk = Clerk::default();
    let (mut layer, saved) = used(&clerk);
    clerk.conduct_itself(Conduct::LeavesItOut);
    assert!(matches!(kind(forward(&mut layer)), ErrorKind::SumLeftOut));
    assert!(matches!(kind(backward(&mut layer, &saved)), ErrorKind::SumLeftOut));
    clerk.conduct_itself(Conduct::CallsItOnce);
    // Nobody has heard of the failed pass.
    forward(&mut layer).unwrap();
    assert_eq!((uses(&clerk), clerk.poisoned()), (vec![1], vec![]));
}

#[test]
fn a_pass_that_sums_twice_is_an_error_that_its_peers_hear_of() {
    let clerk = Clerk::default();
    let (mut layer, saved) = used(&clerk);
    clerk.conduct_itself(Conduct::CallsItTwice);
    for pass in [|layer: &mut Layer, _: &_| forward(layer).map(drop), backward] {
        let ErrorKind::Communicator(error) = kind(pass(&mut layer, &saved)) else { panic!("another error") };
        assert!(matches!(error.kind, CommErrorKind::Disagree(_)), "{error}");
        assert!(error.to_string().contains("twice"), "{error}");
        assert_eq!((clerk.calls().len(), clerk.poisoned().len()), (1, 1));
    }
}

#[test]
fn a_pass_that_ignores_the_sums_failure_fails_all_the_same() {
    let clerk = Clerk::default();
    let (mut layer, saved) = used(&clerk);
    clerk.conduct_itself(Conduct::IgnoresItsError);
    clerk.refuse(Some("sum forward"));
    assert!(matches!(kind(forward(&mut layer)), ErrorKind::SumLeftOut));
    clerk.refuse(Some("sum backward"));
    assert!(matches!(kind(backward(&mut layer, &saved)), ErrorKind::SumLeftOut));
}

#[test]
fn peers_that_a_backend_cannot_meet_are_refused_before_any_work() {
    let clerk = Clerk::default();
    let (mut layer, saved) = used(&clerk);
    clerk.meet_inside(true);
    clerk.asked();
    assert!(matches!(kind(forward(&mut layer)), ErrorKind::NoPeers));
    assert_eq!(clerk.asked(), ["saved"]);
    assert!(matches!(kind(backward(&mut layer, &saved)), ErrorKind::NoPeers));
    assert!(clerk.asked().is_empty());
    clerk.meet_inside(false);
    forward(&mut layer).unwrap();
    assert_eq!((uses(&clerk), clerk.poisoned()), (vec![1], vec![]));
}

#[test]
fn a_call_that_fails_before_its_sum_has_used_no_number_and_told_nobody() {
    let clerk = Clerk::default();
    let (mut layer, saved) = used(&clerk);
    for what in ["saved", "moments"] {
        clerk.refuse(Some(what));
        kind(forward(&mut layer));
    }
    clerk.refuse(Some("grad_sums"));
    kind(backward(&mut layer, &saved));
    clerk.refuse(None);
    forward(&mut layer).unwrap();
    assert_eq!((uses(&clerk), clerk.poisoned()), (vec![1], vec![]));
}

#[test]
fn a_call_that_fails_after_its_sum_has_used_its_number_and_poisons_the_group() {
    let clerk = Clerk::default();
    let (mut layer, saved) = used(&clerk);
    for (i, what) in ["normalize", "flush"].into_iter().enumerate() {
        clerk.refuse(Some(what));
        kind(forward(&mut layer));
        assert_eq!(uses(&clerk), [1 + i as u64]);
        let [cause] = &clerk.poisoned()[..] else { panic!("{what}: the group was not told once") };
        assert!(cause.contains(&format!("no {what} today")), "{cause}");
    }
    clerk.refuse(Some("grad_input"));
    kind(backward(&mut layer, &saved));
    assert_eq!((uses(&clerk), clerk.poisoned().len()), (vec![0], 1));
    clerk.refuse(None);
    forward(&mut layer).unwrap();
    assert_eq!(uses(&clerk), [3]);
}

#[test]
fn a_sum_that_fails_in_the_group_has_used_its_number_and_the_group_knows() {
    let clerk = Clerk::default();
    let (mut layer, _) = used(&clerk);
    clerk.refuse(Some("sum forward"));
    assert!(matches!(kind(forward(&mut layer)), ErrorKind::Communicator(_)));
    clerk.refuse(None);
    forward(&mut layer).unwrap();
    assert_eq!((uses(&clerk), clerk.poisoned()), (vec![1, 2], vec![]));
}

#[test]
fn a_message_that_the_device_does_not_give_is_unsent_and_one_that_it_does_not_take_poisons() {
    let clerk = Clerk::default();
    let mut layer = layer_in(&clerk, ViaHost(ClerksGroup(clerk.clone()))).unwrap();
    let unsent = |error: ErrorKind| match error {
        ErrorKind::Communicator(error) => matches!(error.kind, CommErrorKind::Unsent(_)),
        _ => false,
    };
    clerk.refuse(Some("read_message"));
    assert!(unsent(kind(forward(&mut layer))));
    assert_eq!((clerk.calls().len(), clerk.poisoned().len()), (0, 0));
    clerk.refuse(Some("write_message"));
    assert!(!unsent(kind(forward(&mut layer))));
    assert_eq!((uses(&clerk), clerk.poisoned().len()), (vec![0], 1));
    clerk.refuse(None);
    let saved = forward(&mut layer).unwrap();
    clerk.refuse(Some("read_message"));
    assert!(unsent(kind(backward(&mut layer, &saved))));
    clerk.refuse(None);
    backward(&mut layer, &saved).unwrap();
    assert_eq!((uses(&clerk), clerk.poisoned().len()), (vec![1, 1], 0));
}

#[test]
fn a_plain_sum_that_was_not_sent_has_used_no_number() {
    let clerk = Clerk::default();
    let layer = layer_in(&clerk, ViaHost(ClerksGroup(clerk.clone()))).unwrap();
    let sum = || layer.group().all_reduce::<f32>("loss", &clerk, &(), 3);
    clerk.refuse(Some("read"));
    assert!(matches!(sum().unwrap_err().kind, CommErrorKind::Unsent(_)));
    assert_eq!((clerk.calls().len(), clerk.poisoned().len()), (0, 0));
    clerk.refuse(Some("write"));
    assert!(matches!(sum().unwrap_err().kind, CommErrorKind::Transport(_)));
    clerk.refuse(None);
    sum().unwrap();
    assert_eq!((uses(&clerk), clerk.poisoned().len()), (vec![0, 1], 1));
}
