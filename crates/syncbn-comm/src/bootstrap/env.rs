//! The variables that launchers set.
//!
//! Deliberately not here: the process's environment itself; a function looks variables up, so that tests need not change it.

use std::ffi::OsString;
use std::num::{NonZeroU16, NonZeroUsize};
use std::str::FromStr;

use super::{BootstrapError, JobToken, LaunchEnv, MAX_WORLD_SIZE, Rendezvous};

/// The variables of one launcher.
struct Family {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    /// How many of the ranks are on this machine, if the launcher says so.
    local_size: &'static str,
    /// Another name for the address of rank 0.
    address: Option<&'static str>,
    /// What names the job, the first that is there; the values of one entry belong together.
    job: &'static [&'static [&'static str]],
}

const FAMILIES: [Family; 3] = [
    Family {
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
        address: None,
        // A step's id would not do: whoever starts torchrun with srun may do so in a step for each machine.
        job: &[&["TORCHELASTIC_RUN_ID"], &["SLURM_JOB_ID"]],
    },
    Family {
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        address: None,
        job: &[&["PMIX_NAMESPACE"], &["OMPI_MCA_ess_base_jobid"]],
    },
    Family {
        rank: "SLURM_PROCID",
        world_size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_size: "SLURM_NTASKS_PER_NODE",
        address: Some("SLURM_LAUNCH_NODE_IPADDR"),
        job: &[&["SLURM_JOB_ID", "SLURM_STEP_ID"]],
    },
];

/// The port that torch's launchers use where none is set.
const MASTER_PORT: u16 = 29500;

type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

pub(super) fn launch_env(lookup: Lookup<'_>) -> Result<LaunchEnv, BootstrapError> {
    let family = FAMILIES.iter().find(|family| lookup(family.rank).is_some());
    let family = family.ok_or(BootstrapError::NoLauncher)?;
    let required = |name| {
        let missing = || BootstrapError::MissingVariable { present: family.rank, missing: name };
        number(lookup, name)?.ok_or_else(missing)
    };
    let rank = required(family.rank)?;
    let size = required(family.world_size)?;
    let possible = NonZeroUsize::new(size).filter(|size| rank < size.get() && size.get() <= MAX_WORLD_SIZE);
    let world_size = possible.ok_or_else(|| {
        let expected = format!("more than {}, which is {rank}, and at most {MAX_WORLD_SIZE}", family.rank);
        BootstrapError::BadVariable { name: family.world_size, value: size.to_string(), expected }
    })?;
    let local_rank = required(family.local_rank)?;
    if local_rank >= size {
        let (name, value) = (family.local_rank, local_rank.to_string());
        let expected = format!("less than {}, which is {size}", family.world_size);
        return Err(BootstrapError::BadVariable { name, value, expected });
    }
    let (rendezvous, token) = (rendezvous(lookup, family, size)?, token(lookup, family)?);
    Ok(LaunchEnv { rank, world_size, local_rank, rendezvous, token })
}

fn rendezvous(lookup: Lookup<'_>, family: &Family, size: usize) -> Result<Rendezvous, BootstrapError> {
    let all_here = number(lookup, family.local_size)? == Some(size);
    let named = match (host(lookup, "MASTER_ADDR")?, family.address) {
        (None, Some(other)) => host(lookup, other)?,
        (named, _) => named,
    };
    let host = named
        .or_else(|| all_here.then(|| "127.0.0.1".to_owned()))
        .ok_or(BootstrapError::MissingVariable { present: family.rank, missing: "MASTER_ADDR" })?;
    let port = match port(lookup, "SYNCBN_PORT")? {
        Some(port) => port,
        None => port(lookup, "MASTER_PORT")?.unwrap_or(MASTER_PORT).saturating_add(1),
    };
    Ok(Rendezvous { host, port })
}

/// A variable that names a host.
fn host(lookup: Lookup<'_>, name: &'static str) -> Result<Option<String>, BootstrapError> {
    match text(lookup, name)? {
        Some(value) if value.trim().is_empty() => {
            Err(BootstrapError::BadVariable { name, value, expected: "a host's name or address".into() })
        }
        named => Ok(named.map(|host| host.trim().to_owned())),
    }
}

fn token(lookup: Lookup<'_>, family: &Family) -> Result<JobToken, BootstrapError> {
    match text(lookup, "SYNCBN_SECRET")? {
        Some(secret) if secret.is_empty() => {
            let (name, expected) = ("SYNCBN_SECRET", "a secret, or no such variable".into());
            return Err(BootstrapError::BadVariable { name, value: secret, expected });
        }
        Some(secret) => return Ok(JobToken::of_secret(&secret)),
        None => {}
    }
    for names in family.job {
        let ids = names.iter().map(|name| text(lookup, name)).collect::<Result<Vec<_>, _>>()?;
        if ids.first().is_some_and(Option::is_some) {
            return Ok(JobToken::of_job(&ids.into_iter().flatten().collect::<Vec<_>>().join("/")));
        }
    }
    Ok(JobToken::default())
}

/// A rank, or a number of ranks.
fn number(lookup: Lookup<'_>, name: &'static str) -> Result<Option<usize>, BootstrapError> {
    parsed(lookup, name, "a whole number from 0")
}

fn port(lookup: Lookup<'_>, name: &'static str) -> Result<Option<u16>, BootstrapError> {
    Ok(parsed(lookup, name, "a port from 1 to 65535")?.map(NonZeroU16::get))
}

fn parsed<N: FromStr>(
    lookup: Lookup<'_>,
    name: &'static str,
    expected: &str,
) -> Result<Option<N>, BootstrapError> {
    let Some(value) = text(lookup, name)? else { return Ok(None) };
    match value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(BootstrapError::BadVariable { name, value, expected: expected.into() }),
    }
}

