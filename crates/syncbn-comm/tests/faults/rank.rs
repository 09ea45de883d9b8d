//! What a started process does: it trains two layers, meets its fault, says what it was told, and trains on in a new group.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ndarray::Array2;
use syncbn_comm::{BootstrapError, LaunchEnv, TcpCommunicator};
use syncbn_core::{
    Config, Element, Error, Group, HostCommunicator as _, Kernels, Param, SavedStatistics, SyncBatchNorm,
    ViaHost,
};
use syncbn_cpu::{Cpu, backward_array, forward_array};

use crate::job::{AT, FAULTY, JOIN_WITHIN, NEXT_PORT, STEPS, SURVIVORS, TIMEOUT};

const CHANNELS: usize = 3;
/// More than the system keeps for a peer that does not read.
const LONG: usize = 16_000_000;

type Norm<P> = SyncBatchNorm<Cpu, P>;

pub(crate) fn train(fault: &str) {
    let env = match LaunchEnv::from_env() {
        Ok(env) => env,
        Err(error) => return say(&format!("not joined 0 {error}")),
    };
    if env.rank == FAULTY && fault == "another type" {
        run::<f64>(&env, fault);
    } else {
        run::<f32>(&env, fault);
    }
}

fn run<T: Element>(env: &LaunchEnv, fault: &str)
where
    Cpu: Kernels<T>,
{
    let began = Instant::now();
    let communicator = match join(env) {
        Ok(communicator) => communicator,
        Err(error) => return say(&format!("not joined {} {error}", began.elapsed().as_millis())),
    };
    let mine = if env.rank == FAULTY { fault } else { "" };
    let config = match mine {
        "other channels" => Config::new(CHANNELS + 1),
        "another eps" => Config::new(CHANNELS).with_eps(1e-3),
        _ => Config::new(CHANNELS),
    };
    let group = group_of(&communicator);
    let one = layer("one", Config::new(CHANNELS), &group);
    let mut model = Model::<T>::new(one, config, group, communicator);
    let steps = std::env::var(STEPS).map_or(99, |steps| steps.parse().unwrap());
    let began = Instant::now();
    let failed = (0..AT).find_map(|step| model.step(step).err());
    let failed = failed
        .or_else(|| meet(&mut model, fault))
        .or_else(|| (AT + 1..steps).find_map(|step| model.step(step).err()));
    let Some(Failed { waited, unchanged, error }) = failed else {
        return say(&format!("trained {} {}", began.elapsed().as_millis(), model.state()));
    };
    say(&format!("failed {} {unchanged} {error}", waited.as_millis()));
    say(&format!("afterwards {}", clock()));
    go_on(env, model.one);
}

/// The step with the fault.
fn meet<T: Element>(model: &mut Model<T>, fault: &str) -> Option<Failed>
where
    Cpu: Kernels<T>,
{
    say(&format!("at the fault {}", clock()));
    let faulty = model.rank == FAULTY;
    match fault {
        "panics" if faulty => panic!("a rank's own mistake"),
        "returns" if faulty => std::process::exit(leave(model)),
        "idles" if faulty => thread::sleep(Duration::from_secs(600)),
        "sleeps past the deadline" if faulty => thread::sleep(TIMEOUT + Duration::from_millis(1500)),
        "waits for the test" => wait_for_the_test(),
        "others are late" if !faulty && model.rank == 2 => thread::sleep(Duration::from_secs(1)),
        "sends" => {
            if model.rank == 2 {
                thread::sleep(Duration::from_secs(1));
            }
            return send(model, LONG);
        }
        "waits for the test, and sends" => {
            wait_for_the_test();
            return send(model, LONG / 8);
        }
        "uses up its descriptors" => {
            let null = || File::open("/dev/null").ok();
            let used_up: Vec<File> = if faulty { std::iter::from_fn(null).collect() } else { Vec::new() };
            let failed = model.step(AT).err().or_else(|| split(model));
            drop(used_up);
            return failed;
        }
        "skips a step" if faulty => return None,
        "skips a layer" if faulty => {
            model.group.set_step(AT);
            let skip = |model: &mut Model<T>| {
                let (x, saved) = model.guarded(|model| model.first(AT))?;
                model.guarded(|model| backward(&mut model.one, &saved, &x))
            };
            return skip(model).err();
        }
        "swaps two layers" if faulty => {
            model.group.set_step(AT);
            return model.guarded(|model| model.second(AT).map(drop)).err();
        }
        "calls backward" if faulty => {
            let (x, saved) = model.kept.take().unwrap();
            model.group.set_step(AT);
            return model.guarded(|model| backward(&mut model.one, &saved, &x)).err();
        }
        _ => {}
    }
    model.step(AT).err()
}

fn wait_for_the_test() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// A sum of so many numbers.
fn send<T: Element>(model: &mut Model<T>, length: usize) -> Option<Failed>
where
    Cpu: Kernels<T>,
{
    let (mut numbers, group) = (vec![1.0_f64; length], model.group.clone());
    let sum = |_: &mut Model<T>| {
        group.all_reduce("long", &Cpu, &(), &mut numbers[..]).map_err(|error| error.to_string())
    };
    model.guarded(sum).err()
}

