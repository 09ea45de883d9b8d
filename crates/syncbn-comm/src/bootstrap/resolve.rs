//! Names to addresses, without waiting for the resolver.
//!
//! Deliberately not here: a way to stop the system's resolver. It has a thread of its own, which ends when it answers.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use super::Rendezvous;
use crate::deadline::Deadline;

/// A name may be given an address late, or another one.
const AGAIN: Duration = Duration::from_secs(2);

type Answer = Result<Vec<SocketAddr>, String>;

pub(crate) struct Resolver {
    at: Rendezvous,
    asked: Option<Receiver<Answer>>,
    again: Deadline,
    /// What the last answer said, if it was no address.
    pub(crate) failure: Option<String>,
}

impl Resolver {
    pub(crate) fn new(at: &Rendezvous) -> Self {
        let failure = Some(format!("the name {} was not resolved", at.host));
        Self { at: at.clone(), asked: None, again: Deadline::after(Duration::ZERO), failure }
    }

    /// The addresses that have become known since it was asked last.
    pub(crate) fn attend(&mut self) -> Vec<SocketAddr> {
        if let Ok(address) = self.at.host.trim_matches(['[', ']']).parse::<IpAddr>() {
            self.failure = None;
            return vec![SocketAddr::new(address, self.at.port)];
        }
        let answer = match self.asked.as_ref().map(Receiver::try_recv) {
            None => return self.ask(),
            Some(Err(TryRecvError::Empty)) => return Vec::new(),
            Some(Err(TryRecvError::Disconnected)) => Err("its thread ended".into()),
            Some(Ok(answer)) => answer,
        };
        (self.asked, self.again) = (None, Deadline::after(AGAIN));
        match answer {
            Ok(addresses) if !addresses.is_empty() => {
                self.failure = None;
                addresses
            }
            Ok(_) => self.failed("it has no address"),
            Err(reason) => self.failed(&reason),
        }
    }

    fn ask(&mut self) -> Vec<SocketAddr> {
        if !self.again.has_passed() {
            return Vec::new();
        }
        let (sender, receiver) = channel();
        let name = (self.at.host.clone(), self.at.port);
        let look_up = move || {
            let addresses = name.to_socket_addrs().map(Iterator::collect).map_err(|error| error.to_string());
            // The receiver is gone if the deadline has passed.
            let _ = sender.send(addresses);
        };
        match thread::Builder::new().name("syncbn resolver".into()).spawn(look_up) {
            Ok(_) => self.asked = Some(receiver),
            Err(error) => {
                self.again = Deadline::after(AGAIN);
                return self.failed(&error.to_string());
            }
        }
        Vec::new()
    }

    fn failed(&mut self, reason: &str) -> Vec<SocketAddr> {
        self.failure = Some(format!("the name {} was not resolved: {reason}", self.at.host));
        Vec::new()
    }
}
