//! How ranks find each other's memory: what each has to offer, and whether all of them reach all.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use syncbn_core::{CollectiveId, CommError, CommErrorKind, Communicator, Numbers, Storage};

use super::direct::{Direct, Link, inbox_bytes};
use super::token::Peers;
use crate::device::Cuda;
use crate::error::CudaError;
use crate::meet::{self, Meet};
use crate::raw::params::MOST_RANKS;
use crate::raw::peers::{Handle, Inbox, Mapped};
use crate::raw::transfer;

/// Why ranks do not meet inside their kernels: as this rank knows it, or as others have said.
pub(super) type Joined = Result<Arc<Direct>, String>;

/// Makes the group's memory, over the communicator that joins the ranks already. Collective; all ranks come to the same answer.
pub(super) fn join(
    cuda: &Cuda,
    over: &dyn Communicator<Cuda>,
    timeout: Duration,
) -> Result<Joined, CommError> {
    let ranks = over.world_size().get();
    if ranks == 1 {
        return Ok(Err("there is one rank".into()));
    }
    if ranks > MOST_RANKS {
        return Ok(Err(format!("there are {ranks} ranks, and {MOST_RANKS} at most meet inside kernels")));
    }
    // A rank that fails says so, and comes to every question all the same.
    let mine = Inbox::new(cuda.context(), inbox_bytes(ranks));
    let mut card = mine.as_ref().map_or(Card::NOTHING, |inbox| Card::of(cuda, inbox.id));
    let mut cards = gather(cuda, over, "cards", card)?;
    if let Ok(inbox) = &mine
        && cards.iter().any(|other| other.process != card.process)
    {
        card.handle = inbox.export().unwrap_or(NO_HANDLE);
    }
    if cards.iter().any(|card| card.process != cards[0].process) {
        cards = gather(cuda, over, "handles", card)?;
    }
    let direct = mine.map_err(|error| error.to_string()).and_then(|mine| {
        let links = links(cuda, &mine, &cards)?;
        Direct::new(cuda, over.rank(), timeout, mine, links).map(Arc::new).map_err(|error| error.to_string())
    });
    let direct = agree(cuda, over, "reach", direct)?;
    let proven = direct.and_then(|direct| prove(&direct).map(|()| direct));
    agree(cuda, over, "proof", proven)
}

/// What a rank tells the others of itself. It goes through sums of f64, a number for each byte.
#[derive(Clone, Copy)]
struct Card {
    host: u64,
    process: u64,
    device: [u8; 16],
    /// Its number in its process, from 1; 0 where there is none.
    inbox: u64,
    /// For other processes.
    handle: Handle,
}

/// The driver refuses to open it.
const NO_HANDLE: Handle = [0; 64];
const WORDS: usize = size_of::<Card>();

impl Card {
    const NOTHING: Self = Self { host: 0, process: 0, device: [0; 16], inbox: 0, handle: NO_HANDLE };

    fn of(cuda: &Cuda, inbox: u64) -> Self {
        static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("process"));
        let device =
            cuda.context().uuid().map_or([0; 16], |uuid| uuid.bytes.map(|byte| byte.to_ne_bytes()[0]));
        Self { host: host(), process: *PROCESS, device, inbox, handle: NO_HANDLE }
    }

    fn words(&self) -> Vec<f64> {
        let Self { host, process, device, inbox, handle } = self;
        let numbers = [&host.to_le_bytes(), &process.to_le_bytes()[..], &inbox.to_le_bytes()].concat();
        [&numbers, &device[..], handle].concat().into_iter().map(f64::from).collect()
    }

    fn from_words(words: &[f64]) -> Self {
        #[expect(clippy::cast_sign_loss, reason = "each was a byte")]
        let mut bytes = words.iter().map(|word| *word as u8);
        let mut number = || u64::from_le_bytes(take(&mut bytes));
        let (host, process, inbox) = (number(), number(), number());
        Self { host, process, inbox, device: take(&mut bytes), handle: take(&mut bytes) }
    }
}