fn text(lookup: Lookup<'_>, name: &'static str) -> Result<Option<String>, BootstrapError> {
    let utf8 = |value: OsString| value.into_string().map_err(|_| BootstrapError::NotUnicode { name });
    lookup(name).map(utf8).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<LaunchEnv, BootstrapError> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        launch_env(&|name| find(name).map(|(_, value)| OsString::from(value)))
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
        let env = from(&TORCHRUN).unwrap();
        assert_eq!((env.rank, env.world_size.get(), env.local_rank), (5, 8, 1));
        assert_eq!(env.rendezvous, Rendezvous { host: "node0".into(), port: 4001 });
        let named = from(&[&TORCHRUN[..], &[("SYNCBN_PORT", "5000")]].concat()).unwrap();
        assert_eq!(named.rendezvous.port, 5000);
    }

    #[test]
    fn open_mpi_on_one_machine_needs_no_address() {
        let one = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(from(&one).unwrap().rendezvous.host, "127.0.0.1");
        let error = from(&one[..3]).unwrap_err();
        assert!(matches!(error, BootstrapError::MissingVariable { missing: "MASTER_ADDR", .. }), "{error}");
    }

    #[test]
    fn slurm_names_the_launching_node() {
        let env = from(&[
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_LOCALID", "3"),
            ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7"),
        ]);
        assert_eq!(env.unwrap().rendezvous, Rendezvous { host: "10.0.0.7".into(), port: 29501 });
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert!(matches!(from(&[]), Err(BootstrapError::NoLauncher)));
        let error = from(&TORCHRUN[..2]).unwrap_err();
        assert!(matches!(error, BootstrapError::MissingVariable { missing: "LOCAL_RANK", .. }), "{error}");
        let (huge, beyond) = ((1_u64 << 40).to_string(), (1_u64 << 62).to_string());
        for (name, value) in [
            ("RANK", "eight"),
            ("RANK", "8"),
            ("WORLD_SIZE", "0"),
            ("WORLD_SIZE", &huge),
            ("WORLD_SIZE", &beyond),
            ("MASTER_ADDR", ""),
            ("MASTER_ADDR", " "),
            ("MASTER_PORT", "70000"),
            ("MASTER_PORT", "0"),
            ("SYNCBN_PORT", "0"),
            ("SYNCBN_PORT", "-1"),
            ("SYNCBN_SECRET", ""),
        ] {
            let mut variables = TORCHRUN.to_vec();
            variables.retain(|(key, _)| *key != name);
            variables.push((name, value));
            let error = from(&variables).unwrap_err();
            assert!(matches!(error, BootstrapError::BadVariable { .. }), "{name}={value}: {error}");
            if name.ends_with("PORT") {
                assert!(error.to_string().contains("from 1 to 65535"), "{name}={value}: {error}");
            }
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_variable_that_is_not_text_is_named_and_not_taken_for_absent() {
        use std::os::unix::ffi::OsStringExt;
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SYNCBN_SECRET"] {
            let lookup = |asked: &str| {
                let text = TORCHRUN.iter().find(|(key, _)| *key == asked).map(|(_, value)| value.into());
                if asked == name { Some(OsString::from_vec(vec![0xff])) } else { text }
            };
            let error = launch_env(&lookup).unwrap_err();
            assert!(matches!(error, BootstrapError::NotUnicode { name: named } if named == name), "{error}");
        }
    }

    #[test]
    fn the_token_is_the_secrets_or_the_jobs() {
        let with = |more: &[(&str, &str)]| from(&[&TORCHRUN[..], more].concat()).unwrap().token;
        assert_eq!(with(&[]), JobToken::default());
        let run = ("TORCHELASTIC_RUN_ID", "7f3a");
        assert_eq!(with(&[run]), JobToken::of_job("7f3a"));
        assert_eq!(with(&[run, ("SLURM_JOB_ID", "12")]), JobToken::of_job("7f3a"));
        assert_eq!(with(&[("SLURM_JOB_ID", "12"), ("SLURM_STEP_ID", "0")]), JobToken::of_job("12"));
        assert_eq!(with(&[run, ("SYNCBN_SECRET", "s")]), JobToken::of_secret("s"));

        let slurm =
            [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1"), ("SLURM_LOCALID", "0"), ("MASTER_ADDR", "a")];
        let step = [("SLURM_JOB_ID", "12"), ("SLURM_STEP_ID", "3")];
        assert_eq!(from(&[&slurm[..], &step].concat()).unwrap().token, JobToken::of_job("12/3"));
    }
}
