//! Everything that may be wrong with the plain backend.
//!
//! Deliberately not here: what a flaw does, which is said where it does it.

/// What may be wrong with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // only the sabotage tests have flaws
pub(crate) enum Flaw {
    /// The backend is right.
    None,
    BiasedRunningVariance,
    BesselInTheBatch,
    LocalCount,
    EpsOutsideTheRoot,
    SquaresInF32,
    MeanInF32,
    AccumulatesInHalf,
    SkipsTheTail,
    ChannelsLastReadAsFirst,
    WeightTwice,
    BiasForgotten,
    DxWithoutMeanTerm,
    DxWithoutSlope,
    DxWithLocalCount,
    DWeightWithoutInvstd,
    GradientsAdded,
    EmptyRankGivesNan,
    EmptyRankIsSilent,
    MomentumInverted,
    CounterForgotten,
    CounterInF32,
    CumulativeFromZero,
    FrozenDifferentiated,
    NanSwallowed,
    NanEverywhere,
    NegativeVariance,
    WritesBehindTheTensor,
    InPlaceReadsLate,
    Flickers,
    ParametersInHalf,
    SubnormalsFlushed,
    BatchOfOneMovesVariance,
    PanicsOnEmpty,
    UpdatesInEvaluation,
    UpdatesOnRecomputation,
    UpdatesBeforeTheSum,
    UpdatesInBackward,
    SumsByThread,
    SumsDWeightOverRanks,
}
