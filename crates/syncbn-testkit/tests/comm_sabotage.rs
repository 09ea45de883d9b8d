//! Communicators with a deliberate flaw. For each, the law that is named here has to fail.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use syncbn_comm::threads::{ThreadComm, ThreadGroup};
use syncbn_core::{CollectiveId, CommError, CommErrorKind, HostCommunicator, Membership};
use syncbn_testkit::comm::{Body, laws, on_threads};
use syncbn_testkit::{Ability, CommHarness, Gap, Outcome, Verdict};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    ForgetsTheLastRank,
    OneRankGetsOtherBits,
    AddsInReverse,
    SwallowsFailures,
    SaysItIsSound,
    WaitsTooLittle,
    SplitForgetsKeys,
    NobodyIsLeftOut,
    TellsAllTheyAreFirst,
    ForgetsTheUse,
    ForgetsTheLayer,
    TakesNanForZero,
    SumsTheFirst4096,
    TellsDeparturesLate,
    WaitsThreeTimes,
    ComparesLabelsByLength,
    ComparesLastBits,
    ForgetsTheSettings,
    ForgetsTheStep,
    SaysOnlyPoisoned,
    KeepsPoisonToItself,
}

struct Broken(Flaw);

struct BrokenComm(ThreadComm, Flaw);

impl HostCommunicator for BrokenComm {
    fn rank(&self) -> usize {
        if self.1 == Flaw::TellsAllTheyAreFirst { 0 } else { self.0.rank() }
    }
    fn world_size(&self) -> NonZeroUsize {
        self.0.world_size()
    }
    fn poison(&self, cause: &CommError) {
        if self.1 != Flaw::KeepsPoisonToItself {
            self.0.poison(cause);
        }
    }
    fn membership(&self) -> Option<Arc<Membership>> {
        self.0.membership()
    }
    fn status(&self) -> Result<(), CommError> {
        if self.1 == Flaw::SaysItIsSound { Ok(()) } else { self.0.status() }
    }
    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        let (rank, size) = (self.0.rank(), self.world_size().get());
        if self.1 == Flaw::ForgetsTheLastRank && rank + 1 == size && size > 1 {
            values.fill(0.0);
        }
        if self.1 == Flaw::AddsInReverse {
            return self.add_in_reverse(id, values);
        }
        let mine = values.to_vec();
        match self.0.all_reduce_sum(&self.seen(id), values) {
            Err(_) if self.1 == Flaw::SwallowsFailures => return Ok(()),
            Err(error) => return Err(self.told(error)),
            Ok(()) => {}
        }
        if self.1 == Flaw::TakesNanForZero {
            values.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = 0.0);
        }
        if let Some(rest) = mine.get(4096..)
            && self.1 == Flaw::SumsTheFirst4096
        {
            values[4096..].copy_from_slice(rest);
        }
        if self.1 == Flaw::OneRankGetsOtherBits && rank == 1 {
            values[0] = f64::from_bits(values[0].to_bits() ^ 1);
        }
        Ok(())
    }
}

impl BrokenComm {
    /// What it says of a failure, and when.
    fn told(&self, error: CommError) -> CommError {
        let left = matches!(error.kind, CommErrorKind::Left { .. });
        let apart = matches!(error.kind, CommErrorKind::OutOfStep { .. });
        match self.1 {
            Flaw::TellsDeparturesLate if left => thread::sleep(Duration::from_secs(2)),
            Flaw::SaysOnlyPoisoned if apart && self.0.rank() == 1 => {
                let left = CommErrorKind::Left { rank: 2, panicked: false };
                let cause = Arc::new(CommError { kind: left, ..error.clone() });
                return CommError { kind: CommErrorKind::Poisoned(cause), ..error };
            }
            _ => {}
        }
        error
    }

    /// What it compares of a call.
    fn seen(&self, id: &CollectiveId) -> CollectiveId {
        let mut seen = id.clone();
        match self.1 {
            Flaw::ForgetsTheUse => seen.use_number = 0,
            Flaw::ForgetsTheLayer => seen.label = "bn".into(),
            Flaw::ComparesLabelsByLength => seen.label = "?".repeat(seen.label.len()).into(),
            Flaw::ComparesLastBits => {
                seen.use_number &= 0xff;
                seen.step &= 0xff;
            }
            Flaw::ForgetsTheSettings => seen.settings = 0,
            Flaw::ForgetsTheStep => seen.step = 0,
            _ => {}
        }
        seen
    }

    /// Collects every rank's part, one sum each, and adds them from the last to the first.
    fn add_in_reverse(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        let mine = values.to_vec();
        values.fill(0.0);
        for rank in (0..self.world_size().get()).rev() {
            let mut part = if rank == self.0.rank() { mine.clone() } else { vec![0.0; mine.len()] };
            self.0.all_reduce_sum(id, &mut part)?;
            values.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        Ok(())
    }
}

impl CommHarness for Broken {
    type Comm = BrokenComm;

    fn name(&self) -> &'static str {
        "broken"
    }
    fn run(&self, world_size: NonZeroUsize, timeout: Duration, body: &Body<'_, BrokenComm>) -> Outcome {
        let timeout = match self.0 {
            Flaw::WaitsTooLittle => timeout / 20,
            Flaw::WaitsThreeTimes => 3 * timeout,
            _ => timeout,
        };
        let group = ThreadGroup::new(world_size, timeout)?;
        on_threads(group.into_iter().map(|comm| BrokenComm(comm, self.0)).collect(), body)
    }
    fn split(&self, comm: &BrokenComm, color: Option<u32>, key: i64) -> Outcome<Option<BrokenComm>> {
        let (color, key) = match self.0 {
            Flaw::SplitForgetsKeys => (color, 0),
            Flaw::NobodyIsLeftOut => (color.or(Some(0)), key),
            _ => (color, key),
        };
        Ok(comm.0.split(color, key)?.map(|group| BrokenComm(group, self.0)))
    }
}

