//! The variables that launchers set.
//!
//! Deliberately not here: the process's environment itself; a function looks variables up, so that tests need not change it.

use std::num::NonZeroUsize;
use std::str::FromStr;

use super::{BootstrapError, Meeting, Place};

/// The variables of one launcher.
struct Family {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    /// How many of the ranks are on this machine, if the launcher says so.
    local_size: &'static str,
    /// Another name for the address of rank 0.
    address: Option<&'static str>,
}

const FAMILIES: [Family; 3] = [
    Family {
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
        address: None,
    },
    Family {
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        address: None,
    },
    Family {
        rank: "SLURM_PROCID",
        world_size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_size: "SLURM_NTASKS_PER_NODE",
        address: Some("SLURM_LAUNCH_NODE_IPADDR"),
    },
];

/// The port that torch's launchers use where none is set.
const MASTER_PORT: u16 = 29500;

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn place(lookup: Lookup<'_>) -> Result<Place, BootstrapError> {
    let family = FAMILIES.iter().find(|family| lookup(family.rank).is_some());
    let family = family.ok_or(BootstrapError::NoLauncher)?;
    let required = |name| {
        let missing = || BootstrapError::MissingVariable { present: family.rank, missing: name };
        number::<usize>(lookup, name)?.ok_or_else(missing)
    };
    let rank = required(family.rank)?;
    let size = required(family.world_size)?;
    let world_size = NonZeroUsize::new(size).filter(|size| rank < size.get()).ok_or_else(|| {
        let (value, expected) = (size.to_string(), format!("more than {}, which is {rank}", family.rank));
        BootstrapError::BadVariable { name: family.world_size, value, expected }
    })?;
    let local_rank = required(family.local_rank)?;
    Ok(Place { rank, world_size, local_rank, meeting: meeting(lookup, family, size)? })
}

fn meeting(lookup: Lookup<'_>, family: &Family, size: usize) -> Result<Meeting, BootstrapError> {
    let all_here = number::<usize>(lookup, family.local_size)? == Some(size);
    let host = lookup("MASTER_ADDR")
        .or_else(|| lookup(family.address?))
        .or_else(|| all_here.then(|| "127.0.0.1".to_owned()))
        .ok_or(BootstrapError::MissingVariable { present: family.rank, missing: "MASTER_ADDR" })?;
    let port = match number::<u16>(lookup, "SYNCBN_PORT")? {
        Some(port) => port,
        None => number::<u16>(lookup, "MASTER_PORT")?.unwrap_or(MASTER_PORT).saturating_add(1),
    };
    Ok(Meeting { host, port })
}

fn number<N: FromStr>(lookup: Lookup<'_>, name: &'static str) -> Result<Option<N>, BootstrapError> {
    let Some(value) = lookup(name) else { return Ok(None) };
    match value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(BootstrapError::BadVariable { name, value, expected: "a whole number".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Place, BootstrapError> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        place(&|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "4000"),
    ];

    #[test]
    fn torchruns_variables_are_read_and_its_own_port_is_left_alone() {
        let place = from(&TORCHRUN).unwrap();
        assert_eq!((place.rank, place.world_size.get(), place.local_rank), (5, 8, 1));
        assert_eq!(place.meeting, Meeting { host: "node0".into(), port: 4001 });
        let named = from(&[&TORCHRUN[..], &[("SYNCBN_PORT", "5000")]].concat()).unwrap();
        assert_eq!(named.meeting.port, 5000);
    }

    #[test]
    fn open_mpi_on_one_machine_needs_no_address() {
        let one = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(from(&one).unwrap().meeting.host, "127.0.0.1");
        let error = from(&one[..3]).unwrap_err();
        assert!(matches!(error, BootstrapError::MissingVariable { missing: "MASTER_ADDR", .. }), "{error}");
    }

    #[test]
    fn slurm_names_the_launching_node() {
        let place = from(&[
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_LOCALID", "3"),
            ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7"),
        ]);
        assert_eq!(place.unwrap().meeting, Meeting { host: "10.0.0.7".into(), port: 29501 });
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert!(matches!(from(&[]), Err(BootstrapError::NoLauncher)));
        let error = from(&TORCHRUN[..2]).unwrap_err();
        assert!(matches!(error, BootstrapError::MissingVariable { missing: "LOCAL_RANK", .. }), "{error}");
        for (name, value) in [("RANK", "eight"), ("RANK", "8"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "70000")]
        {
            let mut variables = TORCHRUN.to_vec();
            variables.retain(|(key, _)| *key != name);
            variables.push((name, value));
            let error = from(&variables).unwrap_err();
            assert!(matches!(error, BootstrapError::BadVariable { .. }), "{name}={value}: {error}");
        }
    }
}
