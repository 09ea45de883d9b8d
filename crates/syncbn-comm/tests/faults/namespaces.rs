//! A network of its own for each test: every rank in a network namespace, with a cable to a switch in another.
//!
//! Deliberately not here: what is broken in it.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What has to be installed, as whoever runs the tests.
const NEEDS: &str =
    "needs root, network namespaces, and (Debian) `apt-get install iproute2 nftables ethtool`";

pub(crate) struct Network {
    name: String,
    size: usize,
}

impl Network {
    /// A cable to each of so many ranks; or which command failed, and what to install.
    pub(crate) fn new(size: usize) -> Result<Self, String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let network = Self { name: format!("syncbn-{}-{number}", std::process::id()), size };
        network.lay().map_err(|error| format!("{error}; {NEEDS}"))?;
        Ok(network)
    }

    fn lay(&self) -> Result<(), String> {
        let hub = self.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link add switch type bridge"))?;
        ip(&format!("-n {hub} addr add {HUB}/24 dev switch"))?;
        ip(&format!("-n {hub} link set switch up"))?;
        self.ranks().try_for_each(|rank| {
            let place = self.rank(rank);
            ip(&format!("netns add {place}"))?;
            ip(&format!("-n {place} link set lo up"))?;
            ip(&format!("-n {hub} link add port{rank} type veth peer name cable netns {place}"))?;
            ip(&format!("-n {hub} link set port{rank} master switch up"))?;
            ip(&format!("-n {place} addr add {}/24 dev cable", address(rank)))?;
            ip(&format!("-n {place} link set cable up"))
        })?;
        // What the tests use later, so that nothing of it is missing then.
        ["nft", "ethtool"].into_iter().try_for_each(|program| run(program, &["--version"]).map(drop))
    }

    pub(crate) fn ranks(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.size
    }

    /// The switch's namespace.
    pub(crate) fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    /// A rank's namespace.
    pub(crate) fn rank(&self, rank: usize) -> String {
        format!("{}-{rank}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in self.ranks().map(|rank| self.rank(rank)).chain([self.hub()]) {
            // One that was not made need not be deleted.
            let _ = ip(&format!("netns del {place}"));
        }
    }
}

/// The switch's address, on every cable.
pub(crate) const HUB: &str = "10.77.0.254";

/// A rank's address on its cable.
pub(crate) fn address(rank: usize) -> String {
    format!("10.77.0.{}", rank + 1)
}

/// The command that starts a program in a namespace.
pub(crate) fn inside(place: String) -> Vec<String> {
    ["ip", "netns", "exec"].map(String::from).into_iter().chain([place]).collect()
}

/// Runs nft in a namespace.
pub(crate) fn nft(place: &str, command: &str) -> Result<String, String> {
    run("ip", &["netns", "exec", place, "nft", command])
}

/// Runs ip with these words.
pub(crate) fn ip(words: &str) -> Result<(), String> {
    run("ip", &words.split(' ').collect::<Vec<_>>()).map(drop)
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let line = || format!("`{program} {}`", args.join(" "));
    let output = Command::new(program).args(args).output().map_err(|error| format!("{}: {error}", line()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{} failed: {}", line(), String::from_utf8_lossy(&output.stderr).trim()))
}