macro_rules! sabotage {
    ($($test:ident: $flaw:ident, $law:ident;)*) => {$(
        #[test]
        fn $test() {
            laws::$law(&Broken(Flaw::None)).unwrap();
            let outcome = laws::$law(&Broken(Flaw::$flaw));
            assert!(matches!(outcome, Err(Verdict::Broken(_))), "the law lets it pass: {outcome:?}");
        }
    )*};
}

sabotage! {
    a_sum_that_forgets_the_last_rank: ForgetsTheLastRank, thousands_of_sums_in_a_row_stay_right;
    one_rank_that_gets_other_bits: OneRankGetsOtherBits, every_rank_gets_the_same_bits_whoever_comes_first;
    a_sum_in_the_wrong_order: AddsInReverse, a_sum_has_the_bits_of_the_ranks_order_whoever_comes_first;
    failures_that_nobody_hears_of: SwallowsFailures, a_rank_that_leaves_is_told_to_its_peers_at_once;
    disagreement_that_nobody_hears_of: SwallowsFailures, ranks_that_disagree_on_length_all_fail;
    two_uses_of_a_layer_that_are_not_told_apart: ForgetsTheUse, ranks_that_disagree_on_the_call_all_fail;
    two_layers_that_are_not_told_apart: ForgetsTheLayer, ranks_that_disagree_on_the_call_all_fail;
    labels_that_are_compared_by_their_length: ComparesLabelsByLength, ranks_that_disagree_on_the_call_all_fail;
    uses_and_steps_that_are_compared_by_their_last_bits: ComparesLastBits, ranks_that_disagree_on_the_call_all_fail;
    settings_that_are_not_compared: ForgetsTheSettings, ranks_that_disagree_on_the_call_all_fail;
    steps_that_are_not_compared: ForgetsTheStep, ranks_that_disagree_on_the_call_all_fail;
    a_rank_that_is_not_told_where_the_others_were: SaysOnlyPoisoned, ranks_that_disagree_on_the_call_all_fail;
    nan_that_becomes_0: TakesNanForZero, what_is_not_finite_reaches_every_rank;
    numbers_beyond_4096_that_are_not_summed: SumsTheFirst4096, long_messages_are_summed_to_their_last_number;
    a_departure_that_is_told_late: TellsDeparturesLate, a_rank_that_leaves_is_told_to_its_peers_at_once;
    a_wait_of_three_time_outs: WaitsThreeTimes, a_rank_that_never_comes_ends_the_wait;
    a_wrong_length_that_nobody_hears_of: SwallowsFailures, a_message_of_another_length_is_refused;
    a_poisoned_group_that_answers: SwallowsFailures, a_poisoned_group_answers_at_once_and_a_new_one_works;
    poison_that_reaches_nobody: KeepsPoisonToItself, a_rank_may_poison_its_group_with_the_failure_of_another;
    a_status_that_is_always_good: SaysItIsSound, a_rank_that_panics_is_told_to_its_peers_at_once;
    a_wait_that_ends_too_soon: WaitsTooLittle, a_rank_that_never_comes_ends_the_wait;
    a_split_that_forgets_keys: SplitForgetsKeys, a_split_orders_by_key_and_then_by_old_rank;
    a_split_that_leaves_nobody_out: NobodyIsLeftOut, a_split_orders_by_key_and_then_by_old_rank;
    ranks_that_are_all_the_first: TellsAllTheyAreFirst, ranks_know_their_place;
}

/// Adds in an order of its own, does not split, and promises nothing about its peers' calls, leavings or delays.
struct Modest;

impl CommHarness for Modest {
    type Comm = BrokenComm;

    fn name(&self) -> &'static str {
        "modest"
    }
    fn run(&self, world_size: NonZeroUsize, timeout: Duration, body: &Body<'_, BrokenComm>) -> Outcome {
        Broken(Flaw::AddsInReverse).run(world_size, timeout, body)
    }
    fn gaps(&self) -> Vec<Gap> {
        let abilities = [Ability::RankOrder, Ability::ComparesCalls, Ability::Departures, Ability::Deadlines];
        abilities.map(|ability| Gap { ability, reason: "it promises less" }).to_vec()
    }
}

#[test]
fn what_a_communicator_does_not_promise_is_skipped_and_the_rest_is_tried() {
    let skipped = |outcome| assert!(matches!(outcome, Err(Verdict::Skipped(_))), "{outcome:?}");
    skipped(laws::a_sum_has_the_bits_of_the_ranks_order_whoever_comes_first(&Modest));
    skipped(laws::ranks_that_disagree_on_the_call_all_fail(&Modest));
    skipped(laws::a_rank_that_leaves_is_told_to_its_peers_at_once(&Modest));
    skipped(laws::a_rank_that_panics_is_told_to_its_peers_at_once(&Modest));
    skipped(laws::a_rank_that_never_comes_ends_the_wait(&Modest));
    skipped(laws::several_groups_work_at_once(&Modest));
    laws::every_rank_gets_the_same_bits_whoever_comes_first(&Modest).unwrap();
    laws::ranks_that_disagree_on_length_all_fail(&Modest).unwrap();
}
