//! The result of a law: it holds, what went wrong, or why it does not apply.
//!
//! Laws return errors instead of panicking, so that proptest can shrink a case without printing a backtrace for each try.

use std::error::Error;
use std::fmt;

/// The result of a law, or of a step in it.
pub type Outcome<R = ()> = Result<R, Verdict>;

/// Why a law did not hold, or was not tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is broken.
    Broken(String),
    /// It does not apply to this backend, which has declared why.
    Skipped(String),
}

impl Verdict {
    /// The same with a word in front that says where.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Broken(why) => Self::Broken(format!("{place}: {why}")),
            skipped @ Self::Skipped(_) => skipped,
        }
    }
}

impl Verdict {
    /// The same with more about it.
    #[must_use]
    pub fn and(self, more: impl fmt::Display) -> Self {
        match self {
            Self::Broken(why) => Self::Broken(format!("{why}; {more}")),
            skipped @ Self::Skipped(_) => skipped,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) => f.write_str(why),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
        }
    }
}

/// Any error inside a law breaks it. (`Verdict` is no error itself, or this could not be written.)
impl<E: Error> From<E> for Verdict {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        Self::Broken(text)
    }
}

/// A broken law, from a format string.
#[macro_export]
macro_rules! broken {
    ($($arg:tt)+) => { $crate::Verdict::Broken(format!($($arg)+)) };
}

/// Returns from the law, as broken, unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($arg:tt)+) => {
        // Not `!condition` at once: comparisons with NaN have to count as broken.
        if $condition {} else { return Err($crate::broken!($($arg)+)); }
    };
}
