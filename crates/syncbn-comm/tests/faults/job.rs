//! Jobs of started processes, as a launcher would start them, and what their ranks say.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use syncbn_testkit::comm::free_port;

/// What the faulty rank does.
pub(crate) const FAULT: &str = "SYNCBN_TEST_FAULT";
/// The ranks that make the new group.
pub(crate) const SURVIVORS: &str = "SYNCBN_TEST_SURVIVORS";
/// Where they meet.
pub(crate) const NEXT_PORT: &str = "SYNCBN_TEST_NEXT_PORT";
/// The faulty rank.
pub(crate) const FAULTY: usize = 1;
/// The step of the fault.
pub(crate) const AT: u64 = 3;
/// How long a rank waits in a sum.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(4);
/// How long it waits for the others to join, in milliseconds.
pub(crate) const JOIN_WITHIN: &str = "SYNCBN_TEST_JOIN_WITHIN";
/// How many steps a rank trains.
pub(crate) const STEPS: &str = "SYNCBN_TEST_STEPS";
/// Far less than the time-out, and more than what anything but waiting takes, with a second in which a rank is late.
pub(crate) const SOON: Duration = Duration::from_secs(3);
/// What a deadline may be passed by.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Job {
    ranks: Vec<Child>,
    said: Receiver<Line>,
    sayer: Sender<Line>,
    heard: Vec<Line>,
    pub(crate) port: u16,
    next_port: u16,
    pub(crate) join_within: Duration,
    /// The command that starts the next rank, with the rank's own behind it.
    pub(crate) launcher: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) rank: usize,
    pub(crate) at: Instant,
    pub(crate) text: String,
}

/// What a rank was told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) at: Instant,
    pub(crate) waited: Duration,
    pub(crate) unchanged: bool,
    pub(crate) error: String,
}

impl Job {
    pub(crate) fn new(join_within: Duration) -> Self {
        let (sayer, said) = channel();
        let (port, next_port) = (free_port(), free_port());
        let (ranks, heard, launcher) = (Vec::new(), Vec::new(), Vec::new());
        Self { ranks, said, sayer, heard, port, next_port, join_within, launcher }
    }

    /// A job of three ranks.
    pub(crate) fn of_three(fault: &str, survivors: &str) -> Self {
        let mut job = Self::new(Duration::from_secs(60));
        for rank in 0..3 {
            job.start(fault, survivors, rank, 3, &[]);
        }
        job
    }

    pub(crate) fn start(
        &mut self,
        fault: &str,
        survivors: &str,
        rank: usize,
        world_size: usize,
        more: &[(&str, &str)],
    ) {
        let variables = [
            (FAULT, fault.to_owned()),
            (SURVIVORS, survivors.to_owned()),
            (NEXT_PORT, self.next_port.to_string()),
            (JOIN_WITHIN, self.join_within.as_millis().to_string()),
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", world_size.to_string()),
            ("MASTER_ADDR", "localhost".into()),
            ("SYNCBN_PORT", self.port.to_string()),
            ("SYNCBN_SECRET", "the test's".into()),
            // Two ranks to a core of a small machine, and no pool for each.
            ("RAYON_NUM_THREADS", "1".into()),
        ];
        let this = std::env::current_exe().unwrap().into_os_string();
        let mut words = self.launcher.iter().map(OsString::from).chain([this]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).envs(variables).envs(more.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sayer, place) = (self.sayer.clone(), self.ranks.len());
        thread::spawn(move || {
            for text in lines.map_while(Result::ok) {
                let line = Line { rank: place, at: Instant::now(), text };
                if sayer.send(line).is_err() {
                    return;
                }
            }
        });
        self.ranks.push(child);
    }

    /// How many processes were started.
    pub(crate) fn size(&self) -> usize {
        self.ranks.len()
    }

    /// Waits until rank 0 listens, so that its deadline is the first.
    pub(crate) fn await_rank_0(&self) {
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets the ranks go on that wait for it.
    pub(crate) fn tell_all(&mut self) {
        for rank in &mut self.ranks {
            writeln!(rank.stdin.as_mut().unwrap()).unwrap();
        }
    }

    /// The first line of a rank that begins so.
    pub(crate) fn hear(&mut self, rank: usize, start: &str) -> Line {
        self.hear_one_of(rank, &[start])
    }

    /// The first line of a rank that begins in one of these ways.
    pub(crate) fn hear_one_of(&mut self, rank: usize, starts: &[&str]) -> Line {
        let began = Instant::now();
        loop {
            let is_it =
                |line: &&Line| line.rank == rank && starts.iter().any(|start| line.text.starts_with(start));
            if let Some(line) = self.heard.iter().find(is_it) {
                return line.clone();
            }
            let left = PATIENCE.saturating_sub(began.elapsed());
            match self.said.recv_timeout(left) {
                Ok(line) => self.heard.push(line),
                Err(error) => {
                    panic!("rank {rank} did not say {starts:?}: {error}; all said {:?}", self.heard)
                }
            }
        }
    }

    pub(crate) fn told(&mut self, rank: usize) -> Told {
        let line = self.hear(rank, "failed ");
        let mut parts = line.text.splitn(4, ' ').skip(1);
        let waited = Duration::from_millis(parts.next().unwrap().parse().unwrap());
        let unchanged = parts.next().unwrap() == "true";
        Told { at: line.at, waited, unchanged, error: parts.next().unwrap().to_owned() }
    }

    /// How long a rank waited before it said that it could not join, and why.
    pub(crate) fn not_joined(&mut self, rank: usize) -> (Duration, String) {
        let line = self.hear(rank, "not joined ");
        let mut parts = line.text.splitn(4, ' ').skip(2);
        let waited = Duration::from_millis(parts.next().unwrap().parse().unwrap());
        (waited, parts.next().unwrap().to_owned())
    }

    /// How long a rank has trained without an error, and its state.
    pub(crate) fn trained(&mut self, rank: usize) -> (Duration, String) {
        let line = self.hear(rank, "trained ");
        let (millis, state) = line.text["trained ".len()..].split_once(' ').unwrap();
        (Duration::from_millis(millis.parse().unwrap()), state.to_owned())
    }

    /// The ranks that are left train on, to the same state.
    pub(crate) fn goes_on(&mut self, survivors: &[usize]) {
        let states: Vec<_> = survivors.iter().map(|rank| self.hear(*rank, "went on ").text).collect();
        assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
    }

    pub(crate) fn kill(&mut self, rank: usize) -> Instant {
        self.ranks[rank].kill().unwrap();
        Instant::now()
    }

    pub(crate) fn stop(&mut self, rank: usize) -> Instant {
        let pid = Pid::from_child(&self.ranks[rank]);
        kill_process(pid, Signal::STOP).unwrap();
        Instant::now()
    }
}

impl Told {
    /// What holds of every error: where it was, that no state was touched by it, and that it came by the deadline.
    pub(crate) fn check(&self, rank: usize, world_size: usize) {
        let place = format!("rank {rank} of {world_size}");
        assert!(self.error.contains(&format!("on {place}")) || self.error.starts_with(&place), "{self:?}");
        assert!(self.unchanged, "{self:?}");
        assert!(self.waited < TIMEOUT + GRACE, "{self:?}");
    }
}

/// No process outlives its test.
impl Drop for Job {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}
