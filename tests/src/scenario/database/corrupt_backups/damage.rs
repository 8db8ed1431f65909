//! What happens to files: bits flip, ends get lost, blocks come back empty or in the wrong place.

use std::fmt;

use rand::Rng;
use rand::rngs::StdRng;

/// Sizes of blocks, in bytes.
const BLOCKS: [usize; 4] = [16, 64, 512, 4096];

/// Most bits that flip at once.
const BITS: usize = 8;

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    BitFlips,
    Truncation,
    ZeroedBlock,
    SwappedBlocks,
}

impl Damage {
    pub const ALL: [Self; 4] = [Self::BitFlips, Self::Truncation, Self::ZeroedBlock, Self::SwappedBlocks];

    /// The file is as long as it was.
    pub fn keeps_the_length(self) -> bool {
        match self {
            Self::BitFlips | Self::ZeroedBlock | Self::SwappedBlocks => true,
            Self::Truncation => false,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::BitFlips => "bit_flips",
            Self::Truncation => "truncations",
            Self::ZeroedBlock => "zeroed_blocks",
            Self::SwappedBlocks => "swapped_blocks",
        }
    }

    /// The bytes with this damage somewhere. Never what they were.
    pub fn to(self, bytes: &[u8], random: &mut StdRng) -> Damaged {
        loop {
            let mut damaged = bytes.to_vec();
            let what = self.once(&mut damaged, random);
            if damaged != bytes {
                return Damaged { bytes: damaged, what };
            }
        }
    }

    fn once(self, bytes: &mut Vec<u8>, random: &mut StdRng) -> String {
        let len = bytes.len();
        match self {
            Self::BitFlips => {
                let flips: Vec<(usize, u32)> = (0..random.random_range(1..=BITS))
                    .map(|_| (random.random_range(0..len), random.random_range(0..8)))
                    .collect();
                for (at, bit) in &flips {
                    bytes[*at] ^= 1 << bit;
                }
                format!("bits flipped at (byte, bit) {flips:?}")
            }
            Self::Truncation => {
                // Half of them lose a little, as by a disk that was full.
                let left = match random.random_bool(0.5) {
                    true => len - random.random_range(1..=64.min(len)),
                    false => random.random_range(0..len),
                };
                bytes.truncate(left);
                format!("{left} of {len} bytes left")
            }
            Self::ZeroedBlock => {
                let (block, at) = block(len, random);
                bytes[at..(at + block).min(len)].fill(0);
                format!("{block} bytes zeroed at {at}")
            }
            Self::SwappedBlocks => {
                let (block, one) = block(len / 2, random);
                let other = random.random_range(one + block..=len - block);
                for n in 0..block {
                    bytes.swap(one + n, other + n);
                }
                format!("{block} bytes swapped at {one} and {other}")
            }
        }
    }
}

/// Size and place of one that lies within `len` bytes.
fn block(len: usize, random: &mut StdRng) -> (usize, usize) {
    let fit: Vec<usize> = BLOCKS.into_iter().filter(|size| *size <= len).collect();
    let size = fit[random.random_range(0..fit.len())];
    (size, random.random_range(0..=len - size))
}

#[derive(Debug)]
pub struct Damaged {
    pub bytes: Vec<u8>,
    what: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::{Damage, StdRng};

    #[test]
    fn damage_always_changes_something_and_is_told_by_its_seed() {
        let bytes: Vec<u8> = (0..9_000_u32)
            .map(|n| if n % 3 == 0 { 0 } else { n.to_le_bytes()[0] })
            .collect();
        for seed in 0..200 {
            for damage in Damage::ALL {
                let damaged = damage.to(&bytes, &mut StdRng::seed_from_u64(seed));
                assert_ne!(damaged.bytes, bytes);
                assert_eq!(
                    damaged.bytes.len() == bytes.len(),
                    damage.keeps_the_length(),
                    "{damaged}"
                );
                let again = damage.to(&bytes, &mut StdRng::seed_from_u64(seed));
                assert_eq!(damaged.bytes, again.bytes);
            }
        }
    }
}