fn take<const N: usize>(bytes: &mut impl Iterator<Item = u8>) -> [u8; N] {
    std::array::from_fn(|_| bytes.next().unwrap_or_default())
}

/// Which host this is: its kernel's boot, where the kernel tells; none else.
fn host() -> u64 {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn links(cuda: &Cuda, mine: &Arc<Inbox>, cards: &[Card]) -> Result<Vec<Link>, String> {
    let own = Card::of(cuda, mine.id);
    let link = |(rank, card): (usize, &Card)| {
        let failed = |error: CudaError| format!("the memory of rank {rank} is out of reach: {error}");
        if card.inbox == 0 {
            return Err(format!("rank {rank} has no memory to offer"));
        }
        if card.host != own.host {
            return Err(format!("rank {rank} is on another host"));
        }
        if card.inbox == own.inbox && card.process == own.process {
            return Ok(Link::Shared(Arc::clone(mine)));
        }
        if card.device == own.device {
            return Err(format!("rank {rank} is on the same device"));
        }
        if card.process != own.process {
            return Mapped::open(cuda.context(), &card.handle).map(Link::Mapped).map_err(failed);
        }
        let inbox = Inbox::find(card.inbox).ok_or_else(|| format!("rank {rank} has left"))?;
        inbox.open_to(cuda.context()).map_err(failed)?;
        Ok(Link::Shared(inbox))
    };
    cards.iter().enumerate().map(link).collect()
}

/// A first meeting: packets go both ways between all ranks.
fn prove(direct: &Arc<Direct>) -> Result<(), String> {
    let cuda = &direct.cuda;
    let params = direct.params(&CollectiveId::new("(a new group)", 0));
    let peers = Peers { direct: Arc::clone(direct), params };
    let queue = cuda.context().default_stream();
    let met =
        cuda.open_queue(&queue).and_then(|queue| meet::enqueue(cuda, queue, &peers, Meet::SendsAndReceives));
    met.map_err(|error| error.to_string())?;
    queue.synchronize().map_err(|error| error.to_string())?;
    direct.failure().map_or(Ok(()), |failure| Err(failure.to_string()))
}

/// Whether all ranks have succeeded.
fn agree<T>(
    cuda: &Cuda,
    over: &dyn Communicator<Cuda>,
    what: &str,
    result: Result<T, String>,
) -> Result<Result<T, String>, CommError> {
    let failed = sum(cuda, over, what, vec![f64::from(u8::from(result.is_err()))])?;
    Ok(match result {
        Ok(_) if failed != [0.0] => Err("another rank cannot reach all others".into()),
        result => result,
    })
}

/// Every rank's card, as a sum of which each rank has filled in its own part.
fn gather(
    cuda: &Cuda,
    over: &dyn Communicator<Cuda>,
    what: &str,
    card: Card,
) -> Result<Vec<Card>, CommError> {
    let mut words = vec![0.0; WORDS * over.world_size().get()];
    words[WORDS * over.rank()..][..WORDS].copy_from_slice(&card.words());
    let words = sum(cuda, over, what, words)?;
    Ok(words.chunks(WORDS).map(Card::from_words).collect())
}

fn sum(
    cuda: &Cuda,
    over: &dyn Communicator<Cuda>,
    what: &str,
    mut values: Vec<f64>,
) -> Result<Vec<f64>, CommError> {
    let queue = cuda.context().default_stream();
    let unsent = |error: CudaError| CommError {
        rank: over.rank(),
        world_size: over.world_size().get(),
        call: None,
        late: false,
        kind: CommErrorKind::Unsent(Arc::new(error)),
    };
    let mut buffer = cuda.upload(&queue, &values).map_err(unsent)?;
    let id = CollectiveId::new(format!("(a new group's {what})"), values.len());
    over.sum_numbers(&id, cuda, &queue, Numbers::F64(buffer.mem_mut()))?;
    transfer::read(&queue, &buffer.mem(), &mut values).map_err(unsent)?;
    Ok(values)
}