fn split<T: Element>(model: &mut Model<T>) -> Option<Failed>
where
    Cpu: Kernels<T>,
{
    let communicator = model.communicator.clone().unwrap();
    model.guarded(|_| communicator.split(Some(0), 0)).err()
}

/// Ends the rank as its program would: everything it has is dropped.
fn leave<T: Element>(model: &mut Model<T>) -> i32 {
    let alone = Group::<Cpu>::new(syncbn_core::SingleRank);
    model.one.set_group(alone.clone());
    model.two.set_group(alone.clone());
    model.group = alone;
    model.communicator = None;
    0
}

/// A new group of the ranks that are left.
fn go_on(env: &LaunchEnv, mut one: Norm<f32>) {
    let survivors = std::env::var(SURVIVORS).unwrap();
    let ranks: Vec<usize> = survivors.split(',').map(|rank| rank.parse().unwrap()).collect();
    let Some(rank) = ranks.iter().position(|rank| *rank == env.rank) else { return };
    let mut next = LaunchEnv { rank, ..env.clone() };
    next.world_size = ranks.len().try_into().unwrap();
    next.rendezvous.port = std::env::var(NEXT_PORT).unwrap().parse().unwrap();
    let communicator = join(&next).unwrap();
    let group = group_of(&communicator);
    one.set_group(group.clone());
    let mut model = Model::<f32>::new(one, Config::new(CHANNELS), group, communicator);
    for step in 0..3 {
        assert!(model.step(step).is_ok(), "the new group fails");
    }
    say(&format!("went on {}", model.state()));
}

fn join(env: &LaunchEnv) -> Result<Arc<TcpCommunicator>, BootstrapError> {
    let within = Duration::from_millis(std::env::var(JOIN_WITHIN).unwrap().parse().unwrap());
    Ok(Arc::new(TcpCommunicator::new(env, within)?.with_timeout(TIMEOUT)))
}

fn group_of(communicator: &Arc<TcpCommunicator>) -> Group<Cpu> {
    Group::new(ViaHost(Arc::clone(communicator)))
}

fn layer<P: Param>(name: &str, config: Config, group: &Group<Cpu>) -> Norm<P> {
    SyncBatchNorm::new(name, config, Cpu, &(), group.clone()).unwrap()
}

fn forward(one: &mut Norm<f32>, x: &Array2<f32>) -> Result<SavedStatistics<Cpu>, Error> {
    forward_array(one, x).map(|(_, saved)| saved)
}

fn backward(one: &mut Norm<f32>, saved: &SavedStatistics<Cpu>, x: &Array2<f32>) -> Result<(), Error> {
    backward_array(one, saved, x, x).map(drop)
}

/// A call that failed: how long it took, and whether the layers' state is what it was before.
struct Failed {
    waited: Duration,
    unchanged: bool,
    error: String,
}

struct Model<T: Element> {
    one: Norm<f32>,
    two: Norm<T::Param>,
    group: Group<Cpu>,
    /// None once the rank has left.
    communicator: Option<Arc<TcpCommunicator>>,
    rank: usize,
    /// What the first layer's last forward pass read and saved.
    kept: Option<(Array2<f32>, SavedStatistics<Cpu>)>,
}

impl<T: Element> Model<T>
where
    Cpu: Kernels<T>,
{
    fn new(one: Norm<f32>, config: Config, group: Group<Cpu>, communicator: Arc<TcpCommunicator>) -> Self {
        let (two, rank) = (layer("two", config, &group), communicator.rank());
        Self { one, two, group, communicator: Some(communicator), rank, kept: None }
    }

    fn step(&mut self, step: u64) -> Result<(), Failed> {
        self.group.set_step(step);
        let (x, saved) = self.guarded(|model| model.first(step))?;
        self.guarded(|model| model.second(step))?;
        self.guarded(|model| backward(&mut model.one, &saved, &x))?;
        self.kept = Some((x, saved));
        Ok(())
    }

    fn first(&mut self, step: u64) -> Result<(Array2<f32>, SavedStatistics<Cpu>), Error> {
        let x =
            Array2::from_shape_fn((2 + self.rank, CHANNELS), |(n, c)| (n * 5 + c * 3 + step as usize) as f32);
        let saved = forward(&mut self.one, &x)?;
        Ok((x, saved))
    }

    fn second(&mut self, step: u64) -> Result<(), Error> {
        let channels = self.two.config().channels;
        let value = |(n, c)| T::from_f64((n * 2 + c + self.rank) as f64 + step as f64 / 8.0);
        let x = Array2::from_shape_fn((3, channels), value);
        let (y, saved) = forward_array(&mut self.two, &x)?;
        backward_array(&mut self.two, &saved, &x, &y).map(drop)
    }

    fn guarded<R, E: ToString>(&mut self, call: impl FnOnce(&mut Self) -> Result<R, E>) -> Result<R, Failed> {
        let (before, began) = (self.state(), Instant::now());
        call(self).map_err(|error| {
            let waited = began.elapsed();
            Failed { waited, unchanged: self.state() == before, error: error.to_string() }
        })
    }

    /// Every bit of it: numbers print as what they are read back from.
    fn state(&mut self) -> String {
        format!("{:?} {:?}", self.one.state(&()).unwrap(), self.two.state(&()).unwrap())
    }
}

/// What the wall clock shows, in seconds.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A test that has ended listens no more.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
