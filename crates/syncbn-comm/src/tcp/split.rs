//! Sub-groups by colour and key, each with connections of its own.
//!
//! Deliberately not here: how two members are connected, which is `mesh`'s.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use syncbn_core::{CommError, CommErrorKind};

use super::mesh::{self, MeshError, Plan};
use super::{Member, Members, TcpCommunicator, lock, transport};
use crate::bootstrap::connection::listen_somewhere;
use crate::deadline::Deadline;
use crate::failure::Step;

/// What a rank sends: whether it has a colour, its colour, its key, and the port at which it listens.
type Card = [[u8; 8]; 4];

/// What a rank has sent.
#[derive(Clone, Copy)]
struct Side {
    rank: usize,
    color: Option<u32>,
    key: i64,
    port: u16,
}

impl TcpCommunicator {
    /// Divides the group, as MPI's `MPI_Comm_split`: ranks of one colour form a new group, ordered by key, and by old rank
    /// where keys are equal. A rank without a colour belongs to none and gets `None`.
    ///
    /// Collective: every rank of the group calls it. The new groups have this one's time-out and are otherwise independent
    /// of it and of each other: each can fail, or be left, on its own.
    ///
    /// # Errors
    ///
    /// As a sum's: a rank that does not come, left, or makes another call. This group is then poisoned, and so on every rank.
    pub fn split(&self, color: Option<u32>, key: i64) -> Result<Option<Self>, CommError> {
        let step = Step::Split;
        let mut entered = self.enter(&step)?;
        let links = entered.links()?;
        let timeout = links.timeout();
        let deadline = Deadline::after(timeout);
        let listening = match color.map(|_| listen_somewhere()).transpose() {
            Ok(listening) => listening,
            Err(error) => return Err(links.fail(&step, transport(error))),
        };
        let (listeners, port) = listening.unwrap_or_default();
        let sides: Vec<Side> = {
            let gathered = links.gather(&step, card(color, key, port).into_iter(), || self.outside.take())?;
            gathered.by_rank().enumerate().filter_map(|(rank, card)| side(rank, card)).collect()
        };
        let number = {
            let mut splits = lock(&self.splits);
            *splits += 1;
            *splits
        };
        let Some(color) = color else { return Ok(None) };
        let mut mates: Vec<Side> = sides.into_iter().filter(|side| side.color == Some(color)).collect();
        mates.sort_unstable_by_key(|side| (side.key, side.rank));
        let plan = self.plan(color, number, &mates);
        let made = mesh::connect(&plan, listeners, deadline).and_then(|streams| {
            let rank = mates.iter().position(|side| side.rank == self.rank).unwrap_or(0);
            Ok(Self::assemble(rank, timeout, self.members_of(&plan, &mates), streams)?)
        });
        made.map(Some).map_err(|error| links.fail(&step, self.kind(error, timeout)))
    }

    fn plan(&self, color: u32, number: u64, mates: &[Side]) -> Plan<'_> {
        let code = self.members.token.code(&[
            b"split",
            &self.members.group,
            &number.to_le_bytes(),
            &color.to_le_bytes(),
        ]);
        let own = self.member(self.rank).first_rank;
        let (before, after): (Vec<_>, Vec<_>) = mates
            .iter()
            .map(|side| (self.member(side.rank), side.port))
            .filter(|(member, _)| member.first_rank != own)
            .partition(|(member, _)| member.first_rank < own);
        let dialed = before
            .into_iter()
            .filter_map(|(member, port)| Some((member.first_rank, SocketAddr::new(member.host?, port))));
        let mut awaited: Vec<u64> = after.into_iter().map(|(member, _)| member.first_rank).collect();
        awaited.sort_unstable();
        Plan {
            token: &self.members.token,
            group: code.first_chunk().copied().unwrap_or_default(),
            world_size: self.members.first_size,
            rank: own,
            dialed: dialed.collect(),
            awaited,
        }
    }

    fn members_of(&self, plan: &Plan<'_>, mates: &[Side]) -> Members {
        let list = mates.iter().map(|side| self.member(side.rank)).collect();
        let (token, first_size) = (self.members.token.clone(), self.members.first_size);
        Members { token, group: plan.group, first_size, list }
    }

    fn member(&self, rank: usize) -> Member {
        let nobody = Member { first_rank: u64::MAX, host: None };
        self.members.list.get(rank).cloned().unwrap_or(nobody)
    }

    fn kind(&self, error: MeshError, timeout: std::time::Duration) -> CommErrorKind {
        match error {
            MeshError::System(error) => transport(error),
            MeshError::Missing { missing, .. } => {
                let members = (0..).zip(&self.members.list);
                let ranks: BTreeMap<u64, usize> =
                    members.map(|(rank, member)| (member.first_rank, rank)).collect();
                let missing = missing.iter().filter_map(|first| ranks.get(first).copied()).collect();
                CommErrorKind::Timeout { missing, timeout }
            }
        }
    }
}

fn card(color: Option<u32>, key: i64, port: u16) -> Card {
    let color_or_0 = u64::from(color.unwrap_or(0));
    [
        u64::from(color.is_some()).to_le_bytes(),
        color_or_0.to_le_bytes(),
        key.to_le_bytes(),
        u64::from(port).to_le_bytes(),
    ]
}

fn side(rank: usize, card: &[[u8; 8]]) -> Option<Side> {
    let [has_color, color, key, port] = *card.first_chunk::<4>()?;
    let color = (u64::from_le_bytes(has_color) == 1).then_some(u64::from_le_bytes(color) as u32);
    Some(Side { rank, color, key: i64::from_le_bytes(key), port: u64::from_le_bytes(port) as u16 })
}
