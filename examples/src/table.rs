//! The table of the three comparisons, as plain text.

use std::fmt;

/// A line: a number of the model, and its values in the three ways.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The number's name.
    pub name: String,
    /// Single, local, synchronised.
    pub values: [f32; 3],
}

/// Lines under a heading; it prints itself.
pub struct Table<'a>(pub &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["", "single", "local", "synchronised", "local - single", "sync - single"];
        write!(f, "{:<22}", heading[0])?;
        heading[1..].iter().try_for_each(|name| write!(f, "{name:>16}"))?;
        writeln!(f)?;
        for Row { name, values: [single, local, synchronised] } in self.0 {
            let difference = |value: f32| f64::from(value) - f64::from(*single);
            write!(f, "{name:<22}{single:>16.7}{local:>16.7}{synchronised:>16.7}")?;
            writeln!(f, "{:>16.1e}{:>16.1e}", difference(*local), difference(*synchronised))?;
        }
        Ok(())
    }
}
