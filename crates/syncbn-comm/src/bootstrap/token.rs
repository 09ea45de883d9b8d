//! What proves that two processes belong to one job.
//!
//! Deliberately not here: secrecy of what is sent. The token itself never travels; messages carry codes made with it.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The length of an authentication code.
pub(crate) const CODE: usize = 32;

/// What the processes of one job have in common and others do not know: the digest of a secret or of the launcher's job id.
///
/// Processes with different tokens do not meet. A launcher's job id keeps jobs apart that share a port by mistake; only a
/// secret (`SYNCBN_SECRET`) keeps out an attacker.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct JobToken([u8; 32]);

impl JobToken {
    /// The token of a secret that every process of the job is given.
    #[must_use]
    pub fn of_secret(secret: &str) -> Self {
        Self::digest("secret", secret)
    }

    /// The token of a launcher's job id.
    #[must_use]
    pub fn of_job(id: &str) -> Self {
        Self::digest("job", id)
    }

    fn digest(kind: &str, value: &str) -> Self {
        Self(Sha256::new().chain_update(kind).chain_update([0]).chain_update(value).finalize().into())
    }

    /// The authentication code (HMAC-SHA-256) of a message. All parts but the last have a fixed length.
    pub(crate) fn code(&self, parts: &[&[u8]]) -> [u8; CODE] {
        self.mac(parts).finalize().into_bytes().into()
    }

    pub(crate) fn proves(&self, parts: &[&[u8]], code: &[u8]) -> bool {
        self.mac(parts).verify_slice(code).is_ok()
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // HMAC fills a key up to its block with zeros.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.0);
        let keyed = Hmac::<Sha256>::new(&block.into());
        parts.iter().fold(keyed, Mac::chain_update)
    }
}

impl fmt::Debug for JobToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobToken(..)")
    }
}
